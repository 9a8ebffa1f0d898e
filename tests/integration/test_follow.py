"""A standby kept in step with a real switch by its monitor: writers, a monitor that is lost, another schema."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.slots import SlotFactory, carry_out, context_of, ofctl, vsctl
from tests.support.switch import eventually
from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.errors import HostError, StepError
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.steps import Context, replication

pytestmark = pytest.mark.integration
SCHEMA = "share/openvswitch/vswitch.ovsschema"


@pytest.fixture(name="context")
def context_fixture(tmp_path: Path) -> Iterator[Context]:
    with SlotFactory(tmp_path / "slots") as factory:
        a = factory.start("a")
        vsctl(a, "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail_mode=secure")
        b = factory.start_standby("b", a)
        for slot in (a, b):
            gate.run(["ip", "link", "set", "br-int", "up"], netns=slot.netns)
        yield context_of(tmp_path, *(replace(s, uplink="br-int") for s in (a, b)))


def add_port(slot: Slot, name: str) -> None:
    vsctl(slot, "add-port", "br-int", name, "--", "set", "interface", name, "type=internal")


def test_ports_that_come_and_go_are_followed_by_the_monitor(context: Context) -> None:
    a, b = context.source, context.target
    database = Ovsdb()

    def round_() -> tuple[str, ...]:
        return database.sync(a, b, (), applied=False).changes

    round_()
    assert round_() == ()
    add_port(a, "p1")
    eventually(lambda: round_() or "p1" in vsctl(b, "list-ports", "br-int"), "p1 to come over")
    eventually(lambda: vsctl(b, "get", "interface", "p1", "ofport").strip() == "1", "the switch to take it")
    for number in range(20):
        vsctl(a, "--", "add-port", "br-int", f"q{number}", "--", "set", "interface", f"q{number}", "type=internal",
              "--", "--if-exists", "del-port", f"q{number - 1}")  # fmt: skip
        round_()
    eventually(lambda: not round_(), "the follower to come to rest")
    assert set(vsctl(b, "list-ports", "br-int").split()) == {"p1", "q19"}
    assert Ovsdb().differences(a, b, ()) == ()


def test_a_writer_at_work_is_followed_and_both_end_equal(context: Context) -> None:
    a, b = context.source, context.target
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            ofctl(a, "add-flow", "br-int", f"table={number % 5},priority={number % 900},ip actions=drop")
            if number % 10 == 0:
                ofctl(a, "del-flows", "br-int", f"table={number % 3}")
                add_port(a, f"w{number}")

    writer = threading.Thread(target=write)
    writer.start()
    following = replication.Following(every_s=0.2)
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert following.poll(context).failure is None
            time.sleep(0.1)
        carry_out(context, StepKind.PROVE)  # equal but for what is on its way
    finally:
        stop.set()
        writer.join()
    carry_out(context, StepKind.REPLICATE)
    assert replication.differences(context, a, b) == ()


def test_groups_that_come_and_go_with_their_flows_stop_no_round(context: Context) -> None:
    """Flows and groups are read one after the other: a flow whose group has gone meanwhile is in no switch any more."""
    a, b = context.source, context.target
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number = number % 50 + 1
            ofctl(a, "add-group", "br-int", f"group_id={number},type=all,bucket=actions=drop")
            ofctl(a, "add-flow", "br-int", f"table=6,priority={number},ip actions=group:{number}")
            ofctl(a, "del-groups", "br-int", f"group_id={number}")

    writer = threading.Thread(target=write)
    writer.start()
    following = replication.Following(every_s=0.0)
    try:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            assert following.poll(context).failure is None
    finally:
        stop.set()
        writer.join()
    replication.follow(context, a, b)
    assert replication.differences(context, a, b) == ()


def test_a_monitor_that_is_lost_is_said_and_no_vm_is_moved_on_it(context: Context) -> None:
    a = context.source
    following = replication.Following(every_s=0.1)
    assert following.poll(context).stale(context.host.clock.monotonic_s(), 5.0) is None
    _restart_database(a, lambda: eventually(lambda: following.poll(context).failure, "the loss to be seen"))
    stale = following.in_step.stale(context.host.clock.monotonic_s(), 5.0)
    assert stale
    assert "MONITOR_LOST" in stale or "DATABASE_UNREACHABLE" in stale
    eventually(lambda: following.poll(context).failure is None, "the follower to find back")


def _restart_database(slot: Slot, meanwhile: object) -> None:
    """End the slot's ovsdb-server, do something, and start it again on the same file."""
    import os
    import signal

    pid = SlotProcesses().status(slot).ovsdb_pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: SlotProcesses().status(slot).ovsdb_pid is None, "the database to end")
    meanwhile()  # type: ignore[operator]
    SlotProcesses().start_database(slot)


