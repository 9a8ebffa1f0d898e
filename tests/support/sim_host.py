"""A simulated host in a file, the real CLI and the real daemon on it, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from upgrader.adapters.journal import SqliteJournal
from upgrader.core.journal import RunView
from upgrader.engine.lock import holder
from upgrader.sim.stored import StoredWorld

DEADLINE_S = 90.0  # a machine that many share
POLICY = ("soak_s", "canary_check_s", "on_failure", "keep_old", "blackout_budget_us")


class SimHost:
    """One host in `folder`, with its configuration. Whatever coordinator runs there at the end is ended."""

    def __init__(self, folder: Path, **simulated: object) -> None:
        self.state = folder / "host"
        self.config = folder / "sim.toml"
        self._started: list[subprocess.Popen[str]] = []
        self.configure(**simulated)

    def configure(self, **simulated: object) -> None:
        """Write the configuration anew; keys of [policy] may be among those given."""
        policy = {"soak_s": 0.3, "canary_check_s": 0.1}
        keys = {"state": str(self.state), "vms": 3, "effect_s": 0.01}
        for key, value in simulated.items():
            (policy if key in POLICY else keys)[key] = value  # type: ignore[assignment]
        lines = ["[simulated]", *_toml(keys), "[policy]", *_toml(policy)]
        self.config.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> SimHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.end_coordinator(signal.SIGKILL)

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[str]:
        """`upgrade` with these arguments, in the background."""
        argv = [sys.executable, "-m", "upgrader.cli.app", "--config", str(self.config), *arguments]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
        )
        self._started.append(process)
        return process

    def upgrade(self, *arguments: str) -> tuple[int, str, str]:
        """The same, to its end: exit code, stdout, stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    def run(self) -> subprocess.Popen[str]:
        return self.start("--host", "localhost", "--yes")

    @property
    def pid(self) -> int | None:
        """Of the coordinator."""
        return holder(self.state / "lock")

    def end_coordinator(self, number: int) -> None:
        """Send it a signal, and wait for its end; nothing where there is none."""
        if pid := self.pid:
            os.kill(pid, number)
            until(lambda: self.pid != pid, "the coordinator's end")

    def view(self) -> RunView | None:
        journal = SqliteJournal(self.state / "journal.db", read_only=True)
        try:
            return journal.latest()
        finally:
            journal.close()

    def world(self) -> StoredWorld:
        """The host itself, to look at and to change by `opened`."""
        return StoredWorld(self.state, 0)

    def status(self) -> dict[str, Any]:
        code, out, err = self.upgrade("status", "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found


def _toml(keys: dict[str, Any]) -> list[str]:
    """A value of TOML's is mostly one of JSON's."""
    tables = [f"{k}.{name} = {json.dumps(v)}" for k, t in keys.items() if isinstance(t, dict) for name, v in t.items()]
    return [f"{k} = {json.dumps(v)}" for k, v in keys.items() if not isinstance(v, dict)] + tables


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.005)
