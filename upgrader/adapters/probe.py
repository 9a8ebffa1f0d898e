"""Looks at one ovs-vswitchd again and again without waiting for it: its threads in /proc, its PMDs' counts by appctl."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from upgrader.core.health import Pulse, Thread

_QUESTION = json.dumps({"id": 0, "method": "dpif-netdev/pmd-stats-show", "params": []}).encode()
_PMD = re.compile(r"pmd-c(\d+)/id:")  # the thread's name (proc_pid_comm(5)); core in decimal
_BLOCK = re.compile(r"^pmd thread numa_id \d+ core_id (\d+):\n((?:[ \t].*\n?)*)", re.M)
_CYCLES = re.compile(r"(?:idle|processing) cycles: (\d+)")


class SwitchProbe:
    """`pulse` is one look; the answer to the question of one look belongs to a later one."""

    def __init__(self, pid: int, control: Path) -> None:
        self._pid = pid
        self._control = control
        self._socket: socket.socket | None = None
        self._heard = b""
        self._pmds: dict[int, str] = {}
        self._tasks: set[str] = set()

    def pulse(self) -> Pulse | None:
        """None when the process is gone. One in which a thread ended during the look is that of the main one alone."""
        try:
            main = _thread(self._pid, str(self._pid))
        except OSError:
            return None
        pmds: dict[int, Thread] = {}
        with suppress(OSError):
            pmds = {core: _thread(self._pid, task) for core, task in self._pmd_tasks().items()}
        return Pulse(time.monotonic(), main, pmds, self._answer())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _pmd_tasks(self) -> dict[int, str]:
        folder = Path(f"/proc/{self._pid}/task")
        tasks = {task.name for task in folder.iterdir()}
        if tasks != self._tasks:
            named = {task: _PMD.match((folder / task / "comm").read_text()) for task in tasks}
            self._pmds = {int(found[1]): task for task, found in named.items() if found}
            self._tasks = tasks
        return self._pmds

    def _answer(self) -> Mapping[int, int] | None:
        """What came since the last look; asks again when it is whole."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                self._socket.connect(str(self._control))
                self._heard = b""
                self._socket.send(_QUESTION)
                return None
            heard = self._socket.recv(65536)
            if not heard:
                raise ConnectionResetError
            self._heard += heard
            answer = json.loads(self._heard)  # a part of one is no JSON
            self._heard = b""
            self._socket.send(_QUESTION)
        except (BlockingIOError, ValueError):
            return None
        except OSError:
            self.close()
            return None
        return read_cycles(str(answer.get("result") or ""))


def read_cycles(text: str) -> dict[int, int]:
    """Cycles by core, idle and processing ones, from what `dpif-netdev/pmd-stats-show` prints."""
    return {int(core): sum(map(int, _CYCLES.findall(block))) for core, block in _BLOCK.findall(text)}


def _thread(pid: int, task: str) -> Thread:
    folder = Path(f"/proc/{pid}/task/{task}")
    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    ran_ns = int((folder / "schedstat").read_text().split()[0])  # Documentation/scheduler/sched-stats.rst
    return Thread(ran_ns / 1e9, state)
