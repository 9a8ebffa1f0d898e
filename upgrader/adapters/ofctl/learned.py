"""Tunnel neighbours, routes, learned addresses and multicast groups, from one switch to another by ovs-appctl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from upgrader.adapters.ofctl.programs import appctl, asked
from upgrader.core import learned, teaching
from upgrader.core.learned import Address, Group
from upgrader.core.model import Slot
from upgrader.core.proof import Difference

_T = TypeVar("_T", Address, Group)


def sync(source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
    """Bring over what the target lacks; returns how many of each."""
    taught = {"neighbours": 0, "routes": 0, "addresses": 0, "multicast": 0}
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
        taught["addresses"] += _teach(target, bridge, _addresses(source, bridge), _addresses)
        taught["multicast"] += _teach(target, bridge, _groups(source, bridge), _groups)
    return taught


def teach_neighbours(slot: Slot, neighbours: Mapping[str, str]) -> int:
    """Tell the switch of those it reaches with no gateway between, and knows not so; returns how many."""
    routes, here = _routes(slot), _neighbours(slot)
    taught = 0
    for ip, mac in neighbours.items():
        bridge = learned.reached_by(routes, ip)
        if bridge is not None and here.get((bridge, ip)) != mac:
            appctl(slot, "tnl/neigh/set", bridge, ip, mac)
            taught += 1
    return taught


def differences(source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
    """What the target lacks or has otherwise."""
    old, new = learned.as_both_tell(*(learned.routes(_routes(s), bridges) for s in (source, target)))
    return (
        *learned.neighbour_differences(_neighbours(source), _neighbours(target)),
        *learned.route_differences(old, new),
        *(d for b in bridges for d in learned.address_differences(b, _addresses(source, b), _addresses(target, b))),
        *(d for b in bridges for d in learned.group_differences(b, _groups(source, b), _groups(target, b))),
    )


def _neighbours(slot: Slot) -> dict[tuple[str, str], str]:
    return learned.neighbours(appctl(slot, "tnl/neigh/show"))


def _routes(slot: Slot) -> str:
    return appctl(slot, "ovs/route/show")


def _mark(mark: str | None) -> list[str]:
    return [f"pkt_mark={mark}"] if mark else []


def _addresses(slot: Slot, bridge: str) -> frozenset[Address]:
    return learned.addresses(asked(slot, "fdb/show", bridge) or "")


def _groups(slot: Slot, bridge: str) -> frozenset[Group]:
    return learned.groups(asked(slot, "mdb/show", bridge) or "")


def _teach(target: Slot, bridge: str, known: frozenset[_T], read: Callable[[Slot, str], frozenset[_T]]) -> int:
    """Have the bridge learn as from frames that come in there; returns how many things it has learned.

    Traced with NORMAL they are learned from and not sent (ofproto/trace-packet-out, ovs-vswitchd(8)). A port that takes
    no tagged frames for a VLAN is its access port: there they go untagged.
    """
    lacking = left = known - read(target, bridge)
    for tagged in (True, False):
        for thing in sorted(left, key=teaching.turn):
            if tagged and not thing.vlan:
                continue
            frame = teaching.frame(thing, thing.vlan if tagged else None)
            if asked(target, "ofproto/trace-packet-out", bridge, f"in_port={thing.port}", frame, "NORMAL") is None:
                return 0  # older than the command: what was learned is learned anew
        if left:
            left -= read(target, bridge)
    return len(lacking - left)
