"""States of a run, of its steps and of its VMs, and which of them may follow which. Data, and one function that asks it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class RunState(StrEnum):
    """Where a run is.

    RUNNING          steps are being carried out
    PAUSED           a person asked for it; between two steps, nothing in flight
    HALTED           it stopped by itself half-way, or its coordinator died: every VM is served, a person decides
    UNDOING          steps are being taken back
    DONE             finished; it can be rolled back as long as the old switch is kept
    RESTORED         taken back: the old switch serves every VM as before
    OPERATOR_NEEDED  a step could neither be finished nor taken back; the report says what to do
    SUPERSEDED       another run took the host over from here
    """

    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    UNDOING = "undoing"
    DONE = "done"
    RESTORED = "restored"
    OPERATOR_NEEDED = "operator-needed"
    SUPERSEDED = "superseded"


#: Half-way: the host is not as a finished run leaves it, and no other run may begin.
UNFINISHED = frozenset({RunState.RUNNING, RunState.PAUSED, RunState.HALTED, RunState.UNDOING, RunState.OPERATOR_NEEDED})

RUN_TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    # over budget, policy `stay`, or the coordinator died: halted. A step behind which there is no way back: operator
    RunState.RUNNING: frozenset(
        {RunState.PAUSED, RunState.HALTED, RunState.UNDOING, RunState.DONE, RunState.OPERATOR_NEEDED}
    ),
    RunState.PAUSED: frozenset({RunState.RUNNING, RunState.UNDOING, RunState.SUPERSEDED}),
    RunState.HALTED: frozenset({RunState.RUNNING, RunState.UNDOING, RunState.SUPERSEDED}),
    # halted from here: the coordinator died while it took steps back
    RunState.UNDOING: frozenset({RunState.RESTORED, RunState.OPERATOR_NEEDED, RunState.HALTED}),
    # rolled back while the old switch is kept
    RunState.DONE: frozenset({RunState.UNDOING}),
    RunState.RESTORED: frozenset(),
    # a person mended something and says so by resume or rollback
    RunState.OPERATOR_NEEDED: frozenset({RunState.RUNNING, RunState.UNDOING, RunState.SUPERSEDED}),
    RunState.SUPERSEDED: frozenset(),
}


class StepState(StrEnum):
    """Where a step is. INTENDED and UNDOING without an outcome: the host has to be looked at."""

    PENDING = "pending"
    INTENDED = "intended"
    DONE = "done"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"


STEP_TRANSITIONS: Mapping[StepState, frozenset[StepState]] = {
    StepState.PENDING: frozenset({StepState.INTENDED, StepState.FAILED}),  # failed: its check did not hold, no effect
    # intended again: resumed, after the coordinator died or a request put the step off
    StepState.INTENDED: frozenset({StepState.INTENDED, StepState.DONE, StepState.FAILED, StepState.UNDOING}),
    # intended: its effect did not last, and it is carried out once more; failed: then its check did not hold
    StepState.DONE: frozenset({StepState.UNDOING, StepState.INTENDED, StepState.FAILED}),
    StepState.FAILED: frozenset({StepState.INTENDED, StepState.FAILED, StepState.UNDOING}),
    # intended or failed: the coordinator died in the middle of taking it back, and the run is resumed instead
    StepState.UNDOING: frozenset(
        {StepState.UNDONE, StepState.UNDO_FAILED, StepState.UNDOING, StepState.INTENDED, StepState.FAILED}
    ),
    StepState.UNDONE: frozenset({StepState.INTENDED, StepState.FAILED}),
    StepState.UNDO_FAILED: frozenset({StepState.UNDOING, StepState.INTENDED, StepState.FAILED}),
}


class VmState(StrEnum):
    """Where a VM of a run is: which switch has its rings, and whether the other stands by."""

    AT_SOURCE = "at-source"
    STANDBY = "standby"  # at the source, the target parked beside it
    MOVING = "moving"
    AT_TARGET = "at-target"
    MOVING_BACK = "moving-back"
    GONE = "gone"


VM_TRANSITIONS: Mapping[VmState, frozenset[VmState]] = {
    # moving at once: QEMU's failover or an earlier run brought it over
    VmState.AT_SOURCE: frozenset({VmState.STANDBY, VmState.MOVING, VmState.GONE}),
    VmState.STANDBY: frozenset({VmState.AT_SOURCE, VmState.MOVING, VmState.GONE}),
    # moving back at once: the check after the move failed, or nobody knows how far the move came
    VmState.MOVING: frozenset({VmState.AT_TARGET, VmState.MOVING_BACK, VmState.STANDBY, VmState.GONE}),
    VmState.AT_TARGET: frozenset({VmState.MOVING_BACK, VmState.MOVING, VmState.GONE}),
    # moving: the run was resumed instead of being taken back to its end
    VmState.MOVING_BACK: frozenset({VmState.STANDBY, VmState.MOVING, VmState.GONE}),
    # a VM that has ended may be started again
    VmState.GONE: frozenset(set(VmState)),
}

S = TypeVar("S", bound=StrEnum)


def follow(table: Mapping[S, frozenset[S]], now: S, new: S) -> S:
    """`new`, if it may follow `now`. Raises ValueError otherwise: a fault of the coordinator's, never of a host's."""
    if new not in table[now]:
        raise ValueError(f"{type(now).__name__} {new} may not follow {now}")
    return new
