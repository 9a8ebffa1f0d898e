"""How a run steers: the strategy a NIC allows and what it costs, and whether packets arrive where they should. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from math import ceil

from upgrader.core.findings import Finding, Severity
from upgrader.core.model import SLOTS, Interface, SlotName, SteeringCapabilities, SteeringRule, other_slot

# What costs are reckoned by, seconds: rounded from what the lab showed, by the command named. The gap stands for a driver's
# own, which was not run on hardware.
HAND_OVER_S = 0.001  # without a switch: make show-upgrade PARTS=moves, medians 0.2 to 0.5 ms
NEXT_VM_S = 0.1  # from one VM's hand-over to the next one's: the same, 81 to 106 ms
AGREE_S = 0.005  # from the rings to the rule, which cannot be turned together: make demo, "command", 3 to 8 ms
GAP_S = 0.000_15
RATE_PPS = 10_000  # of a VM, in what is said of packets


@dataclass(frozen=True, slots=True)
class Strategy:
    """How the traffic of VMs is moved.

    name      ``per-vm-dual``, ``per-vm``, ``whole-port-dual`` or ``whole-port``
    loses     what it can cost, in words for the operator: whose packets, for how long, and how many that is
    per_vm    the plan gives each VM a rule of its own
    findings  what stands against steering so, or should be known
    """

    name: str
    loses: str
    per_vm: bool
    findings: tuple[Finding, ...] = ()


def choose(
    capabilities: SteeringCapabilities, vms: int, accept: Collection[str] = (), *, canary_s: float = 0.0
) -> Strategy:
    """The best strategy for this NIC and so many VMs; a code in `accept` makes its finding a warning.

    canary_s  the first VM is watched for so long before the others move
    """
    c = capabilities
    rules = vms + 1 if c.per_vm else 1
    found = []
    if c.unproven:
        severity = Severity.WARNING if "STEERING_UNPROVEN" in accept else Severity.BLOCKING
        found.append(
            Finding(
                "STEERING_UNPROVEN",
                severity,
                c.unproven,
                'upgrade nic probe --vni VNI --mac MAC   (it shows what arrives where); then: policy.accept = ["STEERING_UNPROVEN"], or nic.adapter = "tc_u32"',
            )
        )
    elif c.hardware:
        found.append(
            Finding(
                "STEERING_MODELLED",
                Severity.WARNING,
                "rules for this NIC follow its driver's sources and were tried on a model of it, not run on hardware",
                "upgrade nic probe --vni VNI --mac MAC   (it shows what arrives where)",
            )
        )
    if c.capacity is not None and c.capacity < rules:
        found.append(
            Finding(
                "STEERING_TABLE_FULL",
                Severity.BLOCKING,
                f"steering needs {rules} rules for {vms} VMs, the NIC has room for {c.capacity}",
                "upgrade nic show   (it lists whose rules are there); delete those that nobody needs: ethtool -N PF delete N",
            )
        )
    name = f"{'per-vm' if c.per_vm else 'whole-port'}{'-dual' if c.dual_delivery else ''}"
    return Strategy(name, _loses(c, vms, canary_s), c.per_vm, tuple(found))


def _loses(c: SteeringCapabilities, vms: int, canary_s: float) -> str:
    """Whose packets a run can cost, for how long at most, and how many that is."""
    window_s = canary_s + max(0, vms - 1) * NEXT_VM_S
    if c.dual_delivery:
        lost = [f"of each VM what the fabric sends during its hand-over itself, about {_cost(HAND_OVER_S)}"]
        if c.detour:
            lost.append(
                f"while the window is open, about {_time(window_s)}, the overlay passes the PF's kernel path: what is beyond "
                "that path's rate (50,000 packets a second passed in the lab)"
            )
        elif not c.per_vm:
            lost.append(
                f"while the window is open, about {_time(window_s)}, either switch gets all of the overlay: what it or its VF "
                "cannot take"
            )
    elif c.per_vm:
        lost = [
            f"of each VM what the fabric sends between the hand-over and the turn of its rule, about {_cost(AGREE_S)}"
        ]
    else:
        lost = [
            "of each VM what the fabric sends while the port points to the other switch; it turns once more than half of the "
            f"VMs have moved, so up to {_cost(longest_cut_s(vms, canary_s) + AGREE_S)}"
        ]
    if not c.atomic and not c.detour:
        lost.append(
            "nothing in the gap of a rule's turn, which the catch port on the PF takes"
            if c.gap_caught
            else f"of every VM what arrives in the gap of a rule's turn (deleted, then added), reckoned with {_cost(GAP_S)}"
        )
    if vms > 1:
        lost.append(f"between two VMs what is sent while they are on different switches, up to {_cost(window_s)}")
    if not c.dual_delivery and not c.per_vm:
        lost.append(f"less with {_hides(c)}")
    doubt = (
        "all of the overlay, should the NIC not do what its rules say (STEERING_UNPROVEN); else: " if c.unproven else ""
    )
    return doubt + "; ".join(lost)


def _hides(c: SteeringCapabilities) -> str:
    """What of the configuration hides the turn of the whole port from the VMs, on a NIC that can do no better by itself."""
    if c.atomic:
        return 'nic.mirror = true, where the NIC can give a packet to two VFs, or nic.adapter = "tc_u32"'
    return 'nic.adapter = "tc_u32" and a port beside the VF' if c.unproven else 'nic.catch = "window"'


def longest_cut_s(vms: int, canary_s: float) -> float:
    """How long a VM's switch and the port's are not the same at most, where they move one by one and the port turns once.

    It turns at the move after which more than half of them are there. The first to move waits for that the longest, since
    it is watched meanwhile; or, of the others, the last one.
    """
    turn = vms // 2 + 1
    before = (turn - 1) * NEXT_VM_S + (canary_s if turn > 1 else 0.0)
    return max(before, (vms - turn) * NEXT_VM_S)


def _cost(seconds: float) -> str:
    return f"{_time(seconds)} ({ceil(round(seconds * RATE_PPS, 3)):,} packets of {RATE_PPS:,} a second)"


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.001 else f"{seconds * 1e6:.0f} us"


def not_steered(c: SteeringCapabilities, interfaces: Iterable[Interface]) -> tuple[Finding, ...]:
    """Tunnels whose packets are of the other IP version: no rule takes them, so they would stay with the PF."""
    found = []
    for interface in interfaces:
        if interface.type != "vxlan":
            continue
        ends = {key: _version(interface.option(key)) for key in ("local_ip", "remote_ip")}
        other = [f"{key} {interface.option(key)}" for key, version in ends.items() if version not in (None, c.underlay)]
        if other:
            found.append(
                Finding(
                    "STEERING_OTHER_UNDERLAY",
                    Severity.BLOCKING,
                    f"tunnel {interface.name} has {other[0]}, but steering takes the overlay in IPv{c.underlay} only: what "
                    "comes for its VMs would stay with the PF",
                    f'nic.underlay = "ipv{4 if c.underlay == 6 else 6}" in the configuration; not both families on one host',
                )
            )
    return tuple(found)


def _version(address: str | None) -> int | None:
    """Of an IP address; None for ``flow`` and its like."""
    try:
        return ip_address(address or "").version
    except ValueError:
        return None


def majority(served: Iterable[SlotName], now: SlotName) -> SlotName:
    """The slot where the whole port should point: where more VMs are served; on a tie where it points now."""
    votes = list(served)
    there = sum(1 for slot in votes if slot != now)
    return other_slot(now) if 2 * there > len(votes) else now


def who_gets(rules: Iterable[SteeringRule], vni: int, mac: str) -> SteeringRule | None:
    """The rule that takes a VM's overlay traffic; None where it stays with the PF."""
    found = {(r.vni, r.mac): r for r in rules}
    return found.get((vni, mac.lower()), found.get((None, None)))


class Arrival(StrEnum):
    """What the VFs' counters say of steering to one slot."""

    AS_SET = "arrives as set"
    ELSEWHERE = "arrives at the other slot"
    BOTH = "arrives at both slots"
    SILENT = "nothing arrives at either"


def judge(slot: SlotName, before: Mapping[SlotName, int], now: Mapping[SlotName, int], least: int = 1) -> Arrival:
    """Compare two readings of `Steering.arrived`. A counter that fell began anew: its VF was reset.

    Fewer packets than `least` say nothing: a VF gets broadcasts whatever the rules are.
    """
    came = {s: now[s] - before[s] if now[s] >= before[s] else now[s] for s in SLOTS}
    here, there = came[slot] >= least, came[other_slot(slot)] >= least
    if here:
        return Arrival.BOTH if there else Arrival.AS_SET
    return Arrival.ELSEWHERE if there else Arrival.SILENT
