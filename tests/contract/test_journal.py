"""Both journals, held to the same promises: the one in SQLite and the simulated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from upgrader.adapters.journal import SqliteJournal
from upgrader.core import plan as planning
from upgrader.core.errors import JournalError, SupersededError
from upgrader.core.journal import Event, EventKind
from upgrader.core.lifecycle import RunState, StepState
from upgrader.core.model import SteeringCapabilities
from upgrader.core.plan import Plan, Policy
from upgrader.ports import Journal
from upgrader.sim.facts import host_facts, ownership, vm_port
from upgrader.sim.journal import SimJournal

Open = Callable[[], Journal]


@pytest.fixture(params=["sqlite", "simulated"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the journal once more, as another coordinator does."""
    if request.param == "sqlite":
        return lambda: SqliteJournal(tmp_path / "journal.db")
    first = SimJournal()
    return first.beside


def a_plan(vms: int = 2) -> Plan:
    return planning.upgrade(host_facts(vms), SteeringCapabilities(dual_delivery=True))


def state(to: RunState, at_ns: int = 5) -> Event:
    return Event(EventKind.STATE, at_ns, None, {"to": str(to), "reason": "x"})


def test_what_is_appended_is_read_back(opened: Open) -> None:
    journal = opened()
    journal.claim()
    view = journal.begin(a_plan(), 3)
    assert (view.state, view.events, view.heading.started_at_ns) == (RunState.PAUSED, (), 3)
    events = [
        state(RunState.RUNNING),
        Event(EventKind.INTENT, 6, 0),
        Event(EventKind.OUTCOME, 7, 0, {"pid": 12, "took_s": 0.5, "nested": {"a": [1, None, "x"]}}),
    ]
    for event in events:
        view = view.apply(event)
        journal.append(view.heading.run_id, event)
    for reader in (journal, opened()):
        found = reader.view(view.heading.run_id)
        assert found == view
        assert found == reader.latest()
        assert found.steps[0].state is StepState.DONE
        assert found.steps[0].data["nested"] == {"a": [1, None, "x"]}


@pytest.mark.parametrize("vms", [0, 1, 5])
def test_a_plan_comes_back_as_it_was(opened: Open, vms: int) -> None:
    plan = a_plan(vms)
    odd = (
        vm_port(7, vni=None, ownership=None),
        vm_port(8, ownership=replace(ownership("charnet0", 5), owner_pid=None, owner_connected=False, in_doubt=True)),
    )
    plan = replace(plan, all_ports=(*plan.all_ports, *odd), policy=Policy(1, 0.5, 0, "ask", True))
    journal = opened()
    journal.claim()
    run_id = journal.begin(plan, 0).heading.run_id
    assert opened().plan(run_id) == plan


def test_the_newest_runs_come_first(opened: Open) -> None:
    journal = opened()
    journal.claim()
    assert journal.latest() is None
    assert journal.headings(5) == ()
    ids = [journal.begin(a_plan(n), n).heading.run_id for n in range(3)]
    journal.append(ids[1], state(RunState.RUNNING, 9))
    assert [(h.run_id, s, at) for h, s, at in journal.headings(2)] == [
        (ids[2], RunState.PAUSED, 2),
        (ids[1], RunState.RUNNING, 9),
    ]
    assert [h for h, _, _ in journal.headings(2, steps=False)] == [
        replace(h, steps=()) for h, _, _ in journal.headings(2)
    ]
    latest = journal.latest()
    assert latest is not None
    assert latest.heading.run_id == ids[2]
    assert latest.heading.steps


def test_an_older_coordinator_writes_nothing(opened: Open) -> None:
    older = opened()
    first = older.claim()
    run_id = older.begin(a_plan(), 0).heading.run_id
    newer = opened()
    assert newer.claim() == first + 1
    for write in (lambda: older.append(run_id, state(RunState.RUNNING)), lambda: older.begin(a_plan(), 1)):
        with pytest.raises(SupersededError):
            write()
    found = newer.view(run_id)
    assert found is not None
    assert found.events == ()
    assert len(newer.headings(9)) == 1


def test_a_run_that_is_not_there(opened: Open) -> None:
    journal = opened()
    journal.claim()
    assert journal.view(1) is None
    with pytest.raises(JournalError):
        journal.plan(1)
