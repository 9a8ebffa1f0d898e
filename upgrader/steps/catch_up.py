"""Move the VMs that came, or came again, after the plan was made: they are served by the old switch as ever."""

from __future__ import annotations

from dataclasses import asdict

from upgrader.core.errors import StepError
from upgrader.core.inventory import join, standing_bindings
from upgrader.core.model import PortBinding, VmPort, owned_by
from upgrader.core.plan import PlannedStep
from upgrader.core.report import VmMove
from upgrader.steps.attach_standby import attach, await_ready, detach
from upgrader.steps.base import Context, Data
from upgrader.steps.move_vm import bring_back, hand_over, require_progress, require_ready

_ROUNDS = 20  # VMs may go on coming; each round takes those that are there


class CatchUp:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return {"moves": [asdict(m) for m in catch_up(context)]}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        left = [port.label for port, _ in _late(context)]
        if left:
            raise StepError(
                "VMS_LEFT_BEHIND",
                f"{', '.join(left[:5])} came during the run and are still served by slot {context.source.name}",
                state="every VM is served",
                next="upgrade resume",
            )

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """The same VMs back, and their second connection away; those of the plan go back by their own steps."""
        moves = []
        for port, binding in _moved(context):
            data = bring_back(context, port)
            if "move" in data:
                moves.append(data["move"])
            detach(context, port, binding)
        return {"moves": moves}


def catch_up(context: Context) -> list[VmMove]:
    """Give every VM that the old switch still serves its standby, and move it; until there is none. Idempotent."""
    moved = []
    for _ in range(_ROUNDS):
        late = _late(context)
        if not late:
            break
        for port, binding in late:
            if (move := _move(context, port, binding)) is not None:
                moved.append(move)
    return moved


def bring_late(context: Context) -> list[dict[str, object]]:
    """The same behind the window: no rule for single VMs stays. Returns the hand-overs as they are recorded."""
    came = catch_up(context)
    if came:
        context.host.steering.close_window(context.target.name)
    return [asdict(move) for move in came]


def _move(context: Context, port: VmPort, binding: PortBinding) -> VmMove | None:
    attach(context, port, binding)
    await_ready(context, port)
    now = context.host.hypervisor.ownership(port)
    if now is None or owned_by(now, context.target_pid()):
        return None
    require_ready(context, port, context.target, now)
    move = hand_over(context, port, now, context.source, context.target)
    if (after := context.host.hypervisor.ownership(port)) is not None:
        require_progress(context, port, after)
    return move


def _late(context: Context) -> list[tuple[VmPort, PortBinding]]:
    """VMs whose rings the old switch has, with where the new switch dials them."""
    return _ports(context, context.pid(context.source), planned=True)


def _moved(context: Context) -> list[tuple[VmPort, PortBinding]]:
    """VMs that are no part of the plan and whose rings the new switch has."""
    return _ports(context, context.pid(context.target), planned=False)


def _ports(context: Context, pid: int | None, *, planned: bool) -> list[tuple[VmPort, PortBinding]]:
    host = context.host
    in_plan = {(p.domain, p.netdev) for p in context.plan.ports}
    vms = [
        vm
        for vm in host.hypervisor.vm_interfaces()
        if owned_by(vm.ownership, pid) and (planned or (vm.domain, vm.netdev) not in in_plan)
    ]
    if not vms:
        return []
    switch = host.database.read(context.target)
    ports, _ = join(vms, switch, host.vni_key)
    unknown = {vm.domain for vm in vms} - {p.domain for p in ports}
    if unknown:
        raise StepError(
            "VM_WITHOUT_PORT",
            f"{', '.join(sorted(unknown)[:5])} came during the run, and slot {context.target.name} has no port for it",
            state=f"slot {context.source.name} serves it",
            next="upgrade rollback   (and once more, when no ports are being added)",
        )
    bindings = {b.interface: b for b in standing_bindings(ports, switch, context.target)}
    return [(p, bindings[p.interface]) for p in ports]
