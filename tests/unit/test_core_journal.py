"""A run read from its journal at once is the run that was followed event by event."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

from tests.support.runs import sim_run
from upgrader.core.journal import RunView, begin, fold
from upgrader.core.plan import Policy
from upgrader.sim.host import refused


def followed(view: RunView) -> RunView:
    return reduce(RunView.apply, view.events, begin(view.heading))


def test_at_once_or_event_by_event(tmp_path: Path) -> None:
    done = sim_run(tmp_path / "done").begin().forward()
    failing = sim_run(tmp_path / "failing", 3, Policy(soak_s=0, canary_check_s=0))
    failing.world.fault = lambda name, count: refused("no") if name == "switch vm1" else None
    restored = failing.begin().forward()
    assert {done.state, restored.state} == {"done", "restored"}
    for view in (done, restored):
        assert fold(view.heading, view.events) == followed(view) == view
