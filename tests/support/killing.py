"""A lab's upgrade through its real coordinator process, which can be killed where the journal says that it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.lab_host import LabHost, children_named
from upgrader.adapters import gate
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.journal import EventKind, RunView
from upgrader.core.model import CHARDEV_PREFIX, SlotName, other_slot
from upgrader.engine.lock import holder
from upgrader.lab.up import Lab


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0, poll_s: float = 0.02) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(poll_s)


def coordinator_pid(host: LabHost) -> int | None:
    """Pid of the daemon that holds the lab's host."""
    return holder(host.config.host.lock) or None


def latest(host: LabHost) -> RunView | None:
    journal = SqliteJournal(host.config.host.journal, read_only=True)
    try:
        return journal.latest()
    finally:
        journal.close()


class Running:
    """`upgrade` as a process, and what it says."""

    def __init__(self, host: LabHost, process: subprocess.Popen[bytes], log: Path, after_run: int) -> None:
        self.host = host
        self.process = process
        self._log = log
        self._after_run = after_run
        self.text = ""

    def read(self) -> str:
        self.text = self._log.read_text()
        return self.text

    def view(self) -> RunView | None:
        """The run that this command began."""
        found = latest(self.host)
        return found if found and found.heading.run_id > self._after_run else None

    def wait_for(self, kind: EventKind, step: str, nth: int = 0, timeout_s: float = 60.0) -> None:
        """Return as soon as the journal has this event of the nth step of that kind, or the run has ended."""

        def there() -> bool:
            view = self.view()
            if view is None:
                return self.process.poll() is not None
            places = [i for i, line in enumerate(view.heading.steps) if line.kind == step]
            seen = any(e.kind is kind and e.step == places[nth] for e in view.events)
            return seen or self.process.poll() is not None

        wait_until(there, f"{kind} of {step} {nth}", timeout_s, poll_s=0.001)

    def kill_coordinator(self) -> None:
        """SIGKILL, and wait until it is gone."""
        pid = coordinator_pid(self.host)
        if pid is not None:
            handle = os.pidfd_open(pid)
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        wait_until(lambda: coordinator_pid(self.host) != pid or pid is None, "the coordinator's end")


@contextmanager
def running_upgrade(lab: Lab, *arguments: str) -> Iterator[Running]:
    """`upgrade --host localhost --yes …` under way."""
    log = lab.spec.directory / "run.log"
    host = LabHost(lab)
    command = [
        sys.executable,
        "-m",
        "upgrader.cli.app",
        "--config",
        str(lab.config_path),
        "--host",
        "localhost",
        "--yes",
    ]
    before = latest(host)
    run = Running(host, gate.spawn([*command, *arguments], output=log), log, before.heading.run_id if before else 0)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        run.read()
        log.unlink()


def verb(lab: Lab, *arguments: str) -> gate.Completed:
    """`upgrade VERB …` as a process, without a terminal."""
    command = [sys.executable, "-m", "upgrader.cli.app", "--config", str(lab.config_path), *arguments]
    return gate.run(command, check=False, timeout_s=180)


def settled(host: LabHost, slot: SlotName) -> list[str]:
    """What is not as it should be in a host whose VMs are all with one slot and that has nothing of a run; empty: all is."""
    wrong = []
    if not host.served_by(slot):
        wrong.append(f"slot {slot} does not serve every VM by one rule: {host.see()}")
    if host.pid(other_slot(slot)) is not None:
        wrong.append(f"slot {other_slot(slot)} still runs")
    for port in host.facts().ports:
        standby = port.ownership.standby if port.ownership else None
        if standby is not None and standby.chardev.startswith(CHARDEV_PREFIX):
            wrong.append(f"{port.label} has a second connection of ours: {standby.chardev}")
    wrong += [f"left: {p}" for s in host.slots.values() for p in s.vhost_dir.glob("*.sock")]
    wrong += [f"left: process {pid}" for pid in children_named(str(host.slots[other_slot(slot)].rundir))]
    return wrong
