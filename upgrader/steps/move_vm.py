"""Hand one VM over: its traffic to both switches, its rings from the old to the new, its traffic to the new alone.

With dual delivery the moment of the hand-over needs no agreement with the NIC: each packet reaches both switches and
the one that owns the rings delivers it; the other one's rings are parked, so it drops it. Without, the rule turns
right after the rings, and what arrives in between is lost.
"""

from __future__ import annotations

from dataclasses import asdict

import structlog

from upgrader.core.errors import HostError, StepError
from upgrader.core.model import RingOwnership, Slot, VmPort, owned_by
from upgrader.core.plan import PlannedStep
from upgrader.core.report import VmMove
from upgrader.steps.attach_standby import await_migration, stand_by_again
from upgrader.steps.base import Context, Data, port_of
from upgrader.steps.open_window import require_rules
from upgrader.steps.replication import keep_up, left_stale

log = structlog.get_logger(__name__)

_PROGRESS_S = 0.5
_SETTLE_S = 5.0
_ATTEMPTS = 3
_POLL_S = 0.005
_WATCH_S = 0.1


class MoveVm:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """Only onto a switch that runs and stands by, ready, on this very VM."""
        port = port_of(step)
        now = context.host.hypervisor.ownership(port)
        if now is not None and not owned_by(now, context.target_pid()) and not _restarted(context, now):
            require_ready(context, port, context.target, now)

    def do(self, context: Context, step: PlannedStep) -> Data:
        port = port_of(step)
        now = context.host.hypervisor.ownership(port)
        if now is None:
            return {"gone": port.label}
        if owned_by(now, context.target_pid()):  # an earlier run, or QEMU's own failover, brought it there
            context.host.steering.move_vm(port, (context.target.name,))
            return {"already": context.target.name, **left_stale(context)}
        if not _restarted(context, now):
            keep_up(context)
            stale = left_stale(context)
            if move := hand_on(context, port, now):
                return {"move": asdict(move), **stale}
        return {"later": f"{port.label} was restarted, or began to migrate, since it was given its standby"}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        port = port_of(step)
        now = context.host.hypervisor.ownership(port)
        if now is None or "later" in data or _restarted(context, now):
            return  # whoever came since is brought after the others
        if not owned_by(now, context.target_pid()):
            raise StepError(
                "VM_NOT_MOVED",
                f"{port.label}: its rings are served by process {now.owner_pid}, not by slot {context.target.name}",
                state="QEMU serves the VM by that process",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )
        require_rules(context, [(port, (context.target.name,))])
        require_progress(context, port, now)
        if step.canary:
            _watch(context, port)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """The same hand-over the other way; only the traffic is turned where the rings never moved.

        A new switch that does not let go is killed: QEMU then brings its VMs to the old one, which stands by.
        """
        return bring_back(context, port_of(step))


def bring_back(context: Context, port: VmPort) -> Data:
    """A VM's rings and traffic to the old switch, from wherever they are."""
    now = _settled(context, port)
    if now is None:
        return {}
    if owned_by(now, context.pid(context.source)):
        context.host.steering.move_vm(port, (context.source.name,))
        return {}
    if now.standby is None and context.pid(context.source) is not None:
        await_migration(context, port, context.host.clock.sleep)
        stand_by_again(context, port)
        if (now := context.host.hypervisor.ownership(port)) is None:
            return {}
    require_ready(context, port, context.source, now)
    try:
        return {"move": asdict(hand_over(context, port, now, context.target, context.source))}
    except HostError as error:
        return _not_handed_back(context, port, error)


def _not_handed_back(context: Context, port: VmPort, error: HostError) -> Data:
    """After a hand-over to the old switch that failed: what is left to be done by who has the rings."""
    old, now = context.pid(context.source), context.host.hypervisor.ownership(port)
    if old is None:
        raise error  # it is the old switch that died, and the new one the only one that lives
    if now is None or owned_by(now, old):  # only steering failed, or it was restarted, or ended, at that moment
        context.host.steering.move_vm(port, (context.source.name,))
        return {}
    if now.standby is None:  # QEMU took it away at that moment, as when a migration begins: nobody holds on to anything
        return bring_back(context, port)
    log.warning("the new switch does not let go, killing it", vm=port.label, error=str(error))
    context.host.processes.kill_switch(context.target)
    _await_owner(context, port, context.source)
    context.host.steering.move_vm(port, (context.source.name,))
    return {"killed": context.target.name}


def _restarted(context: Context, now: RingOwnership) -> bool:
    """Whether the standby it was given is gone, the switch behind it or not: a restarted VM is served as any new one is.

    So is one that is on its way to another host: QEMU takes the standby away when a migration begins.
    """
    return now.standby is None and owned_by(now, context.pid(context.source))


def _watch(context: Context, port: VmPort) -> None:
    """Keep an eye on the canary: for a while it has to stay where it went, its switch alive, its rings at work."""
    clock = context.host.clock
    deadline = clock.monotonic_s() + context.plan.policy.canary_check_s
    while clock.monotonic_s() < deadline:
        context.wait(_WATCH_S)
        now = context.host.hypervisor.ownership(port)
        if now is None:
            return
        if not owned_by(now, context.target_pid()):
            raise StepError(
                "CANARY_LOST",
                f"{port.label}, the first VM to move, did not stay with slot {context.target.name}: "
                f"process {now.owner_pid} serves it",
                state="no other VM was moved",
                next=f"tail {context.target.rundir / 'ovs-vswitchd.log'}",
            )
        require_progress(context, port, now)


