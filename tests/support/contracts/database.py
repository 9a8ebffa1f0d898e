"""The OVSDB of slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.contracts.rig import BRIDGE, CONTROLLER, Rig, refused
from tests.support.switch import eventually
from upgrader.core.inventory import origin
from upgrader.core.model import Bridge, Slot


def bridge_of(rig: Rig, slot: Slot) -> Bridge:
    return next(b for b in rig.host.database.read(slot).bridges if b.name == BRIDGE)


class DatabaseContract:
    def test_a_slot_whose_database_does_not_run(self, rig: Rig) -> None:
        rig.stop()
        database, active, standby = rig.host.database, rig.active, rig.standby
        before = database.read(active)
        asked: list[Callable[[], object]] = [
            lambda: database.read(standby),
            lambda: database.bridges(standby),
            lambda: database.unready(standby, ()),
            lambda: database.wait_for_ports(standby, (), 1),
            lambda: database.in_control(standby),
            lambda: database.control(standby),
            lambda: database.release_control(standby),
            lambda: database.assume_control(standby),
            lambda: database.sync(active, standby, ()),
            lambda: database.sync(standby, active, ()),
            lambda: database.differences(active, standby, ()),
        ]
        for ask in asked:
            with refused("DATABASE_UNREACHABLE"):
                ask()
        assert database.read(active) == before

    def test_a_database_that_was_not_filled_yet(self, rig: Rig) -> None:
        """As a coordinator leaves it that is killed between two effects."""
        rig.start_database()
        database, active, standby = rig.host.database, rig.active, rig.standby
        before = database.read(active)
        facts = database.read(standby)
        assert (facts.bridges, facts.interfaces, facts.managers) == ((), (), ())
        assert database.bridges(standby) == ()
        assert not database.in_control(standby)
        assert database.unready(standby, ()) == ()
        (lacking,) = database.unready(standby, ("vhu0",))
        assert lacking.startswith("vhu0: ")
        with refused("DATABASE_EMPTY"):
            database.sync(standby, active, ())
        assert database.read(active) == before

    def test_a_standby_is_made_before_its_switch_runs(self, rig: Rig) -> None:
        rig.start_database()
        database, active, standby = rig.host.database, rig.active, rig.standby
        bound = {b.interface: b for b in rig.bindings()}
        before = database.read(active)
        copied = database.sync(active, standby, tuple(bound.values()), applied=False)
        assert copied.changes
        assert (copied.lost, copied.waiting) == ((), ())
        assert copied.bridges == tuple(b.name for b in before.bridges)
        assert database.sync(active, standby, tuple(bound.values()), applied=False).changes == ()
        assert database.read(active) == before
        facts = database.read(standby)
        assert [b.name for b in facts.bridges] == [b.name for b in before.bridges]
        assert [(i.name, i.type, i.bridge) for i in facts.interfaces] == [
            (i.name, i.type, i.bridge) for i in before.interfaces
        ]
        for interface in facts.vhost_interfaces():
            binding = bound[interface.name]
            assert interface.option("vhost-server-path") == str(binding.socket)
            assert origin(interface) == str(binding.origin)
        for slot, there in ((active, before), (standby, facts)):
            (uplink,) = (i for i in there.interfaces if i.name == slot.uplink)
            assert uplink.option("dpdk-devargs") == slot.devargs
        assert all(i.ofport is None for i in facts.interfaces), "no switch has numbered them"
        assert database.in_control(active)
        assert not database.in_control(standby)

    def test_what_is_read(self, rig: Rig) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        facts = database.read(active)
        assert [b.name for b in facts.bridges] == sorted(b.name for b in facts.bridges)
        assert database.bridges(active) == tuple(b.name for b in facts.bridges)
        assert all(b.flows == b.groups == () for b in facts.bridges), "flows are asked for by OpenFlow"
        assert [i.name for i in facts.interfaces] == sorted(i.name for i in facts.interfaces)
        served = {p.interface for p in rig.vm_ports()}
        assert {i.name for i in facts.vhost_interfaces() if i.link_state == "up"} == served
        numbers = [{i.name: i.ofport for i in database.read(s).interfaces} for s in (active, standby)]
        assert numbers[0] == numbers[1]
        assert None not in numbers[0].values()
        assert database.differences(active, standby, rig.bindings()) == ()

    def test_ports_that_are_ready_and_ports_that_are_not(self, rig: Rig) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        named = sorted(p.interface for p in rig.vm_ports())
        assert database.unready(active, [*named, active.uplink]) == ()
        database.wait_for_ports(active, [*named, active.uplink], 1)
        assert database.unready(standby, [standby.uplink]) == (), "vhost ports that nobody expects may be down"
        assert database.unready(standby, named) == tuple(f"{n}: link down" for n in named)
        with refused("PORTS_NOT_READY") as error:
            database.wait_for_ports(standby, [standby.uplink, named[0], "no-such-port"], 0.2)
        assert named[0] in error.value.what
        assert "no-such-port" in error.value.what
        assert standby.uplink not in error.value.what

    def test_a_change_is_told_of_and_followed(self, rig: Rig) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        rig.add_bridge(active)
        try:
            found = database.differences(active, standby, rig.bindings())
            (bridge,) = (d for d in found if d.kind == "bridge")
            assert (bridge.what, bridge.new) == (BRIDGE, None)
            assert bridge.old
            copied = database.sync(active, standby, rig.bindings())
            assert f"insert Bridge {BRIDGE}" in copied.changes
            assert BRIDGE in copied.bridges
            database.sync(active, standby, rig.bindings())
            assert database.sync(active, standby, rig.bindings()).changes == ()
            assert bridge_of(rig, standby).fail_mode == "standalone"
            assert database.differences(active, standby, rig.bindings()) == ()
        finally:
            rig.delete_bridge(active)
        found = database.differences(active, standby, rig.bindings())
        assert [(d.what, d.old) for d in found if d.kind == "bridge"] == [(BRIDGE, None)]
        assert f"delete Bridge {BRIDGE}" in database.sync(active, standby, rig.bindings()).changes
        assert BRIDGE not in {b.name for b in database.read(standby).bridges}

    def test_ports_without_a_binding_keep_what_they_have(self, rig: Rig) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        before = database.read(standby)
        assert database.sync(active, standby, ()).changes == ()
        assert database.read(standby) == before

    def test_control_goes_over_and_back(self, rig: Rig) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        rig.add_bridge(active, [CONTROLLER])
        led = ((BRIDGE, (CONTROLLER,)),)
        try:
            database.sync(active, standby, rig.bindings())
            before = bridge_of(rig, active)
            assert before.controllers == (CONTROLLER,)
            for slot in (active, standby):
                told = database.control(slot)
                assert told.controllers == led
                assert (BRIDGE, "standalone") in told.fail_modes
                assert told.connected <= {CONTROLLER}
            assert CONTROLLER not in bridge_of(rig, standby).controllers, "noted, not exerted"
            # what has no note of control exerts none, and what has none to give gives none
            database.assume_control(active)
            database.release_control(standby)
            assert (database.in_control(active), database.in_control(standby)) == (True, False)
            for _again in range(2):
                database.release_control(active)
                assert (database.in_control(active), database.in_control(standby)) == (False, False)
            assert CONTROLLER not in bridge_of(rig, active).controllers
            database.sync(active, standby, rig.bindings())
            assert database.control(standby).controllers == led, "a standby keeps it while nobody is in control"
            for _again in range(2):
                database.assume_control(standby)
                assert (database.in_control(active), database.in_control(standby)) == (False, True)
            database.assume_control(active)  # which has handed it over
            assert (database.in_control(active), database.in_control(standby)) == (False, True)
            after = bridge_of(rig, standby)
            assert (after.controllers, after.fail_mode) == ((CONTROLLER,), "standalone")
            database.sync(standby, active, ())
            database.release_control(standby)
            database.assume_control(active)
            assert (database.in_control(active), database.in_control(standby)) == (True, False)
            assert bridge_of(rig, active) == before
        finally:
            rig.delete_bridge(active)
            database.sync(active, standby, rig.bindings())

    @pytest.mark.parametrize("cut", ["after release", "half-way back"])
    def test_control_is_never_lost_by_a_hand_over_that_is_cut_off(self, rig: Rig, cut: str) -> None:
        rig.start()
        database, active, standby = rig.host.database, rig.active, rig.standby
        rig.add_bridge(active, [CONTROLLER])
        try:
            database.sync(active, standby, rig.bindings())
            database.release_control(active)
            if cut == "half-way back":
                database.assume_control(standby)
                database.sync(standby, active, ())
                database.release_control(standby)
            # the other way, by what is kept in the one that has handed nothing over
            kept, lost = (standby, active) if cut == "after release" else (active, standby)
            database.sync(kept, lost, ())
            database.assume_control(lost)
            eventually(lambda: database.in_control(lost), "the control it had handed over")
            assert database.control(lost).controllers == ((BRIDGE, (CONTROLLER,)),)
            assert not database.in_control(kept)
            if lost is standby:
                database.sync(standby, active, ())
                database.release_control(standby)
                database.assume_control(active)
            assert database.in_control(active)
        finally:
            rig.delete_bridge(active)
            database.sync(active, standby, rig.bindings())
