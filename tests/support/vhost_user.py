"""A vhost-user front-end in Python: what QEMU is to the switch, without a guest.

It owns a memfd as guest memory and split virtqueues in it, speaks the protocol (QEMU's docs/interop/vhost-user.rst)
as either end of the socket, and sends and receives Ethernet frames. One thread, blocking calls with time limits.
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

VERSION = 1
NEED_REPLY = 1 << 3

RING_F_EVENT_IDX = 1 << 29
F_PROTOCOL_FEATURES = 1 << 30
F_VERSION_1 = 1 << 32
NET_F_MRG_RXBUF = 1 << 15
PROTOCOL_F_MQ = 1 << 0
PROTOCOL_F_REPLY_ACK = 1 << 3

PAGE = 4096
RING_STRIDE = 0x10000
NET_HEADER = bytes(12)
DESC_F_WRITE = 2
AVAIL_F_NO_INTERRUPT = 1
# Where the guest's memory would lie in QEMU's address space; any value does, the back-end only subtracts it.
USER_ADDRESS_BASE = 0x7F00_0000_0000
TIMEOUT_S = 10.0
# Header and one u64.
ANSWER_BYTES = 20


class Request(IntEnum):
    """Front-end requests of the vhost-user protocol that are used here."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


class DisconnectedError(Exception):
    """The back-end hung up."""


class GuestMemory:
    """One region of shared memory: guest physical address 0 is offset 0."""

    def __init__(self, size: int = 16 << 20) -> None:
        self.size = size
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.bytes = mmap.mmap(self.fd, size)

    def u16(self, offset: int) -> ctypes.c_uint16:
        """Return a view of a 16 bit word that the back-end may change."""
        return ctypes.c_uint16.from_buffer(self.bytes, offset)


@dataclass(frozen=True, slots=True)
class RingAddress:
    """Where a split virtqueue lies, as offsets into guest memory."""

    descriptors: int
    available: int
    used: int


