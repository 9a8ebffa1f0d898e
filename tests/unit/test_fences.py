"""The descriptors by which a takeover tells QEMUs that the active is fenced, and QEMUs that know of no such thing.

On the simulated host; what a QEMU does with one is in tests/support/contracts/hypervisor.py and the series' own qtests.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from tests.support.runs import Killed, SimRun, settled, sim_run, watch
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Plan, PlanKind
from upgrader.core.takeover import Protection, TakeoverPolicy
from upgrader.daemon.server import Runner
from upgrader.engine.control import Control
from upgrader.engine.coordinator import make_plan
from upgrader.engine.sentry import serve
from upgrader.engine.takeover import Guard
from upgrader.sim.host import refused
from upgrader.sim.world import World
from upgrader.steps import Context
from upgrader.steps.fences import Fences
from upgrader.steps.take_over import take_over

VMS = 3
#: Which VMs' QEMU takes fences.
KNOWN = {"all": ("vm0", "vm1", "vm2"), "one does not": ("vm0", "vm2"), "none": ()}


def host(tmp: Path, known: tuple[str, ...] = KNOWN["all"]) -> SimRun:
    run = sim_run(tmp, VMS)
    run.setup = replace(run.setup, takeover=TakeoverPolicy("automatic"))
    run.coordinator.setup = lambda: run.setup
    for domain, vm in run.world.vms.items():
        assert vm.ownership is not None
        if domain not in known:
            run.world.vms[domain] = replace(vm, ownership=replace(vm.ownership, fence=None))
    return run


def armed(run: SimRun) -> Context:
    """A host with a standby, and what a takeover in it would be given."""
    plan = make_plan(run.setup, None, run.setup.policy, PlanKind.ARM)[1]
    assert run.coordinator.begin(plan, Control(), watch).forward().state is RunState.DONE
    guard = Guard(run.coordinator)
    guard.look()
    assert guard.standing.state is Protection.ARMED, guard.standing
    assert guard._armed is not None
    assert guard._armed.ready is not None
    ready: Plan = guard._armed.ready
    return Context(run.setup.host, ready, run.setup.slots[ready.source], run.setup.slots[ready.target])


def fence_of(run: SimRun, domain: str) -> str | None:
    own = run.world.vms[domain].ownership
    assert own is not None
    return own.fence


def said(world: World, since: int) -> list[str]:
    return [c for c in world.calls[since:] if c.split()[0] in ("say_fenced", "failover", "switch")]


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_those_that_take_one_are_told_and_the_others_commanded(tmp_path: Path, known: tuple[str, ...]) -> None:
    run = host(tmp_path, known)
    context, fences = armed(run), Fences()
    fences.renew(context)
    assert [bool(fence_of(run, d)) for d in KNOWN["all"]] == [d in known for d in KNOWN["all"]]
    run.world.fails_over = False
    run.world.die("a")
    before = len(run.world.calls)
    data = take_over(context, context.plan.all_ports, fences=fences)
    others = [d for d in KNOWN["all"] if d not in known]
    assert said(run.world, before) == [
        *(f"say_fenced {d}" for d in known),
        "failover b",
        *(f"switch {d}" for d in others),
    ]
    assert data["switched by us"] == len(others)
    assert data.get("fences", 0) == len(known)
    assert "trouble" not in data
    assert set(run.world.owners().values()) == {"b"}
    assert run.world.trouble == []


@pytest.mark.parametrize("fails_over", [True, False])
@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_sentry_gives_them_and_takes_over(tmp_path: Path, known: tuple[str, ...], fails_over: bool) -> None:
    run = host(tmp_path, known)
    run.world.watchable = True

    def posted() -> Connection:
        ours, theirs = Pipe()
        threading.Thread(target=serve, args=(theirs, run.setup), daemon=True).start()
        return ours

    armed(run)
    runner = Runner(run.coordinator, posted)
    runner.keep()
    assert runner.guard.standing.state is Protection.ARMED
    assert [bool(fence_of(run, d)) for d in KNOWN["all"]] == [d in known for d in KNOWN["all"]]
    given = run.world.fences
    runner.keep()
    assert run.world.fences == given == len(known), "those that are waited for are not given again"
    run.world.fails_over = fails_over
    run.world.die("a")
    assert runner.news.wait(10)
    assert set(run.world.owners().values()) == {"b"}, "before anybody looked"
    runner.keep()
    runner.join(10)
    settled(run.world, "b")


def standby_lost(world: World) -> None:
    """That of vm1 is not ready, at the moment when its QEMU is told."""
    own = world.vms["vm1"].ownership
    assert own is not None
    assert own.standby is not None
    busy = replace(own.standby, ready=False, reason="waiting for 3 answers of the backend")
    world.vms["vm1"] = replace(world.vms["vm1"], ownership=replace(own, standby=busy))


def test_one_that_could_not_is_commanded_as_soon_as_it_can(tmp_path: Path) -> None:
    run = host(tmp_path)
    context, fences = armed(run), Fences()
    fences.renew(context)
    run.world.fails_over = False
    run.world.die("a")
    standby_lost(run.world)

    def ready_again(called: str, _number: int) -> None:
        if called == "failover b":
            own = run.world.vms["vm1"].ownership
            assert own is not None
            assert own.standby is not None
            assert (own.fence, own.owner_pid) == ("", None), "it was told, and nothing was changed"
            ready = replace(own.standby, ready=True, reason=None)
            run.world.vms["vm1"] = replace(run.world.vms["vm1"], ownership=replace(own, standby=ready))

    run.world.fault = ready_again
    data = take_over(context, context.plan.all_ports, fences=fences)
    assert (data["switched by us"], data["fences"]) == (1, VMS)
    assert set(run.world.owners().values()) == {"b"}
    assert run.world.trouble == []


def test_nothing_is_said_of_a_process_that_is_not_proved_harmless(tmp_path: Path) -> None:
    run = host(tmp_path)
    context, fences = armed(run), Fences()
    fences.renew(context)
    before, owners = len(run.world.calls), run.world.owners()
    for harmless in (frozenset[int](), frozenset({1, run.world.pids["b"] or 0})):
        assert fences.say(harmless) == frozenset()
    assert said(run.world, before) == []
    assert run.world.owners() == owners
    # were it said all the same, the simulated host would know
    fences.say({run.world.pids["a"] or 0})
    assert any("two writers" in text for text in run.world.trouble)


def test_a_vm_that_another_process_serves_gets_none(tmp_path: Path) -> None:
    run = host(tmp_path)
    context, fences = armed(run), Fences()
    own = run.world.vms["vm1"].ownership
    assert own is not None
    run.world.vms["vm1"] = replace(run.world.vms["vm1"], ownership=replace(own, owner_pid=4711))
    fences.renew(context)
    assert [bool(fence_of(run, d)) for d in KNOWN["all"]] == [True, False, True]


def test_what_is_void_or_another_sentrys_is_given_anew(tmp_path: Path) -> None:
    run = host(tmp_path)
    context, first, second = armed(run), Fences(), Fences()
    first.renew(context)
    names = [fence_of(run, d) for d in KNOWN["all"]]
    own = run.world.vms["vm1"].ownership
    assert own is not None
    run.world.vms["vm1"] = replace(run.world.vms["vm1"], ownership=replace(own, fence=""))
    first.renew(context)
    assert [fence_of(run, d) == name for d, name in zip(KNOWN["all"], names, strict=True)] == [True, False, True]
    second.renew(context)
    assert {fence_of(run, d) for d in KNOWN["all"]}.isdisjoint(names)
    run.world.fails_over = False
    run.world.die("a")
    first.say({run.world.vms["vm0"].ownership.owner_pid or 0} if run.world.vms["vm0"].ownership else ())
    assert set(run.world.owners().values()) == {None}, "nobody waits for the first one's any more"
    data = take_over(context, context.plan.all_ports, fences=second)
    assert data["switched by us"] == 0
    assert set(run.world.owners().values()) == {"b"}


def test_a_refusal_is_told_once_and_that_vm_is_commanded(tmp_path: Path) -> None:
    run = host(tmp_path)
    context, fences = armed(run), Fences()
    run.world.fault = lambda name, _: refused("not an eventfd") if name == "give_fence vm1" else None
    for _ in range(2):
        fences.renew(context)
    assert [bool(fence_of(run, d)) for d in KNOWN["all"]] == [True, False, True]
    run.world.fails_over = False
    run.world.die("a")
    data = take_over(context, context.plan.all_ports, fences=fences)
    assert data["switched by us"] == 1
    assert set(run.world.owners().values()) == {"b"}


@pytest.mark.parametrize("fails_over", [True, False])
def test_a_sentry_killed_at_any_call_of_a_takeover(tmp_path: Path, fails_over: bool) -> None:
    """The next coordinator completes it; what had been said stays said."""

    def cut_off(number: int) -> bool:
        run = host(tmp_path / f"{number}-{fails_over}")
        context, fences = armed(run), Fences()
        fences.renew(context)
        run.world.fails_over = fails_over
        run.world.die("a")
        at = len(run.world.calls) + number

        def kill(_name: str, count: int) -> Killed | None:
            return Killed() if count == at else None

        run.world.fault = kill
        whole = True
        try:
            take_over(context, context.plan.all_ports, fences=fences)
        except Killed:
            whole = False
        run.world.fault = lambda _name, _count: None
        run.again()
        run.coordinator.setup = lambda: run.setup
        todo = Guard(run.coordinator).look()
        assert todo is not None
        assert not isinstance(todo, Plan)
        engine = run.coordinator.record(todo.plan, todo.data, Control(), watch)  # type: ignore[union-attr]
        assert engine.forward().state is RunState.DONE
        settled(run.world, "b")
        return whole

    number = 1
    while not cut_off(number):
        number += 1
    assert number > VMS + 2, "fence, each VM's, steering"
