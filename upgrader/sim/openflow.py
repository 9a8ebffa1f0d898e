"""What controllers and the network taught slots' bridges, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from upgrader.core import learned, openflow
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot, SlotName
from upgrader.core.openflow import BridgeState
from upgrader.core.proof import Difference
from upgrader.sim.world import World

# what is learned, as a sync counts it and as a difference names it
LEARNED = {
    "neighbours": "neighbour",
    "routes": "route",
    "addresses": "learned address",
    "multicast": "multicast group",
}


class SimOpenFlow:
    def __init__(self, world: World) -> None:
        self._w = world

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        return self._state(slot, bridge).flows

    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        return self._state(slot, bridge).groups

    def settings(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """Nobody has set any in a simulated host."""
        self._state(slot, bridge)
        return ()

    def sync(self, source: Slot, target: Slot, bridge: str, *, hold: bool, moving: bool = False) -> Mapping[str, int]:
        self._w.call(f"copy {bridge}")
        old, new = self._both(source, target, bridge, hold=hold)
        lines = openflow.bundle(old, new, moving=moving)
        if lines:  # else it keeps what it has, time-outs that are held among it
            apply(self._w, target.name, bridge, lines)
        key = target.name, bridge
        self._w.meters[key], self._w.tlvs[key] = old.meters, old.tlv_map
        meters, tlvs = (set(new.meters), set(old.meters)), (set(new.tlv_map), set(old.tlv_map))
        stale = openflow.numbered(new.meters).keys() - openflow.numbered(old.meters).keys()
        counts = {
            "tlv delete": len(tlvs[0] - tlvs[1]),
            "tlv add": len(tlvs[1] - tlvs[0]),
            "meter set": len(meters[1] - meters[0]),
            "meter delete": len(stale),
        }
        return openflow.summary(lines) | {what: n for what, n in counts.items() if n}

    def release_flows(self, slot: Slot, bridge: str) -> int:
        lines = openflow.released(self.flows(slot, bridge))
        apply(self._w, slot.name, bridge, lines)
        return len(lines)

    def differences(self, source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[Difference, ...]:
        self._w.look(f"differences {bridge}")
        return openflow.differences(bridge, *self._both(source, target, bridge, hold=hold))

    def sync_learned(self, source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
        self._w.call("sync_learned")
        old, new = (self._learned(slot, bridges) for slot in (source, target))
        for kind, where, what in new.keys() - old.keys():
            if kind == "routes":
                del self._w.learned[target.name, kind, where, what]
        lacking = {key: how for key, how in old.items() if new.get(key) != how}
        self._w.learned |= {(target.name, *key): how for key, how in lacking.items()}
        return {kind: sum(1 for k, _, _ in lacking if k == kind) for kind in LEARNED}

    def teach_neighbours(self, slot: Slot, neighbours: Mapping[str, str]) -> int:
        self._w.require_running(slot)
        routes = "".join(
            f"User: {prefix} {how}\n"
            for (s, kind, _, prefix), how in self._w.learned.items()
            if (s, kind) == (slot.name, "routes")
        )
        taught = {}
        for ip, mac in neighbours.items():
            key = slot.name, "neighbours", learned.reached_by(routes, ip) or "", ip
            if key[2] and self._w.learned.get(key) != mac:
                taught[key] = mac
        if taught:
            self._w.call(f"teach {slot.name}")
        self._w.learned |= taught
        return len(taught)

    def learned_differences(self, source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
        old, new = (self._learned(slot, bridges) for slot in (source, target))
        return tuple(
            Difference(LEARNED[kind], where, what, old.get((kind, where, what)), new.get((kind, where, what)))
            for kind, where, what in sorted({*old, *(key for key in new if key[0] == "routes")})
            if old.get((kind, where, what)) != new.get((kind, where, what))
        )

    def traces(self, source: Slot, target: Slot, limit: int) -> tuple[int, tuple[Difference, ...]]:
        """No packet flows in a simulated host: there is nothing to trace."""
        self._w.look("traces")
        for slot in (source, target):
            self._w.require_running(slot)
        return 0, ()

    def _state(self, slot: Slot, bridge: str) -> BridgeState:
        self._w.require_running(slot)
        held = self._w.databases.get(slot.name)
        if held is None or bridge not in {b.name for b in held.switch.bridges}:
            raise CommandError(
                f"ovs-ofctl dump-flows {bridge}", "exited with 1", f"{bridge} is not a bridge or a socket"
            )
        key = slot.name, bridge
        return BridgeState(
            *(kind.get(key, ()) for kind in (self._w.flows, self._w.groups, self._w.meters, self._w.tlvs))
        )

    def _both(self, source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[BridgeState, BridgeState]:
        old, new = self._state(source, bridge), self._state(target, bridge)
        if hold:
            old = BridgeState(openflow.held(old.flows), old.groups, old.meters, old.tlv_map)
            new = BridgeState(openflow.held(new.flows), new.groups, new.meters, new.tlv_map)
        return old, new

    def _learned(self, slot: Slot, bridges: Sequence[str]) -> dict[tuple[str, str, str], str]:
        self._w.require_running(slot)
        return {(k, w, t): how for (s, k, w, t), how in self._w.learned.items() if s == slot.name and w in bridges}


def forget(world: World, name: SlotName) -> None:
    """A switch that starts has no flows, and has learned nothing."""
    for kind in (world.flows, world.groups, world.meters, world.tlvs):
        for key in [k for k in kind if k[0] == name]:
            del kind[key]
    for what in [k for k in world.learned if k[0] == name]:
        del world.learned[what]


def apply(world: World, name: SlotName, bridge: str, lines: Sequence[str]) -> None:
    """Carry out the lines of a bundle (ovs-ofctl(8))."""
    key = name, bridge
    flows = {openflow.identity(f): f for f in world.flows.get(key, ())}
    groups = {openflow.group_id(g): g for g in world.groups.get(key, ())}
    for line in lines:
        kind, verb, what = line.split(" ", 2)
        if kind == "flow":
            flows.pop(openflow.identity(what), None)
            if verb == "add":
                flows[openflow.identity(what)] = what
        elif verb == "delete":
            groups.pop(openflow.group_id(what), None)
        else:
            groups[openflow.group_id(what)] = what
    world.flows[key], world.groups[key] = tuple(flows.values()), tuple(groups.values())
