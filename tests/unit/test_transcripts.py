"""Recorded transcripts of each QEMU series: their form, the grammar they keep, and both sides replayed.

Recorded from real QEMUs and switches by tests/support/vhost_recorder.py; what each was is its first line. Here nothing
old is needed: QEMU's half goes to a backend of ours, which has to be able to act on it, and in which two writers would be
seen. tests/integration/test_transcripts.py plays them to the real switch and the real QEMU.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.transcript import Mark, Message, Transcript, load, save
from tests.support.vhost_replay import BackEnd, Player, offers
from tests.support.vhost_rules import moved, violations, without

FOLDER = Path(__file__).parents[1] / "transcripts"
FILES = sorted(FOLDER.glob("*.jsonl"))
SERIES = sorted(p.name for p in (FOLDER.parents[1] / "qemu-patches").iterdir() if p.is_dir())


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def transcript(request: pytest.FixtureRequest) -> Transcript:
    return load(request.param)


def test_each_series_has_one() -> None:
    for series in SERIES:
        assert any(p.stem.startswith(f"qemu-{series}-") for p in FILES), f"none of {series}"


def test_it_is_whole(transcript: Transcript) -> None:
    """The scenario's steps are all there, and QEMU spoke in each of them."""
    marks = [line.what for line in transcript.lines if isinstance(line, Mark)]
    wanted = ["boot on a", "attach b", "switch to b", "switch to a", "stop", "cont", "switch to b", "death of b"]
    assert [m for m in marks if not m.startswith("hang-up")] == wanted
    spoken = Counter[str]()
    mark = ""
    for line in transcript.lines:
        if isinstance(line, Mark):
            mark = line.what
        elif line.sender == "qemu":
            spoken[mark] += 1
    assert set(wanted) <= set(spoken)


def test_a_file_holds_every_byte(transcript: Transcript, tmp_path: Path) -> None:
    save(transcript, tmp_path / "again")
    assert load(tmp_path / "again") == transcript


def test_it_keeps_the_grammar(transcript: Transcript) -> None:
    assert violations(transcript) == []


@contextmanager
def players(transcript: Transcript) -> Iterator[tuple[Player, dict[str, BackEnd]]]:
    """QEMU's half, and a backend of ours for each of the two switches, in one thread."""
    pairs = {name: socket.socketpair() for name in "ab"}
    backends = {name: BackEnd(theirs, *offers(transcript, name)) for name, (_, theirs) in pairs.items()}
    unread = Counter[str]()

    def turn(switch: str, what: str) -> None:
        if what == "send":
            unread[switch] += 1
        while unread[switch] > (what == "send"):
            unread[switch] -= 1
            backends[switch].handle()

    player = Player(transcript, {name: ours for name, (ours, _) in pairs.items()}, turn)
    try:
        yield player, backends
    finally:
        player.close()
        for ours, theirs in pairs.values():
            ours.close()
            theirs.close()


def test_a_backend_of_ours_can_act_on_it_and_each_buffer_is_used_once(transcript: Transcript) -> None:
    """A buffer is made available before every message from the first start on, and both backends poll after it."""
    with players(transcript) as (player, backends):
        step = player.before
        dead: set[str] = set()
        posted = 0

        def turn(switch: str, what: str) -> None:
            nonlocal posted
            step(switch, what)
            if 1 in player.rings:
                posted += 1
                player.post(1)
            for name, backend in backends.items():
                if name not in dead:
                    backend.poll()

        player.before = turn
        served = dict.fromkeys(backends, 0)
        mark = ""
        for line in player.play():
            if mark in ("boot on a", "attach b", "switch to b", "switch to a", "cont"):
                # steady: the next buffer is used by one of them, and by which is known
                player.post(1)
                posted += 1
                turns = {name: backend.poll() for name, backend in backends.items() if name not in dead}
                assert sum(turns.values()) >= 1, f"after '{mark}' nobody serves"
                assert sum(n > 0 for n in turns.values()) == 1, f"after '{mark}' both serve: {turns}"
                served[max(turns, key=lambda n: turns[n])] += 1
            mark = line.what
            if mark == "death of b":
                dead.add("b")
        backends["a"].poll()
        assert player.wrong == []
        used = backends["a"].used[1] + backends["b"].used[1]
        assert len(used) == posted
        assert served["a"] >= 3
        assert served["b"] >= 2
        assert player.used(1) == posted & 0xFFFF


def index_of(transcript: Transcript, after: str, request: str, switch: str, sender: str = "qemu") -> int:
    """The first such message behind a mark."""
    start = next(i for i, line in enumerate(transcript.lines) if isinstance(line, Mark) and line.what == after)
    for i in range(start, len(transcript.lines)):
        line = transcript.lines[i]
        if isinstance(line, Message) and (line.switch, line.request, line.sender) == (switch, request, sender):
            return i
    raise AssertionError(f"no {request} to {switch} after {after}")


