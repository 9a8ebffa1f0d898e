"""What the daemon tells systemd: that it is ready, that it ends, and that it is alive as long as a client would be heard."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import sim_run
from tests.support.service import Service
from tests.support.sim_host import SimHost, until
from upgrader.daemon import client, server
from upgrader.daemon.server import Server

BEAT_S = 0.3  # half of what systemd is told to wait for


def test_it_beats_while_it_lives_and_not_while_it_is_stopped(tmp_path: Path) -> None:
    env = {"WATCHDOG_USEC": str(int(BEAT_S * 2e6))}
    with SimHost(tmp_path) as host, Service(host.config, env=env) as service:
        service.ready()
        for _ in range(3):
            assert service.says(5) == "WATCHDOG=1"
        service.sends(signal.SIGSTOP)
        assert service.silent_for(6 * BEAT_S)
        service.sends(signal.SIGCONT)
        assert service.says(5) == "WATCHDOG=1"
        service.sends(signal.SIGTERM)
        until(lambda: service.says(5) == "STOPPING=1", "its last word")
        assert service.waits() == 0


def test_without_a_watchdog_it_only_says_when_it_is_ready(tmp_path: Path) -> None:
    with SimHost(tmp_path) as host, Service(host.config) as service:
        service.ready()
        assert service.silent_for(1.5)


def test_it_does_not_beat_once_it_hears_no_client(tmp_path: Path) -> None:
    """The main thread lives, and the one that lets clients in is stuck: the real daemon, with its listener made to hang."""
    env = {"WATCHDOG_USEC": str(int(BEAT_S * 2e6)), "PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(STUCK)
    with SimHost(tmp_path) as host, Service(host.config, env=env) as service:
        service.ready()
        assert service.says(5) == "WATCHDOG=1"
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(host.state / "socket"))  # it is let in, and everything stands still
            until(lambda: service.silent_for(2.0), "the beat to stop")
        service.sends(signal.SIGTERM)
        assert service.says(5) == "STOPPING=1", "the main thread has been alive all the time"


STUCK = """\
import socketserver, threading
socketserver.ThreadingMixIn.process_request = lambda self, request, address: threading.Event().wait()
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Server]:
    run = sim_run(tmp_path / "host")
    with Server(tmp_path / "socket", tmp_path / "config.toml", run.coordinator) as made:
        yield made


def test_who_goes_round_answers(listening: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STUCK_S", 0.5)
    assert listening.answers
    time.sleep(0.6)
    assert not listening.answers, "nobody serves"
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    until(lambda: listening.answers, "it to come round")
    listening.shutdown()


def test_a_socket_that_another_daemon_listens_on_by_now_is_left_alone(tmp_path: Path) -> None:
    run = sim_run(tmp_path / "host")
    path = tmp_path / "socket"
    older = Server(path, tmp_path / "config.toml", run.coordinator)
    newer = Server(path, tmp_path / "config.toml", run.coordinator)
    older.server_close()
    assert path.is_socket()
    newer.server_close()
    assert not path.exists()


def test_a_client_does_not_wait_for_ever_for_a_daemon_that_hangs(
    listening: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER_S", 0.2)
    found = client.connect(listening.path)  # which the kernel lets in, though nobody serves
    assert found is not None
    with found, pytest.raises(client.UpgradeError) as error:
        found.ping()
    assert error.value.code == "DAEMON_HANGS"
    assert "kill -9" in error.value.next
