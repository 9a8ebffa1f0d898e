"""The names by which tools and clients reach the switch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support.contracts.rig import BRIDGE, Rig, refused
from tests.support.switch import eventually
from upgrader.core.model import Slot


def bridges(rig: Rig, slot: Slot) -> list[str]:
    return [b.name for b in rig.host.database.read(slot).bridges]


def expected(rig: Rig, slot: Slot, names: Sequence[str]) -> dict[str, int | None]:
    """Who answers where all names lead to that slot."""
    status = rig.host.processes.status(slot)
    daemons = {
        "ovs-vswitchd": status.vswitchd_pid,
        "ovsdb-server": status.ovsdb_pid,
        "db.sock": status.ovsdb_pid,
    }
    return daemons | {f"{name}.mgmt": status.vswitchd_pid for name in names}


class WellKnownContract:
    @pytest.fixture(autouse=True)
    def names(self, rig: Rig) -> Iterator[None]:
        """They lead to the active, beside which nothing runs; and do so again afterwards."""
        rig.stop()
        well_known = rig.host.well_known
        assert well_known.mend() == rig.active.name
        yield
        well_known.point_to(rig.active.name, bridges(rig, rig.active))

    def test_they_lead_to_the_one_switch_that_runs(self, rig: Rig) -> None:
        well_known, active = rig.host.well_known, rig.active
        for _again in range(2):
            well_known.adopt()
            assert well_known.mend() == active.name
        assert well_known.current() == active.name
        assert well_known.problem() is None
        found = bridges(rig, active)
        assert found
        assert well_known.who_answers(found) == expected(rig, active, found)
        assert None not in well_known.who_answers(found).values()
        assert well_known.who_answers(["no-such-bridge"])["no-such-bridge.mgmt"] is None

    def test_they_go_over_and_back(self, rig: Rig) -> None:
        rig.start()
        well_known = rig.host.well_known
        for slot in (rig.standby, rig.active):
            found = bridges(rig, slot)
            for _again in range(2):
                well_known.point_to(slot.name, found)
                assert well_known.current() == slot.name
                assert well_known.who_answers(found) == expected(rig, slot, found)
            assert well_known.mend() == slot.name
            assert well_known.current() == slot.name, "with both running, they stay where they are"
        assert rig.host.database.in_control(rig.active), "names are not control"

    def test_a_slot_that_does_not_run_whole_is_given_none(self, rig: Rig) -> None:
        well_known, active, standby = rig.host.well_known, rig.active, rig.standby
        found = bridges(rig, active)
        before = well_known.who_answers(found)
        with refused("SLOT_DOWN"):
            well_known.point_to(standby.name, found)
        rig.start_database()
        with refused("SLOT_DOWN"):
            well_known.point_to(standby.name, found)
        assert well_known.current() == active.name
        assert well_known.who_answers(found) == before

    def test_bridges_that_come_and_go_are_followed(self, rig: Rig) -> None:
        well_known, active = rig.host.well_known, rig.active
        assert well_known.who_answers([BRIDGE])[f"{BRIDGE}.mgmt"] is None
        rig.add_bridge(active)
        try:
            assert well_known.mend() == active.name
            assert well_known.who_answers([BRIDGE])[f"{BRIDGE}.mgmt"] == rig.pid(active)
        finally:
            rig.delete_bridge(active)
        well_known.mend()
        eventually(lambda: well_known.who_answers([BRIDGE])[f"{BRIDGE}.mgmt"] is None, "the name to be nobody's")

    def test_names_of_a_switch_that_died_are_nobodys_until_they_are_given_on(self, rig: Rig) -> None:
        rig.start()
        well_known, processes, standby = rig.host.well_known, rig.host.processes, rig.standby
        found = bridges(rig, standby)
        well_known.point_to(standby.name, found)
        processes.kill_switch(standby)
        answers = well_known.who_answers(found)
        assert answers == expected(rig, standby, found)
        assert answers["ovs-vswitchd"] is None
        assert answers["db.sock"] is not None
        assert well_known.mend() is None, "whose turn it is, is not for whoever mends to say"
        assert well_known.current() == standby.name
        with refused("SLOT_DOWN"):
            well_known.point_to(standby.name, found)
        well_known.point_to(rig.active.name, bridges(rig, rig.active))
        assert well_known.current() == rig.active.name

    def test_clients_are_sent_to_connect_anew(self, rig: Rig) -> None:
        well_known, active = rig.host.well_known, rig.active
        assert well_known.drop_clients(rig.standby.name), "where no database runs nobody is left"
        before = rig.host.processes.status(active), rig.host.database.read(active)
        told = {well_known.drop_clients(active.name) for _ in range(2)}
        assert told <= {True, False}
        assert len(told) == 1
        assert well_known.current() == active.name
        assert (rig.host.processes.status(active), rig.host.database.read(active)) == before
