"""Keeping one switch as the other is: what the steps share that copy, prove, and hand control over.

The slot in control is the source, whichever way VMs are moved: controllers write there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from upgrader.core.errors import StepError, UpgradeError
from upgrader.core.in_step import STALE, InStep
from upgrader.core.model import PortBinding, Slot
from upgrader.core.proof import Difference
from upgrader.ports import Host
from upgrader.steps.base import Context, Data

log = structlog.get_logger(__name__)

_FRESH_S = 2.0  # a standby as old as this is still fresh enough for the next VM; the move of control misses nothing
_OLDEST_S = 10.0  # where a round takes longer than that, no VM goes to what it has brought over
_ROUNDS = 2  # before that is said: the second has only to bring over what was changed during the first


def sides(context: Context) -> tuple[Slot, Slot]:
    """The slot that is followed and the one that follows; the run's own direction where neither or both are in control."""
    if context.host.database.in_control(context.target) and not context.host.database.in_control(context.source):
        return context.target, context.source
    return context.source, context.target


def follow(context: Context, leader: Slot, follower: Slot, *, hold: bool = True, moving: bool = False) -> Data:
    """Bring all of one switch's state to the other; returns what was changed. Idempotent; cheap where little was.

    While VMs are `moving`, what either switch learned goes to the other: each sees what the other does not.
    """
    host = context.host
    begun_s = host.clock.monotonic_s()  # what is written from now on may be missed
    context.freshness.at_s = None  # until it has succeeded
    copied = host.database.sync(leader, follower, _bindings(context, follower))
    host.resources.copy_addresses(leader, follower, copied.bridges)
    changed: dict[str, object] = {"rows": len(copied.changes)}
    total: dict[str, int] = {}
    for bridge in copied.bridges:
        for what, count in host.openflow.sync(leader, follower, bridge, hold=hold, moving=moving).items():
            total[what] = total.get(what, 0) + count
    tell_neighbours(host, [leader])
    taught = host.openflow.sync_learned(leader, follower, copied.bridges)
    if moving:
        host.openflow.sync_learned(follower, leader, copied.bridges)
    changed |= total | {what: count for what, count in taught.items() if count}
    context.freshness.at_s = context.freshness.last_s = begun_s
    return changed | ({"not carried": list(copied.lost)} if copied.lost else {})


def tell_neighbours(host: Host, slots: Iterable[Slot]) -> None:
    """Have switches know who answers to the PF, where their VFs see nothing of that; those that do not run are left out."""
    if known := host.steering.neighbours():
        for slot in slots:
            if host.processes.status(slot).vswitchd_pid is not None and (
                new := host.openflow.teach_neighbours(slot, known)
            ):
                log.info("told of neighbours", slot=slot.name, new=new)


def differences(context: Context, leader: Slot, follower: Slot) -> tuple[Difference, ...]:
    """Everything that is not the same in both, time-outs that are held aside."""
    host = context.host
    bridges = _bridges(context, leader, follower)
    return (
        *host.database.differences(leader, follower, _bindings(context, follower)),
        *(d for b in bridges for d in host.openflow.differences(leader, follower, b, hold=True)),
        *host.openflow.learned_differences(leader, follower, bridges),
    )


class Following:
    """A standby kept in step while it is armed: call `poll` again and again; it follows every `every_s`.

    Nothing raises out of `poll`: what goes wrong is in `in_step`, and the next call tries again.
    """

    def __init__(self, every_s: float = 2.0) -> None:
        self._every_s = every_s
        self._due_s = 0.0
        self.in_step = InStep()

    def poll(self, context: Context) -> InStep:
        """A round when one is due, with the VMs and ports of the plan of now."""
        clock = context.host.clock
        begun_s = clock.monotonic_s()
        if begun_s < self._due_s:
            return self.in_step
        try:
            follow(context, *sides(context))
            self._due_s = clock.monotonic_s() + self._every_s
            self.in_step = self.in_step.succeeded(begun_s)
        except UpgradeError as error:
            if all(context.pid(slot) is not None for slot in (context.source, context.target)):
                self.in_step = self.in_step.failed(str(error), clock.monotonic_s())
            # else it failed of that: the copy is as good as it was before
        return self.in_step


def keep_up(context: Context) -> Data:
    """Once more, between two VMs, unless that was a moment ago: it takes longer than the move of a VM.

    Raises StepError when the standby cannot be kept in step, or lags: no VM may go to it then.
    """
    kept, clock = context.freshness.at_s, context.host.clock
    if kept is not None and clock.monotonic_s() - kept < _FRESH_S:
        return {}
    if context.pid(context.source) is None or context.pid(context.target) is None:
        return {}  # one is left: there is nothing to follow, and the step says what that means
    cannot = f"slots {context.source.name} and {context.target.name} cannot be kept in step"
    state = "no further VM was moved"
    for _ in range(_ROUNDS):
        begun_s = clock.monotonic_s()
        try:
            changed = follow(context, *sides(context), moving=True)
        except UpgradeError as error:
            raise StepError("REPLICATION_STALE", f"{cannot}: {error}", state=state, next=error.next) from error
        if (took_s := clock.monotonic_s() - begun_s) <= _OLDEST_S:
            return changed
    context.freshness.at_s = None
    raise StepError(
        "REPLICATION_STALE",
        f"{cannot}: the standby lags, the last round took {took_s:.1f} s, more than {_OLDEST_S:g} s",
        state=state,
        next="top   (what keeps the switches from answering; then once more: upgrade --host localhost)",
    )


def left_stale(context: Context) -> Data:
    """What is to be recorded where the old switch is gone, and the new one was not what it was: with VMs on it for all that."""
    fresh = context.freshness
    if context.pid(context.source) is not None:
        return {}
    if fresh.gone_s is None:
        fresh.gone_s = context.host.clock.monotonic_s()
    why = InStep(fresh.last_s).stale(fresh.gone_s, _FRESH_S)
    if why is None:
        return {}
    return {STALE: f"slot {context.source.name} is gone, and slot {context.target.name} was not what it was: {why}"}


def _bindings(context: Context, follower: Slot) -> Sequence[PortBinding]:
    """Planned ones for the slot that VMs go to; the other keeps what it has."""
    return context.plan.bindings if follower.name == context.target.name else ()


def _bridges(context: Context, leader: Slot, follower: Slot) -> list[str]:
    """Bridges of both: one that is only in one of them is a difference of the databases."""
    there = context.host.database.bridges(follower)
    return [name for name in context.host.database.bridges(leader) if name in there]
