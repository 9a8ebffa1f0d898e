"""Which strategy a NIC allows, what the plan says it costs, where a whole port points, and what counters say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.steer_bench import Nic
from tests.support.steering_rigs import Rig
from upgrader.core import plan as planning
from upgrader.core import tc
from upgrader.core.findings import Severity
from upgrader.core.model import SLOTS, Interface, SlotName, SteeringCapabilities
from upgrader.core.plan import Policy
from upgrader.core.steering import NEXT_VM_S, Arrival, choose, judge, longest_cut_s, majority
from upgrader.core.tc import Underlay
from upgrader.sim.facts import host_facts, switch_facts

SLOT = st.sampled_from(SLOTS)


@pytest.mark.parametrize(
    ("capabilities", "name", "says", "never_says"),
    [
        (SteeringCapabilities(dual_delivery=True), "per-vm-dual", "about 1 ms (10 packets of 10,000 a second)", "gap"),
        (SteeringCapabilities(dual_delivery=True, detour=True), "per-vm-dual", "kernel path", "gap"),
        (SteeringCapabilities(dual_delivery=False), "per-vm", "about 5 ms (50 packets of 10,000 a second)", "gap"),
        (
            SteeringCapabilities(dual_delivery=False, atomic=False),
            "per-vm",
            "in the gap of a rule's turn",
            "nothing in",
        ),
        (
            SteeringCapabilities(dual_delivery=False, per_vm=False, atomic=False),
            "whole-port",
            "what arrives in the gap",
            "nothing in",
        ),
        (
            SteeringCapabilities(dual_delivery=False, per_vm=False, atomic=False, gap_caught=True),
            "whole-port",
            "nothing in the gap",
            "what arrives in the gap",
        ),
    ],
)
def test_the_strategy_and_its_cost(capabilities: SteeringCapabilities, name: str, says: str, never_says: str) -> None:
    plan = planning.upgrade(host_facts(), capabilities)
    assert plan.strategy == name
    assert says in plan.loses
    assert never_says not in plan.loses
    assert "between two VMs" in plan.loses


CUT = "points to the other switch; it turns once more than half of the VMs have moved, so up to 2.4 s (24,050 packets"
GAP = "in the gap of a rule's turn (deleted, then added), reckoned with 150 us (2 packets"
HANDED = "of each VM what the fabric sends during its hand-over itself, about 1 ms (10 packets"
ACROSS = "between two VMs what is sent while they are on different switches, up to 2.7 s (27,000 packets"


@pytest.mark.parametrize(
    ("nic", "strategy", "blocked", "says", "never"),
    [
        ("tc_u32", "per-vm-dual", False, [HANDED], ["gap", "points", "kernel path", "less with"]),
        (
            "tc_flower-mirror",
            "whole-port-dual",
            True,
            [HANDED, "about 2.7 s, either switch gets all of the overlay", "should the NIC not do"],
            ["gap", "points", "less with"],
        ),
        (
            "tc_flower",
            "whole-port",
            True,
            [CUT, "nic.mirror = true", 'nic.adapter = "tc_u32"'],
            ["gap", "its hand-over"],
        ),
        (
            "x710-in-tree",
            "whole-port",
            True,
            [
                CUT,
                GAP,
                "all of the overlay, should the NIC not do what its rules say",
                'less with nic.adapter = "tc_u32"',
            ],
            ["nic.catch"],
        ),
        ("x710-out-of-tree", "whole-port", False, [CUT, GAP, 'less with nic.catch = "window"'], ["should the NIC not"]),
        (
            "x710-with-catch",
            "whole-port",
            False,
            [CUT, "nothing in the gap of a rule's turn", 'less with nic.catch = "window"'],
            [GAP],
        ),
        (
            "x710-with-detour",
            "per-vm-dual",
            False,
            [
                HANDED,
                "about 2.7 s, the overlay passes the PF's kernel path",
                "50,000 packets a second passed in the lab",
            ],
            ["gap", "points", "less with"],
        ),
    ],
)
def test_the_plan_says_what_each_nic_costs(
    nic: str, strategy: str, blocked: bool, says: list[str], never: list[str], tmp_path: Path
) -> None:
    """Eight VMs, the first one watched for 2 s: the strategy of each NIC there is an adapter for, and its price."""
    capabilities = Rig(nic, tmp_path, Nic("no-such-netns"), asked=False).steering().capabilities()
    plan = planning.upgrade(host_facts(8), capabilities, policy=Policy(canary_check_s=2.0))
    assert plan.strategy == strategy
    assert [f.code for f in plan.blocking] == (["STEERING_UNPROVEN"] if blocked else [])
    for text in (*says, ACROSS):
        assert text in plan.loses
    for text in never:
        assert text not in plan.loses
    told = [f.code for f in plan.findings if f.code.startswith("STEERING_")]
    assert told == ([] if nic == "tc_u32" else ["STEERING_UNPROVEN" if blocked else "STEERING_MODELLED"])


@given(vms=st.integers(1, 60), canary_s=st.floats(0, 5))
def test_the_longest_cut_is_that_of_the_vm_that_waits_longest(vms: int, canary_s: float) -> None:
    """Moved one by one, the port where `majority` says: when does each VM's switch differ from the port's?"""
    moved_at = [n * NEXT_VM_S + (canary_s if n else 0.0) for n in range(vms)]
    turned_at = next(at for n, at in enumerate(moved_at, 1) if majority(["b"] * n + ["a"] * (vms - n), "a") == "b")
    assert longest_cut_s(vms, canary_s) == pytest.approx(max(abs(turned_at - at) for at in moved_at))


def test_one_vm_alone_has_nobody_to_talk_to() -> None:
    assert "between two VMs" not in choose(SteeringCapabilities(dual_delivery=True), 1).loses


def test_what_is_unproven_blocks_until_it_is_accepted() -> None:
    c = SteeringCapabilities(dual_delivery=False, per_vm=False, unproven="rules may not steer")
    plan = planning.upgrade(host_facts(), c)
    assert [f.code for f in plan.blocking] == ["STEERING_UNPROVEN"]
    assert "nic probe" in plan.blocking[0].remedy
    accepted = planning.upgrade(host_facts(), c, ("STEERING_UNPROVEN",))
    assert accepted.blocking == ()
    assert [f.code for f in accepted.findings if f.severity is Severity.WARNING] == ["STEERING_UNPROVEN"]
    # the way back is never barred by it: whoever cut a run off needs it
    assert "STEERING_UNPROVEN" not in [f.code for f in planning.restore(host_facts(), c, "a").blocking]


@pytest.mark.parametrize(
    ("underlay", "options", "blocked"),
    [
        (4, {"remote_ip": "flow"}, False),
        (4, {"remote_ip": "10.0.0.2", "local_ip": "10.0.0.1"}, False),
        (4, {"remote_ip": "2001:db8::2"}, True),
        (4, {"remote_ip": "flow", "local_ip": "2001:db8::1"}, True),
        (6, {"remote_ip": "2001:db8::2"}, False),
        (6, {"remote_ip": "10.0.0.2"}, True),
        (4, {}, False),
    ],
)
def test_a_tunnel_of_the_other_ip_version_blocks_a_run(underlay: int, options: dict[str, str], blocked: bool) -> None:
    switch = switch_facts(2)
    tunnel = Interface("vtep0", "br-int", "vxlan", tuple(options.items()), (), 9, "up", None)
    facts = host_facts(switch=replace(switch, interfaces=(*switch.interfaces, tunnel)))
    plan = planning.upgrade(facts, SteeringCapabilities(dual_delivery=True, underlay=underlay))
    found = [f for f in plan.blocking if f.code == "STEERING_OTHER_UNDERLAY"]
    assert bool(found) is blocked
    for f in found:
        assert f'nic.underlay = "ipv{10 - underlay}"' in f.remedy


def test_a_plan_that_steers_in_hardware_says_what_was_never_run() -> None:
    c = SteeringCapabilities(dual_delivery=False, per_vm=False, hardware=True)
    assert [(f.code, f.severity) for f in choose(c, 2).findings] == [("STEERING_MODELLED", Severity.WARNING)]
    assert choose(SteeringCapabilities(dual_delivery=True), 2).findings == ()


@given(vms=st.integers(0, 500), capacity=st.integers(0, 500), per_vm=st.booleans())
def test_room_is_counted_before_a_run(vms: int, capacity: int, per_vm: bool) -> None:
    strategy = choose(SteeringCapabilities(dual_delivery=False, per_vm=per_vm, capacity=capacity), vms)
    needed = vms + 1 if per_vm else 1
    assert [f.code for f in strategy.findings] == (["STEERING_TABLE_FULL"] if capacity < needed else [])


@given(st.lists(SLOT, max_size=9), SLOT)
def test_the_port_points_to_where_more_are_served(served: list[SlotName], now: SlotName) -> None:
    to = majority(served, now)
    other: SlotName = "b" if to == "a" else "a"
    assert served.count(to) >= served.count(other)
    if served.count(to) == served.count(other):
        assert to == now


@given(st.lists(SLOT, min_size=1, max_size=40))
def test_it_turns_once_while_all_move_one_by_one(order: list[SlotName]) -> None:
    vms = len(order)
    now: SlotName = "a"
    turns = 0
    for moved in range(1, vms + 1):
        to = majority(["b"] * moved + ["a"] * (vms - moved), now)
        turns += to != now
        now = to
    assert (now, turns) == ("b", 1)


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ({"a": 5, "b": 5}, {"a": 9, "b": 5}, Arrival.AS_SET),
        ({"a": 5, "b": 5}, {"a": 5, "b": 6}, Arrival.ELSEWHERE),
        ({"a": 5, "b": 5}, {"a": 6, "b": 6}, Arrival.BOTH),
        ({"a": 5, "b": 5}, {"a": 5, "b": 5}, Arrival.SILENT),
        ({"a": 5, "b": 5}, {"a": 3, "b": 5}, Arrival.AS_SET),  # its VF was reset, and has got 3 since
        ({"a": 5, "b": 5}, {"a": 0, "b": 5}, Arrival.SILENT),
    ],
)
def test_what_counters_say(before: dict[SlotName, int], now: dict[SlotName, int], found: Arrival) -> None:
    assert judge("a", before, now) is found


@given(
    st.integers(1, 65535),
    st.none() | st.integers(0, 2**24 - 1),
    st.none() | st.binary(min_size=6, max_size=6),
    st.sampled_from(Underlay),
)
def test_a_filter_is_read_as_it_was_written(port: int, vni: int | None, mac: bytes | None, under: Underlay) -> None:
    address = mac.hex(":") if mac is not None else None
    words = tc.overlay_words(port, vni, address, under)
    options = tc.u32_options(words, tc.deliver([7]))
    sel = options[options.rindex(bytes([1, 0, len(words), 0])) :]
    assert tc.read_u32_keys(sel) == words
    assert tc.read_overlay(words, port, under) == (vni, address)
    assert tc.read_overlay(words, port % 65535 + 1, under) is None
    assert tc.read_overlay({**words, 16: (1, 0xFFFFFFFF)}, port, under) is None  # one more condition: not ours
    other = Underlay.IPV4 if under is Underlay.IPV6 else Underlay.IPV6
    assert tc.read_overlay(words, port, other) is None


@given(st.integers(1, 130))
def test_actions_are_changed_thirty_two_at_a_time(count: int) -> None:
    messages = tc.change_actions([tc.Mirred(3, index=i).encode() for i in range(1, count + 1)])
    assert len(messages) == -(-count // 32)
    for m in messages:
        assert int.from_bytes(m[:4], "little") == len(m)
    assert sum(m.count(b"mirred\0") for m in messages) == count
