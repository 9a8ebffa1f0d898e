"""The daemons of a slot."""

from __future__ import annotations

import re
import select
from pathlib import Path

from tests.support.contracts.rig import Rig, a_pid_that_is_none, refused
from tests.support.switch import eventually


class ProcessesContract:
    def test_a_slot_in_which_nothing_runs(self, rig: Rig) -> None:
        rig.stop()
        processes, standby = rig.host.processes, rig.standby
        status = processes.status(standby)
        assert (status.vswitchd_pid, status.ovsdb_pid) == (None, None)
        assert processes.running_version(standby) is None
        assert processes.watch(standby) is None
        assert processes.probe(standby) is None
        for _again in range(2):
            processes.stop(standby)
            processes.kill_switch(standby)
            assert processes.fence(standby) == frozenset()
        for ask in (processes.polled_queues, lambda slot: processes.log_vhost_messages(slot, on=True)):
            with refused():
                ask(standby)
        assert processes.status(rig.active) == rig.host.processes.status(rig.active)

    def test_a_slot_that_runs(self, rig: Rig) -> None:
        processes, active = rig.host.processes, rig.active
        status = processes.status(active)
        assert status.vswitchd_pid
        assert status.ovsdb_pid
        assert status.vswitchd_pid != status.ovsdb_pid
        assert processes.running_version(active) == processes.installed_version(active)
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", processes.installed_version(active) or "")
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", processes.dpdk_version(active) or "")
        queues = processes.polled_queues(active)
        assert all(queues[p.interface] >= 1 for p in rig.vm_ports())
        assert queues[active.uplink] >= 1
        for on in (False, True):
            processes.log_vhost_messages(active, on=on)

    def test_a_database_is_started_once_and_keeps_what_is_in_its_file(self, rig: Rig) -> None:
        rig.start_database()
        processes, database, active, standby = rig.host.processes, rig.host.database, rig.active, rig.standby
        pid = processes.status(standby).ovsdb_pid
        with refused("SLOT_BUSY"):
            processes.start_database(standby)
        assert processes.status(standby).ovsdb_pid == pid
        assert processes.status(standby).vswitchd_pid is None
        database.sync(active, standby, rig.bindings(), applied=False)
        before = database.read(standby)
        processes.stop(standby)
        assert processes.start_database(standby) != pid
        assert database.read(standby) == before

    def test_a_switch_that_is_killed_leaves_its_database(self, rig: Rig) -> None:
        rig.start()
        processes, standby = rig.host.processes, rig.standby
        before = processes.status(standby)
        for _again in range(2):
            processes.kill_switch(standby)
            assert processes.status(standby).vswitchd_pid is None
        assert processes.status(standby).ovsdb_pid == before.ovsdb_pid
        assert processes.running_version(standby) is None
        assert processes.start_switch(standby) == processes.status(standby).vswitchd_pid != before.vswitchd_pid
        assert rig.host.openflow.flows(standby, "br-int") == (), "what controllers had taught it went with it"

    def test_a_death_is_told_of(self, rig: Rig) -> None:
        rig.start()
        processes, standby = rig.host.processes, rig.standby
        watch, probe = processes.watch(standby), processes.probe(standby)
        assert watch is not None
        assert probe is not None
        try:
            assert not select.select([watch], [], [], 0.05)[0]
            assert probe.pulse() is not None
            processes.kill_switch(standby)
            assert select.select([watch], [], [], 5)[0]
            eventually(watch.died, "the watch to tell of it")
            eventually(lambda: probe.pulse() is None, "the probe to find nobody")
        finally:
            watch.close()
            probe.close()

    def test_a_fence_proves_who_is_harmless_and_leaves_others_alone(self, rig: Rig) -> None:
        rig.start()
        processes, standby = rig.host.processes, rig.standby
        pid, other, gone = rig.pid(standby), rig.pid(rig.active), a_pid_that_is_none()
        for _again in range(2):
            assert processes.fence(standby, [pid, other, gone]) == {pid, gone}
        assert rig.pid(rig.active) == other
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the kernel to clear the process away")
        assert processes.status(standby).vswitchd_pid is None
        assert processes.status(standby).ovsdb_pid is not None
