-- A journal of user_version 1, with a finished run of two VMs: every later release reads it.
BEGIN TRANSACTION;
CREATE TABLE coordinator (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL);
INSERT INTO "coordinator" VALUES(1,1);
CREATE TABLE event (
        run_id INTEGER NOT NULL REFERENCES run (id),
        seq INTEGER NOT NULL,
        kind TEXT NOT NULL,
        at_ns INTEGER NOT NULL,
        step INTEGER,
        data TEXT NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) WITHOUT ROWID;
INSERT INTO "event" VALUES(1,1,'state',0,NULL,'{"to": "running", "reason": ""}');
INSERT INTO "event" VALUES(1,2,'intent',0,0,'{}');
INSERT INTO "event" VALUES(1,3,'outcome',0,0,'{"pid": 5010, "took_s": 0.0}');
INSERT INTO "event" VALUES(1,4,'intent',0,1,'{}');
INSERT INTO "event" VALUES(1,5,'outcome',0,1,'{"flows": 2, "neighbours": 1, "took_s": 0.0}');
INSERT INTO "event" VALUES(1,6,'intent',0,2,'{}');
INSERT INTO "event" VALUES(1,7,'outcome',0,2,'{"chardev": "hotup-b-hostnet0", "took_s": 0.0}');
INSERT INTO "event" VALUES(1,8,'intent',0,3,'{}');
INSERT INTO "event" VALUES(1,9,'outcome',0,3,'{"chardev": "hotup-b-hostnet0", "took_s": 0.0}');
INSERT INTO "event" VALUES(1,10,'intent',0,4,'{}');
INSERT INTO "event" VALUES(1,11,'outcome',0,4,'{"rules": 2, "took_s": 0.0}');
INSERT INTO "event" VALUES(1,12,'intent',0,5,'{}');
INSERT INTO "event" VALUES(1,13,'outcome',200000000,5,'{"move": {"vm": "vm0/vhu0", "mac": "52:54:00:00:00:00", "from_slot": "a", "to_slot": "b", "generation": 1, "blackout_us": 713.0, "quiesce_us": 300.0, "index_us": 3.0, "activate_us": 400.0, "notify_us": 10.0, "command_us": 0.0, "started_at_ns": 0, "ended_at_ns": 0, "over_budget": false, "undone": false}, "took_s": 0.2}');
INSERT INTO "event" VALUES(1,14,'intent',200000000,6,'{}');
INSERT INTO "event" VALUES(1,15,'outcome',200000000,6,'{"move": {"vm": "vm1/vhu1", "mac": "52:54:00:00:00:01", "from_slot": "a", "to_slot": "b", "generation": 1, "blackout_us": 713.0, "quiesce_us": 300.0, "index_us": 3.0, "activate_us": 400.0, "notify_us": 10.0, "command_us": 0.0, "started_at_ns": 200000000, "ended_at_ns": 200000000, "over_budget": false, "undone": false}, "took_s": 0.0}');
INSERT INTO "event" VALUES(1,16,'intent',200000000,7,'{}');
INSERT INTO "event" VALUES(1,17,'outcome',200000000,7,'{"moves": [], "took_s": 0.0}');
INSERT INTO "event" VALUES(1,18,'intent',200000000,8,'{}');
INSERT INTO "event" VALUES(1,19,'outcome',200000000,8,'{"took_s": 0.0}');
INSERT INTO "event" VALUES(1,20,'intent',200000000,9,'{}');
INSERT INTO "event" VALUES(1,21,'outcome',600000000,9,'{"moves": [], "took_s": 0.4}');
INSERT INTO "event" VALUES(1,22,'intent',600000000,10,'{}');
INSERT INTO "event" VALUES(1,23,'outcome',600000000,10,'{"took_s": 0.0}');
INSERT INTO "event" VALUES(1,24,'state',600000000,NULL,'{"to": "done", "reason": ""}');
CREATE TABLE run (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        heading TEXT NOT NULL,
        plan TEXT NOT NULL,
        state TEXT NOT NULL,
        changed_at_ns INTEGER NOT NULL
    );
