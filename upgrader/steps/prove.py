"""Prove that the new switch forwards as the old one does, before any VM moves; or refuse, and print what differs."""

from __future__ import annotations

from upgrader.core import proof
from upgrader.core.errors import StepError
from upgrader.core.model import Slot
from upgrader.core.plan import PlannedStep
from upgrader.core.proof import Difference
from upgrader.steps import replication
from upgrader.steps.base import Context, Data
from upgrader.steps.readiness import require_ready

_TRACES = 12
_ROUNDS = 4


class Prove:
    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        """Every class compared, live flows traced in both, every port looked at; with a switch that is gone, nothing."""
        if context.pid(context.source) is None:
            return _with_nothing(context)
        leader, follower = replication.sides(context)
        rounds = _require_equal(context, leader, follower)
        traced, otherwise = context.host.openflow.traces(leader, follower, _TRACES)
        if otherwise:  # a flow that changed between two traces does not differ twice
            again = context.host.openflow.traces(leader, follower, _TRACES)[1]
            if lasting := proof.persisting(otherwise, again):
                raise _refused(leader, follower, lasting)
        require_ready(context)
        return {"rounds": rounds, "traced": traced}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """Nothing more: the step is a look at the host from beginning to end."""

    def undo(self, context: Context, step: PlannedStep) -> Data:
        return {}


class Compare:
    """Before VMs go to a switch that an earlier run started: is it what the other one is?"""

    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        if context.pid(context.source) is None:
            return _with_nothing(context)
        return {"rounds": _require_equal(context, *replication.sides(context))}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """As for Prove."""

    def undo(self, context: Context, step: PlannedStep) -> Data:
        return {}


def _with_nothing(context: Context) -> Data:
    """What is recorded when the old switch is gone: then any switch that forwards is better than none."""
    _require_filled(context)
    return {"compared": f"with nothing: slot {context.source.name} does not run"}


def _require_filled(context: Context) -> None:
    """Raise where the other switch died before it was copied, unless that was known, and accepted, when the run began."""
    host, target = context.host, context.target
    if host.well_known.current() == target.name or any(f.code == "SWITCH_EMPTY" for f in context.plan.findings):
        return
    read = [b.name for b in host.database.read(target).bridges if set(b.protocols) != {"OpenFlow10"}]
    if empty := [name for name in read if not host.openflow.flows(target, name)]:
        raise StepError(
            "SWITCH_EMPTY",
            f"slot {context.source.name} died before slot {target.name} was made what it was: {', '.join(empty)} has no flow",
            state="no VM was moved",
            next=f"upgrade --host localhost --restore {target.name} --dry-run   (it says what can be done)",
        )


def _require_equal(context: Context, leader: Slot, follower: Slot) -> int:
    """Raise unless both are equal, however long controllers go on writing; returns how often it took to look.

    What was written between the two reads is brought over and looked at again: only what differs in the same way
    twice is a difference.
    """
    before = replication.differences(context, leader, follower)
    for number in range(1, _ROUNDS + 1):
        if not before:
            return number
        replication.follow(context, leader, follower)
        now = replication.differences(context, leader, follower)
        if lasting := proof.persisting(before, now):
            raise _refused(leader, follower, lasting)
        if number == _ROUNDS:
            return number + 1  # something else each time: a writer at work, and each of its changes came over
        before = now
    return _ROUNDS


def _refused(leader: Slot, follower: Slot, found: tuple[Difference, ...]) -> StepError:
    return StepError(
        "SWITCHES_DIFFER",
        f"slot {follower.name} is not what slot {leader.name} is, in {len(found)} things "
        f"(active is {leader.name}, standby is {follower.name}):\n{proof.tell(found)}",
        state="no VM was moved",
        next="upgrade --host localhost",
    )
