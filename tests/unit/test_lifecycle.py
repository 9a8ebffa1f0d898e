"""The tables of what may follow what: no dead ends, nothing unreachable, and real runs keep to them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import pytest

from tests.support.runs import Killed, SimRun, cuts, disarm, sim_run
from upgrader.core.journal import Event, EventKind, RunView, begin, fold
from upgrader.core.lifecycle import (
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    UNFINISHED,
    VM_TRANSITIONS,
    RunState,
    StepState,
    VmState,
    follow,
)
from upgrader.core.plan import Policy

TABLES: list[tuple[Mapping[StrEnum, frozenset[StrEnum]], StrEnum]] = [
    (RUN_TRANSITIONS, RunState.PAUSED),  # type: ignore[list-item]
    (STEP_TRANSITIONS, StepState.PENDING),  # type: ignore[list-item]
    (VM_TRANSITIONS, VmState.AT_SOURCE),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("table", "first"), TABLES)
def test_every_state_has_an_entry_and_can_be_reached(
    table: Mapping[StrEnum, frozenset[StrEnum]], first: StrEnum
) -> None:
    assert set(table) == set(type(first))
    reached, left = {first}, [first]
    while left:
        new = table[left.pop()] - reached
        reached |= new
        left += new
    assert reached == set(type(first))


def test_only_the_ends_of_a_run_lead_nowhere() -> None:
    assert {s for s, to in RUN_TRANSITIONS.items() if not to} == {RunState.RESTORED, RunState.SUPERSEDED}
    assert all(to for to in STEP_TRANSITIONS.values())
    assert all(to for to in VM_TRANSITIONS.values())
    for ended in (RunState.DONE, RunState.RESTORED, RunState.SUPERSEDED):
        assert ended not in UNFINISHED


def test_from_every_unfinished_state_a_person_can_go_on_or_back() -> None:
    for state in UNFINISHED - {RunState.RUNNING, RunState.UNDOING}:
        assert {RunState.RUNNING, RunState.UNDOING} <= RUN_TRANSITIONS[state], state
    for state in (RunState.RUNNING, RunState.UNDOING):  # its coordinator died
        assert RunState.HALTED in RUN_TRANSITIONS[state]


def test_what_may_not_follow_is_a_fault() -> None:
    with pytest.raises(ValueError, match="may not follow"):
        follow(RUN_TRANSITIONS, RunState.RESTORED, RunState.RUNNING)


def ended_views(tmp: Path) -> list[RunView]:
    """Runs that were cut off anywhere, and then carried on or taken back."""
    probe = sim_run(tmp / "probe")
    probe.begin().forward()
    found: list[RunView] = []
    for number, (name, arm) in enumerate(cuts(probe.journal.writes, len(probe.world.calls))):
        run = sim_run(tmp / name.replace(" ", "-"))
        arm(run)
        with contextlib.suppress(Killed):
            run.begin().forward()
        disarm(run)
        view = run.again()
        if view is not None and view.state in UNFINISHED:
            view = run.resume().forward() if number % 2 else run.rollback().back()
        if view is not None:
            found.append(view)
    return found


def test_folding_is_applying_one_by_one_for_every_prefix_of_a_run(tmp_path: Path) -> None:
    views = ended_views(tmp_path)
    assert len(views) > 60
    for view in views[::5]:
        one = begin(view.heading)
        for number, event in enumerate(view.events):
            one = one.apply(event)
            if number % 7 == 0:
                assert fold(view.heading, view.events[: number + 1]) == one
        assert one == view == fold(view.heading, view.events)


@pytest.mark.parametrize("kind", [EventKind.OUTCOME, EventKind.UNDO_INTENT, EventKind.UNDONE, EventKind.UNDO_FAILED])
def test_an_event_that_may_not_come_is_refused(tmp_path: Path, kind: EventKind) -> None:
    """No effect without an intent, no undoing of what had none."""
    view = begin(sim_run(tmp_path).begin().view.heading)
    with pytest.raises(ValueError, match="may not follow pending"):
        view.apply(Event(kind, 0, 0))
    with pytest.raises(ValueError, match="without a step"):
        view.apply(Event(kind, 0, None))


def test_a_halted_run_shows_its_vms_where_they_are(tmp_path: Path) -> None:
    run: SimRun = sim_run(tmp_path, 3, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))
    view = run.begin().forward()
    assert view.vms() == {
        "vm0/vhu0": VmState.AT_TARGET,
        "vm1/vhu1": VmState.STANDBY,
        "vm2/vhu2": VmState.STANDBY,
    }
