"""Whether a bridge's flows, groups, meters or TLV map were changed, by one connection that is kept: nothing is dumped.

Flows by a flow monitor (OpenFlow 1.4, section 7.3.5.18; in 1.3 its ONF extension), without the flows that were there; the
rest, of which there is little, is asked for and compared as bytes. A barrier behind it says that all has come that was
changed before.
"""

from __future__ import annotations

import hashlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from upgrader.core.model import Slot

_ANSWER_S = 10.0
_CHUNK = 1 << 16
_HEADER = struct.Struct("!BBHI")  # version, type, length, xid
_OF13, _OF14, _OF15 = 4, 5, 6
# types of messages
_HELLO, _ERROR, _ECHO_REQUEST, _ECHO_REPLY, _EXPERIMENTER = 0, 1, 2, 3, 4
_MULTIPART_REQUEST, _MULTIPART_REPLY, _BARRIER_REQUEST, _BARRIER_REPLY = 18, 19, 20, 21
_VERSIONS = struct.pack("!HHI", 1, 8, 1 << _OF13 | 1 << _OF14 | 1 << _OF15)  # element of a HELLO: a bitmap of versions
# types of multipart messages
_GROUP_DESC, _METER_CONFIG, _FLOW_MONITOR, _MULTIPART_EXPERIMENTER = 7, 10, 16, 0xFFFF
_ALL_GROUPS, _ALL_METERS, _ANY, _ALL_TABLES = 0xFFFFFFFC, 0xFFFFFFFF, 0xFFFFFFFF, 0xFF
_ONF, _ONF_FLOW_MONITOR, _ONF_PAUSED, _ONF_RESUMED = 0x4F4E4600, 1870, 1871, 1872
_NICIRA, _TLV_TABLE_REQUEST = 0x00002320, 25
_ADDED_REMOVED_MODIFIED = 1 << 1 | 1 << 2 | 1 << 3
_MATCH_ALL = struct.pack("!HH4x", 1, 4)  # an OXM match without fields
_PAUSED, _RESUMED = 5, 6  # events of a flow monitor
_MONITOR_XID = 1

_serials = itertools.count()


class Token(NamedTuple):
    """Stands for a bridge's state: as long as it is the same, nothing was changed.

    serial  of the connection
    events  changes of flows that it has told of
    rest    digest of groups, meters and TLV map
    """

    serial: int
    events: int
    rest: bytes


