"""A coordinator that another one has superseded has no effect any more, wherever it was."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.support.runs import disarm, served, settled, sim_run
from tests.support.service import Service
from tests.support.sim_host import SimHost, until
from upgrader import ports
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.errors import Exit, SupersededError
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Policy
from upgrader.daemon.server import Runner
from upgrader.engine.claimed import EFFECTS

#: What changes nothing on the host.
LOOKS = {
    "processes": {
        "status", "running_version", "installed_version", "dpdk_version", "polled_queues", "watch", "probe",
    },
    "database": {
        "read", "image", "bridges", "differences", "in_control", "control", "unready", "wait_for_ports",
    },
    "openflow": {"flows", "groups", "settings", "differences", "learned_differences", "traces"},
    "hypervisor": {"vm_interfaces", "ownership", "migrating"},
    "steering": {"capabilities", "facts", "rules", "rule", "arrived", "neighbours"},
    "resources": {"hugepages", "netns_exists", "vf_exists"},
    "well_known": {"current", "problem", "who_answers"},
}  # fmt: skip


def test_every_call_of_a_port_is_known_to_change_something_or_not() -> None:
    hints = get_type_hints(ports.Host)
    for name, effects in EFFECTS.items():
        methods = {n for n, _ in inspect.getmembers(hints[name], inspect.isfunction) if not n.startswith("_")}
        assert effects | LOOKS[name] == methods, name
        assert not effects & LOOKS[name]
    assert {n for n, kind in hints.items() if kind.__module__ == "upgrader.ports"} == {*EFFECTS, "clock"}


def effects_of_a_run(tmp: Path) -> Iterator[int]:
    run = sim_run(tmp, 2)
    assert run.begin().forward().state is RunState.DONE
    yield from range(1, len(run.world.calls) + 1)


def test_an_older_coordinator_stops_before_its_next_effect_wherever_it_is(tmp_path: Path) -> None:
    """At each effect of a run another one claims the journal; the newer one then goes on, or back."""
    stopped = 0
    for number in effects_of_a_run(tmp_path / "count"):
        run = sim_run(tmp_path / str(number), 2)
        older = run.begin()

        def another(name: str, count: int, run=run, number=number) -> None:  # type: ignore[no-untyped-def]
            if count == number:
                run.journal.generation += 1

        run.world.fault = another
        with pytest.raises(SupersededError):
            older.forward()
        seen = run.world.calls[number - 1 :]
        of_one_window = {call.split(" ")[0] for call in seen} == {"steer", "steady"}
        assert len(seen) == 1 or of_one_window, seen
        served(run.world)
        disarm(run)
        run.again()
        view = run.resume().forward() if number % 2 else run.rollback().back()
        assert view.state in (RunState.DONE, RunState.RESTORED)
        settled(run.world, "b" if view.state is RunState.DONE else "a")
        stopped += 1
    assert stopped > 30


@pytest.mark.parametrize("restarted", [False, True])
def test_between_runs_it_keeps_nothing_right_any_more(tmp_path: Path, restarted: bool) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    run.begin().forward()
    runner = Runner(run.coordinator)
    run.world.restart("vm1")  # the old switch dials first: there is something to be kept right
    before = list(run.world.calls)
    if restarted:
        run.journal.generation += 1
    runner.keep()
    assert runner.superseded is restarted
    assert (run.world.calls == before) is restarted


def stopped_between_writes(service: Service, host: SimHost) -> bool:
    """Stop it; but not in the middle of a transaction, which would keep everybody out of the file."""
    service.sends(signal.SIGSTOP)
    for name in ("world.db", "journal.db"):
        try:
            with closing(sqlite3.connect(host.state / name, timeout=0, isolation_level=None)) as file:
                file.execute("BEGIN IMMEDIATE")
                file.execute("ROLLBACK")
        except sqlite3.OperationalError:
            service.sends(signal.SIGCONT)
            return False
    return True


def test_a_coordinator_that_was_stopped_and_wakes_up_beside_a_newer_one(tmp_path: Path) -> None:
    """Two processes: the older hangs in the middle of a move, its lock file is removed, another one finishes the run."""
    with SimHost(tmp_path, effect_s=0.05) as host, Service(host.config) as older:
        older.ready()
        client = host.run()
        until(lambda: (view := host.view()) and any(e.data.get("move") for e in view.events), "the first VM's move")
        until(lambda: stopped_between_writes(older, host), "a moment at which it holds no file's lock")
        client.kill()
        code, _, err = host.upgrade("resume", "--yes")
        assert code == Exit.UNEXPECTED
        assert "DAEMON_HANGS" in err
        assert f"kill -9 {older.pid}" in err
        told = host.status()  # which reads, and needs nobody
        assert told["run"]["outcome"] == "running"
        for name in ("lock", "socket"):
            (host.state / name).unlink()
        host.configure(effect_s=0.0)
        code, out, err = host.upgrade("resume", "--yes", "--json")
        assert code == Exit.DONE, err
        assert json.loads(out)["outcome"] == "done"
        with host.world().opened() as world:
            settled(world, "b")
            before = dict(world.vms), dict(world.rules), dict(world.links)
        events = len(SqliteJournal(host.state / "journal.db", read_only=True).tail(1, 0))
        older.sends(signal.SIGCONT)
        assert older.waits() == 0, "it ends by itself"
        with host.world().opened() as world:
            settled(world, "b")
            assert (world.vms, world.rules, world.links) == before
        assert len(SqliteJournal(host.state / "journal.db", read_only=True).tail(1, 0)) == events
        assert "SUPERSEDED" in (host.state / "journal.log").read_text()
        assert os.path.exists(host.state / "socket") == (host.pid is not None)  # noqa: PTH110
