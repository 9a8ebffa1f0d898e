"""VMs that start, stop, reboot, gain or lose a port, or migrate while a run is on: at each of its effects. Simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.runs import SimRun, disarm, served, settled, sim_run
from upgrader.core.lifecycle import RunState
from upgrader.core.model import VmInterface
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.engine.control import Request
from upgrader.sim.facts import vm_interface
from upgrader.sim.world import World, key

QUICK = Policy(soak_s=0.2, canary_check_s=0)
KEPT = replace(QUICK, keep_old=True)
#: Effects after which the host has one switch, and what comes is that one's for certain.
LAST = ("stop a", "drop ", "redirect ", "point_to b")


def second_port(number: int = 7) -> VmInterface:
    """One more interface of the first VM, of which the switch knows as vhu7."""
    return vm_interface(
        number, domain="vm0", domain_uuid=vm_interface(0).domain_uuid, netdev="hostnet1", chardev="charnet1"
    )


Churn = Callable[[World], None]


def starts(world: World) -> None:
    world.start(vm_interface(9))


def stops(world: World) -> None:
    world.end("vm1")


def reboots(world: World) -> None:
    world.restart("vm1")


def gains_a_port(world: World) -> None:
    """The port in OVSDB and the interface in the VM, in that order."""
    world.idle_port(7)
    world.start(second_port())


def loses_a_port(world: World) -> None:
    world.end(key(second_port()))


def migrates(world: World) -> None:
    world.migrate("vm1")


CHURN: tuple[Churn, ...] = (starts, stops, reboots, gains_a_port, loses_a_port, migrates)


def prepared(folder: Path, what: Churn, policy: Policy = QUICK) -> SimRun:
    """Three VMs, a port for one that does not run yet, and a second one of the first VM where it is to lose that."""
    run = sim_run(folder, 3, policy)
    run.world.idle_port(9)
    if what is loses_a_port:
        gains_a_port(run.world)
        served(run.world)
    return run


def at(run: SimRun, number: int, what: Churn) -> list[str]:
    """Let it happen before the effect of that number; returns what that was, once it has happened."""
    hit: list[str] = []
    begun = len(run.world.calls)

    def fault(name: str, count: int) -> None:
        if count == begun + number:
            hit.append(name)
            if not name.startswith("stop"):  # nobody can look at the host any later: what comes then comes after it
                what(run.world)

    run.world.fault = fault
    return hit


def ends_later(run: SimRun, *, stays: bool) -> None:
    """A migration takes a while, and is over when somebody waits for it."""
    looks = 0

    def look(name: str, count: int) -> None:
        nonlocal looks
        if name.startswith("migrating") and run.world.migrating:
            looks += 1
            if looks == 5:
                run.world.migrated("vm1", stays=stays)

    run.world.look_fault = look


def held(run: SimRun, slot: str) -> None:
    """Every VM that is there now is served by that slot, and nothing of the churn was left behind."""
    settled(run.world, slot)  # type: ignore[arg-type]
    assert not run.world.migrating


@pytest.mark.parametrize("what", CHURN, ids=lambda what: what.__name__)
def test_at_each_effect_of_a_run(tmp_path: Path, what: Churn) -> None:
    ended: dict[RunState, int] = {}
    for number in range(1, 200):
        run = prepared(tmp_path / str(number), what)
        hit = at(run, number, what)
        ends_later(run, stays=bool(number % 2))
        view = run.begin().forward()
        if not hit:
            break
        disarm(run)
        if run.world.migrating:  # it began when there was nothing to be waited for
            run.world.migrated("vm1", stays=True)
        assert view.state in (RunState.DONE, RunState.RESTORED), (number, hit, report(view))
        served_in_the_end(run, view.state, hit)
        ended[view.state] = ended.get(view.state, 0) + 1
    else:
        raise AssertionError("the run never came to its end")
    # a run may be undone where a VM came up in the second in which both switches dial its socket (docs/adr/0002)
    assert ended[RunState.DONE] >= 0.9 * sum(ended.values()), ended
    assert sum(ended.values()) > 30


def served_in_the_end(run: SimRun, state: RunState, hit: list[str]) -> None:
    if hit[0].startswith(LAST):
        served(run.world)  # what came then came to the one switch there is, over libvirt's socket
        return
    held(run, "b" if state is RunState.DONE else "a")


@pytest.mark.parametrize("what", CHURN, ids=lambda what: what.__name__)
def test_at_each_effect_of_a_way_back(tmp_path: Path, what: Churn) -> None:
    ended = 0
    for number in range(1, 120):
        run = prepared(tmp_path / str(number), what, KEPT)
        assert run.begin().forward().state is RunState.DONE
        hit = at(run, number, what)
        ends_later(run, stays=bool(number % 2))
        view = run.rollback().back()
        if not hit:
            break
        disarm(run)
        if run.world.migrating:
            run.world.migrated("vm1", stays=True)
        assert view.state is RunState.RESTORED, (number, hit, report(view))
        served(run.world)
        assert set(run.world.owners().values()) == {"a"}, (number, hit)
        ended += 1
    assert ended > 15


@pytest.mark.parametrize("stays", [False, True])
def test_a_migration_is_waited_for(tmp_path: Path, stays: bool) -> None:
    run = sim_run(tmp_path, 3, QUICK)
    run.world.migrate("vm1")
    ends_later(run, stays=stays)
    view = run.begin().forward()
    assert view.state is RunState.DONE, report(view)
    settled(run.world, "b")
    assert set(run.world.owners()) == ({"vm0", "vm1", "vm2"} if stays else {"vm0", "vm2"})
    assert [m.vm for m in report(view).moves] == ["vm0/vhu0", "vm2/vhu2", *(["vm1/vhu1"] if stays else [])]


def test_a_migration_that_does_not_end_is_said_and_its_vm_served(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, QUICK)
    run.world.migrate("vm1")
    began = run.world.now
    told = report(run.begin().forward())
    assert told.outcome == "restored"
    assert "VM_MIGRATES" in (told.error or "")
    assert run.world.now - began > 500
    settled(run.world, "a")


def test_who_waits_for_a_migration_hears_what_is_asked(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, QUICK)
    run.world.migrate("vm1")
    run.world.look_fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "migrating vm1" else None
    began = run.world.now
    assert run.begin().forward().state is RunState.PAUSED
    assert run.world.now - began < 60
    served(run.world)
    run.world.look_fault = lambda name, count: None
    run.world.migrated("vm1", stays=True)
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")


def test_a_vm_with_two_ports_is_moved_port_by_port(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, QUICK)
    gains_a_port(run.world)
    served(run.world)
    view = run.begin().forward()
    assert view.state is RunState.DONE, report(view)
    assert {m.vm for m in report(view).moves} == {"vm0/vhu0", "vm0/vhu7", "vm1/vhu1"}
    settled(run.world, "b")
    assert set(run.world.owners()) == {"vm0", "vm1", "vm0/hostnet1"}
