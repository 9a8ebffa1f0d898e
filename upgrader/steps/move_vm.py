"""Hand one VM over: its traffic to both switches, its rings from the old to the new, its traffic to the new alone.

With dual delivery the moment of the hand-over needs no agreement with the NIC: each packet reaches both switches and
the one that owns the rings delivers it; the other one's rings are parked, so it drops it. Without, the rule turns
right after the rings, and what arrives in between is lost.
"""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import RingOwnership, Slot, VmPort
from upgrader.core.plan import PlannedStep
from upgrader.core.report import VmMove
from upgrader.steps.base import Context, Data, port_of
from upgrader.steps.open_window import require_rule

_PROGRESS_S = 0.5
_POLL_S = 0.005


class MoveVm:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """Only onto a switch that runs and stands by, ready, on this very VM."""
        port = port_of(step)
        _ready(context, port, context.target, _ownership(context, port))

    def do(self, context: Context, step: PlannedStep) -> Data:
        return {"move": _hand_over(context, port_of(step), context.source, context.target)}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        port = port_of(step)
        now = _ownership(context, port)
        if now.owner_pid != context.target_pid() or now.in_doubt:
            raise StepError(
                "VM_NOT_MOVED",
                f"{port.label}: its rings are served by process {now.owner_pid}, not by slot {context.target.name}",
                state="QEMU serves the VM by that process",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )
        require_rule(context, port, (context.target.name,))
        _require_progress(context, port, now)

    def undo(self, context: Context, step: PlannedStep) -> None:
        """The same hand-over the other way; only the traffic is turned where the rings never moved."""
        port = port_of(step)
        now = _ownership(context, port)
        if now.owner_pid == context.host.processes.status(context.source).vswitchd_pid:
            context.host.steering.move_vm(port, (context.source.name,))
            return
        _ready(context, port, context.source, now)
        _hand_over(context, port, context.target, context.source)


def _hand_over(context: Context, port: VmPort, old: Slot, new: Slot) -> VmMove:
    steering, clock = context.host.steering, context.host.clock
    if steering.capabilities().dual_delivery:
        steering.move_vm(port, (new.name, old.name))
    now = _ownership(context, port)
    started = clock.now_ns()
    result = context.host.hypervisor.switch(port, now.owner, now.generation)
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
        over_budget=result.blackout_ns > context.blackout_budget_us * 1000,
    )


def _ownership(context: Context, port: VmPort) -> RingOwnership:
    now = context.host.hypervisor.ownership(port)
    if now is None:
        raise StepError(
            "VM_GONE",
            f"{port.label} has no vhost-user netdev {port.netdev} any more",
            state="the other VMs are served as before",
            next=f"virsh domstate {port.domain}",
        )
    return now


def _ready(context: Context, port: VmPort, slot: Slot, now: RingOwnership) -> None:
    pid = context.host.processes.status(slot).vswitchd_pid
    standby = now.standby
    if now.in_doubt or standby is None or not standby.ready or standby.pid != pid or pid is None:
        why = (
            "QEMU waits for late answers" if now.in_doubt else (standby.reason if standby else "no standby connection")
        )
        raise StepError(
            "STANDBY_NOT_READY",
            f"{port.label}: slot {slot.name} does not stand by: {why or 'another process does'}",
            state=f"{port.label} is served by process {now.owner_pid} as before",
            next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
        )


def _require_progress(context: Context, port: VmPort, before: RingOwnership) -> None:
    """Prove that the new switch works on the rings, where there is work: what the guest sends must get used.

    A DPDK without our patch acknowledges a ring address even when it could not translate it.
    """
    deadline = context.host.clock.monotonic_s() + _PROGRESS_S
    waiting = {r.index: r.used_idx for r in before.rings if r.index % 2 and r.enabled and r.pending}
    while waiting:
        now = _ownership(context, port)
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
