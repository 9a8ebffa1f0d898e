"""Ending what somebody was in the middle of starting; with processes that only look like it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from upgrader.adapters.slot_control import end_commands


@pytest.fixture(name="processes")
def processes_fixture() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_command_is_found_by_its_program_and_its_arguments_alone(processes: list[subprocess.Popen[bytes]]) -> None:
    def run(*words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])
        processes.append(process)
        return process

    switch = "/nowhere/sbin/ovs-vswitchd"
    on_its_way = run("nice", "-n", "-10", switch, "unix:/nowhere/db.sock", "--pidfile=/nowhere/a.pid", "--detach")
    others = [
        run("nice", switch, "--pidfile=/nowhere/b.pid"),
        run("nice", f"{switch}-2", "--pidfile=/nowhere/a.pid"),
        run(switch, "--pidfile=/nowhere/a.pid.old"),
        run("tail", "/nowhere/a.pid"),
    ]
    end_commands("ovs-vswitchd", "--pidfile=/nowhere/a.pid")
    assert on_its_way.wait(5) == -9
    assert [process.poll() for process in others] == [None] * len(others)
    end_commands("ovs-vswitchd", "--pidfile=/nowhere/a.pid")
