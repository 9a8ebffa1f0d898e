"""Give every VM a steering rule of its own, still to the old switch, so that each can be turned by itself."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import SlotName, VmPort
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


def require_rule(context: Context, port: VmPort, slots: tuple[SlotName, ...]) -> None:
    """Raise unless the NIC says that the VM's traffic goes to exactly these slots."""
    found = [r for r in context.host.steering.rules() if (r.vni, r.mac) == (port.vni, port.mac)]
    if len(found) != 1 or set(found[0].targets) != set(slots):
        has = ", ".join("+".join(r.targets) for r in found) or "no rule"
        raise StepError(
            "STEERING_NOT_AS_SET",
            f"{port.label}: its traffic should go to {'+'.join(slots)}, the NIC has {has}",
            state="the VM is still served by the switch that owns its rings",
            next=f"upgrade --host localhost --restore {context.source.name}",
        )


class OpenWindow:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """Nothing to look at beforehand: a rule for a VM that points where the rule for all points has no effect."""

    def do(self, context: Context, step: PlannedStep) -> Data:
        context.host.steering.open_window(context.plan.ports, context.source.name)
        return {"rules": len(context.plan.ports)}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        for port in context.plan.ports:
            require_rule(context, port, (context.source.name,))

    def undo(self, context: Context, step: PlannedStep) -> None:
        context.host.steering.close_window(context.source.name)
