"""What QEMU and a switch said to each other over vhost-user, as a file: a line a message, and what was going on meanwhile.

A transcript is recorded by tests/support/vhost_recorder.py. It holds all that a message held (`Message.encode` gives its
bytes back), so that either side of it can be replayed. Layouts: docs/interop/vhost-user.rst of QEMU.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Side = Literal["qemu", "switch"]

VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
#: Where the series' scratch region lies in guest physical addresses; a guest has nothing there.
SCRATCH_ADDRESS = 1 << 51
NO_FD = 1 << 8

NAMES: Mapping[int, str] = {
    1: "GET_FEATURES",
    2: "SET_FEATURES",
    3: "SET_OWNER",
    4: "RESET_OWNER",
    5: "SET_MEM_TABLE",
    6: "SET_LOG_BASE",
    7: "SET_LOG_FD",
    8: "SET_VRING_NUM",
    9: "SET_VRING_ADDR",
    10: "SET_VRING_BASE",
    11: "GET_VRING_BASE",
    12: "SET_VRING_KICK",
    13: "SET_VRING_CALL",
    14: "SET_VRING_ERR",
    15: "GET_PROTOCOL_FEATURES",
    16: "SET_PROTOCOL_FEATURES",
    17: "GET_QUEUE_NUM",
    18: "SET_VRING_ENABLE",
    19: "SEND_RARP",
    20: "NET_SET_MTU",
    21: "SET_SLAVE_REQ_FD",
    39: "SET_STATUS",
    40: "GET_STATUS",
}
NUMBERS: Mapping[str, int] = {name: number for number, name in NAMES.items()}
_STATE = ("SET_VRING_NUM", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_ENABLE")
_FD = ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR")
_ADDRESS = struct.Struct("<IIQQQQ")
_REGION = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    at_s     seconds since the recording began
    switch   which of the two connections: the name of the switch at its end
    sender   who sent it
    flags    as on the wire, the protocol's version among them
    fields   the payload's, by name
    fds      how many descriptors came with it
    """

    at_s: float
    switch: str
    sender: Side
    request: str
    flags: int
    fields: Mapping[str, Any]
    fds: int

    @property
    def wants_ack(self) -> bool:
        return bool(self.flags & NEED_REPLY)

    def encode(self) -> bytes:
        """Header and payload as they were on the wire."""
        payload = _payload(self.request, self.flags, self.fields)
        return struct.pack("<III", NUMBERS[self.request], self.flags, len(payload)) + payload


@dataclass(frozen=True, slots=True)
class Mark:
    """What the recorder did next (``switch to b``), or that one end of a connection was closed (``hang-up of a``)."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """`about` says which QEMU and which switches these were."""

    about: Mapping[str, str]
    lines: tuple[Message | Mark, ...]

    def messages(self, switch: str | None = None) -> Iterator[Message]:
        for line in self.lines:
            if isinstance(line, Message) and switch in (None, line.switch):
                yield line


def decode(at_s: float, switch: str, sender: Side, data: bytes, fds: int) -> Message:
    """A message from its bytes. Raises ValueError for one that this protocol version does not have, or of a wrong size."""
    number, flags, size = struct.unpack_from("<III", data)
    payload = data[12:]
    if number not in NAMES or len(payload) != size:
        raise ValueError(f"no vhost-user message: request {number}, {len(payload)} bytes of {size}")
    name = NAMES[number]
    message = Message(at_s, switch, sender, name, flags, _fields(name, flags, payload), fds)
    if message.encode() != data:
        raise ValueError(f"{name} of {size} bytes has a payload that is not understood: {payload.hex()}")
    return message


def _fields(name: str, flags: int, payload: bytes) -> dict[str, Any]:
    if not payload:
        return {}
    if name == "GET_VRING_BASE" or (name in _STATE and not flags & REPLY):
        ring, num = struct.unpack("<II", payload)
        return {"ring": ring, "num": num}
    if flags & REPLY:  # a value, or an acknowledgement
        return {"u64": struct.unpack("<Q", payload)[0]}
    if name == "SET_VRING_ADDR":
        return dict(zip(("ring", "bits", "desc", "used", "avail", "log"), _ADDRESS.unpack(payload), strict=True))
    if name == "SET_MEM_TABLE":
        count, padding = struct.unpack_from("<II", payload)
        regions = [_REGION.unpack_from(payload, 8 + i * _REGION.size) for i in range(count)]
        names = ("guest", "size", "user", "offset")
        return {"padding": padding, "regions": [dict(zip(names, r, strict=True)) for r in regions]}
    (u64,) = struct.unpack("<Q", payload)
    return {"ring": u64 & 0xFF, "no_fd": bool(u64 & NO_FD)} if name in _FD else {"u64": u64}


def _payload(name: str, flags: int, fields: Mapping[str, Any]) -> bytes:
    if not fields:
        return b""
    if "u64" in fields:
        return struct.pack("<Q", fields["u64"])
    if name in _STATE:
        return struct.pack("<II", fields["ring"], fields["num"])
    if name == "SET_VRING_ADDR":
        return _ADDRESS.pack(*(fields[k] for k in ("ring", "bits", "desc", "used", "avail", "log")))
    if name == "SET_MEM_TABLE":
        head = struct.pack("<II", len(fields["regions"]), fields["padding"])
        return head + b"".join(_REGION.pack(r["guest"], r["size"], r["user"], r["offset"]) for r in fields["regions"])
    return struct.pack("<Q", fields["ring"] | (NO_FD if fields["no_fd"] else 0))


def place(regions: Sequence[Mapping[str, int]], address: int) -> Literal["guest", "scratch"] | None:
    """What an address of QEMU's lies in, by the memory table of that connection; None in neither."""
    for region in regions:
        if region["user"] <= address < region["user"] + region["size"]:
            return "scratch" if region["guest"] == SCRATCH_ADDRESS else "guest"
    return None


