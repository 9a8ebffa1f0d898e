"""Carrying out a plan: each step checked, done, verified; on a failure all of it undone in reverse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import structlog

from upgrader.core.errors import StepError, UpgradeError
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Plan, PlannedStep, StepKind
from upgrader.core.report import Outcome, RunReport, StepRecord, VmMove, vm_move
from upgrader.ports import Host, Recorder
from upgrader.steps import STEPS, Context, Data

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What ended a run, and whether the step in hand had begun to have an effect."""

    index: int
    error: Exception
    effect: bool


class Run:
    """One plan being carried out. Call `execute` once.

    interrupted   looked at between steps: once it is true the run ends as by a failure, and is undone
    """

    def __init__(
        self,
        plan: Plan,
        host: Host,
        slots: dict[SlotName, Slot],
        recorder: Recorder,
        blackout_budget_us: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._host = host
        self._recorder = recorder
        self._interrupted = interrupted
        self._context = Context(host, plan, slots[plan.source], slots[plan.target], blackout_budget_us)
        self._records: list[StepRecord] = []
        self._moves: list[VmMove] = []

    def execute(self) -> RunReport:
        """Run to the end, or to the first failure and back. Always returns a report, whatever fails."""
        started = self._host.clock.monotonic_s()
        failure: _Failure | None = None
        for index, step in enumerate(self._plan.steps):
            failure = self._step(index, step)
            if failure:
                break
        outcome: Outcome = "done" if failure is None else self._back(failure)
        took_s = self._host.clock.monotonic_s() - started
        return self._report(outcome, took_s, failure)

    def _step(self, index: int, step: PlannedStep) -> _Failure | None:
        kind = STEPS[step.kind]
        before = self._host.clock.monotonic_s()
        effect = False
        try:
            if self._interrupted():
                raise StepError("INTERRUPTED", "a person stopped the run", state="between two steps", next="-")
            _tell(self._recorder.intent, index + 1, len(self._plan.steps), step.title)
            kind.check(self._context, step)
            effect = True
            data = kind.do(self._context, step)
            kind.verify(self._context, step, data)
        except Exception as error:
            log.debug("step failed", step=step.title, exc_info=True)
            self._record(step, "failed", before, _words(error))
            _tell(self._recorder.failed, index + 1, step.title, error)
            return _Failure(index, error, effect)
        self._keep(data, undone=False)
        took_s = self._record(step, "done", before, _detail(data))
        _tell(self._recorder.outcome, index + 1, step.title, took_s, data)
        return None

    def _back(self, failure: _Failure) -> Outcome:
        """Undo in reverse.

        When a step cannot be undone, others of its kind still are (one VM that cannot go back keeps no other from
        it), but what they all stood on stays: the switch, its connections and its rules serve whoever is left there.
        """
        failed = self._plan.steps[failure.index]
        if failure.effect and not STEPS[failed.kind].undoable:
            return "operator-needed"
        last = failure.index if failure.effect else failure.index - 1
        stuck: StepKind | None = None
        for index in range(last, -1, -1):
            step = self._plan.steps[index]
            if stuck not in (None, step.kind):
                break
            before = self._host.clock.monotonic_s()
            error: Exception | None = None
            try:
                self._keep(STEPS[step.kind].undo(self._context, step), undone=True)
            except Exception as problem:
                log.debug("undo failed", step=step.title, exc_info=True)
                error = problem
                stuck = step.kind
            self._record(step, "undo-failed" if error else "undone", before, _words(error) if error else "")
            _tell(self._recorder.undone, index + 1, step.title, error)
        return "restored" if stuck is None and self._as_before() else "operator-needed"

    def _as_before(self) -> bool:
        """Look, rather than believe: the old switch runs and serves every VM that still does."""
        try:
            return self._context.pid(self._context.source) is not None and all(
                slot == self._plan.source or self._started_elsewhere(port.label)
                for port, slot in self._context.owners()
            )
        except UpgradeError as error:
            log.warning("cannot tell who serves the VMs", error=str(error))
            return False

    def _started_elsewhere(self, label: str) -> bool:
        """Whether the plan was not to move this VM: a cut-off run that is completed has VMs at its target already."""
        return label not in {p.label for p in self._plan.ports}

    def _keep(self, data: Data, *, undone: bool) -> None:
        if move := vm_move(data):
            self._moves.append(replace(move, undone=undone))

    def _record(
        self, step: PlannedStep, state: Literal["done", "failed", "undone", "undo-failed"], before: float, detail: str
    ) -> float:
        took_s = self._host.clock.monotonic_s() - before
        self._records.append(StepRecord(step.title, state, round(took_s, 4), detail))
        return took_s

    def _report(self, outcome: Outcome, took_s: float, failure: _Failure | None) -> RunReport:
        plan = self._plan
        report = RunReport(
            plan_id=plan.id,
            host=plan.host,
            from_slot=plan.source,
            to_slot=plan.target,
            from_version=plan.from_version,
            to_version=plan.to_version,
            strategy=plan.strategy,
            outcome=outcome,
            took_s=round(took_s, 3),
            moves=tuple(self._moves),
            steps=tuple(self._records),
            findings=plan.findings,
        )
        if failure is None:
            return report
        if outcome == "restored":
            state = f"everything was undone: slot {plan.source} serves every VM as before"
            next_command = "upgrade --host localhost   (when the cause is mended)"
        else:
            # forward where the old switch is gone or half retired, back where it can still serve
            finished = failure.effect and not STEPS[plan.steps[failure.index].kind].undoable
            old_runs = self._context.pid(self._context.source) is not None
            to = plan.source if old_runs and not finished else plan.target
            state = f"both switches may serve VMs; slot {to} can serve all of them"
            next_command = f"upgrade --host localhost --restore {to}"
        return replace(report, error=_words(failure.error), state=state, next=next_command)


def _tell(what: Callable[..., None], *words: object) -> None:
    """Tell whoever watches; a terminal that is gone must not hold up a VM."""
    with suppress(OSError, ValueError):
        what(*words)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, UpgradeError) else f"UNEXPECTED: {type(error).__name__}: {error}"


def _detail(data: Data) -> str:
    """Outcome data in words: ``pid 4711``, ``flows 12, neighbours 1``; a hand-over by its blackout."""
    if move := vm_move(data):
        return f"blackout {move.blackout_us:.0f} us"
    return ", ".join(f"{k} {v}" for k, v in data.items())
