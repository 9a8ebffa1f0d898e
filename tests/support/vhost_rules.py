"""The grammar of a hand-over: what must come before what on two vhost-user connections to one guest's rings.

Reads a transcript and nothing else. A backend has a ring from the moment the address, the kick and the enabling of it
were sent, since it may act on the last of them at once; and it has it until it *said* that it let go: by its answer to an
address elsewhere, to a disabling or to a GET_VRING_BASE, or to a question that was asked behind it (a barrier). What was
sent and not answered changes nothing. A hang-up proves nothing either; a death does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.transcript import REPLY, Mark, Message, Transcript, place

#: Protocol features (bit numbers) and the feature bit that they hang on.
F_PROTOCOL_FEATURES, P_MQ, P_REPLY_ACK = 30, 0, 3
_ASKS = ("GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_VRING_BASE", "GET_STATUS")
_OF_A_RING = ("SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_BASE", "SET_VRING_KICK", "SET_VRING_CALL")


@dataclass(frozen=True, slots=True)
class RingState:
    """What one backend was told of one ring. `at`: guest or scratch."""

    num: int | None = None
    based: bool = False
    at: str | None = None
    kicked: bool = False
    enabled: bool = False

    @property
    def on_guest(self) -> bool:
        return self.at == "guest" and self.kicked and self.enabled


@dataclass(slots=True)
class Connection:
    """One backend: what it may act on (`told`) and what it has confirmed, messages that are still to be answered."""

    negotiated: bool = False
    owned: bool = False
    protocol: int = 0
    regions: list[Mapping[str, int]] = field(default_factory=list)
    told: dict[int, RingState] = field(default_factory=dict)
    maybe: set[int] = field(default_factory=set)
    owed: list[tuple[Message, frozenset[int]]] = field(default_factory=list)

    def rings_on_guest(self) -> set[int]:
        """Rings that it may be in, now."""
        return {n for n, ring in self.told.items() if ring.on_guest} | self.maybe


def violations(transcript: Transcript) -> list[str]:
    """Every breach of the grammar, with the number of the line (the first after the heading is 1); empty where it is kept."""
    connections: dict[str, Connection] = {}
    found = []
    for number, line in enumerate(transcript.lines, 1):
        if isinstance(line, Mark):
            what, _, name = line.what.partition(" of ")
            if what == "death":
                connections[name] = Connection()
            elif what == "hang-up":
                left = connections[name].rings_on_guest()
                connections[name] = Connection(told={n: RingState() for n in left}, maybe=left)
            continue
        connection = connections.setdefault(line.switch, Connection())
        step = _from_qemu(connection, line) if line.sender == "qemu" else _from_switch(connection, line)
        found += [f"line {number}, {line.switch} {line.request}: {what}" for what in step]
        for ring in _shared(connections):
            found.append(f"line {number}, {line.switch} {line.request}: ring {ring} may have two writers")
    for name, connection in connections.items():
        found += [f"{name} never answered {m.request}" for m, _ in connection.owed]
    return found


def _shared(connections: Mapping[str, Connection]) -> Iterator[int]:
    seen: set[int] = set()
    for connection in connections.values():
        rings = connection.rings_on_guest()
        yield from sorted(seen & rings)
        seen |= rings


def _from_qemu(c: Connection, m: Message) -> Iterator[str]:
    if m.flags & REPLY:
        yield "QEMU answers nothing on this socket"
    if m.wants_ack and not c.protocol & 1 << P_REPLY_ACK:
        yield "an answer is wanted that was not negotiated"
    if m.request == "SET_FEATURES":
        c.negotiated = True
    elif m.request == "SET_PROTOCOL_FEATURES":
        c.protocol = m.fields["u64"]
    elif m.request == "SET_OWNER":
        c.owned = True
    elif m.request == "SET_MEM_TABLE":
        yield from _table(c, m)
    elif m.request in (*_OF_A_RING, "SET_VRING_ENABLE", "GET_VRING_BASE"):
        yield from _of_a_ring(c, m)
    if m.request in _ASKS or m.wants_ack:
        # whatever was let go of before this question is let go of for certain once it is answered
        c.owed.append((m, frozenset(n for n in c.maybe if not c.told[n].on_guest)))


def _table(c: Connection, m: Message) -> Iterator[str]:
    c.regions = list(m.fields["regions"])
    if not c.negotiated:
        yield "a memory table before the features"
    if m.fds != len(c.regions):
        yield f"{len(c.regions)} regions and {m.fds} descriptors"


def _of_a_ring(c: Connection, m: Message) -> Iterator[str]:
    number = m.fields["ring"]
    ring = c.told.get(number, RingState())
    was_on = ring.on_guest
    if not c.owned:
        yield "a ring before SET_OWNER"
    match m.request:
        case "SET_VRING_NUM":
            if ring.enabled and ring.kicked:
                yield "a new size for a ring that is live"
            ring = replace(ring, num=m.fields["num"])
        case "SET_VRING_BASE":
            if ring.enabled and ring.kicked:
                yield "a new index for a ring that is live"
            ring = replace(ring, based=True)
        case "SET_VRING_ADDR":
            at = place(c.regions, m.fields["desc"])
            if {at} != {place(c.regions, m.fields[k]) for k in ("avail", "used")} or at is None:
                yield "an address that is in no region of the memory table, or in two"
            ring = replace(ring, at=at)
        case "SET_VRING_KICK":
            if ring.num is None or not ring.based or ring.at is None:
                yield "a kick, which starts the ring, before its size, index and address"
            if m.fds != (not m.fields["no_fd"]):
                yield "no descriptor, or one too many"
            ring = replace(ring, kicked=True)
        case "SET_VRING_ENABLE":
            ring = replace(ring, enabled=bool(m.fields["num"]))
        case "GET_VRING_BASE":
            ring = replace(ring, kicked=False, based=False)
    c.told[number] = ring
    if was_on and not ring.on_guest:
        c.maybe.add(number)  # until it says so


def _from_switch(c: Connection, m: Message) -> Iterator[str]:
    if not m.flags & REPLY:
        yield "a switch asks nothing on this socket"
        return
    if not c.owed:
        yield "an answer that nobody asked for"
        return
    asked, certain = c.owed.pop(0)
    if asked.request != m.request:
        yield f"an answer out of turn: {asked.request} is owed"
        return
    refused = asked.wants_ack and asked.request not in _ASKS and m.fields["u64"] != 0
    if refused:
        yield f"refused with {m.fields['u64']}"
        return
    if asked.request == "GET_VRING_BASE" and m.fields["ring"] != asked.fields["ring"]:
        yield f"ring {asked.fields['ring']} was asked about, ring {m.fields['ring']} was told of"
        return
    c.maybe -= {n for n in certain if not c.told[n].on_guest}


def without(transcript: Transcript, index: int) -> Transcript:
    """The transcript less one line."""
    return replace(transcript, lines=transcript.lines[:index] + transcript.lines[index + 1 :])


def moved(transcript: Transcript, index: int, to: int) -> Transcript:
    """The transcript with one line at another place."""
    lines: list[Any] = list(transcript.lines)
    lines.insert(to, lines.pop(index))
    return replace(transcript, lines=tuple(lines))
