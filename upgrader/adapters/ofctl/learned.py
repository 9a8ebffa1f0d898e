"""Tunnel neighbours, routes and learned addresses, from one switch to another by ovs-appctl and packet-out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from upgrader.adapters.ofctl.programs import appctl, asked, ofctl
from upgrader.core import learned
from upgrader.core.learned import Address
from upgrader.core.model import Slot
from upgrader.core.proof import Difference


def sync(source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
    """Bring over what the target lacks; returns how many of each."""
    taught = {"neighbours": 0, "routes": 0, "addresses": 0}
    here = _neighbours(target)
    for (bridge, ip), mac in _neighbours(source).items():
        if here.get((bridge, ip)) != mac:
            appctl(target, "tnl/neigh/set", bridge, ip, mac)
            taught["neighbours"] += 1
    old, new = (frozenset(learned.routes(_routes(s), bridges)) for s in (source, target))
    for route in new - old:
        if route.user:
            appctl(target, "ovs/route/del", route.prefix, *_mark(route.mark))
    for route in old - new:
        if route.user:
            gateway = [route.gateway] if route.gateway else []
            appctl(target, "ovs/route/add", route.prefix, route.netdev, *gateway, *_mark(route.mark))
            taught["routes"] += 1
    for bridge in bridges:
        taught["addresses"] += _teach(target, bridge, _addresses(source, bridge))
    return taught


def differences(source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
    """What the target lacks or has otherwise."""
    old, new = (learned.routes(_routes(s), bridges) for s in (source, target))
    return (
        *learned.neighbour_differences(_neighbours(source), _neighbours(target)),
        *learned.route_differences(old, new),
        *(d for b in bridges for d in learned.address_differences(b, _addresses(source, b), _addresses(target, b))),
    )


def _neighbours(slot: Slot) -> dict[tuple[str, str], str]:
    return learned.neighbours(appctl(slot, "tnl/neigh/show"))


def _routes(slot: Slot) -> str:
    return appctl(slot, "ovs/route/show")


def _mark(mark: str | None) -> list[str]:
    return [f"pkt_mark={mark}"] if mark else []


def _addresses(slot: Slot, bridge: str) -> frozenset[Address]:
    return learned.addresses(asked(slot, "fdb/show", bridge) or "")


def _teach(target: Slot, bridge: str, known: Collection[Address]) -> int:
    """Have the bridge learn addresses as from a frame that came in there (packet-out, NORMAL).

    The frames go to an address that stands on the LOCAL port meanwhile, so that they are not flooded; the kernel drops
    them. A port that takes no tagged frames for a VLAN is its access port: there they go untagged.
    """
    lacking = set(known) - _addresses(target, bridge)
    if not lacking:
        return 0
    vlans = sorted({a.vlan for a in lacking})
    try:
        for vlan in vlans:
            if asked(target, "fdb/add", bridge, bridge, str(vlan), learned.TEACHER) is None:
                return 0  # older than the command: what was learned is learned anew
        for tagged in (True, False):
            for a in sorted(lacking, key=lambda a: (a.vlan, a.mac)):
                if tagged and not a.vlan:
                    continue
                frame = learned.teaching_frame(a.mac, a.vlan if tagged else None)
                ofctl(target, target, bridge, "packet-out", f"in_port={a.port},packet={frame},actions=NORMAL")
            lacking -= _addresses(target, bridge)
    finally:
        for vlan in vlans:
            asked(target, "fdb/del", bridge, str(vlan), learned.TEACHER)
    return len(set(known) & _addresses(target, bridge))
