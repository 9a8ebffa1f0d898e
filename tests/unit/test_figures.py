"""The demonstration's figures: limits that hold and limits that do not, and what QEMU's events and guests tell."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from upgrader.lab.exercise import disturbances
from upgrader.lab.figures import LOST, Felt, Limit, bystanders_line, limits, report_json
from upgrader.lab.qemu_events import outages_us
from upgrader.lab.traffic.analysis import Direction, FlowFigures
from upgrader.lab.traffic.protocol import LinkState

QUIET = FlowFigures(
    vm="vm0",
    peer="fabric",
    direction=Direction.FROM_FABRIC,
    rate_pps=1000,
    sent=1000,
    received=1000,
    lost=0,
    duplicated=0,
    reordered=0,
    gap_us=9_000,
    loss_time_us=0,
    timestamp_time_us=0,
    late_sends=0,
    own_drops=0,
    network_gap_us=5_000,
    control_gap_us=8_000,
    control_network_gap_us=4_000,
)


def felt(event: str = "a -> b", blackout_us: float = 900, **changes: object) -> Felt:
    figures = replace(QUIET, **changes)  # type: ignore[arg-type]
    across = replace(QUIET, direction=Direction.VM_TO_VM, lost=500, gap_us=900_000)  # reported, not limited
    return Felt(event, "vm0", blackout_us, {Direction.FROM_FABRIC: figures, Direction.VM_TO_VM: across})


RESTART = [felt("stock restart", 900_000, gap_us=1_000_000, lost=900)]


def test_a_good_run_holds_everywhere() -> None:
    judged = limits([felt()] * 8, RESTART, {})
    assert [x.what for x in judged if not x.holds] == []
    assert "111 times" in judged[3].measured


@pytest.mark.parametrize(
    ("moves", "disturbed", "falls"),
    [
        ([felt(blackout_us=1501)] * 8, {}, 0),
        ([felt(gap_us=28_001)] * 2 + [felt()] * 8, {}, 1),
        ([felt(lost=LOST + 1)] + [felt()] * 7, {}, 2),
        ([felt(gap_us=50_001, control_gap_us=50_000)] * 8, {}, 3),
        ([felt()] * 8, {"vm0": "carrier changed 2 times"}, 4),
    ],
)
def test_each_limit_falls_for_its_own_reason(moves: list[Felt], disturbed: dict[str, str], falls: int) -> None:
    judged = limits(moves, RESTART, disturbed)
    assert [i for i, x in enumerate(judged) if not x.holds] == [falls]
    assert judged[falls].line().startswith("FAIL")


def test_one_bad_gap_in_ten_is_allowed() -> None:
    assert limits([felt(gap_us=200_000)] + [felt()] * 9, RESTART, {})[1].holds


def test_vms_that_are_moved_one_after_the_other_without_delay_hold_and_others_fall() -> None:
    def paced(*apart: float | None) -> Limit:
        return limits([replace(felt(), apart_s=a) for a in apart], RESTART, {})[-1]

    quick = paced(None, None, 0.05, 0.06, 0.9)
    assert (quick.holds, quick.measured) == (True, "60 ms (max 900)")
    assert not paced(None, None, 2.1).holds
    assert "hand-over" not in paced(None, None).what, "two VMs tell nothing of it"


def test_the_report_has_the_fields_that_are_promised() -> None:
    report = report_json({"vms": 1}, [felt()], RESTART, limits([felt()], RESTART, {}))
    assert json.loads(json.dumps(report)) == report
    for entry in (report["moves"][0], report["stock_restart"][0]):  # type: ignore[index]
        assert {"event", "vm", "blackout_us", "directions"} <= entry.keys()
        for figures in entry["directions"].values():
            assert figures.keys() >= {
                "gap_us",
                "network_gap_us",
                "control_gap_us",
                "sent",
                "unsent",
                "lost",
                "duplicated",
                "reordered",
                "loss_time_us",
                "timestamp_time_us",
            }


def test_a_starved_sender_is_told_from_the_switch() -> None:
    """The limit is on the gap as seen; what of it is the network's stands beside it."""
    judged = limits([felt(gap_us=300_000, network_gap_us=6_000)] * 8, RESTART, {})[1]
    assert not judged.holds
    assert judged.measured == "0 of 8, worst 292.0 ms (without the senders' own lateness 8 of 8, worst 2.0 ms)"


def test_what_bystanders_felt_is_said_in_one_line_and_in_the_report() -> None:
    flows = tuple(replace(QUIET, vm=f"vm{i}", gap_us=i * 1000, lost=i) for i in (1, 2, 9))
    move = replace(felt(), bystanders=flows)
    assert "median 2.0 ms, worst 9.0" in bystanders_line([move])
    assert "lost median 2, worst 9 packets" in bystanders_line([move])
    assert move.to_json()["bystanders"] == {
        "gap_us": {"median": 2000, "worst": 9000},
        "network_gap_us": {"median": 5000, "worst": 5000},
        "lost": {"median": 2, "worst": 9},
    }
    assert bystanders_line([felt()]) == ""
    assert "bystanders" not in felt().to_json()


EVENTS = """\
event NETDEV_VHOST_USER_LOST at 1700000000.900000 for domain 'vm0': {"id":"hostnet0","role":"owner","fenced":true}
event NETDEV_VHOST_USER_LOST at 1700000000.950000 for domain 'vm1': {"id":"hostnet0","role":"standby","fenced":true}
event NETDEV_VHOST_USER_CONNECTED at 1700000001.000000 for domain 'vm1': {"id":"hostnet0","role":"owner","pid":7}
event NETDEV_VHOST_USER_CONNECTED at 1700000001.850500 for domain 'vm0': {"id":"hostnet0","role":"owner","pid":7}
"""


def test_an_outage_is_from_the_loss_of_the_owner_to_the_next() -> None:
    assert outages_us(EVENTS) == {"vm0": 950_500.0}


def test_of_several_outages_the_longest_counts_and_a_later_connection_does_not_lengthen_one() -> None:
    line = 'event NETDEV_VHOST_USER_{} at {}.000000 for domain \'vm0\': {{"role":"owner"}}\n'
    log = "".join(
        line.format(*e)
        for e in (("LOST", 10), ("LOST", 11), ("CONNECTED", 13), ("CONNECTED", 60), ("LOST", 70), ("CONNECTED", 71))
    )
    assert outages_us(log) == {"vm0": 3_000_000.0}
    assert outages_us(line.format("LOST", 1) + "half a li") == {}


def link(**changes: object) -> LinkState:
    fields: dict[str, object] = {
        "ifindex": 2,
        "carrier": True,
        "carrier_changes": 2,
        "carrier_up": 1,
        "carrier_down": 1,
        "mac": "52:54:00:00:00:01",
        "rx_packets": 10,
        "tx_packets": 10,
        "rx_dropped": 0,
        "tx_dropped": 0,
        "uptime_ns": 5,
    }
    return LinkState(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (link(carrier_changes=4), "carrier changed 2 times"),
        (link(carrier=False), "carrier changed"),
        (link(ifindex=3), "probed anew"),
        (link(uptime_ns=1), "reset"),
        (link(rx_packets=0), "reset"),
    ],
)
def test_what_a_guest_notices(after: LinkState, said: str) -> None:
    assert said in disturbances({"vm0": (link(), after)})["vm0"]


def test_a_guest_that_noticed_nothing() -> None:
    assert disturbances({"vm0": (link(), link(uptime_ns=9, rx_packets=99, tx_packets=99))}) == {}
