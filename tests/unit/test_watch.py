"""What a bridge says by OpenFlow of its changes, from a switch that is made up: pauses, probes, refusals, hang-ups."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from upgrader.adapters.ofctl.watch import Token, Watches
from upgrader.core.model import Slot
from upgrader.sim.facts import slot as made_up

_HELLO, _ERROR, _ECHO, _ECHO_REPLY, _EXPERIMENTER, _MULTIPART, _REPLY, _BARRIER = 0, 1, 2, 3, 4, 18, 19, 20
_MONITOR = 16
_ADDED, _PAUSED, _RESUMED = 1, 5, 6
Said = tuple[int, int, bytes]  # type, xid, body


def update(event: int) -> Said:
    """What a flow monitor tells, of a flow or of itself (OpenFlow 1.4)."""
    return _REPLY, 0, struct.pack("!HH4xHH4x", _MONITOR, 0, 8, event)


class Bridge(threading.Thread):
    """Answers as a bridge with one group does; what is in `news` comes before the next answer."""

    def __init__(self, path: Path, version: int = 6, monitors: bool = True) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._version, self._monitors = version, monitors
        self.news: list[Said] = []
        self.group = b"a group"
        self.heard: list[Said] = []
        self.connections = 0
        self._peer: socket.socket | None = None
        self.start()

    def run(self) -> None:
        while True:
            try:
                self._peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            bitmap = struct.pack("!HHI", 1, 8, 1 << self._version)
            self._say(_HELLO, 0, bitmap)
            # who watched may hang up before its answer: the next connection is waited for
            with suppress(BrokenPipeError, ConnectionResetError), self._peer.makefile("rb") as stream:
                while head := stream.read(8):
                    _, kind, length, xid = struct.unpack("!BBHI", head)
                    body = stream.read(length - 8)
                    self.heard.append((kind, xid, body))
                    self._answer(kind, xid, body)

    def _answer(self, kind: int, xid: int, body: bytes) -> None:
        if kind == _MULTIPART and body[:2] == struct.pack("!H", _MONITOR):
            self._say(*((_REPLY, xid, body[:8]) if self._monitors else (_ERROR, xid, b"no")))
        elif kind in (_MULTIPART, _EXPERIMENTER):
            self._say(_REPLY if kind == _MULTIPART else kind, xid, body[:8] + self.group)
        elif kind == _BARRIER:
            for told in self.news:
                self._say(*told)
            self.news = []
            self._say(_BARRIER + 1, xid, b"")

    def _say(self, kind: int, xid: int, body: bytes) -> None:
        assert self._peer
        self._peer.sendall(struct.pack("!BBHI", self._version, kind, 8 + len(body), xid) + body)

    def hang_up(self) -> None:
        assert self._peer
        self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


Make = Callable[..., Bridge]


@pytest.fixture(name="slot")
def slot_fixture(tmp_path: Path) -> Slot:
    return replace(made_up("a"), rundir=tmp_path)


@pytest.fixture(name="make")
def make_fixture(slot: Slot) -> Iterator[Make]:
    made: list[Bridge] = []

    def make(**how: object) -> Bridge:
        made.append(Bridge(slot.rundir / "br-int.mgmt", **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for bridge in made:
        bridge.close()


def look(watches: Watches, slot: Slot) -> Token | None:
    return watches.look(slot, "br-int")


def test_a_state_keeps_its_name_until_something_is_changed(slot: Slot, make: Make) -> None:
    bridge, watches = make(), Watches()
    first = look(watches, slot)
    assert first
    assert look(watches, slot) == first
    bridge.news = [update(_ADDED)]
    flow = look(watches, slot)
    assert flow not in (None, first)
    assert look(watches, slot) == flow
    bridge.group = b"another"
    assert look(watches, slot) not in (None, first, flow)
    assert bridge.connections == 1


def test_while_the_monitor_is_paused_nothing_is_known(slot: Slot, make: Make) -> None:
    bridge, watches = make(), Watches()
    first = look(watches, slot)
    bridge.news = [update(_PAUSED)]
    assert look(watches, slot) is None
    assert look(watches, slot) is None
    bridge.news = [update(_ADDED), update(_RESUMED)]
    assert look(watches, slot) not in (None, first)


def test_a_probe_is_answered_and_is_no_change(slot: Slot, make: Make) -> None:
    bridge, watches = make(), Watches()
    first = look(watches, slot)
    bridge.news = [(_ECHO, 77, b"probe")]
    assert look(watches, slot) == first
    assert look(watches, slot) == first
    assert (_ECHO_REPLY, 77, b"probe") in bridge.heard


def test_a_connection_that_is_lost_is_a_change(slot: Slot, make: Make) -> None:
    bridge, watches = make(), Watches()
    first = look(watches, slot)
    bridge.hang_up()
    assert look(watches, slot) is None
    assert look(watches, slot) not in (None, first)
    assert bridge.connections == 2


@pytest.mark.parametrize("how", [{"version": 1}, {"monitors": False}], ids=["OpenFlow 1.0", "no flow monitor"])
def test_a_bridge_that_cannot_be_watched_has_no_name_for_its_state(slot: Slot, make: Make, how: dict[str, int]) -> None:
    make(**how)
    assert look(Watches(), slot) is None


def test_a_bridge_that_is_not_there_has_none_either(slot: Slot) -> None:
    assert look(Watches(), slot) is None
