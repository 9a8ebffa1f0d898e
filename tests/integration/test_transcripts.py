"""Transcripts of each QEMU series played to the real switch, and the real QEMU against backends that answer as recorded.

No old build is needed: what QEMU 2.9.0 said goes to today's switch, and what DPDK 17.11 offered to today's QEMU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import vhost_user
from tests.support.switch import Switch, eventually, running
from tests.support.transcript import Transcript, canonical, load
from tests.support.vhost_recorder import Recording, ports, record
from tests.support.vhost_replay import Dialled, Player, offers
from tests.support.vhost_rules import violations
from upgrader.lab.stack import BUILD_DIR, build_stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FOLDER = Path(__file__).parents[1] / "transcripts"
FILES = sorted(FOLDER.glob("*.jsonl"))
MODERN = FOLDER / "qemu-7.2-dpdk-22.11.jsonl"
#: Who serves the guest after each step, until the next one.
SERVED = {"boot on a": "a", "attach b": "a", "switch to b": "b", "switch to a": "a", "cont": "a"}


@pytest.fixture(scope="module")
def stack() -> dict[str, Path]:
    return {part.part: part.link.resolve() for part in build_stack(BUILD_DIR, parts=["qemu", "ovs"])}


@pytest.fixture
def switch(stack: dict[str, Path], tmp_path: Path) -> Iterator[Switch]:
    with running(stack["ovs"], tmp_path / "switch") as one:
        yield one


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_real_switch_serves_what_qemu_said(switch: Switch, tmp_path: Path, path: Path) -> None:
    """Frames of the guest are taken by the port that has its rings, and by no other, between any two steps."""
    transcript = load(path)
    peers = {}
    for number, name in enumerate("ab", 1):
        server = vhost_user.listen(tmp_path / name)
        switch.add_client_port(f"v{name}", tmp_path / name, number=number)
        peers[name] = server.accept()[0]
        server.close()
    player = Player(transcript, peers, same_offers="22.11" in path.stem)
    taken = dict.fromkeys("ab", 0)
    try:
        mark = ""
        for line in player.play():
            if owner := SERVED.get(mark):
                player.post(1)
                taken[owner] += 1
                eventually(lambda: player.used(1) == sum(taken.values()), f"the frame after '{mark}'", 5)
                eventually(lambda: _frames(switch) == taken, f"{taken} after '{mark}': {_frames(switch)}", 10)
            mark = line.what
            if mark == "death of b":
                peers["b"].close()
        assert player.wrong == []
        assert taken == {"a": 4, "b": 2}
    finally:
        player.close()
        for peer in peers.values():
            peer.close()


def _frames(switch: Switch) -> dict[str, int]:
    return {name: switch.received(f"v{name}") for name in "ab"}


def test_recorded_afresh_from_the_real_pair_it_is_as_stored(
    stack: dict[str, Path], switch: Switch, tmp_path: Path
) -> None:
    fresh = record(stack["qemu"] / "bin/qemu-system-x86_64", ports(switch), tmp_path)
    assert violations(fresh) == []
    known = load(MODERN)
    for name in "ab":
        assert canonical(fresh, name) == canonical(known, name)


@contextmanager
def dialled(transcript: Transcript) -> Iterator[dict[str, Dialled]]:
    """Backends that offer what the recorded ones offered, started by `dial`."""
    backends: dict[str, Dialled] = {}
    try:
        yield backends
    finally:
        for backend in backends.values():
            backend.end()


def test_the_real_qemu_says_to_backends_of_ours_what_it_said_to_the_switch(
    stack: dict[str, Path], tmp_path: Path
) -> None:
    known = load(MODERN)
    with dialled(known) as backends:

        def dial(name: str, path: Path) -> None:
            backends[name] = Dialled(path, *offers(known, name))
            backends[name].start()

        fresh = record(stack["qemu"] / "bin/qemu-system-x86_64", dial, tmp_path)
    assert [b.failed for b in backends.values()] == [None, None]
    assert violations(fresh) == []
    for name in "ab":
        assert canonical(fresh, name) == canonical(known, name)


def test_the_real_qemu_refuses_a_standby_that_answers_as_dpdk_17_11(stack: dict[str, Path], tmp_path: Path) -> None:
    """Without acknowledgements it could not know that rings were let go of: the finding ANSWERS_HIDDEN."""
    old = load(FOLDER / "qemu-2.9.0-dpdk-17.11.jsonl")
    with dialled(old) as backends:

        def dial(name: str, path: Path) -> None:
            backends[name] = Dialled(path, *offers(load(MODERN) if name == "a" else old, name))
            backends[name].start()

        with Recording(stack["qemu"] / "bin/qemu-system-x86_64", dial, tmp_path) as recording:
            recording.boot()
            recording.attach(ready=False)
            eventually(
                lambda: "REPLY_ACK" in recording.machine.state()["standby"].get("reason", ""),
                "to be refused for that",
                10,
            )
            assert not recording.machine.state()["standby"]["ready"]
            with pytest.raises(AssertionError, match="netdev-vhost-user-switch"):
                recording.machine.switch()
            assert recording.machine.state()["owner"] == "a"
            assert violations(recording.transcript()) == []
