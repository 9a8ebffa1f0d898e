"""Either side of a transcript, replayed: QEMU's messages to a backend, and a backend of ours to receive them.

`Player` sends what QEMU sent, with memory and eventfds of its own, and holds each answer to the one that was recorded. It
plays the guest, too: it makes buffers available on the rings at the places that the transcript says. `BackEnd` uses them
up as DPDK does. Both see the guest's memory as they would on a host, so two writers would be seen in it.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.transcript import (
    NEED_REPLY,
    REPLY,
    SCRATCH_ADDRESS,
    VERSION,
    Mark,
    Message,
    Transcript,
    decode,
)

_HEADER = struct.Struct("<III")
_TIMEOUT_S = 10.0
_FRAME = bytes.fromhex("02000000000202000000000188b5").ljust(60, b"\0")
_NET_HEADER = bytes(12)
_WRITE = 2  # VRING_DESC_F_WRITE


class Memory:
    """What a memory table names, mapped; read and written by QEMU's addresses."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int, int, mmap.mmap]] = []

    def add(self, region: Mapping[str, int], fd: int) -> None:
        whole = mmap.mmap(fd, region["offset"] + region["size"])
        self._regions.append((region["user"] - region["offset"], region["user"], region["size"], whole))

    def at(self, address: int, size: int) -> tuple[mmap.mmap, int]:
        """The mapping and the offset in it. Raises ValueError for an address in no region."""
        for base, start, length, whole in self._regions:
            if start <= address and address + size <= start + length:
                return whole, address - base
        raise ValueError(f"{address:#x} is in no region")

    def u16(self, address: int) -> int:
        whole, at = self.at(address, 2)
        return int(struct.unpack_from("<H", whole, at)[0])

    def write(self, address: int, data: bytes) -> None:
        whole, at = self.at(address, len(data))
        whole[at : at + len(data)] = data


def receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; no bytes where the peer hung up."""
    data, fds, _, _ = socket.recv_fds(peer, _HEADER.size, 16)
    while data and len(data) < _HEADER.size + _HEADER.unpack_from(data)[2]:
        data += peer.recv(_HEADER.size + _HEADER.unpack_from(data)[2] - len(data))
    return data, fds


@dataclass(frozen=True, slots=True)
class _Ring:
    num: int = 0
    desc: int = 0
    avail: int = 0
    used: int = 0
    next: int = 0  # of the available ring
    placed: bool = False
    kicked: bool = False
    enabled: bool = False


class BackEnd:
    """A switch's side of one connection: it answers, maps, translates, and uses buffers up in order.

    Raises ValueError for what a switch could not act on: an address in no region, a ring that starts without a place.
    """

    def __init__(self, peer: socket.socket, features: int, protocol: int, pairs: int) -> None:
        self.peer = peer
        self._offers = {"GET_FEATURES": features, "GET_PROTOCOL_FEATURES": protocol, "GET_QUEUE_NUM": pairs}
        self._status = 0
        self._memory = Memory()
        self._rings: dict[int, _Ring] = {}
        self.used: dict[int, list[int]] = {}

    def handle(self) -> None:
        """Take one message, and answer it where it wants an answer."""
        data, fds = receive(self.peer)
        try:
            m = decode(0, "", "qemu", data, len(fds))
            value = self._act(m, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if value is not None:
            self.peer.sendall(_HEADER.pack(_HEADER.unpack_from(data)[0], VERSION | REPLY, len(value)) + value)
        elif m.flags & NEED_REPLY:
            self.peer.sendall(_HEADER.pack(_HEADER.unpack_from(data)[0], VERSION | REPLY, 8) + bytes(8))

    def _act(self, m: Message, fds: list[int]) -> bytes | None:
        f = m.fields
        if m.request in self._offers:
            return struct.pack("<Q", self._offers[m.request])
        if m.request == "GET_STATUS":
            return struct.pack("<Q", self._status)
        if m.request == "SET_STATUS":
            self._status = f["u64"]
        if m.request == "SET_FEATURES" and f["u64"] & ~self._offers["GET_FEATURES"]:
            raise ValueError(f"features that were not offered: {f['u64'] & ~self._offers['GET_FEATURES']:#x}")
        if m.request == "SET_MEM_TABLE":
            self._memory = Memory()
            for region, fd in zip(f["regions"], fds, strict=True):
                self._memory.add(region, fd)
        elif "ring" in f:
            return self._act_on_ring(m, f["ring"])
        return None

    def _act_on_ring(self, m: Message, number: int) -> bytes | None:
        ring, f = self._rings.get(number, _Ring()), m.fields
        answer = None
        match m.request:
            case "SET_VRING_NUM":
                ring = replace(ring, num=f["num"])
            case "SET_VRING_BASE":
                ring = replace(ring, next=f["num"])
            case "SET_VRING_ADDR":
                # Moved while it is live: the used index of the place it comes to says where to go on.
                live = ring.kicked and ring.enabled
                for key, size in (("desc", 16), ("avail", 6), ("used", 6)):
                    self._memory.at(f[key], size * ring.num)
                at = self._memory.u16(f["used"] + 2) if live else ring.next
                ring = replace(ring, desc=f["desc"], avail=f["avail"], used=f["used"], next=at, placed=True)
            case "SET_VRING_KICK":
                if not ring.placed:
                    raise ValueError(f"ring {number} starts and has no place")
                ring = replace(ring, kicked=True)
            case "SET_VRING_ENABLE":
                ring = replace(ring, enabled=bool(f["num"]))
            case "GET_VRING_BASE":
                answer = struct.pack("<II", number, ring.next)
                ring = replace(ring, kicked=False)
        self._rings[number] = ring
        return answer

    def poll(self) -> int:
        """Use up what is available on every live transmit ring; how many buffers that was. To the guest nothing is sent."""
        count = 0
        for number, ring in self._rings.items():
            if not (number % 2 and ring.kicked and ring.enabled and ring.placed):
                continue
            now = ring.next
            while now != self._memory.u16(ring.avail + 2):
                head = self._memory.u16(ring.avail + 4 + 2 * (now % ring.num))
                self._memory.write(ring.used + 4 + 8 * (now % ring.num), struct.pack("<II", head, 0))
                now = now + 1 & 0xFFFF
                self._memory.write(ring.used + 2, struct.pack("<H", now))
                self.used.setdefault(number, []).append(head)
                count += 1
            self._rings[number] = replace(ring, next=now)
        return count


class Dialled(threading.Thread):
    """A backend in a thread, which dials QEMU as a switch does and serves until it is told to end, or QEMU hangs up."""

    def __init__(self, path: Path, features: int, protocol: int, pairs: int) -> None:
        super().__init__(name=f"backend at {path.name}", daemon=True)
        self._path, self._offers = path, (features, protocol, pairs)
        self._ended = threading.Event()
        self.failed: Exception | None = None
        self.served = 0

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                with socket.socket(socket.AF_UNIX) as peer:
                    try:
                        peer.connect(str(self._path))
                    except OSError:
                        time.sleep(0.05)
                        continue
                    with suppress(ConnectionResetError):
                        self._serve(BackEnd(peer, *self._offers))
        except Exception as error:  # noqa: BLE001 - told to the test, which is another thread
            self.failed = error

    def _serve(self, backend: BackEnd) -> None:
        while not self._ended.is_set():
            if select.select([backend.peer], [], [], 0.001)[0]:
                if not backend.peer.recv(1, socket.MSG_PEEK):
                    return
                backend.handle()
            self.served += backend.poll()

    def end(self) -> None:
        self._ended.set()
        self.join(timeout=10)


@dataclass(slots=True)
class Player:
    """QEMU's half of a transcript, to whatever is at the other end of `peers` (by the switch's name).

    before  called before each message is sent, and before an answer is read: the other end's turn, if it is in this thread
    offers  answers that depend on who is asked (features, queues) are compared in form only where this is False
    """

    transcript: Transcript
    peers: Mapping[str, socket.socket]
    before: Callable[[str, str], None] = lambda _switch, _what: None
    same_offers: bool = True
    memory: Memory = field(default_factory=Memory)
    rings: dict[int, Mapping[str, int]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _regions: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    _tables: dict[str, list[Mapping[str, int]]] = field(default_factory=dict)
    _buffers: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        self._stack.close()

    def play(self) -> Iterator[Mark]:
        """Send and receive everything, in order; yields at each mark, before what followed from it."""
        for number, line in enumerate(self.transcript.lines, 1):
            if isinstance(line, Mark):
                yield line
            elif line.sender == "qemu":
                self.before(line.switch, "send")
                self._send(self._with_our_index(line, number))
            else:
                self.before(line.switch, "receive")
                self._compare(number, line)

    def post(self, number: int) -> int:
        """The guest makes its next buffer available on a ring; its index, from 0."""
        ring, size = self.rings[number], self.sizes[number]
        now = self.memory.u16(ring["avail"] + 2)
        head = now % size
        write = struct.pack("<QIHH", self._buffers, 2048 if number % 2 == 0 else 72, _WRITE * (number % 2 == 0), 0)
        self.memory.write(ring["desc"] + 16 * head, write)
        self.memory.write(ring["avail"] + 4 + 2 * head, struct.pack("<H", head))
        self.memory.write(ring["avail"] + 2, struct.pack("<H", now + 1 & 0xFFFF))
        return now

    def used(self, number: int) -> int:
        """How many buffers of a ring were given back so far (modulo 65,536)."""
        return self.memory.u16(self.rings[number]["used"] + 2)

    def _with_our_index(self, m: Message, number: int) -> Message:
        """A start on the guest's ring says where to go on: with our guest that is elsewhere than with the recorded one."""
        if m.request != "SET_VRING_BASE" or m.fields["ring"] not in self.rings:
            return m
        ring = m.fields["ring"]
        placed = next(
            line
            for line in self.transcript.lines[number:]
            if isinstance(line, Message)
            and (line.switch, line.request, line.sender) == (m.switch, "SET_VRING_ADDR", "qemu")
            and line.fields["ring"] == ring
        )
        return m if self._parks(placed) else replace(m, fields={"ring": ring, "num": self.used(ring)})

    def _send(self, m: Message) -> None:
        if m.request == "SET_MEM_TABLE":
            fds = [self._memory_of(r) for r in m.fields["regions"]]
            self._tables[m.switch] = m.fields["regions"]
        else:
            fds = [self._eventfd() for _ in range(m.fds)]
        if m.request == "SET_VRING_NUM":
            self.sizes[m.fields["ring"]] = m.fields["num"]
        elif m.request == "SET_VRING_ADDR" and not self._parks(m):
            self.rings[m.fields["ring"]] = m.fields
        socket.send_fds(self.peers[m.switch], [m.encode()], fds)

    def _parks(self, m: Message) -> bool:
        return any(
            r["guest"] == SCRATCH_ADDRESS and r["user"] <= m.fields["desc"] < r["user"] + r["size"]
            for r in self._tables[m.switch]
        )

    def _memory_of(self, region: Mapping[str, int]) -> int:
        key = (region["guest"], region["size"], region["user"], region["offset"])
        if key not in self._regions:
            fd = os.memfd_create("replay", os.MFD_CLOEXEC)
            self._stack.callback(os.close, fd)
            os.ftruncate(fd, region["offset"] + region["size"])
            self.memory.add(region, fd)
            self._regions[key] = fd
            if region["guest"] != SCRATCH_ADDRESS and region["size"] >= 64 << 20:
                # Where no ring is: they are far from the end of a guest's memory that has just booted.
                self._buffers = region["guest"] + region["size"] - (1 << 20)
                whole, at = self.memory.at(region["user"] + region["size"] - (1 << 20), len(_FRAME) + 12)
                whole[at : at + 72] = _NET_HEADER + _FRAME
        return self._regions[key]

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _compare(self, number: int, recorded: Message) -> None:
        peer = self.peers[recorded.switch]
        peer.settimeout(_TIMEOUT_S)
        try:
            data, _ = receive(peer)
            got = decode(0, recorded.switch, "switch", data, 0)
        except (OSError, ValueError, struct.error) as error:
            self.wrong.append(f"line {number}, {recorded.switch} {recorded.request}: no answer ({error})")
            return
        skip = ("num",) if recorded.request == "GET_VRING_BASE" else ()
        offers = ("GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM")
        if recorded.request in offers and not self.same_offers:
            skip = ("u64",)
        if (got.request, got.flags) != (recorded.request, recorded.flags) or _less(got.fields, skip) != _less(
            recorded.fields, skip
        ):
            self.wrong.append(f"line {number}, {recorded.switch}: {recorded} was answered by {got}")


def _less(fields: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if k not in keys}


def offers(transcript: Transcript, switch: str) -> tuple[int, int, int]:
    """What that switch offered: features, protocol features, queue pairs (1 where it was not asked)."""
    found = {
        m.request: m.fields["u64"]
        for m in transcript.messages(switch)
        if m.sender == "switch" and m.request in ("GET_FEATURES", "GET_PROTOCOL_FEATURES", "GET_QUEUE_NUM")
    }
    return found["GET_FEATURES"], found["GET_PROTOCOL_FEATURES"], found.get("GET_QUEUE_NUM", 1)
