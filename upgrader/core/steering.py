"""How a run steers: the strategy a NIC allows and what it costs, and whether packets arrive where they should. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from upgrader.core.findings import Finding, Severity
from upgrader.core.model import SLOTS, Interface, SlotName, SteeringCapabilities, SteeringRule, other_slot

_ACROSS = "between two VMs, what is sent while they are on different switches"


@dataclass(frozen=True, slots=True)
class Strategy:
    """How the traffic of VMs is moved.

    name      ``per-vm-dual``, ``per-vm``, ``whole-port-dual`` or ``whole-port``
    loses     what it can cost, in words for the operator
    per_vm    the plan gives each VM a rule of its own
    findings  what stands against steering so, or should be known
    """

    name: str
    loses: str
    per_vm: bool
    findings: tuple[Finding, ...] = ()


def choose(capabilities: SteeringCapabilities, vms: int, accept: Collection[str] = ()) -> Strategy:
    """The best strategy for this NIC and so many VMs; a code in `accept` makes its finding a warning.

    Two more are to come with a patched switch, in front of these: ``inbox`` and ``hold-new``.
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
    if c.per_vm and c.dual_delivery:
        loses = f"per VM what arrives during the hand-over itself, about a millisecond; {_ACROSS}"
        if c.detour:
            loses += "; while the window is open the overlay passes the PF's kernel path, and what is beyond that path's rate"
        return Strategy("per-vm-dual", loses, True, tuple(found))
    if c.per_vm:
        loses = f"per VM what arrives between the hand-over and the turn of its rule, some milliseconds{_gap(c)}"
        return Strategy("per-vm", f"{loses}; {_ACROSS}", True, tuple(found))
    if c.dual_delivery:
        loses = (
            "of every VM what arrives during its hand-over itself, about a millisecond, and what either switch or VF cannot "
            f"take when it gets all of the overlay while the window is open; {_ACROSS}"
        )
        return Strategy("whole-port-dual", loses, False, tuple(found))
    loses = (
        "all that the fabric sends to a VM while the port points to the other switch: the port turns when half of the "
        f"VMs have moved, so for at most half of the time that all hand-overs take{_gap(c)}"
    )
    return Strategy("whole-port", f"{loses}; {_ACROSS}", False, tuple(found))


def _gap(c: SteeringCapabilities) -> str:
    if c.atomic:
        return ""
    if c.gap_caught:
        return "; nothing in the gap of a rule's turn, which the catch port on the PF takes"
    return "; and, of every VM, what arrives in the gap of a rule's turn (it is deleted, then added)"


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
