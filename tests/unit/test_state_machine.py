"""A simulated host to which anything may happen at any point: no VM with two switches, none without one, no dead end.

The same histories each time (what takes well under a minute on an idle machine), so that a change is judged by itself;
STATE_MACHINE_EXAMPLES tries as many new ones.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rich.console import Console

from tests.support.runs import Killed, SimRun, disarm, settled, sim_run
from upgrader.cli import render
from upgrader.core.errors import BlockedError, UpgradeError
from upgrader.core.journal import RunView, fold, recorded
from upgrader.core.lifecycle import UNFINISHED, RunState
from upgrader.core.model import SLOTS, SlotName, VmInterface
from upgrader.core.plan import ON_FAILURE, PlanKind, Policy
from upgrader.core.report import report
from upgrader.engine.control import Request
from upgrader.engine.run import Engine
from upgrader.sim.facts import vm_interface
from upgrader.sim.world import refused

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", "200"))
IDLE = (8, 9)  # VMs that have a port and do not run at first
COMMAND = re.compile(r"upgrade ([a-z-]+(?: [a-z-]+)*)")
Soon = list[tuple[int, tuple[str, Any]]]
slots = st.sampled_from(SLOTS)
policies = st.builds(
    Policy,
    blackout_budget_us=st.sampled_from([20_000, 20_000, 700]),  # a move takes 713 us
    canary_check_s=st.sampled_from([0.0, 0.2]),
    soak_s=st.sampled_from([0.0, 0.4]),
    on_failure=st.sampled_from(ON_FAILURE),
    keep_old=st.booleans(),
)


numbers = st.sampled_from([0, 1, 2, *IDLE])
churn = st.sampled_from(["start", "end", "restart", "migrate"])
# what happens in the middle of a run, and before which of its effects (a run of three VMs has about 60)
soon = st.lists(
    st.tuples(
        st.integers(1, 60),
        st.one_of(
            st.tuples(st.just("request"), st.sampled_from(Request)),
            st.tuples(st.just("failure"), st.integers(1, 4)),  # so many calls in a row: a move is tried three times
            st.tuples(st.just("death"), slots),
            st.tuples(st.just("vm"), st.tuples(numbers, churn)),
            st.tuples(st.just("kill"), st.sampled_from(["before effect", "before write", "after write"])),
        ),
    ),
    max_size=3,
)


class AnyHistory(RuleBasedStateMachine):
    """Rules come between runs; what is drawn from `soon` happens in the middle of one."""

    run: SimRun

    @initialize(vms=st.integers(0, 3), policy=policies, dual=st.booleans())
    def begin_with(self, vms: int, policy: Policy, dual: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.run = sim_run(Path(self.folder.name), vms, policy)
        self.world = self.run.world
        self.world.dual = dual
        for number in IDLE:
            self.world.idle_port(number)
        self.alive = True  # the coordinator
        self.before: dict[int, tuple[set[Path], set[int | None]]] = {}  # by run: sockets and switches when it began
        self.unserved: set[str] = set()  # had no standby when their switch died, or no switch when they started
        self.undialled: set[str] = set()  # started while no switch dialled libvirt's socket: no part of any run
        # came to the old switch, which still dials libvirt's sockets, while their traffic goes to the new one, until a
        # run goes on, or the daemon looks
        self.late: set[str] = set()
        self.disturbed = False  # a switch died, or the coordinator did, since traffic was last brought in line
        self.killed_since: set[SlotName] = set()
        self.writes = 0
        self.shown = -1  # how many writes the journal had when it was shown last
        self.flows = dict(self.world.flows)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    # what people ask of the coordinator

    @precondition(lambda self: self.alive)
    @rule(soon=soon)
    def upgrade(self, soon: Soon) -> None:
        self._carry_out(soon, lambda: self.run.begin().forward())

    @precondition(lambda self: self.alive and self.run.journal.latest())
    @rule(soon=soon, slot=slots)
    def restore(self, soon: Soon, slot: SlotName) -> None:
        self._carry_out(soon, lambda: self._restore(slot).forward())

    @precondition(lambda self: self.alive and self.run.journal.latest())
    @rule(soon=soon)
    def resume(self, soon: Soon) -> None:
        self._carry_out(soon, lambda: self.run.resume().forward())

    @precondition(lambda self: self.alive and self.run.journal.latest())
    @rule(soon=soon)
    def rollback(self, soon: Soon) -> None:
        self._carry_out(soon, lambda: self.run.rollback().back())

    @rule(policy=policies)
    def change_policy(self, policy: Policy) -> None:
        self.run.setup = replace(self.run.setup, policy=policy)

    @precondition(lambda self: not self.alive or self.run.journal.latest())
    @rule()
    def start_another_coordinator(self) -> None:
        before = list(self.world.calls)
        self.run.again()
        assert self.world.calls == before, "a coordinator that starts moves nothing"
        self.alive = True

    @precondition(lambda self: self.alive and self.run.journal.latest())
    @rule()
    def daemon_looks(self) -> None:
        """As it does now and then between runs."""
        writes = self.run.journal.writes
        latest = self.run.journal.latest()
        try:
            self.run.coordinator.keep()
        except UpgradeError:
            return  # said in the log, and tried again
        assert self.run.journal.writes == writes
        if latest and latest.state is RunState.DONE and latest.heading.kind == PlanKind.UPGRADE:
            self.late -= {d for d, owner in self.world.owners().items() if owner == latest.heading.target}

    # what happens to the host while nobody is at work on it

    @rule(slot=slots)
    def switch_dies(self, slot: SlotName) -> None:
        self._die(slot)

    @rule(number=numbers, what=churn)
    def vm(self, number: int, what: str) -> None:
        self._vm(number, what)

    @rule(stays=st.booleans())
    def migrations_end(self, stays: bool) -> None:
        for domain in list(self.world.migrating):
            self._forget(domain, stays=stays)
            self.world.migrated(domain, stays=stays)

    @rule()
    def flow_is_written(self) -> None:
        """By whoever programs the switch; not while two run: what is written then reaches one of them only."""
        self._write_flow()

    # what must hold

    @invariant()
    def rings_have_one_owner(self) -> None:
        assert self.world.trouble == []
        for vm in self.world.vms.values():
            own = vm.ownership
            assert own is not None
            assert own.owner_pid is None or own.owner_pid in self.world.pids.values()
            if own.standby is not None:
                assert own.standby.chardev != own.owner
                assert own.standby.pid is None or own.standby.pid != own.owner_pid

    @invariant()
    def every_vm_has_a_switch(self) -> None:
        nobody = {d for d, owner in self.world.owners().items() if owner is None}
        assert nobody <= self.unserved, self.world.calls[-10:]

    @invariant()
    def traffic_reaches_the_owner(self) -> None:
        if self.disturbed:
            return
        unreached = {d for d in self.world.unreached() if self.world.owners()[d] is not None} - self.late
        assert unreached == set(), (unreached, self.world.calls[-10:])

    @invariant()
    def every_state_can_be_shown(self) -> None:
        if self.run.journal.writes == self.shown:
            return
        self.shown = self.run.journal.writes
        view = self.run.journal.latest()
        console = Console(file=open(os.devnull, "w"), width=100)  # noqa: SIM115,PTH123
        with console.file:
            render.show_status(console, view, recorded(view) if view else None, report(view) if view else None, None)
            render.show_history(console, self.run.journal.headings(10))
            if view:
                render.show_report(console, report(view))
                asdict(report(view))
                assert fold(view.heading, view.events) == view

    @invariant()
    def what_is_to_be_typed_next_is_accepted(self) -> None:
        view = self.run.journal.latest()
        if view is None or not self.alive or view.state in (RunState.RUNNING, RunState.UNDOING):
            return
        told = report(view)
        if told.next is None:
            return
        offered = COMMAND.findall(told.next)
        assert offered, told.next
        accepted = {command: self._accepts(command) for command in offered}
        if not self.killed_since and not self.unserved:
            assert all(accepted.values()), (told, accepted)
        elif view.state in UNFINISHED:
            assert any(accepted.values()), (told, accepted)

    # how it is done

    def _carry_out(self, soon: Soon, go: Callable[[], RunView]) -> None:
        before = list(self.world.calls), self.run.journal.writes
        latest = self.run.journal.latest()
        self.before[latest.heading.run_id + 1 if latest else 1] = (
            set(self.world.listeners),
            set(self.world.pids.values()),
        )
        self.refused = False
        self._arm(soon)
        try:
            view = go()
        except Killed:
            self.alive = False
            self.disturbed = self.disturbed or not self.world.dual
            return
        except BlockedError as error:
            assert (self.world.calls, self.run.journal.writes) == before, "what is refused changes nothing"
            assert error.next
            return
        finally:
            disarm(self.run)
            self.run.control.take()
        self._ended(view)

    def _arm(self, soon: Soon) -> None:
        calls, writes = len(self.world.calls), self.run.journal.writes

        def kill(count: int, when: str) -> None:
            if any(what == "kill" and how == when and writes + after == count for after, (what, how) in soon):
                raise Killed

        def fault(name: str, count: int) -> BaseException | None:
            for after, (what, how) in soon:
                if what == "failure" and 0 <= count - calls - after < how:
                    self.refused = True
                    return refused("no")
                if calls + after == count:
                    match what:
                        case "request":
                            self.run.control.ask(how)
                        case _ if name.startswith("stop"):
                            pass  # nobody can look at the host any later: what comes now comes after it
                        case "death":
                            self._die(how)
                        case "vm":
                            self._vm(*how)
                        case "kill" if how == "before effect":
                            return Killed()
            return None

        self.world.fault = fault
        self.run.journal.fault = lambda n: kill(n, "before write")
        self.run.journal.fault_after = lambda n: kill(n, "after write")

    def _ended(self, view: RunView) -> None:
        if view.state is not RunState.OPERATOR_NEEDED:  # else a death may be why
            self.killed_since = set()
        # a person is needed where a rule could not be set, too
        self.disturbed = view.state is RunState.OPERATOR_NEEDED and self.refused
        kinds = {line.kind for line in view.heading.steps}
        nobody = {d for d, owner in self.world.owners().items() if owner is None}
        self.unserved &= nobody
        if view.state in (RunState.DONE, RunState.RESTORED):
            self.late = set()
        if nobody - self.undialled:
            assert view.state is RunState.OPERATOR_NEEDED, (report(view), nobody)
        if nobody:
            return
        if view.state is RunState.DONE:
            settled(self.world, view.heading.target, kept="retire" not in kinds)
        if view.state is RunState.RESTORED and "start-standby" in kinds:
            settled(self.world, view.heading.source, kept=True)
            listeners, pids = self.before[view.heading.run_id]
            assert self.world.pids[view.heading.target] in {None, *pids}, "a switch was left behind"
            assert self.world.listeners <= listeners, "a socket was left behind"
        if view.state is RunState.DONE or (view.state is RunState.RESTORED and "start-standby" in kinds):
            serving = view.heading.target if view.state is RunState.DONE else view.heading.source
            assert self.world.flows[serving, "br-int"] == self.flows["a", "br-int"]

    def _restore(self, slot: SlotName) -> Engine:
        return self.run.coordinator.begin(self.run.plan(slot), self.run.control, lambda view, event: None)

    def _die(self, slot: SlotName) -> None:
        for domain, owner in self.world.owners().items():
            own = self.world.vms[domain].ownership
            if owner == slot and own is not None and not (own.standby and own.standby.ready):
                self.unserved.add(domain)
        if self.world.pids[slot] is not None:
            self.disturbed = True
            self.killed_since.add(slot)
        self.world.die(slot)

    def _vm(self, number: int, what: str) -> None:
        domain = f"vm{number}"
        vm: VmInterface = vm_interface(number)
        runs, has_port = domain in self.world.vms, any(i.name == f"vhu{number}" for i in self.world.switch.interfaces)
        if not has_port or runs == (what == "start"):
            return
        if what == "migrate":
            self.world.migrate(domain)
            return
        if what != "start":
            self.world.end(domain)
            self._forget(domain)
        if what != "end":
            self.world.start(vm)
            if (owner := self.world.owners()[domain]) is None:
                self.unserved.add(domain)
                self.undialled.add(domain)
            elif owner not in self.world.reached(vm):
                self.late.add(domain)

    def _forget(self, domain: str, *, stays: bool = False) -> None:
        for known in (self.late, self.undialled, self.unserved):
            if not stays:
                known.discard(domain)

    def _write_flow(self) -> None:
        serving = set(self.world.owners().values())
        view = self.run.journal.latest()
        kept = all(self.world.pids.values())
        if len(serving) != 1 or None in serving or kept or (view and view.state in UNFINISHED):
            return
        slot = serving.pop()
        assert slot is not None
        self.writes += 1
        self.flows["a", "br-int"] = (f"priority={self.writes} actions=drop",)
        self.world.flows[slot, "br-int"] = self.flows["a", "br-int"]

    def _accepts(self, command: str) -> bool:
        run = self.run
        try:
            match command.split(" ", maxsplit=1)[0]:
                case "resume":
                    run.resume()
                case "rollback":
                    run.rollback()
                case "status" | "history" | "check":
                    pass
                case _ if "--dry-run" in command:
                    run.plan()
                case _:
                    restore = re.search(r"--restore ([ab])", command)
                    plan = run.plan(restore.group(1) if restore else None)  # type: ignore[arg-type]
                    latest = run.journal.latest()
                    return not plan.blocking and bool(restore or latest is None or latest.state not in UNFINISHED)
        except BlockedError:
            return False
        return True


AnyHistory.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=12,
    deadline=None,
    derandomize="STATE_MACHINE_EXAMPLES" not in os.environ,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAnyHistory = AnyHistory.TestCase
