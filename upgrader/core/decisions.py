"""What the death of either switch means in each phase of a run: a table, and the few words that explain each entry.

It stands on what QEMU does by itself: when the owner of a VM's rings is proved gone and the other switch stands by,
the rings go there. So a VM is without a switch only where nobody stood by.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from upgrader.core.lifecycle import StepState
from upgrader.core.plan import StepKind


class Phase(StrEnum):
    """How far a run has come, by what the death of a switch would mean."""

    PREPARING = "preparing"  # nobody, or not every VM, has a standby
    READY = "ready"  # every VM has one, none has moved
    MOVING = "moving"  # some have moved
    MOVED = "moved"  # all have; the old switch stands by
    RETIRING = "retiring"  # the old switch is being ended, or has ended


class Dead(StrEnum):
    """Whose switch is dead."""

    NONE = "none"
    SOURCE = "source"
    TARGET = "target"
    BOTH = "both"


class Decision(StrEnum):
    """What to do.

    POLICY    no switch died: what the operator's policy says of a step that failed
    FORWARD   go on: the step that failed is tried again, on the host as it is now
    BACK      take everything back: the source serves, or QEMU has brought it, every VM
    FINISH    the source is gone for good: carry out what is left, there is no way back
    OPERATOR  some VM may have no switch, and no step of ours gives it one
    """

    POLICY = "policy"
    FORWARD = "forward"
    BACK = "back"
    FINISH = "finish"
    OPERATOR = "operator"


TABLE: Mapping[tuple[Phase, Dead], Decision] = {
    (Phase.PREPARING, Dead.NONE): Decision.POLICY,
    # VMs that have no standby yet lost their only switch; the target, the only one that lives, must not be stopped
    (Phase.PREPARING, Dead.SOURCE): Decision.OPERATOR,
    (Phase.PREPARING, Dead.TARGET): Decision.BACK,  # nobody was served by it
    (Phase.PREPARING, Dead.BOTH): Decision.OPERATOR,
    (Phase.READY, Dead.NONE): Decision.POLICY,
    (Phase.READY, Dead.SOURCE): Decision.FORWARD,  # QEMU has brought every VM over: the moves find them there
    (Phase.READY, Dead.TARGET): Decision.BACK,
    (Phase.READY, Dead.BOTH): Decision.OPERATOR,
    (Phase.MOVING, Dead.NONE): Decision.POLICY,
    (Phase.MOVING, Dead.SOURCE): Decision.FORWARD,
    (Phase.MOVING, Dead.TARGET): Decision.BACK,  # QEMU has brought those that had moved home
    (Phase.MOVING, Dead.BOTH): Decision.OPERATOR,
    (Phase.MOVED, Dead.NONE): Decision.POLICY,
    (Phase.MOVED, Dead.SOURCE): Decision.FORWARD,  # nobody was served by it; there is no way back any more
    (Phase.MOVED, Dead.TARGET): Decision.BACK,
    (Phase.MOVED, Dead.BOTH): Decision.OPERATOR,
    (Phase.RETIRING, Dead.NONE): Decision.POLICY,  # the source was about to be ended, and still runs
    (Phase.RETIRING, Dead.SOURCE): Decision.FINISH,  # as it was meant to be
    (Phase.RETIRING, Dead.TARGET): Decision.BACK,  # the source has not been ended: QEMU has brought every VM home
    (Phase.RETIRING, Dead.BOTH): Decision.OPERATOR,
}


def dead(*, source_runs: bool, target_runs: bool) -> Dead:
    """Who of the two is dead. A target that was not started yet counts as dead: nobody can go there."""
    if source_runs:
        return Dead.NONE if target_runs else Dead.TARGET
    return Dead.SOURCE if target_runs else Dead.BOTH


def phase(steps: Mapping[StepKind, list[StepState]]) -> Phase:
    """From the states of a run's steps, by kind."""
    begun = {StepState.INTENDED, StepState.DONE, StepState.FAILED, StepState.UNDOING, StepState.UNDO_FAILED}

    def all_done(kind: StepKind) -> bool:
        return all(s is StepState.DONE for s in steps.get(kind, []))

    def any_of(kind: StepKind, states: set[StepState]) -> bool:
        return any(s in states for s in steps.get(kind, []))

    if any_of(StepKind.RETIRE, begun):
        return Phase.RETIRING
    prepared = (StepKind.START_STANDBY, StepKind.REPLICATE, StepKind.PROVE, StepKind.ATTACH_STANDBY)
    if not all(all_done(kind) for kind in prepared):
        return Phase.PREPARING
    if any_of(StepKind.MOVE_VM, begun):
        return Phase.MOVED if all_done(StepKind.MOVE_VM) else Phase.MOVING
    return Phase.READY if steps.get(StepKind.ATTACH_STANDBY) else Phase.MOVED


def decide(now: Phase, who: Dead) -> Decision:
    """What the table says."""
    return TABLE[now, who]
