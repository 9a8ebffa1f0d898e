"""A standby that is not known to be what the active was is not taken over to, nor gone to, without that being said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from tests.support.runs import SimRun, disarm, settled
from tests.unit.test_takeover import again, armed, carry_out, host, plan, posted
from upgrader.adapters.journal import plan_to_json
from upgrader.cli import render
from upgrader.core.arming import stale, with_staleness
from upgrader.core.in_step import STALE
from upgrader.core.journal import RunView
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName
from upgrader.core.plan import Plan, PlanKind, Policy
from upgrader.core.report import report
from upgrader.core.takeover import Protection, TakeoverPolicy
from upgrader.daemon.server import Runner
from upgrader.engine.control import Control
from upgrader.engine.sentry import Taken
from upgrader.engine.takeover import Guard
from upgrader.sim.host import refused


def taken_over(run: SimRun, guard: Guard) -> RunView:
    """The takeover that the guard finds due, carried out and recorded."""
    todo = guard.look()
    assert isinstance(todo, Taken), guard.standing
    carry_out(run, todo)
    settled(run.world, "b")
    return latest(run)


def latest(run: SimRun) -> RunView:
    view = run.journal.latest()
    assert view is not None
    assert view.heading.kind == "takeover"
    return view


def said(view: RunView) -> str:
    """What a person is told of the run: its lines while it goes on, and its report."""
    text = Console(file=StringIO(), width=300)
    for event in view.events:
        render.show_event(text, view.heading, event)
    render.show_report(text, report(view))
    assert isinstance(text.file, StringIO)
    return text.file.getvalue()


def test_one_that_is_fresh_is_taken_over_to_and_nothing_is_said(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.now += 3
    guard.look()
    run.world.die("a")
    view = taken_over(run, guard)
    assert STALE not in view.steps[0].data
    assert "old copy" not in said(view)


@pytest.mark.parametrize("part", ["sync a b", "copy br-int", "sync_learned", "copy_addresses"])
def test_one_whose_replication_failed(tmp_path: Path, part: str) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.fault = lambda name, count: refused("the disk is full") if name == part else None
    for _ in range(4):
        run.world.now += 3
        guard.look()
    assert guard.standing.state is Protection.STALE
    assert "the disk is full" in guard.standing.stale
    disarm(run)
    run.world.die("a")
    view = taken_over(run, guard)
    why = str(view.steps[0].data[STALE])
    assert "could not be brought up to date for 12.0 s: SIMULATED: the disk is full" in why
    assert why in said(view)
    assert why in str(report(view).state)
    assert "controllers" in str(report(view).next)


def test_one_that_lagged(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.now += 60  # nobody looked for a minute
    run.world.die("a")
    view = taken_over(run, guard)
    assert "it was last brought up to date 60.0 s ago" in str(view.steps[0].data[STALE])
    assert "60.0 s ago" in said(view)


def test_one_that_lost_its_monitor(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.database_pids["a"] = None
    run.world.fault = lambda name, count: refused("no such file") if name == "start_database a" else None
    for _ in range(4):
        run.world.now += 4
        guard.look()
    assert guard.standing.state is Protection.STALE
    assert "16.0 s ago" in guard.standing.stale
    disarm(run)
    run.world.database_pids["a"] = run.world.spawn()
    run.world.die("a")
    assert STALE in taken_over(run, guard).steps[0].data


def test_by_a_coordinator_that_has_not_looked_before(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    guard = again(run)
    run.world.die("a")
    assert "by this coordinator yet" in said(taken_over(run, guard))


def test_by_the_sentry(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.world.watchable = True
    runner = Runner(run.coordinator, lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    run.world.fault = lambda name, count: refused("no") if name == "copy br-int" else None
    run.world.now += 3
    runner.keep()
    assert runner.guard.standing.state is Protection.STALE
    disarm(run)
    run.world.die("a")
    assert runner.news.wait(10)
    assert run.world.steady == ("b",), "an old copy forwards more than no switch"
    run.world.now += 30  # however late it is recorded, what counts is how old it was
    runner.keep()
    runner.join(10)
    assert "could not be brought up to date for 3.0 s" in str(latest(run).steps[0].data[STALE])


def test_a_round_that_fails_of_the_death_itself_says_nothing_of_the_copy(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    guard = armed(run)
    run.world.now += 3

    def die(name: str, count: int) -> Exception | None:
        if name == "copy br-int":
            run.world.die("a")
            return refused("the connection was closed")
        return None

    run.world.fault = die
    guard.look()
    disarm(run)
    guard.look()
    assert guard.standing.state is Protection.EXPOSED
    run.world.now += 100  # until a person comes
    assert guard.staleness() == ""


def test_a_person_is_told_before_and_it_is_recorded(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    carry_out(run, plan(run, PlanKind.ARM))
    runner = Runner(run.coordinator)
    runner.keep()
    assert runner.guard.staleness() == ""
    run.world.fault = lambda name, count: refused("the disk is full") if name == "copy br-int" else None
    run.world.now += 20
    runner.keep()
    disarm(run)
    made = with_staleness(plan(run, PlanKind.TAKEOVER), runner.guard.standing.stale)
    assert "the disk is full" in stale(made)
    found = Console(file=StringIO(), width=300)
    render.show_findings(found, made.findings)
    assert isinstance(found.file, StringIO)
    assert "STANDBY_STALE" in found.file.getvalue()
    runner.begin(plan_to_json(plan(run, PlanKind.TAKEOVER)))  # by a client that did not ask
    runner.join(10)
    settled(run.world, "b")
    assert "the disk is full" in str(latest(run).steps[0].data[STALE])
    assert "the disk is full" in said(latest(run))


def test_a_standby_that_nobody_keeps(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.setup = type(run.setup)(**{**_fields(run), "policy": Policy(soak_s=0.0, canary_check_s=0.0, keep_old=True)})
    assert run.begin().forward().state is RunState.DONE
    runner = Runner(run.coordinator)
    runner.keep()
    runner.begin(plan_to_json(plan(run, PlanKind.TAKEOVER)))
    runner.join(10)
    settled(run.world, "a")
    assert "the host is not armed" in str(latest(run).steps[0].data[STALE])


def _fields(run: SimRun) -> dict[str, object]:
    return {name: getattr(run.setup, name) for name in type(run.setup).__slots__}


@pytest.mark.parametrize(("age_s", "old"), [(0.5, False), (30.0, True)])
def test_a_run_whose_old_switch_dies_says_how_old_the_new_one_is(tmp_path: Path, age_s: float, old: bool) -> None:
    run = host(tmp_path, vms=3)

    def die(name: str, count: int) -> None:
        if name == "steady both" and run.world.pids["a"]:
            run.world.now += age_s
            run.world.die("a")

    run.world.fault = die
    view = run.begin().forward()
    assert view.state is RunState.DONE, report(view)
    assert set(run.world.owners().values()) == {"b"}
    told = [s.data[STALE] for s in view.steps if STALE in s.data]
    assert bool(told) is old
    assert ("by an old copy: slot a is gone" in said(view)) is old


def test_a_vm_that_came_during_a_run_is_not_moved_to_a_standby_that_is_old(tmp_path: Path) -> None:
    run = host(tmp_path, vms=3)
    late = run.world.vms.pop("vm2")

    def come(name: str, count: int) -> Exception | None:
        if name == "switch vm1":
            run.world.start(late)
            run.world.now += 30
        if name == "copy br-int" and "vm2" in run.world.vms:
            return refused("the disk is full")
        return None

    run.world.fault = come
    run.setup = type(run.setup)(**{**_fields(run), "policy": Policy(soak_s=0.0, canary_check_s=0.0, on_failure="stay")})
    view = run.coordinator.begin(run.plan(), Control(), lambda view, event: None).forward()
    assert view.state is RunState.HALTED
    assert "REPLICATION_STALE" in str(report(view).error)
    assert run.world.owners()["vm2"] == "a"


def _fails(run: SimRun, called: str) -> Exception | None:
    return refused("the disk is full") if called == "copy br-int" else None


def _lags(run: SimRun, called: str) -> None:
    run.world.now += 11 if called == "copy br-int" else 0


def _loses_monitor(slot: SlotName) -> Callable[[SimRun, str], None]:
    def lose(run: SimRun, called: str) -> None:
        run.world.database_pids[slot] = None

    return lose


@pytest.mark.parametrize(
    ("happens", "why"),
    [
        (_fails, "the disk is full"),
        (_lags, "the standby lags, the last round took"),
        (_loses_monitor("a"), "DATABASE_UNREACHABLE"),
        (_loses_monitor("b"), "DATABASE_UNREACHABLE"),
    ],
    ids=["replication failed", "lagged", "lost the monitor of the active", "lost its own monitor"],
)
@pytest.mark.parametrize("on_failure", ["stay", "back"])
def test_once_replication_is_not_to_be_relied_on_no_further_vm_is_moved(
    tmp_path: Path, happens: Callable[[SimRun, str], Exception | None], why: str, on_failure: Literal["stay", "back"]
) -> None:
    run = host(tmp_path, vms=3)
    moved = []

    def fault(name: str, count: int) -> Exception | None:
        if name.startswith("switch vm"):
            moved.append(name)
            run.world.now += 3  # what was brought over before is no longer fresh
        return happens(run, name) if moved else None

    run.world.fault = fault
    run.setup = replace(run.setup, policy=Policy(soak_s=0.0, canary_check_s=0.0, on_failure=on_failure))
    view = run.begin().forward()
    assert "REPLICATION_STALE" in str(report(view).error)
    assert why in str(report(view).error)
    assert moved[0] == "switch vm0"
    assert "switch vm1" not in moved
    assert "switch vm2" not in moved
    assert run.world.owners() == {"vm0": "b" if on_failure == "stay" else "a", "vm1": "a", "vm2": "a"}


def test_one_that_lagged_once_is_brought_nearer_and_moved_to(tmp_path: Path) -> None:
    run = host(tmp_path, vms=3)
    slow = []

    def fault(name: str, count: int) -> None:
        if name == "switch vm0":
            run.world.now += 3
            slow.append(name)
        elif name == "copy br-int" and slow:
            run.world.now += 11
            slow.clear()

    run.world.fault = fault
    assert run.begin().forward().state is RunState.DONE
    settled(run.world, "b")


def test_what_is_stale_is_said_once(tmp_path: Path) -> None:
    made: Plan = with_staleness(plan(host(tmp_path), PlanKind.TAKEOVER), "it lags")
    assert with_staleness(made, "another") is made
    assert with_staleness(made, "") is made