def hand_on(context: Context, port: VmPort, now: RingOwnership) -> VmMove | None:
    """Hand the VM over to the new switch; None where it was restarted, or ended, in the middle of that."""
    try:
        return hand_over(context, port, now, context.source, context.target)
    except HostError:
        after = context.host.hypervisor.ownership(port)
        if after is not None and not _restarted(context, after):
            raise
        context.host.steering.move_vm(port, (context.source.name,))  # where it is served, if it came again
        return None


def hand_over(context: Context, port: VmPort, now: RingOwnership, old: Slot, new: Slot) -> VmMove:
    """Move the rings from the owner and generation that were looked at; QEMU refuses if either is another by now."""
    steering, clock = context.host.steering, context.host.clock
    if steering.capabilities().dual_delivery:
        steering.move_vm(port, (new.name, old.name))
    for attempt in range(1, _ATTEMPTS + 1):
        started = clock.now_ns()
        try:
            result = context.host.hypervisor.switch(port, now.owner, now.generation)
            break
        except HostError as error:
            # on a busy machine a switch now and then misses the deadline QEMU gives it; QEMU then leaves the VM with
            # its owner, and the command, which names owner and generation, can be said again
            log.info("not switched", vm=port.label, attempt=attempt, error=str(error))
            if attempt == _ATTEMPTS or not _ready_again(context, port, new, now):
                raise
    ended = clock.now_ns()
    steering.move_vm(port, (new.name,))
    return VmMove(
        vm=port.label,
        mac=port.mac,
        from_slot=old.name,
        to_slot=new.name,
        generation=result.generation,
        blackout_us=result.blackout_ns / 1000,
        quiesce_us=result.quiesce_ns / 1000,
        index_us=result.index_ns / 1000,
        activate_us=result.activate_ns / 1000,
        notify_us=result.notify_ns / 1000,
        command_us=(ended - started) / 1000,
        started_at_ns=started,
        ended_at_ns=ended,
        over_budget=result.blackout_ns > context.plan.policy.blackout_budget_us * 1000,
    )


def _ready_again(context: Context, port: VmPort, new: Slot, before: RingOwnership) -> bool:
    """Whether, within a short time, all is as it was before a switch that failed."""
    deadline = context.host.clock.monotonic_s() + _SETTLE_S
    while context.host.clock.monotonic_s() < deadline:
        now = context.host.hypervisor.ownership(port)
        if now is None or (not now.in_doubt and (now.owner, now.generation) != (before.owner, before.generation)):
            return False
        standby = now.standby
        if not now.in_doubt and standby and standby.ready and standby.pid == context.pid(new):
            return True
        context.host.clock.sleep(_POLL_S)
    return False


def require_ready(context: Context, port: VmPort, slot: Slot, now: RingOwnership) -> None:
    pid = context.pid(slot)
    standby = now.standby
    if now.in_doubt or pid is None or standby is None or not standby.ready or standby.pid != pid:
        if now.in_doubt:
            why = "QEMU waits for late answers"
        elif pid is None:
            why = "its switch does not run"
        else:
            why = (standby.reason or f"process {standby.pid} does") if standby else "there is no standby connection"
        raise StepError(
            "STANDBY_NOT_READY",
            f"{port.label}: slot {slot.name} does not stand by: {why}",
            state=f"{port.label} is served by process {now.owner_pid}",
            next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
        )


def _settled(context: Context, port: VmPort) -> RingOwnership | None:
    """Who serves the VM, once QEMU is in no doubt about it. Raises StepError when it stays in doubt."""
    deadline = context.host.clock.monotonic_s() + _SETTLE_S
    while (now := context.host.hypervisor.ownership(port)) is not None and now.in_doubt:
        if context.host.clock.monotonic_s() > deadline:
            raise StepError(
                "VM_IN_DOUBT",
                f"{port.label}: QEMU has waited {_SETTLE_S:g} s for the answer of a switch and serves the VM by neither",
                state=f"{port.label} has no network until that switch answers or dies",
                next=f"kill -9 {context.pid(context.target) or '<pid of the switch that hangs>'}   "
                f"then: upgrade --host localhost --restore {context.source.name}",
            )
        context.host.clock.sleep(_POLL_S)
    return now


def _await_owner(context: Context, port: VmPort, slot: Slot) -> None:
    deadline = context.host.clock.monotonic_s() + _SETTLE_S
    while (now := context.host.hypervisor.ownership(port)) is not None and not owned_by(now, context.pid(slot)):
        if context.host.clock.monotonic_s() > deadline:
            raise StepError(
                "VM_NOT_MOVED",
                f"{port.label}: QEMU did not bring it to slot {slot.name} after the other switch was killed",
                state=f"{port.label} has no network",
                next=f"upgrade --host localhost --restore {slot.name}",
            )
        context.host.clock.sleep(_POLL_S)


def require_progress(context: Context, port: VmPort, before: RingOwnership) -> None:
    """Prove that the new switch works on the rings, where there is work: what the guest sends must get used.

    A DPDK without our patch acknowledges a ring address even when it could not translate it.
    """
    deadline = context.host.clock.monotonic_s() + _PROGRESS_S
    waiting = {r.index: r.used_idx for r in before.rings if r.index % 2 and r.enabled and r.pending}
    while waiting:
        now = context.host.hypervisor.ownership(port)
        if now is None:
            return
        waiting = {r.index: r.used_idx for r in now.rings if waiting.get(r.index) == r.used_idx and r.pending}
        if waiting and context.host.clock.monotonic_s() > deadline:
            raise StepError(
                "RINGS_STAND_STILL",
                f"{port.label}: slot {context.target.name} took over, but what the guest sends is not taken up "
                f"(rings {', '.join(map(str, waiting))})",
                state=f"{port.label} has no working network until it is moved back",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )
        context.host.clock.sleep(_POLL_S)
