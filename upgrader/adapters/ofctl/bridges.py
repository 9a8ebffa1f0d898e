"""Flows, groups, meters and TLV maps: dumped from both switches, compared, and brought over in one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from upgrader.adapters.ofctl import learned, traces
from upgrader.adapters.ofctl.programs import ofctl, speaks_none_of
from upgrader.adapters.ofctl.watch import Token, Watches
from upgrader.core import openflow
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot
from upgrader.core.openflow import BridgeState
from upgrader.core.proof import Difference

_NO_FLOWS = "--no-stats dump-flows"
_TRIES = 3


class Ofctl:
    """Reads, copies and compares what is in bridges.

    What a `sync` found equal is not looked at by the next one while neither bridge says that it was changed.
    """

    def __init__(self) -> None:
        self._watches = Watches()
        self._equal: dict[tuple[object, ...], tuple[Token, Token]] = {}
        self._begun: set[tuple[object, ...]] = set()

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """Every flow as ovs-ofctl prints it, without statistics and with port numbers."""
        return openflow.body(ofctl(slot, slot, bridge, _NO_FLOWS))

    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """Every group as ovs-ofctl prints it, with port numbers."""
        return openflow.body(ofctl(slot, slot, bridge, "dump-groups"))

    def settings(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """What was set by mod-port and set-frags."""
        fragments = ofctl(slot, slot, bridge, "get-frags").strip()
        ports = openflow.port_settings(ofctl(slot, slot, bridge, "dump-ports-desc"))
        return ports if fragments == "normal" else (*ports, f"fragments {fragments}")

    def sync(self, source: Slot, target: Slot, bridge: str, *, hold: bool, moving: bool = False) -> Mapping[str, int]:
        pair = source.rundir, target.rundir, bridge
        if pair not in self._begun:  # one that is filled for the first time would tell of each flow that it gets
            self._begun.add(pair)
            return _sync(source, target, bridge, hold=hold, moving=moving)
        what = (*pair, hold, moving)
        # looked at before the dumps, so that whatever is changed from now on, by us as well, makes another state
        old, new = (self._watches.look(slot, bridge) for slot in (source, target))
        if old and new and self._equal.get(what) == (old, new):
            return {}
        self._equal.pop(what, None)
        changed = _sync(source, target, bridge, hold=hold, moving=moving)
        if old and new and not changed:
            self._equal[what] = old, new
        return changed

    def release_flows(self, slot: Slot, bridge: str) -> int:
        if lines := openflow.released(self.flows(slot, bridge)):
            _bundle(slot, bridge, lines)
        return len(lines)

    def differences(self, source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[Difference, ...]:
        old, new = _both(source, target, bridge, hold=hold)
        return openflow.differences(bridge, old, new)

    def sync_learned(self, source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
        return learned.sync(source, target, bridges)

    def teach_neighbours(self, slot: Slot, neighbours: Mapping[str, str]) -> int:
        return learned.teach_neighbours(slot, neighbours)

    def learned_differences(self, source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
        return learned.differences(source, target, bridges)

    def traces(self, source: Slot, target: Slot, limit: int) -> tuple[int, tuple[Difference, ...]]:
        return traces.compare(source, target, limit)


def _sync(
    source: Slot, target: Slot, bridge: str, *, hold: bool, moving: bool, tries: int = _TRIES
) -> Mapping[str, int]:
    old, new = _both(source, target, bridge, hold=hold)
    changed = {}
    if stale := openflow.stale_tlvs(old.tlv_map, new.tlv_map):
        new = _forget_tlvs(target, bridge, new, stale)
        changed["tlv delete"] = len(stale)
    if added := openflow.stale_tlvs(new.tlv_map, old.tlv_map):
        ofctl(target, target, bridge, "add-tlv-map", ",".join(added), peer=source)
        changed["tlv add"] = len(added)
    differ = openflow.numbered(old.meters), openflow.numbered(new.meters)
    for number in [n for n, m in differ[0].items() if differ[1].get(n) != m]:
        verb = "mod-meter" if number in differ[1] else "add-meter"
        ofctl(target, target, bridge, verb, differ[0][number], peer=source)
        changed["meter set"] = changed.get("meter set", 0) + 1
    if lines := openflow.bundle(old, new, moving=moving):
        try:
            _bundle(target, bridge, lines, source)
        except CommandError:
            if tries == 1:
                raise
            # a controller may have deleted a group between the dump of the flows and that of the groups
            return _sync(source, target, bridge, hold=hold, moving=moving, tries=tries - 1)
        changed |= openflow.summary(lines)
    for number in differ[1].keys() - differ[0].keys():  # the flows that used it are gone by now
        ofctl(target, target, bridge, "del-meter", number, peer=source)
        changed["meter delete"] = changed.get("meter delete", 0) + 1
    return changed


def _bundle(slot: Slot, bridge: str, lines: Sequence[str], peer: Slot | None = None) -> None:
    """In one transaction; in order and one by one where the bridge speaks nothing newer than OpenFlow 1.2."""
    try:
        ofctl(slot, slot, bridge, "bundle", "-", stdin="\n".join(lines) + "\n", peer=peer)
    except CommandError as error:
        if not speaks_none_of(error):
            raise
        for command, part in openflow.one_by_one(lines):
            ofctl(slot, slot, bridge, command, "-", stdin=part, peer=peer)


def _both(source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[BridgeState, BridgeState]:
    """Both sides, read at the same time."""
    with ThreadPoolExecutor(2) as readers:
        reads = [
            readers.submit(copy_context().run, _state, target, slot, peer, bridge)  # their log lines are the step's
            for slot, peer in ((source, target), (target, source))
        ]
        old, new = (read.result() for read in reads)
    if hold:
        old = BridgeState(openflow.held(old.flows), old.groups, old.meters, old.tlv_map)
        new = BridgeState(openflow.held(new.flows), new.groups, new.meters, new.tlv_map)
    return old, new


def _state(reader: Slot, slot: Slot, peer: Slot, bridge: str) -> BridgeState:
    # flows first: a group that is added with a flow meanwhile is in its own dump then
    flows = openflow.body(ofctl(reader, slot, bridge, _NO_FLOWS, peer=peer))
    with ThreadPoolExecutor(3) as readers:  # little to read, and each waits for answers most of the time
        groups, meters, tlvs = (readers.submit(read, reader, slot, peer, bridge) for read in (_groups, _meters, _tlvs))
        return BridgeState(flows, groups.result(), meters.result(), tlvs.result())


def _groups(reader: Slot, slot: Slot, peer: Slot, bridge: str) -> tuple[str, ...]:
    return openflow.body(ofctl(reader, slot, bridge, "dump-groups", peer=peer))


def _meters(reader: Slot, slot: Slot, peer: Slot, bridge: str) -> tuple[str, ...]:
    try:
        return openflow.meters(ofctl(reader, slot, bridge, "dump-meters", peer=peer))
    except CommandError as error:
        if speaks_none_of(error):
            return ()  # before OpenFlow 1.3 there were none
        raise


def _tlvs(reader: Slot, slot: Slot, peer: Slot, bridge: str) -> tuple[str, ...]:
    return openflow.tlv_map(ofctl(reader, slot, bridge, "dump-tlv-map", peer=peer))


def _forget_tlvs(target: Slot, bridge: str, state: BridgeState, stale: Sequence[str]) -> BridgeState:
    """Delete mappings, and before them the flows that use them; returns what is left."""
    gone = openflow.using(state.flows, stale)
    if gone:
        _bundle(target, bridge, [f"flow delete_strict {openflow.strictly(f)}" for f in gone])
    ofctl(target, target, bridge, "del-tlv-map", ",".join(stale))
    left = set(gone)
    return BridgeState(
        tuple(f for f in state.flows if f not in left),
        state.groups,
        state.meters,
        tuple(t for t in state.tlv_map if t not in set(stale)),
    )
