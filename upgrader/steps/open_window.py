"""Give every VM a steering rule of its own, to the switch that serves it, so that each can be turned by itself.

Where the NIC can, all other overlay traffic (broadcast, multicast, addresses nobody told us) goes to both switches
meanwhile: each delivers to the VMs whose rings it owns, and drops what is for the others.

While the window is open neither switch logs each vhost message: writing the lines takes a good part of a hand-over's blackout.
"""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import SlotName, VmPort
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.readiness import require_parked


def require_rules(context: Context, wanted: list[tuple[VmPort, tuple[SlotName, ...]]]) -> None:
    """Raise unless the NIC says that each VM's traffic goes to exactly these slots, where it has rules for single VMs."""
    steering = context.host.steering
    if not steering.capabilities().per_vm:
        return
    read = steering.rules() if len(wanted) > 1 else [r for port, _ in wanted if (r := steering.rule(port))]
    rules = {(r.vni, r.mac): r.targets for r in read}
    for port, slots in wanted:
        targets = rules.get((port.vni, port.mac))
        if targets is None or set(targets) != set(slots):
            has = "no rule" if targets is None else "+".join(targets) or "a rule to somebody else"
            raise StepError(
                "STEERING_NOT_AS_SET",
                f"{port.label}: its traffic should go to {'+'.join(slots)}, the NIC has {has}",
                state="the VM is still served by the switch that owns its rings",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )


class OpenWindow:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """From here on VMs move: the new switch has what it needs at every port that it stands by on."""
        context.target_pid()
        if context.pid(context.source) is not None:  # else any switch is better than none
            require_parked(context, context.plan.ports)

    def do(self, context: Context, step: PlannedStep) -> Data:
        for slot in (context.source, context.target):
            if context.pid(slot) is not None:
                context.host.processes.log_vhost_messages(slot, on=False)
        served = [(port, slot) for port, slot in context.owners() if slot is not None]
        context.host.steering.open_window(served)
        return {"rules": len(served)}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        require_rules(context, [(port, (slot,)) for port, slot in context.owners() if slot is not None])

    def undo(self, context: Context, step: PlannedStep) -> Data:
        context.steer_to_owners()
        if context.pid(context.source) is not None:
            context.host.processes.log_vhost_messages(context.source, on=True)
        return {}
