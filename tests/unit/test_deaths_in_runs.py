"""Every way to die or to hang, of either switch, at every point of an upgrade. On the simulated host.

The lab has the same, sampled: `make show-takeover PARTS=upgrades`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.runs import SimRun, sim_run
from upgrader.core.health import may_be_ended
from upgrader.core.lifecycle import RunState
from upgrader.core.model import RingOwnership, SlotName, Standby
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.core.takeover import TakeoverPolicy
from upgrader.engine.run import Engine
from upgrader.sim.facts import ownership
from upgrader.sim.world import Hang, World

VMS = 2
LONG_S = 31.0  # more than any hang takes to be seen


def die(world: World, slot: SlotName) -> None:
    world.die(slot)


def database_dies(world: World, slot: SlotName) -> None:
    if world.pids[slot] is not None:
        world.database_pids[slot] = None


def hangs(how: Hang) -> Callable[[World, SlotName], None]:
    def hang(world: World, slot: SlotName) -> None:
        if world.pids[slot] is not None:
            world.hung[slot] = how

    return hang


#: SIGKILL, SIGSEGV, abort, the kernel's kill and an exit are one to a host in memory.
KINDS: dict[str, Callable[[World, SlotName], None]] = {
    "dies": die,
    "is stopped": hangs(Hang.STOPPED),
    "has a stuck PMD": hangs(Hang.PMD),
    "has a stuck main thread": hangs(Hang.MAIN),
    "loses its database": database_dies,
}


def begun(tmp: Path, takeover: TakeoverPolicy) -> tuple[SimRun, Engine]:
    """A run that is looked after: whoever waits in it lets the vigil look, and time pass."""
    run = sim_run(tmp, VMS, Policy(soak_s=0.4, canary_check_s=0.2))
    run.setup = replace(run.setup, takeover=takeover)
    run.world.watchable = True
    engine = run.begin()
    vigil = run.coordinator.vigil(engine)

    def look() -> None:
        if run.world.hung:
            vigil.look()
            run.world.now += LONG_S
            vigil.look()

    run.world.waiting = look
    return run, engine


def points(tmp: Path) -> list[tuple[str, int]]:
    """Each call with an effect, and each look, of a run to its end.

    But for the last look at who serves each VM before the old switch is ended: a hang that begins there has not been seen
    by then.
    """
    run, engine = begun(tmp, TakeoverPolicy("automatic"))
    before, blind = run.world.looks, range(0)

    def last(name: str, count: int) -> None:
        nonlocal blind
        if name == "stop a":
            blind = range(run.world.looks - VMS + 1, run.world.looks + 1)

    run.world.fault = last
    assert engine.forward().state is RunState.DONE
    calls, looks = len(run.world.calls), run.world.looks
    assert calls > 30
    assert looks - before > 40
    assert blind
    seen = (n for n in range(before + 1, looks + 1) if n not in blind)
    return [("call", n) for n in range(1, calls + 1)] + [("look", n) for n in seen]


def at(run: SimRun, point: tuple[str, int], what: Callable[[], None]) -> None:
    kind, number = point

    def happen(name: str, count: int) -> None:
        # nobody can look at the host any later than before the old switch is stopped: what comes now comes after it
        if count == number and not name.startswith("stop"):
            what()

    if kind == "call":
        run.world.fault = happen
    else:
        run.world.look_fault = happen


@pytest.mark.parametrize("slot", ["a", "b"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_vm_without_a_switch_and_none_with_two(tmp_path: Path, kind: str, slot: SlotName) -> None:
    """But for those that had no standby yet when their switch ended: nothing of ours could give them one."""
    ends: dict[RunState, int] = {}
    for number, point in enumerate(points(tmp_path / "count")):
        run, engine = begun(tmp_path / str(number), TakeoverPolicy("automatic"))
        world = run.world
        bare: set[str] = set()

        def happen(world: World = world, bare: set[str] = bare) -> None:
            for domain, vm in world.vms.items():
                own = vm.ownership
                if own and own.owner_pid == world.pids[slot] and not (own.standby and own.standby.ready):
                    bare.add(domain)
            KINDS[kind](world, slot)

        at(run, point, happen)
        view = engine.forward()
        ends[view.state] = ends.get(view.state, 0) + 1
        told = (point, kind, slot, report(view), world.calls[-8:])
        assert world.trouble == [], told
        nobody = {d for d, owner in world.owners().items() if owner is None}
        assert nobody <= bare, told
        assert set(world.unreached()) <= nobody, told
        assert not any(vm.ownership and vm.ownership.in_doubt for vm in world.vms.values()), told
        if kind != "dies":
            assert nobody == set(), told
        waits = {d for d, owner in world.owners().items() if owner is not None and owner in world.hung}
        if kind in ("is stopped", "has a stuck PMD"):
            assert waits <= bare, told
        if not nobody and not waits and kind != "loses its database":
            assert view.state in (RunState.DONE, RunState.RESTORED, RunState.OPERATOR_NEEDED), told
        if view.state in (RunState.OPERATOR_NEEDED, RunState.HALTED):
            assert report(view).next, told
    assert ends.get(RunState.DONE if slot == "a" else RunState.RESTORED, 0) > 10, ends
    assert ends.get(RunState.OPERATOR_NEEDED, 0) < len(points(tmp_path / "count")) / 3, ends


@pytest.mark.parametrize("policy", [TakeoverPolicy("manual"), TakeoverPolicy("automatic", maintenance=True)])
def test_without_the_policy_nobody_is_killed(tmp_path: Path, policy: TakeoverPolicy) -> None:
    run, engine = begun(tmp_path, policy)
    at(run, ("call", 20), lambda: KINDS["is stopped"](run.world, "a"))
    engine.forward()
    assert "fence a" not in run.world.calls
    assert run.world.pids["a"] == 1001
    assert run.world.trouble == []


def owned(pid: int, standby: int | None, *, ready: bool = True, in_doubt: bool = False) -> RingOwnership:
    by = Standby("hotup-b-hostnet0", True, ready, None, standby, standby) if standby else None
    return replace(ownership("charnet0", pid, standby=by), in_doubt=in_doubt)


@pytest.mark.parametrize(
    ("vms", "spare", "ended"),
    [
        ([owned(1, 2), owned(1, 2)], True, True),
        ([owned(1, 2), owned(1, None)], True, False),  # that one would be left without a switch
        ([owned(1, 2), owned(1, 2, ready=False)], True, False),
        ([owned(1, 2, ready=False, in_doubt=True)], True, True),
        ([owned(1, 3)], True, False),
        ([owned(2, 1)], True, False),  # nobody waits for it
        ([owned(2, 1)], False, True),
        ([owned(2, 1, in_doubt=True)], True, True),  # QEMU waits for its answer
        ([], True, False),
    ],
)
def test_who_may_be_killed_for_a_hang(vms: list[RingOwnership], spare: bool, ended: bool) -> None:
    assert may_be_ended(1, 2, vms, spare=spare) is ended
