"""An OpenFlow 1.3 controller, as a process: writes flows, asks after each whether it was taken, and says so.

``python -m tests.support.openflow_controller PORT [BATCH DIFFERENT]`` prints a line of JSON for each thing that happens:
``connected`` with a datapath id, ``taken`` with the cookie of the last flow before a barrier that has been answered.
BATCH flows go between two barriers (1), and there are DIFFERENT matches (a million): later flows take their places. It has no reconnect logic to be
kind to a switch: what was not answered when a connection ends is not counted, and the next flow is the next number.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time

TABLE = 20
VERSION = 4  # on the wire, of OpenFlow 1.3 (ONF TS-006)
HELLO, ECHO_REQUEST, ECHO_REPLY, FEATURES_REQUEST, FEATURES_REPLY, FLOW_MOD = 0, 2, 3, 5, 6, 14
BARRIER_REQUEST, BARRIER_REPLY = 20, 21
_PAUSE_S = 0.005


def message(kind: int, xid: int, body: bytes = b"") -> bytes:
    """One message with its header."""
    return struct.pack("!BBHI", VERSION, kind, 8 + len(body), xid) + body


def flow_add(xid: int, cookie: int, address: int) -> bytes:
    """FLOW_MOD that drops packets to an address of that number."""
    oxm = struct.pack("!HBBH", 0x8000, 5 << 1, 2, 0x0800) + struct.pack(
        "!HBBI", 0x8000, 12 << 1, 4, 0x0A000000 + address
    )
    match = struct.pack("!HH", 1, 4 + len(oxm)) + oxm
    match += bytes(-len(match) % 8)
    nothing = 0xFFFFFFFF
    body = struct.pack("!QQBBHHHIIIH2x", cookie, 0, TABLE, 0, 0, 0, 7, nothing, nothing, nothing, 0)
    return message(FLOW_MOD, xid, body + match)


class Connection:
    """One switch, until it hangs up."""

    def __init__(self, peer: socket.socket, batch: int, different: int) -> None:
        self._peer, self._data, self._batch, self._different = peer, b"", batch, different
        self._peer.sendall(message(HELLO, 1) + message(FEATURES_REQUEST, 2))

    def write(self, number: int) -> int:
        """Add flows from `number` on, each once the one before is answered; returns the next when the switch is gone."""
        ready = False
        sent = 0
        while True:
            if ready and sent != number:
                time.sleep(_PAUSE_S)
                numbers = range(number - self._batch + 1, number + 1)
                flows = b"".join(flow_add(n, n, n % self._different) for n in numbers)
                self._peer.sendall(flows + message(BARRIER_REQUEST, number))
                sent = number
            header, body = self._next()
            if header is None:
                return number + self._batch
            kind, xid = header
            if kind == ECHO_REQUEST:
                self._peer.sendall(message(ECHO_REPLY, xid, body))
            elif kind == FEATURES_REPLY:
                say("connected", body[:8].hex())
                ready = True
            elif kind == BARRIER_REPLY and xid == number:
                say("taken", number)
                number += self._batch

    def _next(self) -> tuple[tuple[int, int] | None, bytes]:
        while True:
            if len(self._data) >= 8:
                _, kind, length, xid = struct.unpack_from("!BBHI", self._data)
                if len(self._data) >= length:
                    body, self._data = self._data[8:length], self._data[length:]
                    return (kind, xid), body
            select.select([self._peer], [], [])
            try:
                more = self._peer.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                return None, b""
            self._data += more


def main(port: int, batch: int = 1, different: int = 1_000_000) -> None:
    """Serve one switch after another until killed."""
    server = socket.create_server(("", port))
    number = batch
    while True:
        peer, _ = server.accept()
        with peer:
            try:
                number = Connection(peer, batch, different).write(number)
            except ConnectionError:
                number += 100_000  # gone while we wrote; a number is never used twice


def say(what: str, which: object) -> None:
    """Print one thing that happened."""
    print(json.dumps({"what": what, "which": which, "at": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
