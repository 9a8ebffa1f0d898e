"""What controllers and the network taught bridges."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.contracts.rig import BRIDGE, Rig, refused
from upgrader.core import openflow

FLOW = "priority=7,arp actions=drop"
TIMED = "idle_timeout=300,priority=8,ip actions=drop"
GROUP = "group_id=1,type=all,bucket=actions=drop"
METER = "meter=1,kbps,bands=type=drop,rate=1000"
TLV = "{class=0xffff,type=0x1,len=4}->tun_metadata1"
UNDERLAY = "br-phy"


class OpenFlowContract:
    @pytest.fixture
    def pair(self, rig: Rig) -> Iterator[Rig]:
        """Both switches have BRIDGE, and nothing in it."""
        rig.start()
        rig.add_bridge(rig.active)
        rig.start()
        for slot in (rig.active, rig.standby):
            rig.write(
                slot, *(f"flow delete_strict {openflow.strictly(f)}" for f in rig.host.openflow.flows(slot, BRIDGE))
            )
        yield rig
        rig.delete_bridge(rig.active)
        rig.host.database.sync(rig.active, rig.standby, rig.bindings())

    def test_a_switch_that_does_not_run(self, rig: Rig) -> None:
        rig.stop()
        port, active, standby = rig.host.openflow, rig.active, rig.standby
        asked: list[Callable[[], object]] = [
            lambda: port.flows(standby, UNDERLAY),
            lambda: port.groups(standby, UNDERLAY),
            lambda: port.settings(standby, UNDERLAY),
            lambda: port.sync(active, standby, UNDERLAY, hold=True),
            lambda: port.sync(standby, active, UNDERLAY, hold=True),
            lambda: port.release_flows(standby, UNDERLAY),
            lambda: port.differences(active, standby, UNDERLAY, hold=True),
            lambda: port.sync_learned(active, standby, [UNDERLAY]),
            lambda: port.sync_learned(standby, active, [UNDERLAY]),
            lambda: port.learned_differences(active, standby, [UNDERLAY]),
            lambda: port.teach_neighbours(standby, {"192.0.2.9": "02:00:00:00:00:09"}),
            lambda: port.traces(standby, active, 3),
        ]
        before = port.flows(active, UNDERLAY)
        for ask in asked:
            with refused():
                ask()
        assert port.flows(active, UNDERLAY) == before

    def test_a_bridge_that_is_not_there(self, rig: Rig) -> None:
        rig.start()
        with refused():
            rig.host.openflow.flows(rig.active, "br-none")
        with refused():
            rig.host.openflow.sync(rig.active, rig.standby, "br-none", hold=True)

    def test_everything_is_copied_and_counted_and_the_second_time_nothing(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        assert port.differences(active, standby, BRIDGE, hold=False) == ()
        pair.write(active, f"flow add {FLOW}", f"group add {GROUP}")
        pair.write_meter(active, METER)
        pair.write_tlv(active, TLV)
        kinds = {d.kind for d in port.differences(active, standby, BRIDGE, hold=False)}
        assert kinds == {"flow", "group", "bucket", "meter", "band", "tlv"}
        counts = port.sync(active, standby, BRIDGE, hold=False)
        assert counts == {"flow add": 1, "group add": 1, "meter set": 1, "tlv add": 1}
        assert port.sync(active, standby, BRIDGE, hold=False) == {}
        assert port.differences(active, standby, BRIDGE, hold=False) == ()
        for slot in (active, standby):
            assert [openflow.identity(f) for f in port.flows(slot, BRIDGE)] == [openflow.identity(FLOW)]
            assert [openflow.group_id(g) for g in port.groups(slot, BRIDGE)] == [1]

    def test_what_is_gone_goes(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        pair.write(standby, f"flow add {FLOW}", f"group add {GROUP}")
        pair.write_meter(standby, METER)
        pair.write_tlv(standby, TLV)
        counts = port.sync(active, standby, BRIDGE, hold=False)
        assert counts == {"flow delete_strict": 1, "group delete": 1, "meter delete": 1, "tlv delete": 1}
        assert port.flows(standby, BRIDGE) == port.groups(standby, BRIDGE) == ()
        assert port.differences(active, standby, BRIDGE, hold=False) == ()

    def test_a_difference_tells_both_sides(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        pair.write(active, f"flow add {FLOW}")
        pair.write(standby, "flow add priority=7,arp actions=NORMAL", "flow add priority=9,ip actions=drop")
        changed, surplus = sorted(port.differences(active, standby, BRIDGE, hold=False), key=lambda d: d.old is None)
        assert (changed.kind, changed.where, changed.what) == ("flow", BRIDGE, openflow.identity(FLOW))
        assert "drop" in (changed.old or "")
        assert "NORMAL" in (changed.new or "")
        assert (surplus.what, surplus.old) == (openflow.identity("priority=9,ip actions=drop"), None)
        port.sync(active, standby, BRIDGE, hold=False)
        assert port.flows(standby, BRIDGE) == port.flows(active, BRIDGE)

    def test_time_outs_are_held_and_let_go(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        pair.write(active, f"flow add {TIMED}", f"flow add {FLOW}")
        port.sync(active, standby, BRIDGE, hold=True)
        assert any("idle_timeout=65535" in f for f in port.flows(standby, BRIDGE))
        assert port.sync(active, standby, BRIDGE, hold=True) == {}
        assert port.differences(active, standby, BRIDGE, hold=True) == ()
        assert len(port.differences(active, standby, BRIDGE, hold=False)) == 1
        assert port.release_flows(standby, BRIDGE) == 1
        assert port.release_flows(standby, BRIDGE) == 0
        assert not any("65535" in f for f in port.flows(standby, BRIDGE))
        port.sync(active, standby, BRIDGE, hold=False)
        assert port.differences(active, standby, BRIDGE, hold=False) == ()

    def test_a_flow_that_may_have_run_out_is_kept_while_vms_move(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        pair.write(standby, f"flow add {TIMED}", f"flow add {FLOW}")
        assert port.sync(active, standby, BRIDGE, hold=True, moving=True) == {"flow delete_strict": 1}
        (kept,) = port.flows(standby, BRIDGE)
        assert "idle_timeout=300" in kept
        assert port.sync(active, standby, BRIDGE, hold=True) == {"flow delete_strict": 1}
        assert port.flows(standby, BRIDGE) == ()

    def test_what_was_learned_is_taught(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        bridges = [UNDERLAY]
        port.sync_learned(active, standby, bridges)
        pair.teach_neighbour(active, UNDERLAY, "192.0.2.77", "02:00:00:00:00:77")
        pair.teach_route(active, UNDERLAY, "198.51.100.0/24")
        found = {d.kind: d for d in port.learned_differences(active, standby, bridges)}
        assert (found["neighbour"].what, found["neighbour"].old) == ("192.0.2.77", "02:00:00:00:00:77")
        assert "198.51.100.0/24" in found["route"].what
        assert found["neighbour"].new is found["route"].new is None
        taught = port.sync_learned(active, standby, bridges)
        assert (taught["neighbours"], taught["routes"]) == (1, 1)
        assert [d for d in port.learned_differences(active, standby, bridges) if d.kind in found] == []
        again = port.sync_learned(active, standby, bridges)
        assert (again["neighbours"], again["routes"]) == (0, 0)

    def test_neighbours_that_a_switch_is_told_of_it_knows_where_it_reaches_them(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        ip = pair.on_link(active, UNDERLAY)
        told = {ip: "02:00:00:00:00:09", "203.0.113.9": "02:00:00:00:00:0a"}
        assert port.teach_neighbours(active, told) == 1
        assert port.teach_neighbours(active, told) == 0
        assert port.sync_learned(active, standby, [UNDERLAY])["neighbours"] >= 1
        assert [d for d in port.learned_differences(active, standby, [UNDERLAY]) if d.kind == "neighbour"] == []
        assert port.teach_neighbours(active, {ip: "02:00:00:00:00:99"}) == 1
        (found,) = [d for d in port.learned_differences(active, standby, [UNDERLAY]) if d.kind == "neighbour"]
        assert (found.what, found.old, found.new) == (ip, "02:00:00:00:00:99", "02:00:00:00:00:09")

    def test_a_neighbour_more_is_no_difference_and_a_route_more_is_taken_away(self, pair: Rig) -> None:
        port, active, standby = pair.host.openflow, pair.active, pair.standby
        bridges = [UNDERLAY]
        port.sync_learned(active, standby, bridges)
        pair.teach_neighbour(standby, UNDERLAY, "192.0.2.78", "02:00:00:00:00:78")
        pair.teach_route(standby, UNDERLAY, "203.0.113.0/24")
        found = [d for d in port.learned_differences(active, standby, bridges) if d.kind in ("neighbour", "route")]
        assert [(d.kind, d.old) for d in found] == [("route", None)]
        port.sync_learned(active, standby, bridges)
        assert [d for d in port.learned_differences(active, standby, bridges) if d.kind == "route"] == []

    def test_live_flows_end_alike(self, pair: Rig) -> None:
        for bridge in (b.name for b in pair.host.database.read(pair.active).bridges):
            pair.host.openflow.sync(pair.active, pair.standby, bridge, hold=True)
        traced, found = pair.host.openflow.traces(pair.active, pair.standby, 3)
        assert traced >= 0
        assert found == ()