class Watch:
    """A connection to one bridge. Raises OSError, from anything, when it is not to be had or of no use any more."""

    def __init__(self, slot: Slot, bridge: str) -> None:
        self._serial, self._events, self._paused = next(_serials), 0, False
        self._xids = itertools.count(_MONITOR_XID + 1)
        self._buffer = bytearray()
        self._version = _OF15
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(_ANSWER_S)
            self._socket.connect(f"{slot.rundir}/{bridge}.mgmt")
            self._greet()
            self._socket.sendall(self._monitor())
            self.look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self._socket.close()

    def look(self) -> Token | None:
        """What the bridge's state is called now; None while the switch does not tell (it pauses when much is changed)."""
        asked = {next(self._xids): request for request in (*self._requests(), (_BARRIER_REQUEST, b""))}
        self._socket.sendall(b"".join(self._message(kind, body, xid) for xid, (kind, body) in asked.items()))
        rest = hashlib.sha256()
        while True:
            _, kind, xid, body = self._receive()
            if kind == _BARRIER_REPLY and xid in asked:
                break
            if xid in asked:
                rest.update(struct.pack("!BII", kind, xid - min(asked), len(body)) + body)
            else:
                self._told(kind, xid, body)
        return None if self._paused else Token(self._serial, self._events, rest.digest())

    def _greet(self) -> None:
        self._socket.sendall(self._message(_HELLO, _VERSIONS))
        version, kind, _, body = self._receive()
        offered = struct.unpack_from("!I", body, 4)[0] if body[:2] == _VERSIONS[:2] else (2 << version) - 1
        common = [v for v in (_OF13, _OF14, _OF15) if offered >> v & 1]
        if kind != _HELLO or not common:
            raise OSError("the bridge speaks no version of OpenFlow that can be watched")
        self._version = max(common)

    def _monitor(self) -> bytes:
        if self._version == _OF13:
            head = struct.pack("!II", _ONF, _ONF_FLOW_MONITOR)
            what = struct.pack("!IHHIB3x", 1, _ADDED_REMOVED_MODIFIED, 4, _ANY, _ALL_TABLES)
            return self._multipart(_MULTIPART_EXPERIMENTER, head + what + _MATCH_ALL, _MONITOR_XID)
        what = struct.pack("!IIIHBB", 1, _ANY, _ANY, _ADDED_REMOVED_MODIFIED, _ALL_TABLES, 0)
        return self._multipart(_FLOW_MONITOR, what + _MATCH_ALL, _MONITOR_XID)

    def _requests(self) -> Iterator[tuple[int, bytes]]:
        groups = struct.pack("!I4x", _ALL_GROUPS) if self._version == _OF15 else b""
        yield _MULTIPART_REQUEST, struct.pack("!HH4x", _GROUP_DESC, 0) + groups
        yield _MULTIPART_REQUEST, struct.pack("!HH4xI4x", _METER_CONFIG, 0, _ALL_METERS)
        yield _EXPERIMENTER, struct.pack("!II", _NICIRA, _TLV_TABLE_REQUEST)

    def _multipart(self, kind: int, body: bytes, xid: int) -> bytes:
        return self._message(_MULTIPART_REQUEST, struct.pack("!HH4x", kind, 0) + body, xid)

    def _message(self, kind: int, body: bytes, xid: int = 0) -> bytes:
        return _HEADER.pack(self._version, kind, _HEADER.size + len(body), xid) + body

    def _told(self, kind: int, xid: int, body: bytes) -> None:
        """A message that answers no question."""
        if kind == _ECHO_REQUEST:
            self._socket.sendall(self._message(_ECHO_REPLY, body, xid))
        elif kind == _ERROR and xid == _MONITOR_XID:
            raise OSError("the bridge's flows cannot be monitored")
        elif kind == _MULTIPART_REPLY and xid != _MONITOR_XID:
            self._events += 1
            if body[:2] == struct.pack("!H", _FLOW_MONITOR):
                self._pause({_PAUSED: True, _RESUMED: False}, struct.unpack("!H", body[10:12])[0])
        elif kind == _EXPERIMENTER and body[:4] == struct.pack("!I", _ONF):
            self._events += 1
            self._pause({_ONF_PAUSED: True, _ONF_RESUMED: False}, struct.unpack("!I", body[4:8])[0])

    def _pause(self, meaning: Mapping[int, bool], event: int) -> None:
        self._paused = meaning.get(event, self._paused)

    def _receive(self) -> tuple[int, int, int, bytes]:
        """Version, type, xid and body of the next message."""
        while len(self._buffer) < _HEADER.size or len(self._buffer) < self._length():
            if not (more := self._socket.recv(_CHUNK)):
                raise OSError("the bridge has hung up")
            self._buffer += more
        version, kind, length, xid = _HEADER.unpack_from(self._buffer)
        body = bytes(self._buffer[_HEADER.size : length])
        del self._buffer[:length]
        return version, kind, xid, body

    def _length(self) -> int:
        return max(_HEADER.size, int.from_bytes(self._buffer[2:4], "big"))


class Watches:
    """A connection for each bridge that is asked about, made when it is first, and anew when it was lost."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str], Watch] = {}
        self._lock = threading.Lock()

    def look(self, slot: Slot, bridge: str) -> Token | None:
        """What the bridge's state is called now; None where that cannot be told, this time or at all."""
        key = slot.rundir, bridge
        with self._lock:
            watch = self._open.pop(key, None)
            try:
                watch = watch or Watch(slot, bridge)
                token = watch.look()
            except OSError:
                if watch:
                    watch.close()
                return None
            self._open[key] = watch
            return token