def test_what_either_switch_learned_the_other_knows_while_a_host_is_half_moved(context: Context) -> None:
    a, b = context.source, context.target
    add_port(a, "p1")
    replication.keep_up(context)
    SlotProcesses().appctl(a, "tnl/neigh/set", "br-int", "10.9.0.2", "02:00:00:00:00:02")
    SlotProcesses().appctl(b, "tnl/neigh/set", "br-int", "10.9.0.3", "02:00:00:00:00:03")
    for slot, mac in ((a, "020000000aaa"), (b, "020000000bbb")):
        frame = f"ffffffffffff{mac}88b5".ljust(120, "0")
        ofctl(slot, "packet-out", "br-int", f"in_port=1,packet={frame},actions=NORMAL")
    context.freshness.at_s = None
    replication.keep_up(context)
    for slot in (a, b):
        shown = SlotProcesses().appctl(slot, "tnl/neigh/show") + SlotProcesses().appctl(slot, "fdb/show", "br-int")
        learned = ("02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:0a:aa", "02:00:00:00:0b:bb")
        assert [mac in shown for mac in learned] == [True] * 4


def _processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of each process that is started from now on."""
    started: list[str] = []
    run = gate.run

    def noted(argv: Sequence[str], **how: Any) -> gate.Completed:
        started.append(" ".join(argv))
        return run(argv, **how)

    monkeypatch.setattr(gate, "run", noted)
    return started


@pytest.mark.parametrize("protocol", ["OpenFlow13", "OpenFlow14", "OpenFlow15"])
def test_between_two_vms_nothing_is_dumped_unless_something_was_changed(
    context: Context, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = context.source, context.target
    vsctl(a, "set", "bridge", "br-int", f"protocols={protocol}")

    def said(*command: str) -> None:
        gate.run(_of(a, protocol, *command))

    said("add-flow", "br-int", "table=1,priority=7,ip,actions=drop")
    started = _processes(monkeypatch)

    def round_() -> int:
        """How many processes a round starts."""
        context.freshness.at_s = None
        started.clear()
        replication.keep_up(context)
        return len(started)

    def at_rest() -> None:
        for _ in range(3):
            round_()  # what it brought over is a change itself
        assert round_() == 0, started

    at_rest()
    for change in (
        ("add-flow", "br-int", "table=1,priority=8,ip,actions=drop"),
        ("add-flow", "br-int", "table=1,priority=8,ip,cookie=5,actions=drop"),
        # in a table of its own: while VMs move, a flow that may have run out is not taken away
        ("add-flow", "br-int", "table=2,priority=8,ip,idle_timeout=77,actions=drop"),
        ("mod-flows", "br-int", "table=1,ip,actions=LOCAL"),
        ("add-group", "br-int", "group_id=1,type=all,bucket=actions=LOCAL"),
        ("mod-group", "br-int", "group_id=1,type=all,bucket=actions=drop"),
        ("add-meter", "br-int", "meter=1,kbps,bands=type=drop,rate=9"),
        ("mod-meter", "br-int", "meter=1,kbps,bands=type=drop,rate=10"),
        ("add-tlv-map", "br-int", "{class=0xffff,type=0,len=4}->tun_metadata0"),
        ("del-flows", "br-int", "table=1,ip"),
        ("del-groups", "br-int"),
        ("del-meters", "br-int"),
    ):
        said(*change)
        assert round_() > 0, change
        assert replication.differences(context, a, b) == (), change
        at_rest()


def test_a_standby_that_somebody_changed_is_mended_by_the_next_round(context: Context) -> None:
    a, b = context.source, context.target
    ofctl(a, "add-flow", "br-int", "table=1,priority=7,ip,actions=drop")
    for _ in range(3):
        replication.follow(context, a, b)
    ofctl(b, "del-flows", "br-int", "table=1")
    replication.follow(context, a, b)
    assert replication.differences(context, a, b) == ()


def test_more_changes_than_a_watch_is_told_of_are_changes(context: Context, tmp_path: Path) -> None:
    """A switch pauses a flow monitor that nobody reads: until it resumes nothing is known, and everything is looked at."""
    a, b = context.source, context.target
    for _ in range(3):
        replication.follow(context, a, b)
    flows = tmp_path / "flows"
    for actions in ("drop", "LOCAL"):
        lines = [f"table=2,priority=9,ip,nw_src=10.{n >> 8}.{n & 255}.1,actions={actions}\n" for n in range(20_000)]
        flows.write_text("".join(lines))
        ofctl(a, "add-flows", "br-int", str(flows))
        replication.follow(context, a, b)
        assert replication.differences(context, a, b) == ()
    ofctl(a, "del-flows", "br-int", "table=2,ip,nw_src=10.7.7.1")
    replication.follow(context, a, b)
    assert replication.differences(context, a, b) == ()


@pytest.mark.parametrize("protocol", ["OpenFlow10", "OpenFlow12"])
def test_a_bridge_of_an_old_openflow_is_compared_each_time_and_changed_one_by_one(
    context: Context, protocol: str
) -> None:
    a, b = context.source, context.target
    vsctl(a, "set", "bridge", "br-int", f"protocols={protocol}")
    for change in (
        ("add-group", "br-int", "group_id=7,type=all,bucket=actions=LOCAL"),
        ("add-flow", "br-int", "priority=7,ip,actions=group:7"),
        ("add-flow", "br-int", "priority=8,ip,actions=drop"),
        ("mod-group", "br-int", "group_id=7,type=all,bucket=actions=drop"),
        ("del-groups", "br-int"),
    ):
        gate.run(_of(a, protocol, *change))
        replication.follow(context, a, b)
        assert replication.differences(context, a, b) == (), change
    assert len(Ofctl().flows(b, "br-int")) == 1


def _of(slot: Slot, protocol: str, command: str, bridge: str, *arguments: str) -> list[str]:
    return [
        str(slot.prefix / "bin/ovs-ofctl"),
        "-O",
        protocol,
        command,
        f"unix:{slot.rundir}/{bridge}.mgmt",
        *arguments,
    ]


def test_replication_that_fails_stops_the_run_before_the_next_vm(context: Context) -> None:
    pid = SlotProcesses().status(context.source).ovsdb_pid
    assert pid is not None
    replication.keep_up(context)
    context.freshness.at_s = None  # what a moment ago is to a run, is over

    def without_database() -> None:
        with pytest.raises(StepError) as raised:
            replication.keep_up(context)
        assert raised.value.code == "REPLICATION_STALE"
        assert "no further VM was moved" in raised.value.state
        with pytest.raises(StepError):  # nor right after, as if the failed round had been one
            replication.keep_up(context)

    _restart_database(context.source, without_database)


def test_what_a_round_cannot_mend_is_refused_with_both_sides(context: Context) -> None:
    """A standby whose switch gives a port another number than the active's: no copy can change that."""
    carry_out(context, StepKind.REPLICATE)
    add_port(context.source, "p1")
    Ovsdb().sync(context.source, context.target, ())

    class Deaf(Ovsdb):
        def sync(self, *_: object, **__: object) -> object:  # type: ignore[override]
            from upgrader.core.replica import Copied

            return Copied()

    vsctl(context.target, "set", "interface", "p1", "ofport_request=77")
    eventually(lambda: vsctl(context.target, "get", "interface", "p1", "ofport").strip() == "77", "the other number")
    deaf = replace(context, host=replace(context.host, database=Deaf()))
    with pytest.raises(StepError) as raised:
        carry_out(deaf, StepKind.PROVE)
    assert raised.value.code == "SWITCHES_DIFFER"
    assert "port number p1 (database)\n  active:  1\n  standby: 77" in raised.value.what
    assert "ofport_request=77" in raised.value.what