INSERT INTO "run" VALUES(1,'{"run_id": 0, "plan_id": "037b9b97b133", "host": "h1", "source": "a", "target": "b", "from_version": "3.1.0", "to_version": "3.1.0", "strategy": "per-vm-dual", "steps": [{"kind": "start-standby", "title": "start the switch of slot b (3.1.0) beside a", "vm": null}, {"kind": "replicate", "title": "copy OpenFlow state and neighbours from a to b, and compare", "vm": null}, {"kind": "attach-standby", "title": "vm0/vhu0: connect slot b, parked", "vm": "vm0/vhu0"}, {"kind": "attach-standby", "title": "vm1/vhu1: connect slot b, parked", "vm": "vm1/vhu1"}, {"kind": "open-window", "title": "a steering rule for each VM, to the switch that serves it", "vm": null}, {"kind": "move-vm", "title": "vm0/vhu0: a -> b, the canary", "vm": "vm0/vhu0"}, {"kind": "move-vm", "title": "vm1/vhu1: a -> b", "vm": "vm1/vhu1"}, {"kind": "catch-up", "title": "VMs that came meanwhile: a -> b", "vm": null}, {"kind": "close-window", "title": "all overlay traffic to b", "vm": null}, {"kind": "soak", "title": "watch slot b for 0.4 s", "vm": null}, {"kind": "retire", "title": "retire slot a (3.1.0)", "vm": null}], "started_at_ns": 0, "generation": 1}','{"id":"037b9b97b133","host":"h1","source":"a","target":"b","from_version":"3.1.0","to_version":"3.1.0","strategy":"per-vm-dual","loses":"per VM what arrives during the hand-over itself, about a millisecond; between two VMs, what is sent while they are on different switches","ports":[{"domain":"vm0","domain_uuid":"00000000-0000-0000-0000-000000000000","mac":"52:54:00:00:00:00","socket":"/run/vm0.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu0","ofport":10,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},{"domain":"vm1","domain_uuid":"00000000-0000-0000-0000-000000000001","mac":"52:54:00:00:00:01","socket":"/run/vm1.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu1","ofport":11,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}}],"all_ports":[{"domain":"vm0","domain_uuid":"00000000-0000-0000-0000-000000000000","mac":"52:54:00:00:00:00","socket":"/run/vm0.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu0","ofport":10,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},{"domain":"vm1","domain_uuid":"00000000-0000-0000-0000-000000000001","mac":"52:54:00:00:00:01","socket":"/run/vm1.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu1","ofport":11,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}}],"bindings":[{"interface":"vhu0","ofport":10,"socket":"/run/simulated/b/vhost/vhu0","origin":"/run/vm0.sock","chardev":"hotup-b-hostnet0","fresh":true},{"interface":"vhu1","ofport":11,"socket":"/run/simulated/b/vhost/vhu1","origin":"/run/vm1.sock","chardev":"hotup-b-hostnet0","fresh":true}],"steps":[{"kind":"start-standby","title":"start the switch of slot b (3.1.0) beside a","port":null,"canary":false},{"kind":"replicate","title":"copy OpenFlow state and neighbours from a to b, and compare","port":null,"canary":false},{"kind":"attach-standby","title":"vm0/vhu0: connect slot b, parked","port":{"domain":"vm0","domain_uuid":"00000000-0000-0000-0000-000000000000","mac":"52:54:00:00:00:00","socket":"/run/vm0.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu0","ofport":10,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},"canary":false},{"kind":"attach-standby","title":"vm1/vhu1: connect slot b, parked","port":{"domain":"vm1","domain_uuid":"00000000-0000-0000-0000-000000000001","mac":"52:54:00:00:00:01","socket":"/run/vm1.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu1","ofport":11,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},"canary":false},{"kind":"open-window","title":"a steering rule for each VM, to the switch that serves it","port":null,"canary":false},{"kind":"move-vm","title":"vm0/vhu0: a -> b, the canary","port":{"domain":"vm0","domain_uuid":"00000000-0000-0000-0000-000000000000","mac":"52:54:00:00:00:00","socket":"/run/vm0.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu0","ofport":10,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},"canary":true},{"kind":"move-vm","title":"vm1/vhu1: a -> b","port":{"domain":"vm1","domain_uuid":"00000000-0000-0000-0000-000000000001","mac":"52:54:00:00:00:01","socket":"/run/vm1.sock","netdev":"hostnet0","chardev":"charnet0","interface":"vhu1","ofport":11,"vni":100,"ownership":{"owner":"charnet0","owner_connected":true,"owner_pid":1001,"generation":0,"standby":null,"in_doubt":false,"rings":[]}},"canary":false},{"kind":"catch-up","title":"VMs that came meanwhile: a -> b","port":null,"canary":false},{"kind":"close-window","title":"all overlay traffic to b","port":null,"canary":false},{"kind":"soak","title":"watch slot b for 0.4 s","port":null,"canary":false},{"kind":"retire","title":"retire slot a (3.1.0)","port":null,"canary":false}],"findings":[],"policy":{"blackout_budget_us":20000,"canary_check_s":0.2,"soak_s":0.4,"on_failure":"back","keep_old":false}}','done',600000000);
COMMIT;
PRAGMA user_version = 1;
