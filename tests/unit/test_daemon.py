"""The daemon's socket: who may speak to it, in which words, and that it carries out one run at a time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.operator import Operator
from tests.support.runs import sim_run
from tests.support.scenes import at_work
from tests.support.service import Service
from tests.support.sim_host import SimHost
from upgrader.core.errors import Exit, HostError, LockedError, UpgradeError
from upgrader.daemon import client
from upgrader.daemon.client import connect
from upgrader.daemon.protocol import VERSION, RemoteError
from upgrader.daemon.server import Server

NOBODY = 65534


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    run = sim_run(tmp_path / "host")
    with Server(tmp_path / "upgraded.sock", tmp_path / "config.toml", run.coordinator) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.shutdown()


def said(server: Server, line: bytes) -> dict[str, Any]:
    """What it answers to a line that our own library would not send."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(5)
        wire.connect(str(server.path))
        wire.sendall(line)
        answer: dict[str, Any] = json.loads(wire.makefile("rb").readline())
        return answer


def test_only_its_owner_can_open_the_socket(served: Server) -> None:
    assert served.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_is_turned_away_whatever_the_files_mode(served: Server, tmp_path: Path) -> None:
    """By the kernel's word for who it is: nothing that is sent is answered."""
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1]);\n"
        "try: s.sendall(sys.argv[2].encode()); print(len(s.recv(100)))\n"
        "except OSError: print(0)"
    )
    line = json.dumps({"version": VERSION, "method": "ping", "params": {}}) + "\n"

    def asks(user: int) -> subprocess.CompletedProcess[str]:
        folder = os.open(served.path.parent, os.O_PATH)  # whose parents are root's alone
        try:
            path = f"/proc/self/fd/{folder}/{served.path.name}"
            argv = [sys.executable, "-S", "-c", ask, path, line]
            return subprocess.run(
                argv, user=user, group=user, extra_groups=[], pass_fds=[folder], capture_output=True, text=True, check=False
            )  # fmt: skip
        finally:
            os.close(folder)

    refused = asks(NOBODY)
    assert "PermissionError" in refused.stderr or "Errno 13" in refused.stderr, refused
    served.path.chmod(0o666)
    served.path.parent.chmod(0o755)
    assert asks(NOBODY).stdout == "0\n"
    assert int(asks(0).stdout) > 10


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"version": 99, "method": "ping"}\n', "PROTOCOL_VERSION"),
        (b'{"method": "ping"}\n', "PROTOCOL_VERSION"),
        (b"ping\n", "PROTOCOL_ERROR"),
        (b"[1, 2]\n", "PROTOCOL_ERROR"),
        (json.dumps({"version": VERSION, "method": "reboot"}).encode() + b"\n", "NO_SUCH_METHOD"),
        (
            json.dumps({"version": VERSION, "method": "run", "params": {"config": "/other", "plan": ""}}).encode() + b"\n",
            "CONFIG_DIFFERS",
        ),
        (json.dumps({"version": VERSION, "method": "run", "params": {}}).encode() + b"\n", "UNEXPECTED"),
    ],
)  # fmt: skip
def test_what_it_does_not_understand_is_said_and_changes_nothing(served: Server, line: bytes, code: str) -> None:
    answer = said(served, line)
    assert answer["version"] == VERSION
    assert answer["error"]["code"] == code
    assert answer["error"]["state"]
    assert answer["error"]["next"]
    assert not served.runner.busy
    assert "result" in said(served, json.dumps({"version": VERSION, "method": "ping"}).encode() + b"\n"), "it goes on"


def test_one_connection_takes_many_requests(served: Server) -> None:
    found = connect(served.path)
    assert found is not None
    with found:
        for _ in range(3):
            assert found.call("ping")["pid"] == os.getpid()
            with pytest.raises(RemoteError) as error:
                found.call("ask", request="pause")
            assert error.value.code == "NO_RUN"


# --- one run at a time


def snapshot(host: Operator) -> tuple[object, ...]:
    world = host.sim.world
    view = host.sim.journal.latest()
    headings = host.sim.journal.headings(9)
    return (
        list(world.calls), dict(world.vms), dict(world.rules), dict(world.pids), dict(world.links),
        len(view.events) if view else 0, headings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "typed",
    [
        "run plan.json --yes",
        "run plan.json --yes --json",
        "--host localhost --yes",
        "resume --yes",
        "arm --yes",
        "disarm --yes",
    ],
)
def test_a_second_run_beside_one_is_refused_with_7_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    host = Operator(tmp_path, monkeypatch)
    at_work(host)  # it waits in the middle of a move
    before = snapshot(host)
    code, _, err = host.types(*typed.split())
    assert code == Exit.LOCKED == 7
    assert "RUN_BUSY" in err
    assert "changed nothing" in err
    assert snapshot(host) == before
    host.ends()


def test_a_second_daemon_is_refused_with_7_and_changes_nothing(tmp_path: Path) -> None:
    with SimHost(tmp_path) as host, Service(host.config) as first:
        first.ready()
        inode = (host.state / "socket").stat().st_ino
        with host.world().opened() as world:
            before = dict(world.vms), dict(world.pids), dict(world.rules)
        with Service(host.config) as second:
            assert second.waits() == Exit.LOCKED
        with host.world().opened() as world:
            assert (world.vms, world.pids, world.rules) == before
        assert (host.state / "socket").stat().st_ino == inode
        assert host.pid == first.pid
        assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.DONE


# --- what is tried again


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (HostError("DAEMON_GONE", "x", state="x", next="x"), True),
        (LockedError("HOST_LOCKED", "x", state="x", next="x"), True),
        (HostError("DAEMON_HANGS", "x", state="x", next="x"), False),
        (UpgradeError("CONFIG_INVALID", "x", state="x", next="x"), False),
        (OSError("x"), False),
    ],
)
def test_only_a_daemon_that_ends_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, again: bool
) -> None:
    """Starting one twice is starting one: the host's lock sees to that. Nothing that has an effect on the host is in it."""
    monkeypatch.setattr(client, "_TAKEOVER_S", 0.3)
    starts = 0

    def start(_config: Path) -> None:
        nonlocal starts
        starts += 1
        raise error

    monkeypatch.setattr(client, "_start", start)
    with pytest.raises(type(error)):
        client.ensure(tmp_path / "none.sock", tmp_path)
    assert (starts > 1) is again


def test_nothing_else_is_tried_again_by_a_library() -> None:
    """An effect is said again only by the step that looks first; tenacity is for what has none on the host."""
    root = Path(client.__file__).parents[1]
    used = {str(p.relative_to(root)) for p in root.rglob("*.py") if "tenacity" in p.read_text(encoding="utf-8")}
    assert used == {"daemon/client.py", "lab/stock.py"}  # starting a daemon; a download