def _other_schema(slot: Slot, folder: Path, **changes: str) -> Slot:
    """The slot with an OVS whose schema is another one: a column the less, a column the more."""
    prefix = folder / "other-ovs"
    (prefix / "share/openvswitch").mkdir(parents=True)
    for part in ("bin", "sbin"):
        (prefix / part).symlink_to(slot.prefix / part)
    schema = json.loads((slot.prefix / SCHEMA).read_text())
    del schema["tables"]["Port"]["columns"]["cvlans"]
    del schema["tables"]["Bridge"]["columns"]["auto_attach"]
    del schema["tables"]["AutoAttach"]
    schema["tables"]["Bridge"]["columns"]["of_tomorrow"] = {"type": "string"}
    schema["version"] = "9.0.0"
    (prefix / SCHEMA).write_text(json.dumps(schema))
    return replace(slot, prefix=prefix)


@pytest.mark.parametrize("direction", ["to the other schema", "from the other schema"])
def test_a_database_of_another_schema(tmp_path: Path, direction: str) -> None:
    """Rows, their UUIDs and references come over; what has no place is named; what is new gets its default."""
    with SlotFactory(tmp_path / "slots") as factory:
        a, b = factory.make("a"), factory.make("b")
        if direction == "to the other schema":
            b = _other_schema(b, tmp_path)
        else:
            a = _other_schema(a, tmp_path)
        for slot in (a, b):
            SlotProcesses().start_database(slot)
        vsctl(a, "--no-wait", "init", "--", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev")
        vsctl(a, "--no-wait", "add-port", "br-int", "p1", "--", "set", "interface", "p1", "type=internal", "ofport=3")
        if direction == "to the other schema":
            vsctl(a, "--no-wait", "set", "Port", "p1", "cvlans=5,6")
        else:
            update = {
                "op": "update",
                "table": "Bridge",
                "where": [],
                "row": {"of_tomorrow": "x"},
            }  # ovs-vsctl knows it not
            client = [str(a.prefix / "bin/ovsdb-client"), "transact", f"unix:{a.db_socket}"]
            gate.run([*client, json.dumps(["Open_vSwitch", update])])
        lost = Ovsdb().sync(a, b, (), applied=False).lost
        assert lost == (("Port.cvlans",) if direction == "to the other schema" else ("Bridge.of_tomorrow",))
        assert vsctl(b, "get", "port", "p1", "_uuid") == vsctl(a, "get", "port", "p1", "_uuid")
        for _ in range(2):
            Ovsdb().sync(a, b, (), applied=False)
        assert Ovsdb().sync(a, b, (), applied=False).changes == ()
        vsctl(a, "--no-wait", "del-port", "p1")
        assert "delete Port p1" in Ovsdb().sync(a, b, (), applied=False).changes


def test_a_source_without_configuration_is_refused(tmp_path: Path) -> None:
    with SlotFactory(tmp_path) as factory:
        a, b = factory.make("a"), factory.make("b")
        for slot in (a, b):
            SlotProcesses().start_database(slot)
        with pytest.raises(HostError) as raised:
            Ovsdb().sync(a, b, (), applied=False)
        assert raised.value.code == "DATABASE_EMPTY"
