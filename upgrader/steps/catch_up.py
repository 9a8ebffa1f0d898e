"""Move the VMs that came, or came again, after the plan was made: they are served by the old switch as ever."""

from __future__ import annotations

from dataclasses import asdict

import structlog

from upgrader.core.errors import StepError
from upgrader.core.model import PortBinding, VmInterface, VmPort, owned_by
from upgrader.core.plan import PlannedStep, StepKind
from upgrader.core.report import VmMove
from upgrader.steps.attach_standby import attach, await_migration, await_ready, detach
from upgrader.steps.base import Context, Data
from upgrader.steps.move_vm import bring_back, hand_on, require_progress, require_ready
from upgrader.steps.readiness import require_parked
from upgrader.steps.replication import keep_up, sides
from upgrader.steps.sockets import give_sockets, known_ports

log = structlog.get_logger(__name__)

_ROUNDS = 20  # VMs may go on coming; each round takes those that are there
_SETTLE_S = 2.0
_POLL_S = 0.05


class CatchUp:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return {"moves": [asdict(m) for m in _catch_up_with_all(context)]}

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
        in_plan = {(p.domain, p.netdev) for p in context.plan.ports}
        for port, binding in known_ports(
            context, [v for v in _running(context) if (v.domain, v.netdev) not in in_plan]
        ):
            if owned_by(port.ownership, context.pid(context.target)):
                data = bring_back(context, port)
                if "move" in data:
                    moves.append(data["move"])
            detach(context, port, binding)
        if not any(s.kind is StepKind.OPEN_WINDOW for s in context.plan.steps):
            context.steer_to_owners()  # no step to come would take the rules of these VMs away
        return {"moves": moves}


def catch_up(context: Context) -> list[VmMove]:
    """Give every VM that the old switch still serves its standby, and move it; until there is none. Idempotent.

    Those that are being migrated stay where they are.
    """
    moved = []
    for _ in range(_ROUNDS):
        late = [(port, binding) for port, binding in _late(context) if not context.host.hypervisor.migrating(port)]
        if not late:
            break
        for port, binding in late:
            if (move := _move(context, port, binding)) is not None:
                moved.append(move)
    return moved


def _catch_up_with_all(context: Context) -> list[VmMove]:
    """The same; one that is being migrated is waited for: it goes, or stays and is moved."""
    if _without_port(context, _running(context)):
        context.freshness.at_s = None  # a port came since the standby was last brought in step
        keep_up(context)
    moved = catch_up(context)
    while going := [port for port, _ in _late(context) if context.host.hypervisor.migrating(port)]:
        log.warning("waiting for a migration", vms=[port.label for port in going])
        await_migration(context, going[0], context.wait)
        moved += catch_up(context)
    return moved


def bring_late(context: Context, *, all_: bool = False) -> list[dict[str, object]]:
    """The same behind the window: no rule for single VMs stays. Returns the hand-overs as they are recorded.

    With `all_` those that are being migrated are waited for.
    """
    came = _catch_up_with_all(context) if all_ else catch_up(context)
    if came:
        context.host.steering.close_window(context.target.name)
        if context.host.well_known.current() == context.target.name:
            give_sockets(context, context.source, context.target)
    return [asdict(move) for move in came]


def _move(context: Context, port: VmPort, binding: PortBinding) -> VmMove | None:
    if "later" in attach(context, port, binding):
        return None
    restarted = not await_ready(context, port, binding)
    now = context.host.hypervisor.ownership(port)
    if restarted or now is None or owned_by(now, context.target_pid()):
        return None
    require_ready(context, port, context.target, now)
    if context.pid(context.source) is not None:
        require_parked(context, [port])
    if sides(context)[1].name == context.target.name:
        keep_up(context)  # else the new switch is the one that is followed
    move = hand_on(context, port, now)
    if move and (after := context.host.hypervisor.ownership(port)) is not None:
        require_progress(context, port, after)
    return move


def _late(context: Context) -> list[tuple[VmPort, PortBinding]]:
    """VMs whose rings the old switch has, with where the new switch dials them. Raises StepError where nobody has them."""
    running = _running(context)
    if without := _without_port(context, running):
        raise StepError(
            "VM_WITHOUT_PORT",
            f"{', '.join(without[:5])} came during the run, and slot {context.target.name} has no port for it",
            state=f"slot {context.source.name} serves it",
            next="upgrade rollback   (and once more, when no ports are being added)",
        )
    known = known_ports(context, [v for v in running if not owned_by(v.ownership, context.pid(context.target))])
    late = [(p, b) for p, b in known if owned_by(p.ownership, context.pid(context.source))]
    if len(late) < len(known) and (nobody := _unserved(context, known)):
        raise StepError(
            "VM_NOT_SERVED",
            f"no switch serves {', '.join(nobody[:5])}",
            state="every other VM is served by the switch that owns its rings",
            next=f"upgrade --host localhost --restore {context.target.name}",
        )
    return late


def _without_port(context: Context, running: list[VmInterface]) -> list[str]:
    """Interfaces of these VMs that the old switch serves, and for which the new one has no port."""
    served = [v for v in running if owned_by(v.ownership, context.pid(context.source))]
    have = {(p.domain, p.netdev) for p, _ in known_ports(context, served)}
    return sorted(f"{v.domain} ({v.mac})" for v in served if (v.domain, v.netdev) not in have)


def _unserved(context: Context, ports: list[tuple[VmPort, PortBinding]]) -> list[str]:
    """Who is served by neither switch, and does not come to be within a moment: a VM that starts waits for one."""
    clock = context.host.clock
    deadline = clock.monotonic_s() + _SETTLE_S
    pids = [context.pid(context.source), context.pid(context.target)]
    while True:
        left = []
        for port, _ in ports:
            now = context.host.hypervisor.ownership(port)
            if now is not None and not any(owned_by(now, pid) for pid in pids):
                left.append(port.label)
        if not left or clock.monotonic_s() > deadline:
            return left
        clock.sleep(_POLL_S)


def _running(context: Context) -> list[VmInterface]:
    return [v for v in context.host.hypervisor.vm_interfaces() if v.ownership is not None]
