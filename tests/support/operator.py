"""The command line on a simulated host: what a person types, run in this process, and what the person then sees."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console
from structlog.testing import capture_logs

from tests.support.configs import SOUND
from tests.support.runs import SimRun, sim_run
from upgrader import wiring
from upgrader.adapters.journal import SqliteJournal, plan_to_json
from upgrader.cli import app, here, nic, protection, reading, render, runs, verbs
from upgrader.core.errors import UpgradeError
from upgrader.core.plan import Policy
from upgrader.daemon import client as daemon_client
from upgrader.daemon.protocol import RemoteError, error_fields
from upgrader.daemon.server import Runner
from upgrader.engine.control import Request
from upgrader.lab import commands as lab_commands
from upgrader.lab.traffic import command as traffic_command

EPOCH_S = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC: when the simulated clock begins
POLICY = Policy(soak_s=0.4, canary_check_s=0.2)
WIDTH = 100  # of the terminal
_LINES = 400
_LONGEST_S = 20.0
_SEEN_S = 0.5  # several times as long as a command waits before it looks at the journal again

CONFIG = f"""\
[host]
journal = "journal.db"
socket = "upgraded.sock"
lock = "run.lock"
{SOUND.lstrip()}"""


class Operator:
    """Types at a host that is simulated, all but its journal; the clock goes on by sleeping, from EPOCH_S.

    Everything stands in `directory`, which becomes the working directory, so that no path differs from run to run.
    """

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, vms: int = 2, policy: Policy = POLICY) -> None:
        self._patch = patch
        self.directory = directory
        self.config = directory / "config.toml"
        self.config.write_text(CONFIG)
        patch.chdir(directory)
        patch.setenv("OVS_UPGRADE_CONFIG", "config.toml")
        patch.setattr(here.os, "geteuid", lambda: 0)
        self.sim: SimRun = sim_run(Path(), vms, policy)
        self.sim.world.now = EPOCH_S
        self.sim.journal = SqliteJournal(directory / "journal.db")  # type: ignore[assignment]
        self.sim.again()
        self.sim.world.next_pid = 5000
        patch.setattr(wiring, "setup", lambda settings: replace(self.sim.setup, accept=settings.policy.accept))
        self.runner: Runner | None = None
        self.let_go = threading.Event()  # what a run that `daemon_runs` waits for
        patch.setattr(here, "daemon", lambda options: self.client())
        patch.setattr(render.time, "time", lambda: self.sim.world.now + 42)
        self.coordinator_runs(None)
        patch.setattr(daemon_client, "connect", lambda path: None)

    def coordinator_runs(self, pid: int | None) -> None:
        self._patch.setattr("upgrader.engine.lock.holder", lambda path: pid)

    def client(self) -> InProcess:
        """Of the run that is under way, else of whoever is the coordinator now."""
        if self.runner is None or not self.runner.busy:
            self.runner = Runner(self.sim.coordinator)
        return InProcess(self.runner, self.let_go)

    def daemon_guards(self) -> None:
        """A daemon runs that looks after the host's protection whenever it is asked of it."""
        self._patch.setattr(daemon_client, "connect", lambda path: self.client())

    def daemon_runs(self, call: str) -> None:
        """A run that another command began is under way, and waits at this effect until it is asked to stop."""

        there = threading.Event()

        def wait(called: str, _: int) -> None:
            if called == call:
                there.set()
                assert self.let_go.wait(_LONGEST_S), "nobody asked the run to stop"

        self.sim.world.fault = wait
        self._patch.setattr(daemon_client, "connect", lambda path: self.client())
        plan = self.sim.plan()
        client = self.client()
        client.waits = False
        client.call("run", plan=plan_to_json(plan))
        assert there.wait(_LONGEST_S), f"the run has no effect {call}"
        self.coordinator_runs(4711)

    def interrupts(self, call: str) -> None:
        """Ctrl-C while this effect is under way."""

        def strike(called: str, _: int) -> None:
            if called == call and not self.let_go.is_set():
                time.sleep(_SEEN_S)  # what was done before is on the screen
                os.kill(os.getpid(), signal.SIGINT)
                assert self.let_go.wait(_LONGEST_S), "Ctrl-C did not ask the run to stop"

        self.sim.world.fault = strike
        self._patch.setattr(InProcess, "waits", False)

    def ends(self) -> None:
        """Whatever is under way comes to its end."""
        self.let_go.set()
        if self.runner is not None:
            self.runner.join(_LONGEST_S)

    def types(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, off a terminal."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), self._sane(), capture_logs():
            code = app._main(list(words))
        return code, out.getvalue(), err.getvalue()

    def types_on_a_terminal(self, *words: str, colour: bool = True) -> tuple[int, str]:
        """Exit code and everything that was written, escape sequences too, to a terminal of WIDTH columns."""
        screen = io.StringIO()

        def terminals() -> tuple[Console, Console]:
            one = Console(
                force_terminal=True, width=WIDTH, color_system="standard", file=screen, highlight=False,
                no_color=not colour, legacy_windows=False,
            )  # fmt: skip
            return one, one

        out, err = redirect_stdout(screen), redirect_stderr(screen)
        with out, err, self._sane(), capture_logs(), self._patch.context() as patch:
            for module in (app, nic, protection, reading, runs, verbs, lab_commands, traffic_command):
                patch.setattr(module, "consoles", terminals)
            code = app._main(list(words))
        return code, screen.getvalue()

    @contextmanager
    def _sane(self) -> Iterator[None]:
        with self._patch.context() as patch:
            patch.setattr(sys, "argv", ["upgrade"])
            patch.setattr("upgrader.cli.logs.set_up", lambda **_: None)  # a run's log is its daemon's, on no screen
            yield


class InProcess(daemon_client.Client):
    """The daemon's `Runner` without a socket; a run has come to its end before the call returns, if it `waits`."""

    waits = True

    def __init__(self, runner: Runner, asked: threading.Event) -> None:
        self._runner = runner
        self._asked = asked

    def close(self) -> None:
        pass

    def ping(self) -> bool:
        return bool(self.call("ping")["busy"])

    def call(self, method: str, *, within_s: float | None = None, **params: Any) -> dict[str, Any]:
        methods: dict[str, Callable[[], Any]] = {
            "ping": lambda: {"busy": self._runner.busy},
            "run": lambda: self._runner.begin(params["plan"]),
            "resume": self._runner.resume,
            "rollback": self._runner.rollback,
            "ask": lambda: self._runner.ask(Request(params["request"])),
            "protection": self._protection,
        }
        try:
            started = methods[method]()
        except UpgradeError as error:
            raise RemoteError(error_fields(error)) from error
        if method == "ask":
            self._asked.set()
        if self.waits and method not in ("ping", "protection"):
            self._runner.join(_LONGEST_S)
        return json.loads(json.dumps(started))  # as it comes over a socket

    def _protection(self) -> dict[str, Any]:
        self._runner.guard.look()
        return asdict(self._runner.guard.standing)

    def alive(self, wait_s: float = 0.0) -> bool:
        return True


def seen(raw: str) -> str:
    """What stands on the terminal in the end: bars that were drawn and wiped are gone."""
    screen = pyte.Screen(WIDTH, _LINES)
    pyte.Stream(screen).feed(raw.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip() + "\n"


def readable(raw: str) -> str:
    """Escape sequences, spelt so that a person can read a difference."""
    return raw.replace("\x1b", "␛")
