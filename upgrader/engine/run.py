"""Carrying out a run, forward or back, from wherever its journal says it is.

Each step: check, intent into the journal, do, verify, outcome into the journal. The journal has an event before anybody
else hears of it. A step whose intent has no outcome is carried out again: steps look at the host first.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import structlog

from upgrader.core.decisions import Decision, Phase, dead, decide, phase
from upgrader.core.errors import JournalError, StepError, StopAskedError, SupersededError, UpgradeError
from upgrader.core.journal import Data, Event, EventKind, RunView, steps_to_undo
from upgrader.core.lifecycle import RunState, StepState
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Plan, PlannedStep, StepKind
from upgrader.core.report import NO_WAY_ON, vm_moves
from upgrader.engine.control import Control, Request
from upgrader.ports import Host, Journal, Watcher
from upgrader.steps import STEPS, Context

log = structlog.get_logger(__name__)

_FORWARD_TRIES = 3  # of a step that failed because a switch died under it
ASKED = "ASKED"  # reason of a state that a person asked for


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a step failed of."""

    index: int
    error: Exception

    @property
    def code(self) -> str:
        return self.error.code if isinstance(self.error, UpgradeError) else "UNEXPECTED"


class Engine:
    """One run and the host it is about. Raises SupersededError or JournalError, and stops, before an unrecorded effect."""

    def __init__(
        self,
        view: RunView,
        plan: Plan,
        host: Host,
        slots: Mapping[SlotName, Slot],
        journal: Journal,
        control: Control,
        watch: Watcher,
        acted: Data | None = None,
    ) -> None:
        self.view = view
        self._plan = plan
        self._host = host
        self._journal = journal
        self._control = control
        self._watch = watch
        self._context = Context(
            host,
            plan,
            slots[plan.source],
            slots[plan.target],
            stop_asked=lambda: control.asked() is not None,
            acted=acted,
        )

    def forward(self, reason: str = "") -> RunView:
        """Carry out every step that is not done, to the end or to where it stops. Returns the run as it is then."""
        resumed = bool(self.view.events)
        with self._told():
            self._state(RunState.RUNNING, reason)
            return self._forward(again=self._outdated() if resumed else frozenset())

    def _outdated(self) -> frozenset[int]:
        """Steps to be carried out once more before VMs move: what they did does not last while a run is paused.

        None where the old switch is gone: what was copied from it is all there is, and there is nothing to compare with.
        """
        if self._context.pid(self._context.source) is None:
            return frozenset()
        kinds = [s.kind for s in self._plan.steps]
        to_move = any(
            kind is StepKind.MOVE_VM and seen.state is not StepState.DONE
            for kind, seen in zip(kinds, self.view.steps, strict=True)
        )
        return frozenset(i for i, kind in enumerate(kinds) if to_move and not STEPS[kind].lasting)

    def back(self, reason: str = ASKED) -> RunView:
        """Take back, in reverse, every step that may have had an effect.

        Where the old switch has been ended there is no way back: what is left of the run is carried out instead, and
        the reason of its end says so.
        """
        with self._told():
            if self._decision() == (Phase.RETIRING, Decision.FINISH):
                self._state(RunState.RUNNING, "ROLLBACK_TOO_LATE")
                return self._forward(end="ROLLBACK_TOO_LATE")
            return self._back(reason)

    def _forward(self, end: str = "", again: frozenset[int] = frozenset()) -> RunView:
        for index, step in enumerate(self._plan.steps):
            if self.view.steps[index].state is StepState.DONE and index not in again:
                continue
            tries = 0
            while True:
                if self._may_stop(index) and (asked := self._control.take()):
                    return self._stopped(asked)
                try:
                    failure = self._step(index, step)
                except StopAskedError:
                    continue  # no step that waits comes after one that is not safe to stop behind
                if failure is None:
                    break
                tries += 1
                _, decision = self._decision()
                if decision not in (Decision.FORWARD, Decision.FINISH) or tries == _FORWARD_TRIES:
                    return self._give_way(failure, decision)
                log.warning("a switch died; the step is tried again", step=step.title, error=str(failure.error))
            if any(m.over_budget for m in vm_moves(self.view.steps[index].data)):
                return self._stop(RunState.HALTED, "OVER_BUDGET")
        match self._decision()[1]:  # a switch may have died when nothing was left to be done
            case Decision.BACK:
                return self._back("SWITCH_DIED")
            case Decision.OPERATOR:
                return self._needs_operator("SWITCH_DIED")
        return self._state(RunState.DONE, end)

    def _may_stop(self, index: int) -> bool:
        return index == 0 or STEPS[self._plan.steps[index - 1].kind].pause_safe

    def _stopped(self, asked: Request) -> RunView:
        if asked is Request.BACK:
            return self._back(ASKED)
        return self._stop(RunState.PAUSED if asked is Request.PAUSE else RunState.HALTED, ASKED)

    def _stop(self, to: RunState, reason: str) -> RunView:
        """Stop half-way, which is only said where every VM is served, as those states promise."""
        if any(slot is None for _, slot in self._context.owners()) or self._decision()[1] is Decision.OPERATOR:
            return self._needs_operator("SWITCH_DIED")
        if standby_lost(self.view, self._plan, self._context.pid(self._context.target)) is not None:
            # nobody could go on from here
            lives = self._context.pid(self._context.source) is not None
            return self._back("SWITCH_DIED") if lives else self._needs_operator("SWITCH_DIED")
        # a run may begin where QEMU has moved VMs since the last one: until the window their traffic is where it was
        before_window = any(
            step.kind is StepKind.OPEN_WINDOW and seen.state is StepState.PENDING
            for step, seen in zip(self._plan.steps, self.view.steps, strict=True)
        )
        if before_window or self._decision()[1] is not Decision.POLICY:
            self._steer_after()
        return self._state(to, reason)

    def _step(self, index: int, step: PlannedStep) -> _Failure | None:
        """Returns what it failed of, None when it is done. Raises StopAskedError when a request came while it waited."""
        with self._told(step):
            return self._carried_out(index, step)

    def _carried_out(self, index: int, step: PlannedStep) -> _Failure | None:
        kind = STEPS[step.kind]
        effect = False
        started = self._host.clock.monotonic_s()
        try:
            kind.check(self._context, step)
            self._record(EventKind.INTENT, index)
            effect = True
            data = kind.do(self._context, step)
            kind.verify(self._context, step, data)
            took_s = round(self._host.clock.monotonic_s() - started, 4)
            self._record(EventKind.OUTCOME, index, {**data, "took_s": took_s})
        except (SupersededError, JournalError):
            raise
        except StopAskedError:
            self._record(EventKind.PUT_OFF, index)
            raise
        except Exception as error:
            log.debug("step failed", exc_info=True)
            self._record(EventKind.FAILED, index, {**_error(error), "effect": effect})
            return _Failure(index, error)
        return None

    def _told(self, step: PlannedStep | None = None) -> AbstractContextManager[None]:
        """While inside, every log line says which run it is about, and which step and VM."""
        of_step = {"step": step.title, "vm": step.port.label if step.port else None} if step else {}
        return structlog.contextvars.bound_contextvars(run=self.view.heading.run_id, **of_step)

    def _decision(self) -> tuple[Phase, Decision]:
        """By the table, on the host as it is now."""
        states: dict[StepKind, list[StepState]] = {}
        for step, seen in zip(self._plan.steps, self.view.steps, strict=True):
            states.setdefault(step.kind, []).append(seen.state)
        now = phase(states)
        source, target = self._context.source, self._context.target
        who = dead(source_runs=self._context.pid(source) is not None, target_runs=self._context.pid(target) is not None)
        return now, decide(now, who)

    def _give_way(self, failure: _Failure, decision: Decision) -> RunView:
        if decision is Decision.BACK:
            return self._back(failure.code)
        if decision is not Decision.POLICY:
            return self._needs_operator(failure.code)
        if self._plan.policy.on_failure == "back":
            return self._back(failure.code)
        # the step in hand is taken back, so that no VM is left half moved; everything before it stays
        stuck = self.view.steps[failure.index].effect and not self._undo(failure.index)
        if not stuck and self._decision()[1] is Decision.BACK:
            return self._back(failure.code)  # the new switch is dead, or never lived: there is nothing to go on with
        return self._operator_needed(failure.code) if stuck else self._state(RunState.HALTED, failure.code)

    def _back(self, reason: str) -> RunView:
        """When a step cannot be undone, others of its kind still are (one VM that cannot go back keeps no other from
        it), but what they all stood on stays: the switch, its connections and its rules serve whoever is left there.
        """
        self._state(RunState.UNDOING, reason)
        stuck: StepKind | None = None
        for index in steps_to_undo(self.view):
            kind = self._plan.steps[index].kind
            if stuck not in (None, kind):
                break
            if not self._undo(index):
                stuck = kind
        if stuck is None and self._as_before():
            return self._state(RunState.RESTORED, reason)
        return self._needs_operator(reason)

    def _needs_operator(self, reason: str) -> RunView:
        self._steer_after()
        return self._operator_needed(reason)

    def _operator_needed(self, reason: str) -> RunView:
        """Where the new switch is gone, with what was prepared in it, there is no way on: it is recorded, to be told."""
        lost = standby_lost(self.view, self._plan, self._context.pid(self._context.target)) is not None
        return self._state(RunState.OPERATOR_NEEDED, reason, **({NO_WAY_ON: True} if lost else {}))

    def _steer_after(self) -> None:
        """Where a switch died QEMU has moved VMs by itself: their traffic is sent after them before we stop."""
        try:
            if any(slot is not None for _, slot in self._context.owners()):
                self._context.steer_to_owners()
        except UpgradeError as error:
            log.warning("cannot bring steering in line with who serves the VMs", error=str(error))

    def _undo(self, index: int) -> bool:
        with self._told(self._plan.steps[index]):
            return self._taken_back(index, self._plan.steps[index])

    def _taken_back(self, index: int, step: PlannedStep) -> bool:
        self._record(EventKind.UNDO_INTENT, index)
        started = self._host.clock.monotonic_s()
        try:
            data = STEPS[step.kind].undo(self._context, step)
        except (SupersededError, JournalError):
            raise
        except Exception as error:
            log.debug("undo failed", exc_info=True)
            self._record(EventKind.UNDO_FAILED, index, _error(error))
            return False
        self._record(EventKind.UNDONE, index, {**data, "took_s": round(self._host.clock.monotonic_s() - started, 4)})
        return True

    def _as_before(self) -> bool:
        """Look, rather than believe: the old switch runs and has its VMs again, and none is without a switch."""
        to_move = {p.label for p in self._plan.ports}
        try:
            return self._context.pid(self._context.source) is not None and all(
                slot == self._plan.source or (slot is not None and port.label not in to_move)
                for port, slot in self._context.owners()
            )
        except UpgradeError as error:
            log.warning("cannot tell who serves the VMs", error=str(error))
            return False

    def _state(self, to: RunState, reason: str, **more: object) -> RunView:
        self._record(EventKind.STATE, None, {"to": str(to), "reason": reason, **more})
        return self.view

    def _record(self, kind: EventKind, index: int | None, data: Data | None = None) -> None:
        event = Event(kind, self._host.clock.now_ns(), index, data or {})
        view = self.view.apply(event)
        self._journal.append(view.heading.run_id, event)
        self.view = view
        with suppress(OSError, ValueError):  # a terminal that is gone must not hold up a VM
            self._watch(view, event)


def standby_lost(view: RunView, plan: Plan, runs: int | None) -> int | None:
    """Pid of the new switch that the run started, where that does not run any more: what the run prepared in it is gone.

    `runs`: pid of the switch that is in its slot now, None where there is none.
    """
    for step, seen in zip(plan.steps, view.steps, strict=True):
        if step.kind is StepKind.START_STANDBY and seen.state is StepState.DONE:
            pid = seen.data.get("pid")
            return pid if isinstance(pid, int) and pid != runs else None
    return None


def _error(error: Exception) -> dict[str, object]:
    if isinstance(error, UpgradeError):
        return {"code": error.code, "what": error.what, "state": error.state, "next": error.next}
    unexpected = StepError(
        "UNEXPECTED", f"{type(error).__name__}: {error}", state="as the step left it", next="upgrade status"
    )
    return {"code": unexpected.code, "what": unexpected.what, "state": unexpected.state, "next": unexpected.next}
