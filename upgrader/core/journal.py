"""What a journal holds of a run, and what follows from it. Pure: the same events give the same view.

An event with an intent comes before its effect; whoever reads an intent without an outcome has to look at the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from upgrader.core.lifecycle import (
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    VM_TRANSITIONS,
    RunState,
    StepState,
    VmState,
    follow,
)
from upgrader.core.model import SlotName
from upgrader.core.plan import Plan

Data = Mapping[str, object]


class EventKind(StrEnum):
    """What an event says; those with a step name it by its place in the plan, from 0."""

    STATE = "state"  # data: to, reason (a code or words)
    INTENT = "intent"  # the step's effect is about to begin
    OUTCOME = "outcome"  # data: what the step returned; took_s
    FAILED = "failed"  # data: code, what, state, next, effect (whether an effect had begun)
    PUT_OFF = "put-off"  # a request to stop came while the step only waited; its effect stands, its outcome is open
    UNDO_INTENT = "undo-intent"
    UNDONE = "undone"  # data: what the undo returned; took_s
    UNDO_FAILED = "undo-failed"  # data: code, what, state, next


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a run's journal. `at_ns`: CLOCK_REALTIME, ns since the epoch; `data` is of JSON's types."""

    kind: EventKind
    at_ns: int
    step: int | None = None
    data: Data = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """A step of the plan as far as the journal shows it."""

    kind: str
    title: str
    vm: str | None


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands over a run's events.

    generation   of the coordinator that began it
    kind         of its plan, `core.plan.PlanKind`
    """

    run_id: int
    plan_id: str
    host: str
    source: SlotName
    target: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    steps: tuple[PlannedLine, ...]
    started_at_ns: int
    generation: int
    kind: str = "upgrade"


@dataclass(frozen=True, slots=True)
class StepView:
    """A step as far as the journal knows it. `data` is that of its last outcome; `undo` that of its last undoing."""

    state: StepState = StepState.PENDING
    data: Data = field(default_factory=dict)
    undo: Data = field(default_factory=dict)
    effect: bool = False
    took_s: float = 0.0


_PENDING = StepView()


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as far as the journal knows it: its state, that of each step, and the last error that was seen."""

    heading: Heading
    state: RunState
    steps: tuple[StepView, ...]
    events: tuple[Event, ...]
    places: Mapping[str, tuple[int, ...]]  # of each VM's steps
    reason: str = ""

    @property
    def open_step(self) -> int | None:
        """The step whose effect or undoing began and has no outcome: where to look at the host."""
        half = (StepState.INTENDED, StepState.UNDOING)
        return next((i for i, s in enumerate(self.steps) if s.state in half), None)

    @property
    def error(self) -> Data | None:
        """Of the step that failed last, in this run's last direction."""
        kinds = (EventKind.FAILED, EventKind.UNDO_FAILED)
        return next((e.data for e in reversed(self.events) if e.kind in kinds), None)

    @property
    def ended_at_ns(self) -> int:
        return self.events[-1].at_ns if self.events else self.heading.started_at_ns

    def vms(self) -> dict[str, VmState]:
        """Every VM of the plan, by label."""
        return {vm: _vm_state(self, vm) for vm in self.places}

    def apply(self, event: Event) -> RunView:
        """The view after one more event. Raises ValueError where that event may not come now."""
        new = _apply(self, event)
        vm = self.heading.steps[event.step].vm if event.step is not None else None
        if vm is not None:
            before, after = _vm_state(self, vm), _vm_state(new, vm)
            if after != before:
                follow(VM_TRANSITIONS, before, after)
        return replace(new, events=(*self.events, event))


@dataclass(frozen=True, slots=True)
class Recorded:
    """The three facts of a host in the middle of a run, as the journal has them.

    rings     the slot whose switch has each VM's rings; None where a move has no outcome yet: ask QEMU
    steering  slots that get what no rule of a single VM names
    control   the slot that controllers and management tools write to
    """

    rings: dict[str, SlotName | None]
    steering: tuple[SlotName, ...]
    control: SlotName


def heading(run_id: int, plan: Plan, at_ns: int, generation: int) -> Heading:
    """What stands over a run of this plan."""
    return Heading(
        run_id=run_id,
        plan_id=plan.id,
        host=plan.host,
        source=plan.source,
        target=plan.target,
        from_version=plan.from_version,
        to_version=plan.to_version,
        strategy=plan.strategy,
        steps=tuple(PlannedLine(str(s.kind), s.title, s.port.label if s.port else None) for s in plan.steps),
        started_at_ns=at_ns,
        generation=generation,
        kind=str(plan.kind),
    )


