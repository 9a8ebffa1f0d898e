"""The table of deaths: an entry for every case, and each one shown to be what the engine does and what the host needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import served, settled, sim_run
from upgrader.core.decisions import TABLE, Dead, Decision, Phase, dead, decide
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.sim.world import refused

# a call of a run of three VMs in that phase
AT = {
    Phase.PREPARING: "attach vm1",
    Phase.READY: "steer vm2 a",  # the window is being opened
    Phase.MOVING: "switch vm1",
    Phase.MOVED: "close_window b",
    Phase.RETIRING: "stop a",
}


def test_every_case_has_an_entry() -> None:
    assert set(TABLE) == {(phase, who) for phase in Phase for who in Dead}
    assert {dead(source_runs=a, target_runs=b) for a in (True, False) for b in (True, False)} == set(Dead)


@pytest.mark.parametrize("who", Dead)
@pytest.mark.parametrize("phase", Phase)
def test_the_table_says_what_the_host_needs(tmp_path: Path, phase: Phase, who: Dead) -> None:
    """The switch dies at that call, and the call fails: the table's word is what the engine does."""
    run = sim_run(tmp_path, 3, Policy(soak_s=0, canary_check_s=0))
    world = run.world
    before: list[dict[str, object]] = []

    def die(name: str, count: int) -> BaseException | None:
        # a switch is tried three times before the step fails
        if name != AT[phase] or before[3 if name.startswith("switch") and who is Dead.NONE else 1 :]:
            return None
        before.append({})
        if who in (Dead.SOURCE, Dead.BOTH):
            world.die("a")
        if who in (Dead.TARGET, Dead.BOTH):
            world.die("b")
        return refused("it fails")

    world.fault = die
    view = run.begin().forward()
    told = report(view)
    assert before, "the call never came"
    assert world.trouble == []
    match decide(phase, who):
        case Decision.POLICY | Decision.BACK:
            assert view.state is RunState.RESTORED, told
            settled(world, "a")
        case Decision.FORWARD | Decision.FINISH:
            assert view.state is RunState.DONE, told
            settled(world, "b")
        case Decision.OPERATOR:
            assert view.state is RunState.OPERATOR_NEEDED, told
            assert "half-way" in (told.state or "")
            assert told.error
            # whoever still has a switch is reached there; whoever has none had no standby, or both are dead
            nobody = {d for d, owner in world.owners().items() if owner is None}
            assert set(world.unreached()) <= nobody
            assert nobody
    if who is not Dead.BOTH and phase is not Phase.PREPARING:
        served(world)
