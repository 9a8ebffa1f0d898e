"""What a run reports: its outcome, and what each VM's hand-over took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import starmap

from upgrader.core.in_step import STALE
from upgrader.core.journal import Data, EventKind, RunView
from upgrader.core.lifecycle import RunState, StepState
from upgrader.core.model import SlotName
from upgrader.core.plan import PlanKind

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class VmMove:
    """One VM's hand-over. Times inside QEMU in microseconds; the moments are CLOCK_REALTIME, ns since the epoch.

    blackout_us      from the first message to the old switch to the last notification: nobody served the rings
    command_us       the whole QMP command as the coordinator saw it
    started_at_ns    before the command was sent
    ended_at_ns      after its answer came
    over_budget      blackout above policy.blackout_budget_us
    undone           it was the way back of a run that failed
    """

    vm: str
    mac: str
    from_slot: SlotName
    to_slot: SlotName
    generation: int
    blackout_us: float
    quiesce_us: float
    index_us: float
    activate_us: float
    notify_us: float
    command_us: float
    started_at_ns: int
    ended_at_ns: int
    over_budget: bool
    undone: bool = False


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run as it went."""

    title: str
    state: StepState
    took_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What a run came to so far; `error`, `state` and `next` as in `UpgradeError`, None when done."""

    took_s: float
    error: str | None
    state: str | None
    next: str | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run as its journal tells it. `error`, `state` and `next` as in `Ending`.

    outcome   `running` and `undoing` while it goes on
    reason    of the outcome: the code of an error, ASKED for a person's request, empty for the end of the plan
    purpose   what the run was for: ``upgrade``, ``arm``, ``disarm`` or ``takeover``
    """

    run_id: int
    plan_id: str
    host: str
    from_slot: SlotName
    to_slot: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    outcome: RunState
    reason: str
    started_at_ns: int
    took_s: float
    moves: tuple[VmMove, ...]
    steps: tuple[StepRecord, ...]
    error: str | None = None
    state: str | None = None
    next: str | None = None
    purpose: str = PlanKind.UPGRADE

    @property
    def moved(self) -> int:
        """VM ports that are with the new switch for good."""
        return 0 if self.outcome is RunState.RESTORED else sum(-1 if m.undone else 1 for m in self.moves)


def ending(view: RunView) -> Ending:
    """From the journal, and nothing else."""
    error = view.error if view.state is not RunState.DONE else None
    state, then = _stale(view) or _what_next(view)
    return Ending(
        took_s=round((view.ended_at_ns - view.heading.started_at_ns) / 1e9, 3),
        error=f"{error['code']}: {error['what']}" if error else _WORDS.get(view.reason),
        state=state,
        next=then,
    )


def report(view: RunView) -> RunReport:
    """The ending, and every step and hand-over before it."""
    head = view.heading
    shown = [
        StepRecord(line.title, step.state, step.took_s, detail(step.data) if step.state is StepState.DONE else "")
        for line, step in zip(head.steps, view.steps, strict=True)
    ]
    moves = [
        replace(move, undone=event.kind is EventKind.UNDONE)
        for event in view.events
        if event.kind in (EventKind.OUTCOME, EventKind.UNDONE)
        for move in vm_moves(event.data)
    ]
    end = ending(view)
    return RunReport(
        run_id=head.run_id,
        plan_id=head.plan_id,
        host=head.host,
        from_slot=head.source,
        to_slot=head.target,
        from_version=head.from_version,
        to_version=head.to_version,
        strategy=head.strategy,
        outcome=view.state,
        reason=view.reason,
        started_at_ns=head.started_at_ns,
        took_s=end.took_s,
        moves=tuple(moves),
        steps=tuple(shown),
        error=end.error,
        state=end.state,
        next=end.next,
        purpose=head.kind,
    )


def purpose(kind: str, source: SlotName, target: SlotName) -> str:
    """What a run is for, in words: ``slot a -> b`` for an upgrade."""
    return {
        PlanKind.ARM: f"standby for slot {source} in slot {target}",
        PlanKind.DISARM: f"end of the standby in slot {source}",
        PlanKind.TAKEOVER: f"takeover from slot {source} by slot {target}",
    }.get(PlanKind(kind), f"slot {source} -> {target}")


NO_WAY_ON = "no way on"  # of a state: the switch that the run started is gone, with what was prepared in it

_WORDS = {
    "ASKED": "ASKED: a person asked for it",
    "OVER_BUDGET": "OVER_BUDGET: a VM was without a switch for longer than policy.blackout_budget_us; it stays where it is",
    "COORDINATOR_DIED": "COORDINATOR_DIED: the coordinator ended in the middle of the run",
    "SWITCH_DIED": "SWITCH_DIED: a switch died under VMs that the other one did not stand by for yet",
    "ROLLBACK_TOO_LATE": "ROLLBACK_TOO_LATE: the old switch had been ended already, so the run was finished instead",
}


