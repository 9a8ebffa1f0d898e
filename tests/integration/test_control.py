"""Control moves from one real switch to another under a controller and a database client that go on writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.openflow_controller import TABLE
from tests.support.ovsdb_client import KEY
from tests.support.slots import SlotFactory, carry_out, context_of, ofctl, undo, vsctl
from tests.support.switch import eventually
from tests.support.writers import Said, controllers_network
from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.steps import Context, replication

pytestmark = pytest.mark.integration
PORT = 16653
SCHEMA = "share/openvswitch/vswitch.ovsschema"


@pytest.fixture(name="network")
def network_fixture() -> Iterator[Callable[[Slot], str]]:
    """A namespace for a controller, and cables from slots to it; returns how to lay one."""
    with controllers_network() as lay:
        yield lay


@pytest.fixture(name="context")
def context_fixture(tmp_path: Path) -> Iterator[Context]:
    """Slot a runs, b stands by; no VM. Steps that concern neither VMs nor steering do what they do on any host."""
    with SlotFactory(tmp_path / "slots") as factory:
        a = factory.start("a")
        vsctl(a, "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev")
        vsctl(a, "add-br", "br-alone", "--", "set", "bridge", "br-alone", "datapath_type=netdev")
        ofctl(a, "add-flow", "br-alone", "priority=3,actions=drop")
        b = factory.start_standby("b", a)
        for slot in (a, b):
            gate.run(["ip", "link", "set", "br-alone", "up"], netns=slot.netns)
        yield context_of(tmp_path, *(replace(s, uplink="br-alone") for s in (a, b)))


def cookies(slot: Slot) -> set[int]:
    lines = Ofctl().flows(slot, "br-int")
    return {
        int(f.partition("cookie=")[2].partition(",")[0], 16) for f in lines if f"table={TABLE}" in f and "cookie=" in f
    }


def test_control_moves_with_one_reconnect_and_no_lost_change_and_back(
    context: Context, network: Callable[[Slot], str], tmp_path: Path
) -> None:
    a, b = context.source, context.target
    netns = network(a)
    network(b)
    managed = tmp_path / "manager.sock"
    gate.run([str(a.prefix / "bin/ovs-appctl"), "-t", str(a.ovsdb_ctl), "ovsdb-server/add-remote",
              "db:Open_vSwitch,Open_vSwitch,manager_options"])  # fmt: skip
    vsctl(a, "set-manager", f"punix:{managed}")
    vsctl(a, "set-controller", "br-int", f"tcp:10.99.0.1:{PORT}", "--", "set-fail-mode", "br-int", "standalone")
    controller = Said(["-m", "tests.support.openflow_controller", str(PORT)], tmp_path, netns)
    client = Said(["-m", "tests.support.ovsdb_client", f"unix:{managed}", str(a.prefix / SCHEMA)], tmp_path)
    waiting = gate.spawn([str(a.prefix / "bin/ovs-vsctl"), f"--db=unix:{managed}", "--timeout=60", "--retry", "wait-until", "Bridge",
                          "br-int", "external_ids:moved=yes"])  # fmt: skip
    try:
        eventually(lambda: controller.last("taken") > 50 and client.last("committed") > 50, "both to write")
        # OVS writes who is connected every five seconds
        led_by = f"tcp:10.99.0.1:{PORT}"
        eventually(lambda: led_by in context.host.database.control(a).connected, "the status of the controller")
        carry_out(context, StepKind.REPLICATE)
        carry_out(context, StepKind.PROVE)
        assert vsctl(b, "get-controller", "br-int").strip() == f"unix:{b.rundir}/br-int.standby"

        data = carry_out(context, StepKind.MOVE_CONTROL)
        assert data["controllers"] == {"br-int": [f"tcp:10.99.0.1:{PORT}"]}
        assert data["managers"] == [f"punix:{managed}"]
        assert f"tcp:10.99.0.1:{PORT}" in data["connected"]
        written, counted = controller.last("taken"), client.last("committed")
        eventually(lambda: controller.last("taken") > written + 50, "the controller to go on")
        eventually(lambda: client.last("committed") > counted + 50, "the client to go on")
        assert len({line["which"] for line in controller.lines("connected")}) == 1, "another datapath id"
        assert len(controller.lines("connected")) == 2, "one connection before, one after"
        assert client.last("connected") == 2
        assert vsctl(b, "get-controller", "br-int").strip() == f"tcp:10.99.0.1:{PORT}"
        assert vsctl(b, "get-fail-mode", "br-int").strip() == "standalone"
        assert vsctl(a, "get-controller", "br-int").strip() == f"unix:{a.rundir}/br-int.standby"
        assert vsctl(a, "get-manager").strip() == ""
        taken = {int(line["which"]) for line in controller.lines("taken")}
        assert taken <= cookies(b), "flows that the controller was told are in"
        assert int(vsctl(b, "get", "Open_vSwitch", ".", f"external_ids:{KEY}").strip().strip('"')) >= counted
        assert "priority=3 actions=drop" in Ofctl().flows(b, "br-alone")

        vsctl(b, "set", "Bridge", "br-int", "external_ids:moved=yes")
        assert waiting.wait(10) == 0, "ovs-vsctl wait-until has gone over"
        carry_out(context, StepKind.MOVE_CONTROL)  # done again, it changes nothing
        assert len(controller.lines("connected")) == 2

        undo(context, StepKind.MOVE_CONTROL)
        eventually(lambda: len(controller.lines("connected")) == 3, "the controller to come back")
        eventually(lambda: client.last("connected") == 3, "the client to come back")
        undo(context, StepKind.MOVE_CONTROL)
        assert {int(line["which"]) for line in controller.lines("taken")} <= cookies(a)
        assert vsctl(a, "get-fail-mode", "br-int").strip() == "standalone"
        assert vsctl(b, "get-controller", "br-int").strip() == f"unix:{b.rundir}/br-int.standby"
    finally:
        for process in (controller, client):
            process.stop()
        waiting.kill()
        waiting.wait()


@pytest.mark.parametrize("cut", ["release_control", "assume_control", "control"])
def test_a_hand_over_that_is_cut_off_goes_on_or_back(context: Context, cut: str) -> None:
    a, b = context.source, context.target
    vsctl(a, "set-controller", "br-int", "tcp:10.99.0.1:6653", "--", "set-fail-mode", "br-int", "standalone")
    ofctl(a, "add-flow", "br-int", "priority=4,actions=drop")
    carry_out(context, StepKind.REPLICATE)

    class Cut(BaseException):
        pass

    class Broken(Ovsdb):
        pass

    def killed(self: Ovsdb, slot: Slot) -> object:
        done = getattr(Ovsdb, cut)(self, slot)
        if cut != "control" or slot == b:
            raise Cut
        return done

    setattr(Broken, cut, killed)
    broken = replace(context, host=replace(context.host, database=Broken()))
    for mend in (carry_out, undo):
        with pytest.raises(Cut):
            carry_out(broken, StepKind.MOVE_CONTROL)
        mend(context, StepKind.MOVE_CONTROL)
        holder, other = (b, a) if mend is carry_out else (a, b)
        assert vsctl(holder, "get-controller", "br-int").strip() == "tcp:10.99.0.1:6653"
        assert vsctl(holder, "get-fail-mode", "br-int").strip() == "standalone"
        assert vsctl(other, "get-controller", "br-int").strip() == f"unix:{other.rundir}/br-int.standby"
        assert "priority=4 actions=drop" in Ofctl().flows(holder, "br-int")
        assert "priority=4 actions=drop" in Ofctl().flows(other, "br-int")
        undo(context, StepKind.MOVE_CONTROL)


def test_a_controller_that_does_not_reach_the_new_switch_is_said(
    context: Context, network: Callable[[Slot], str], tmp_path: Path
) -> None:
    netns = network(context.source)  # and the other slot has no way to it
    vsctl(context.source, "set-controller", "br-int", f"tcp:10.99.0.1:{PORT}")
    controller = Said(["-m", "tests.support.openflow_controller", str(PORT)], tmp_path, netns)
    try:
        connected = ("--columns=is_connected", "--bare", "list", "Controller")  # told every 5 s
        eventually(lambda: vsctl(context.source, *connected).strip() == "true", "the controller to connect")
        carry_out(context, StepKind.REPLICATE)
        with pytest.raises(Exception, match="CONTROL_NOT_TAKEN_UP"):
            carry_out(context, StepKind.MOVE_CONTROL)
        undo(context, StepKind.MOVE_CONTROL)
        eventually(lambda: len(controller.lines("connected")) == 2, "the controller to come back")
    finally:
        controller.stop()


def test_what_is_written_into_the_old_database_after_control_has_moved_is_not_lost(context: Context) -> None:
    """By clients that found it by its socket, and are sent away a step later; the new one's changes stay as well."""
    a, b = context.source, context.target
    carry_out(context, StepKind.REPLICATE)
    carry_out(context, StepKind.MOVE_CONTROL)
    vsctl(a, "set", "Bridge", "br-int", "external_ids:late=yes", "--", "set", "Open_vSwitch", ".", "external_ids:x=a")
    vsctl(a, "add-port", "br-int", "late", "--", "set", "interface", "late", "type=internal")
    vsctl(b, "set", "Bridge", "br-int", "external_ids:early=yes")
    vsctl(b, "add-port", "br-int", "other", "--", "set", "interface", "other", "type=internal")
    for _ in range(2):  # a port that came late has its number by the second
        replication.follow(context, *replication.sides(context))
    for slot in (a, b):
        assert vsctl(slot, "get", "Bridge", "br-int", "external_ids").strip() == "{early=yes, late=yes}"
        assert vsctl(slot, "get", "Open_vSwitch", ".", "external_ids:x").strip() == "a"
        assert set(vsctl(slot, "list-ports", "br-int").split()) == {"late", "other"}
    assert replication.differences(context, b, a) == ()
    vsctl(b, "del-port", "late")
    replication.follow(context, *replication.sides(context))
    assert vsctl(a, "list-ports", "br-int").split() == ["other"]
    undo(context, StepKind.MOVE_CONTROL)
    assert vsctl(a, "list-ports", "br-int").split() == ["other"]


def test_once_control_has_moved_the_old_switch_follows(context: Context) -> None:
    vsctl(context.source, "set-controller", "br-int", "tcp:10.99.0.1:6653")
    carry_out(context, StepKind.REPLICATE)
    carry_out(context, StepKind.MOVE_CONTROL)
    ofctl(context.target, "add-flow", "br-int", "priority=9,actions=drop")
    vsctl(context.target, "add-port", "br-int", "late", "--", "set", "interface", "late", "type=internal")
    assert replication.sides(context) == (context.target, context.source)
    replication.follow(context, *replication.sides(context))
    assert "priority=9 actions=drop" in Ofctl().flows(context.source, "br-int")
    assert vsctl(context.source, "get", "interface", "late", "ofport") == vsctl(
        context.target, "get", "interface", "late", "ofport"
    )
    assert replication.differences(context, context.target, context.source) == ()
