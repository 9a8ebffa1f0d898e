"""The command line on a simulated host: what a person types, run in this process, and what the person then sees."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console

from tests.support.runs import SimRun, sim_run
from upgrader import wiring
from upgrader.adapters.journal import SqliteJournal
from upgrader.cli import app, render, verbs
from upgrader.core.errors import UpgradeError
from upgrader.core.plan import Policy
from upgrader.daemon import client as daemon_client
from upgrader.daemon.protocol import RemoteError, error_fields
from upgrader.daemon.server import Runner
from upgrader.engine.control import Request

EPOCH_S = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC: when the simulated clock begins
POLICY = Policy(soak_s=0.4, canary_check_s=0.2)
WIDTH = 100  # of the terminal
_LINES = 400

CONFIG = """\
[host]
journal = "journal.db"
socket = "upgraded.sock"
lock = "run.lock"
[nic]
pf = "eth0"
[slots.a]
prefix = "/usr"
rundir = "/run/openvswitch"
vf = "vf1"
representor = "vf1r"
devargs = "0000:01:02.0"
pmd_cpu_mask = "0x6"
[slots.b]
prefix = "/opt/ovs"
rundir = "/run/ovs-b"
netns = "ovs-b"
vf = "vf2"
representor = "vf2r"
devargs = "0000:01:02.1"
pmd_cpu_mask = "0x18"
"""


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
        patch.setattr(verbs.os, "geteuid", lambda: 0)
        self.sim: SimRun = sim_run(Path(), vms, policy)
        self.sim.world.now = EPOCH_S
        self.sim.journal = SqliteJournal(directory / "journal.db")  # type: ignore[assignment]
        self.sim.again()
        self.sim.world.next_pid = 5000
        patch.setattr(wiring, "setup", lambda settings: replace(self.sim.setup, accept=settings.policy.accept))
        patch.setattr(verbs, "_daemon", lambda options: InProcess(self.sim))
        patch.setattr(render.time, "time", lambda: self.sim.world.now + 42)
        self.coordinator_runs(None)
        patch.setattr(daemon_client, "connect", lambda path: None)

    def coordinator_runs(self, pid: int | None) -> None:
        self._patch.setattr("upgrader.engine.lock.holder", lambda path: pid)

    def daemon_runs(self) -> None:
        """`pause` and `abort` find a daemon."""
        self._patch.setattr(daemon_client, "connect", lambda path: InProcess(self.sim))

    def types(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, off a terminal."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), self._sane():
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

        with redirect_stdout(screen), redirect_stderr(screen), self._sane(), self._patch.context() as patch:
            patch.setattr(verbs, "consoles", terminals)
            patch.setattr(app, "consoles", terminals)
            code = app._main(list(words))
        return code, screen.getvalue()

    @contextmanager
    def _sane(self) -> Iterator[None]:
        with self._patch.context() as patch:
            patch.setattr(sys, "argv", ["upgrade"])
            yield


class InProcess(daemon_client.Client):
    """The daemon's `Runner` without a socket; a run has come to its end before the call returns."""

    def __init__(self, sim: SimRun) -> None:
        self._runner = Runner(sim.coordinator)

    def close(self) -> None:
        pass

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        methods: dict[str, Callable[[], Any]] = {
            "run": lambda: self._runner.begin(params["plan"]),
            "resume": self._runner.resume,
            "rollback": self._runner.rollback,
            "ask": lambda: self._runner.ask(Request(params["request"])),
        }
        try:
            started = methods[method]()
        except UpgradeError as error:
            raise RemoteError(error_fields(error)) from error
        self._runner.join()
        return json.loads(json.dumps(started))  # as it comes over a socket

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