def _stale(view: RunView) -> tuple[str, str] | None:
    """The same where VMs went to a switch that was not known to be what the one before was."""
    why = next((str(s.data[STALE]) for s in view.steps if STALE in s.data), None)
    if view.state is not RunState.DONE or why is None:
        return None
    return (
        f"slot {view.heading.target} serves every VM by an old copy: {why}",
        "have controllers write once more what they wrote since; then: upgrade status",
    )


def _done(view: RunView) -> tuple[str | None, str | None]:
    """The same for a run that did all it was to do."""
    source, target = view.heading.source, view.heading.target
    match view.heading.kind:
        case PlanKind.ARM:
            return (
                f"slot {source} serves every VM, slot {target} stands by",
                f"upgrade takeover   (should slot {source} fail), or: upgrade disarm   (to end the standby)",
            )
        case PlanKind.TAKEOVER:
            return (
                f"slot {target} serves every VM; slot {source} is cleared away",
                "upgrade arm   (where takeover.rearm is off; else a new standby comes by itself)",
            )
        case PlanKind.DISARM:
            return f"slot {target} serves every VM, and there is no standby", "upgrade arm   (to have one again)"
    if any(line.kind == "retire" for line in view.heading.steps):
        return None, None
    return (
        f"slot {target} serves every VM; as long as the switch of slot {source} runs, a rollback goes back to it",
        "upgrade status",
    )


def _what_next(view: RunView) -> tuple[str | None, str | None]:
    """What state the host is in, and what to type next."""
    source, target = view.heading.source, view.heading.target
    if view.state is RunState.DONE and view.reason != "ROLLBACK_TOO_LATE":
        return _done(view)
    on_or_back = "upgrade resume   (on), or: upgrade rollback   (back)"
    if _last_state(view).get(NO_WAY_ON):
        on_or_back = "upgrade rollback   (the new switch is gone: there is no way on)"
    if view.state is RunState.RESTORED and not any(line.kind == "start-standby" for line in view.heading.steps):
        return (
            "everything was undone: every VM is where it was when this run began",
            "upgrade check   (it says who serves each VM, and what to type)",
        )
    return {
        RunState.DONE: (
            f"slot {target} serves every VM",
            "upgrade --host localhost   (it goes back to the other slot)",
        ),
        RunState.RESTORED: (
            f"everything was undone: slot {source} serves every VM as before",
            ("upgrade arm" if view.heading.kind == PlanKind.ARM else "upgrade --host localhost")
            + f"   ({'to begin again' if view.reason == 'ASKED' else 'when the cause is mended'})",
        ),
        RunState.RUNNING: ("every VM is served by the switch that owns its rings", "upgrade status --watch"),
        RunState.UNDOING: ("every VM is served by the switch that owns its rings", "upgrade status --watch"),
        RunState.PAUSED: ("every VM is served", on_or_back),
        RunState.HALTED: ("every VM is served, some by each switch", on_or_back),
        RunState.OPERATOR_NEEDED: (
            f"half-way between slot {source} and slot {target}; what still runs of both is kept",
            f"upgrade --host localhost --dry-run   (it says who serves each VM), then: {on_or_back}",
        ),
        RunState.SUPERSEDED: ("as a later run left it", "upgrade history"),
    }[view.state]


def _last_state(view: RunView) -> Data:
    return next((e.data for e in reversed(view.events) if e.kind is EventKind.STATE), {})


def detail(data: Mapping[str, object]) -> str:
    """Outcome data in words: ``pid 4711``, ``flows 12, neighbours 1``; a hand-over by its blackout."""
    if moves := vm_moves(data):
        return ", ".join(f"blackout {m.blackout_us / 1000:.2f} ms" for m in moves)
    told = {k: v for k, v in data.items() if k not in _UNTOLD and v not in ({}, [], "", None)}
    return ", ".join(starmap(_detail, told.items()))


_UNTOLD = ("took_s", "moves", "began_at_ns", STALE)


def _detail(key: str, value: object) -> str:
    name = "of them by the coordinator" if key == "switched by us" else key.replace("_", " ")
    if key.endswith("_us") and isinstance(value, int | float):
        return f"{key[:-3]} {value / 1000:.2f} ms"
    return f"{name} {len(value) if isinstance(value, (dict, list)) else value}"


def vm_moves(data: Mapping[str, object]) -> tuple[VmMove, ...]:
    """The hand-overs that a step's recorded data tells of."""
    one, several = data.get("move"), data.get("moves")
    found = [one] if isinstance(one, dict) else several if isinstance(several, list) else []
    return tuple(VmMove(**move) for move in found)
