"""Runs on the simulated host, cut off at any point and taken up by another coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from upgrader.core.journal import RunView
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Plan, Policy
from upgrader.engine.control import Control
from upgrader.engine.coordinator import Coordinator, Setup, make_plan
from upgrader.engine.run import Engine
from upgrader.ports import Host, Watcher
from upgrader.sim.host import make
from upgrader.sim.journal import SimJournal
from upgrader.sim.world import World


class Killed(BaseException):
    """SIGKILL of the coordinator: nothing of it runs any more, no undo."""


def new_engine(
    host: Host,
    slots: dict[SlotName, Slot],
    plan: Plan,
    watch: Watcher = lambda view, event: None,
    control: Control | None = None,
) -> Engine:
    """A run of this plan on a journal of its own."""
    journal = SimJournal()
    journal.claim()
    return Engine(journal.begin(plan, 0), plan, host, slots, journal, control or Control(), watch)


@dataclass
class SimRun:
    """A simulated host, its journal, and whoever is its coordinator now."""

    world: World
    journal: SimJournal
    setup: Setup
    coordinator: Coordinator
    control: Control

    def again(self) -> RunView | None:
        """The coordinator is gone; another one starts."""
        self.coordinator = Coordinator(lambda: self.setup, self.journal)
        self.control = Control()
        return self.coordinator.start()

    def plan(self, restore: SlotName | None = None) -> Plan:
        return make_plan(self.setup, restore, self.setup.policy)[1]

    def begin(self) -> Engine:
        return self.coordinator.begin(self.plan(), self.control, watch)

    def resume(self) -> Engine:
        return self.coordinator.resume(self.control, watch)

    def rollback(self) -> Engine:
        return self.coordinator.rollback(self.control, watch)


def watch(_view: RunView, _event: object) -> None:
    """Nobody looks."""


def sim_run(tmp: Path, vms: int = 2, policy: Policy = Policy(soak_s=0.4, canary_check_s=0.2)) -> SimRun:  # noqa: B008
    world, host, slots = make(tmp, vms)
    journal = SimJournal()
    setup = Setup("h1", host, slots, (), policy, "sim")
    run = SimRun(world, journal, setup, Coordinator(lambda: setup, journal), Control())
    run.again()
    return run


def settled(world: World, slot: SlotName, *, kept: bool = False) -> None:
    """Every VM is served by `slot`, reached there by the one rule, and nothing is left of a run but a kept switch."""
    assert set(world.owners().values()) <= {slot}
    assert world.steady == (slot,)
    assert world.control == slot
    assert world.rules == {}
    assert world.unreached() == []
    assert world.trouble == []
    for bridge in world.switch.bridges:
        assert world.flows[slot, bridge.name], f"slot {slot} forwards nothing on {bridge.name}"
        assert bridge.name in world.named, f"no tool reaches {bridge.name} without being told where it is"
    assert world.addresses[slot, "br-phy"], f"slot {slot} has no address to send from"
    if kept:
        return
    assert world.pids["b" if slot == "a" else "a"] is None
    assert world.listeners == set()
    for vm in world.vms.values():
        own = vm.ownership.owner if vm.ownership else ""
        ours = {c for d, c in world.chardevs if d == vm.domain and c.endswith(f"-{vm.netdev}")}
        assert ours <= {own}, "a second connection was left behind"


def served(world: World) -> None:
    """At any moment, whatever was cut off: every VM has one owner, and its traffic goes there."""
    assert world.trouble == []
    assert None not in world.owners().values()
    assert world.unreached() == []


Cut = Callable[[SimRun], None]


def cuts(total_writes: int, total_calls: int) -> Iterator[tuple[str, Cut]]:
    """Every point at which a coordinator can be killed: before and after each write of the journal, before each effect."""

    def before_write(number: int) -> Cut:
        def arm(run: SimRun) -> None:
            run.journal.fault = lambda n: _kill(n == number)

        return arm

    def after_write(number: int) -> Cut:
        def arm(run: SimRun) -> None:
            run.journal.fault_after = lambda n: _kill(n == number)

        return arm

    def before_call(number: int) -> Cut:
        def arm(run: SimRun) -> None:
            run.world.fault = lambda name, n: Killed() if n == number else None

        return arm

    for n in range(1, total_writes + 1):
        yield f"before write {n}", before_write(n)
        yield f"after write {n}", after_write(n)
    for n in range(1, total_calls + 1):
        yield f"before effect {n}", before_call(n)


def disarm(run: SimRun) -> None:
    run.journal.fault = lambda number: None
    run.journal.fault_after = lambda number: None
    run.world.fault = lambda name, count: None


def _kill(now: bool) -> None:
    if now:
        raise Killed