def save(transcript: Transcript, path: Path) -> None:
    lines: list[Mapping[str, Any]] = [transcript.about]
    for line in transcript.lines:
        at = {"at": round(line.at_s, 6)}
        if isinstance(line, Mark):
            lines.append({**at, "mark": line.what})
        else:
            sent = {"switch": line.switch, "from": line.sender, "request": line.request, "flags": line.flags}
            lines.append({**at, **sent, **({"fds": line.fds} if line.fds else {}), **line.fields})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(path: Path) -> Transcript:
    """Inverse of `save`. Raises ValueError, KeyError for what is no transcript."""
    about, *lines = (json.loads(line) for line in path.read_text().splitlines())
    return Transcript(about, tuple(_line(raw) for raw in lines))


def _line(raw: dict[str, Any]) -> Message | Mark:
    if "mark" in raw:
        return Mark(raw["at"], raw["mark"])
    head = [raw.pop(k) for k in ("at", "switch", "from", "request", "flags")]
    return Message(*head, fds=raw.pop("fds", 0), fields=raw)


def canonical(transcript: Transcript, switch: str) -> list[str]:
    """One connection's messages without what differs from run to run: addresses, indexes, how guest memory is cut up.

    What stays: order of each side's messages between two marks (an answer may come before or after the next question),
    which answers are wanted, features, places of rings (guest or scratch), descriptors.
    """
    regions: Sequence[Mapping[str, int]] = ()
    sides: dict[Side, list[str]] = {"qemu": [], "switch": []}
    lines = []
    for line in (*transcript.lines, Mark(0, "end")):
        if isinstance(line, Mark):
            lines += [*sides["qemu"], *sides["switch"], f"# {line.what}"]
            sides = {"qemu": [], "switch": []}
        elif line.switch == switch:
            if line.request == "SET_MEM_TABLE" and "regions" in line.fields:
                regions = line.fields["regions"]
            sides[line.sender].append(_canonical(line, regions))
    return lines


def _canonical(m: Message, regions: Sequence[Mapping[str, int]]) -> str:
    fields, fds = dict(m.fields), str(m.fds)
    if "regions" in fields:
        kinds = {"scratch" if r["guest"] == SCRATCH_ADDRESS else "guest" for r in regions}
        fields, fds = {"regions": sorted(kinds)}, "one each" if m.fds == len(regions) else fds
    elif "desc" in fields:
        fields = {"ring": fields["ring"], "at": place(regions, fields["desc"])}
    elif m.request in ("SET_VRING_BASE", "GET_VRING_BASE"):
        fields.pop("num", None)
    ack = " (to be answered)" if m.wants_ack else ""
    return f"{m.sender} {m.request}{ack} {fields}, descriptors: {fds}"