class Ring:
    """One split virtqueue. Descriptor i always points to buffer i; even rings receive, odd ones transmit."""

    def __init__(self, memory: GuestMemory, index: int, place: int, buffers: int, size: int = 256) -> None:
        self.memory, self.index, self.size = memory, index, size
        self.receives = index % 2 == 0
        self._buffers = buffers
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.place_at(place)
        self.seen = 0

    def place_at(self, place: int, *, start: int = 0) -> None:
        """Lay an empty ring at an offset, all indexes at `start`; the back-end is not told."""
        available = place + 16 * self.size
        used = (available + 4 + 2 * self.size + 2 + PAGE - 1) // PAGE * PAGE
        self.address = RingAddress(place, available, used)
        write = self.memory.bytes
        write[place : place + RING_STRIDE] = bytes(RING_STRIDE)
        for i in range(self.size):
            length, flags = (2048, DESC_F_WRITE) if self.receives else (0, 0)
            struct.pack_into("<QIHH", write, place + 16 * i, self._buffers + i * 2048, length, flags, 0)
            struct.pack_into("<H", write, available + 4 + 2 * i, i)
        self.available_flags = self.memory.u16(available)
        self.available_index = self.memory.u16(available + 2)
        self.used_event = self.memory.u16(available + 4 + 2 * self.size)
        self.used_index = self.memory.u16(used + 2)
        self.available_flags.value = AVAIL_F_NO_INTERRUPT
        self.available_index.value = self.used_index.value = self.seen = start & 0xFFFF

    def post_buffers(self) -> None:
        """Offer every free buffer to the back-end (receive rings)."""
        self.available_index.value = (self.used_index.value + self.size) & 0xFFFF

    def send(self, frame: bytes) -> None:
        """Hand one frame to the back-end (transmit rings); drops it when the ring is full."""
        posted = self.available_index.value
        if (posted - self.used_index.value) & 0xFFFF >= self.size:
            return
        slot = posted % self.size
        at = self._buffers + slot * 2048
        data = NET_HEADER + frame
        self.memory.bytes[at : at + len(data)] = data
        struct.pack_into("<QIHH", self.memory.bytes, self.address.descriptors + 16 * slot, at, len(data), 0, 0)
        struct.pack_into("<H", self.memory.bytes, self.address.available + 4 + 2 * slot, slot)
        self.available_index.value = (posted + 1) & 0xFFFF

    def received(self) -> list[bytes]:
        """Take the frames that have come since the last call, and offer their buffers again."""
        frames = []
        while self.seen != self.used_index.value:
            entry = self.address.used + 4 + 8 * (self.seen % self.size)
            descriptor, length = struct.unpack_from("<II", self.memory.bytes, entry)
            at = self._buffers + descriptor * 2048
            frames.append(bytes(self.memory.bytes[at + len(NET_HEADER) : at + length]))
            slot = self.available_index.value % self.size
            struct.pack_into("<H", self.memory.bytes, self.address.available + 4 + 2 * slot, descriptor)
            self.available_index.value = (self.available_index.value + 1) & 0xFFFF
            self.seen = (self.seen + 1) & 0xFFFF
        return frames

    def interrupts(self) -> int:
        """Return how often the back-end has called since the last time."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0


@dataclass(slots=True)
class FrontEnd:
    """A connection to a back-end, with one queue pair in memory of its own."""

    peer: socket.socket
    memory: GuestMemory = field(default_factory=GuestMemory)
    features: int = 0
    rings: list[Ring] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.peer.settimeout(TIMEOUT_S)
        # Rings first, their buffers after them; what follows is free for tests that move a ring.
        self.rings = [Ring(self.memory, i, i * RING_STRIDE, 2 * RING_STRIDE + i * (1 << 20)) for i in range(2)]

    @property
    def rx(self) -> Ring:
        return self.rings[0]

    @property
    def tx(self) -> Ring:
        return self.rings[1]

    @property
    def spare_place(self) -> int:
        """Return an offset at which another ring has room."""
        return 4 << 20

    def request(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no answer."""
        self._send(request, VERSION, payload, fds)

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a request that has an answer of its own, and return its payload."""
        self._send(request, VERSION, payload, ())
        return self._receive(request)

    def acknowledged(self, request: Request, payload: bytes, fds: Sequence[int] = ()) -> int:
        """Send a request that wants an acknowledgement; 0 is success."""
        self._send(request, VERSION | NEED_REPLY, payload, fds)
        return int(struct.unpack("<Q", self._receive(request))[0])

    def negotiate(self, wanted: int = F_VERSION_1 | F_PROTOCOL_FEATURES | NET_F_MRG_RXBUF) -> None:
        """Agree on features and hand over the memory."""
        offered = struct.unpack("<Q", self.ask(Request.GET_FEATURES))[0]
        self.features = offered & wanted
        protocol = struct.unpack("<Q", self.ask(Request.GET_PROTOCOL_FEATURES))[0]
        protocol &= PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK
        self.request(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        self.ask(Request.GET_QUEUE_NUM)
        self.request(Request.SET_OWNER)
        self.request(Request.SET_FEATURES, struct.pack("<Q", self.features))
        region = struct.pack("<IIQQQQ", 1, 0, 0, self.memory.size, USER_ADDRESS_BASE, 0)
        if self.acknowledged(Request.SET_MEM_TABLE, region, [self.memory.fd]) != 0:
            raise AssertionError("the back-end did not take the memory table")

    def start(self, *, enable: bool = True) -> None:
        """Set both rings up. Disabled rings are known to the back-end, but not used."""
        self.rx.post_buffers()
        for ring in self.rings:
            self.request(Request.SET_VRING_NUM, struct.pack("<II", ring.index, ring.size))
            self.request(Request.SET_VRING_BASE, struct.pack("<II", ring.index, ring.used_index.value))
            self.request(Request.SET_VRING_ADDR, self.address_payload(ring))
            self.request(Request.SET_VRING_CALL, struct.pack("<Q", ring.index), [ring.call])
            self.request(Request.SET_VRING_KICK, struct.pack("<Q", ring.index), [ring.kick])
        for ring in self.rings:
            self.set_enabled(ring, enable)

    def set_enabled(self, ring: Ring, enable: bool) -> None:
        """Enable or disable a ring; returns when the back-end has acknowledged it."""
        answer = self.acknowledged(Request.SET_VRING_ENABLE, struct.pack("<II", ring.index, enable))
        if answer != 0:
            raise AssertionError(f"ring {ring.index}: enable={enable} was answered with {answer}")

    @staticmethod
    def address_payload(ring: Ring, *, used: int | None = None) -> bytes:
        """Return the payload of SET_VRING_ADDR; `used` puts another offset in the place of the used ring's."""
        at = ring.address
        offsets = (at.descriptors, at.used if used is None else used, at.available)
        return struct.pack("<IIQQQQ", ring.index, 0, *(USER_ADDRESS_BASE + offset for offset in offsets), 0)

    def set_address(self, ring: Ring, *, used: int | None = None) -> int:
        """Tell the back-end where the ring is now; returns its answer, 0 for success."""
        return self.acknowledged(Request.SET_VRING_ADDR, self.address_payload(ring, used=used))

    def set_addresses(self, payloads: Sequence[bytes]) -> tuple[list[int], int]:
        """Move rings by one write; returns the answers, 0 for success, and how many of them were there at once."""
        header = (Request.SET_VRING_ADDR, VERSION | NEED_REPLY)
        self.peer.sendall(b"".join(struct.pack("<III", *header, len(load)) + load for load in payloads))
        there = len(self.peer.recv(ANSWER_BYTES * len(payloads), socket.MSG_PEEK)) // ANSWER_BYTES
        answers = [self._receive(Request.SET_VRING_ADDR) for _ in payloads]
        return [int(struct.unpack("<Q", answer)[0]) for answer in answers], there

    def close(self) -> None:
        """Hang up and release the memory's descriptors."""
        self.peer.close()
        for fd in (self.memory.fd, *(fd for ring in self.rings for fd in (ring.kick, ring.call))):
            os.close(fd)

    def _send(self, request: Request, flags: int, payload: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.peer.sendmsg([struct.pack("<III", request, flags, len(payload)) + payload], ancillary)

    def _receive(self, request: Request) -> bytes:
        answered, _flags, length = struct.unpack("<III", self._exactly(12))
        if answered != request:
            raise AssertionError(f"{request.name} was answered as request {answered}")
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.peer.recv(length - len(data))
            if not more:
                raise DisconnectedError
            data += more
        return data


def listen(path: Path) -> socket.socket:
    """Listen at a path, in the place of what is there."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(8)
    server.settimeout(TIMEOUT_S)
    return server


def accept(server: socket.socket) -> FrontEnd:
    """Wait for the back-end (a vhost-user client) to connect."""
    return FrontEnd(server.accept()[0])


def connect(path: Path) -> FrontEnd:
    """Connect to a back-end that is a vhost-user server."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    return FrontEnd(peer)


def wait_for_hangup(front_end: FrontEnd, timeout_s: float = TIMEOUT_S) -> float:
    """Return the time (monotonic, seconds) at which the peer was seen to hang up."""
    poll = select.poll()
    poll.register(front_end.peer, select.POLLRDHUP | select.POLLHUP)
    if not poll.poll(timeout_s * 1000):
        raise TimeoutError("the peer is still there")
    return time.monotonic()


def frame(number: int, *, length: int = 60) -> bytes:
    """Return an Ethernet frame of a local experimental type that carries a number."""
    header = bytes.fromhex("02000000000202000000000188b5")
    return (header + struct.pack(">Q", number)).ljust(length, b"\0")


def number_of(received: bytes) -> int:
    """Return the number that frame() put in."""
    return int(struct.unpack_from(">Q", received, 14)[0])