def begin(head: Heading) -> RunView:
    """A run that has only been planned; its first event says that it runs."""
    places: dict[str, tuple[int, ...]] = {}
    for place, line in enumerate(head.steps):
        if line.vm is not None:
            places[line.vm] = (*places.get(line.vm, ()), place)
    return RunView(head, RunState.PAUSED, (_PENDING,) * len(head.steps), (), places)


def fold(head: Heading, events: Iterable[Event]) -> RunView:
    """The run after all these events. As `apply` of each, without a copy of every step for each of them."""
    view = begin(head)
    steps = list(view.steps)
    seen = tuple(events)
    for event in seen:
        if event.kind is EventKind.STATE:
            view = _run_after(view, event)
        else:
            place = _place(event)
            steps[place] = _step_after(steps[place], event)
    return replace(view, steps=tuple(steps), events=seen)


_STEP_STATE = {
    EventKind.INTENT: StepState.INTENDED,
    EventKind.OUTCOME: StepState.DONE,
    EventKind.FAILED: StepState.FAILED,
    EventKind.PUT_OFF: StepState.INTENDED,
    EventKind.UNDO_INTENT: StepState.UNDOING,
    EventKind.UNDONE: StepState.UNDONE,
    EventKind.UNDO_FAILED: StepState.UNDO_FAILED,
}


def _apply(view: RunView, event: Event) -> RunView:
    if event.kind is EventKind.STATE:
        return _run_after(view, event)
    steps = list(view.steps)
    place = _place(event)
    steps[place] = _step_after(steps[place], event)
    return replace(view, steps=tuple(steps))


def _place(event: Event) -> int:
    if event.step is None:
        raise ValueError(f"an event {event.kind} without a step")
    return event.step


def _run_after(view: RunView, event: Event) -> RunView:
    state = follow(RUN_TRANSITIONS, view.state, RunState(str(event.data["to"])))
    return replace(view, state=state, reason=str(event.data.get("reason", "")))


def _step_after(old: StepView, event: Event) -> StepView:
    state = follow(STEP_TRANSITIONS, old.state, _STEP_STATE[event.kind])
    match event.kind:
        case EventKind.OUTCOME:
            took_s = event.data.get("took_s")
            return StepView(state, event.data, old.undo, True, float(took_s) if isinstance(took_s, float) else 0.0)
        case EventKind.INTENT:
            return StepView(state, old.data, old.undo, True, old.took_s)
        case EventKind.UNDONE:
            return StepView(state, old.data, event.data, False, old.took_s)
        case EventKind.FAILED:
            return StepView(state, old.data, old.undo, old.effect or bool(event.data.get("effect")), old.took_s)
    return replace(old, state=state)


def _vm_state(view: RunView, vm: str) -> VmState:
    """From the states of the steps that concern it."""
    mine = {view.heading.steps[place].kind: view.steps[place] for place in view.places[vm]}
    attach, move = mine.get("attach-standby", _PENDING), mine.get("move-vm", _PENDING)
    if "gone" in move.data and move.state is StepState.DONE:
        return VmState.GONE
    if move.state is StepState.DONE:
        return VmState.AT_TARGET
    if move.state is StepState.INTENDED or (move.state is StepState.FAILED and move.effect):
        return VmState.MOVING
    if move.state in (StepState.UNDOING, StepState.UNDO_FAILED):
        return VmState.MOVING_BACK
    return VmState.STANDBY if attach.state is StepState.DONE else VmState.AT_SOURCE


def recorded(view: RunView) -> Recorded:
    """Who serves whom, who gets the traffic, who is written to; of rings what a coordinator that started has seen in QEMU."""
    source, target = view.heading.source, view.heading.target
    where: dict[VmState, SlotName | None] = {
        VmState.AT_SOURCE: source,
        VmState.STANDBY: source,
        VmState.AT_TARGET: target,
        VmState.MOVING: None,
        VmState.MOVING_BACK: None,
    }
    done = {
        line.kind for line, step in zip(view.heading.steps, view.steps, strict=True) if step.state is StepState.DONE
    }
    if "close-window" in done:
        steering: tuple[SlotName, ...] = (target,)
    else:
        steering = (source, target) if "open-window" in done else (source,)
    rings = {vm: where[state] for vm, state in view.vms().items() if state in where}
    last = view.events[-1].data if view.events else {}
    seen = last.get("rings")
    if isinstance(seen, Mapping):  # nothing has been done since
        rings |= {vm: slot for vm, slot in seen.items() if vm in rings}
    return Recorded(
        rings=rings,
        steering=steering,
        control=target if done & {"move-control", "promote"} else source,
    )


def steps_to_undo(view: RunView) -> Sequence[int]:
    """Steps that may have had an effect that stands, the last one first."""
    return [i for i in range(len(view.steps) - 1, -1, -1) if view.steps[i].effect]