class TestBroken:
    """Transcripts of a QEMU that breaks a rule: the grammar says so."""

    def test_the_new_owner_gets_a_ring_before_the_old_one_has_let_go(self, transcript: Transcript) -> None:
        take = index_of(transcript, "switch to b", "SET_VRING_ADDR", "b")
        let_go = index_of(transcript, "switch to b", "SET_VRING_ADDR", "a")
        broken = violations(moved(transcript, take, let_go))
        assert any("may have two writers" in v for v in broken)

    def test_the_new_owner_gets_a_ring_before_the_old_one_has_said_so(self, transcript: Transcript) -> None:
        take = index_of(transcript, "switch to b", "SET_VRING_ADDR", "b")
        let_go = index_of(transcript, "switch to b", "SET_VRING_ADDR", "a")
        last = max(
            i
            for i in range(let_go, take)
            if isinstance(line := transcript.lines[i], Message) and (line.switch, line.sender) == ("a", "qemu")
        )
        broken = violations(moved(transcript, take, last + 1))
        assert any("may have two writers" in v for v in broken)

    def test_the_old_one_keeps_its_ring(self, transcript: Transcript) -> None:
        let_go = transcript.lines[index_of(transcript, "switch to b", "SET_VRING_ADDR", "a")]
        take = transcript.lines[index_of(transcript, "switch to b", "SET_VRING_ADDR", "b")]
        assert isinstance(let_go, Message)
        assert isinstance(take, Message)
        at = index_of(transcript, "switch to b", "SET_VRING_ADDR", "a")
        kept = replace(let_go, fields={**take.fields, "ring": let_go.fields["ring"]})
        lines = (*transcript.lines[:at], kept, *transcript.lines[at + 1 :])
        assert any("may have two writers" in v for v in violations(replace(transcript, lines=lines)))

    @pytest.mark.parametrize("request_", ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR"])
    def test_a_ring_starts_without(self, transcript: Transcript, request_: str) -> None:
        broken = violations(without(transcript, index_of(transcript, "attach b", request_, "b")))
        assert any("before its size, index and address" in v for v in broken)

    @pytest.mark.parametrize(
        ("request_", "what"),
        [("SET_MEM_TABLE", "in no region"), ("SET_OWNER", "before SET_OWNER"), ("SET_FEATURES", "before the features")],
    )
    def test_a_backend_is_set_up_without(self, transcript: Transcript, request_: str, what: str) -> None:
        broken = violations(without(transcript, index_of(transcript, "attach b", request_, "b")))
        assert any(what in v for v in broken)

    def test_an_answer_fails_to_come(self, transcript: Transcript) -> None:
        let_go = index_of(transcript, "switch to b", "SET_VRING_ADDR", "a")
        answer = next(
            i
            for i in range(let_go, len(transcript.lines))
            if isinstance(line := transcript.lines[i], Message) and (line.switch, line.sender) == ("a", "switch")
        )
        assert violations(without(transcript, answer))

    def test_a_stop_that_is_answered_late_counts_from_its_answer(self) -> None:
        assert any("two writers" in v for v in violations(_stopped(late=True)))
        assert violations(_stopped(late=False)) == []

    def test_a_hang_up_is_no_fence_and_a_death_is(self, transcript: Transcript) -> None:
        lines = tuple(
            replace(line, what="hang-up of b") if isinstance(line, Mark) and line.what == "death of b" else line
            for line in transcript.lines
        )
        assert any("two writers" in v for v in violations(replace(transcript, lines=lines)))


def _stopped(*, late: bool) -> Transcript:
    """Ring 0 of a guest, stopped at one backend by GET_VRING_BASE and started at another, before or after the answer."""
    region = {"guest": 0, "size": 0x10000, "user": 0x7000_0000, "offset": 0}
    address = {"ring": 0, "bits": 0, "desc": 0x7000_1000, "used": 0x7000_3000, "avail": 0x7000_2000, "log": 0}

    def said(switch: str, request: str, fds: int = 0, *, reply: bool = False, **fields: object) -> Message:
        return Message(0, switch, "switch" if reply else "qemu", request, 5 if reply else 1, fields, fds)

    def start(switch: str) -> list[Message]:
        return [
            said(switch, "SET_OWNER"),
            said(switch, "SET_FEATURES", u64=1 << 30),
            said(switch, "SET_MEM_TABLE", 1, padding=0, regions=[region]),
            said(switch, "SET_VRING_NUM", ring=0, num=256),
            said(switch, "SET_VRING_BASE", ring=0, num=0),
            said(switch, "SET_VRING_ADDR", **address),
            said(switch, "SET_VRING_KICK", 1, ring=0, no_fd=False),
            said(switch, "SET_VRING_ENABLE", ring=0, num=1),
        ]

    ask, answer = said("a", "GET_VRING_BASE", ring=0, num=0), said("a", "GET_VRING_BASE", reply=True, ring=0, num=7)
    end = [*start("b"), answer] if late else [answer, *start("b")]
    return Transcript({}, (*start("a"), ask, *end))
