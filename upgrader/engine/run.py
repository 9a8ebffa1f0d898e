"""Carrying out a plan: each step checked, done, verified; on a failure all of it undone in reverse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from upgrader.core.errors import UpgradeError
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Plan, PlannedStep, StepKind
from upgrader.core.report import Outcome, RunReport, StepRecord, VmMove, vm_move
from upgrader.ports import Host, Recorder
from upgrader.steps import STEPS, Context, Data

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The error that ended a run, and whether the step had begun to have an effect."""

    index: int
    error: BaseException
    effect: bool


class Run:
    """One plan being carried out. Call `execute` once."""

    def __init__(
        self, plan: Plan, host: Host, slots: dict[SlotName, Slot], recorder: Recorder, blackout_budget_us: int
    ) -> None:
        self._plan = plan
        self._host = host
        self._recorder = recorder
        self._context = Context(host, plan, slots[plan.source], slots[plan.target], blackout_budget_us)
        self._records: list[StepRecord] = []
        self._moves: list[VmMove] = []

    def execute(self) -> RunReport:
        """Run to the end, or to the first failure and back. Always returns a report; never raises for a host's fault.

        Ctrl-C counts as a failure of the step in hand: what was done is undone before it leaves.
        """
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
        self._recorder.intent(index + 1, len(self._plan.steps), step.title)
        before = self._host.clock.monotonic_s()
        effect = False
        try:
            kind.check(self._context, step)
            effect = True
            data = kind.do(self._context, step)
            kind.verify(self._context, step, data)
        except (UpgradeError, OSError, KeyboardInterrupt) as error:
            log.debug("step failed", step=step.title, exc_info=True)
            self._record(step, "failed", self._host.clock.monotonic_s() - before, _words(error))
            self._recorder.failed(
                index + 1, step.title, error if isinstance(error, Exception) else RuntimeError("interrupted")
            )
            return _Failure(index, error, effect)
        took_s = self._host.clock.monotonic_s() - before
        if move := vm_move(data):
            self._moves.append(move)
        self._record(step, "done", took_s, _detail(data))
        self._recorder.outcome(index + 1, step.title, took_s, data)
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
                STEPS[step.kind].undo(self._context, step)
            except (UpgradeError, OSError) as problem:
                log.debug("undo failed", step=step.title, exc_info=True)
                error = problem
                stuck = step.kind
            took_s = self._host.clock.monotonic_s() - before
            self._record(step, "undo-failed" if error else "undone", took_s, _words(error) if error else "")
            self._recorder.undone(index + 1, step.title, error)
        return "restored" if stuck is None else "operator-needed"

    def _record(self, step: PlannedStep, state: str, took_s: float, detail: str) -> None:
        self._records.append(StepRecord(step.title, state, round(took_s, 4), detail))  # type: ignore[arg-type]

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
        error = failure.error
        if outcome == "restored":
            state = f"everything was undone: slot {plan.source} serves every VM as before"
            next_command = error.next if isinstance(error, UpgradeError) else "the same command again"
        else:
            # forward where the old switch is gone or half retired, back where it can still serve
            finished = failure.effect and not STEPS[plan.steps[failure.index].kind].undoable
            old_runs = self._host.processes.status(self._context.source).vswitchd_pid is not None
            to = plan.source if old_runs and not finished else plan.target
            state = f"both switches may serve VMs; slot {to} can serve all of them"
            next_command = f"upgrade --host localhost --restore {to}"
        return replace(report, error=_words(error), state=state, next=next_command)


def _words(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "INTERRUPTED: Ctrl-C"
    return str(error) if isinstance(error, UpgradeError) else f"{type(error).__name__}: {error}"


def _detail(data: Data) -> str:
    """Outcome data in words: ``pid 4711``, ``flows 12, neighbours 1``; a hand-over by its blackout."""
    if move := vm_move(data):
        return f"blackout {move.blackout_us:.0f} us"
    return ", ".join(f"{k} {v}" for k, v in data.items())
