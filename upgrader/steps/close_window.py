"""Turn the rule for all overlay traffic to the new switch, then take the rules of single VMs away."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


class CloseWindow:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        context.host.steering.close_window(context.target.name)
        return {}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        rules = context.host.steering.rules()
        if len(rules) != 1 or rules[0].targets != (context.target.name,) or rules[0].mac is not None:
            raise StepError(
                "STEERING_NOT_AS_SET",
                f"all overlay traffic should go to slot {context.target.name} by one rule, the NIC has {len(rules)} rules",
                state="every VM is served by the switch that owns its rings",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )

    def undo(self, context: Context, step: PlannedStep) -> None:
        """Rules for single VMs first, to where the VMs are now; then the one for the rest back to the old switch."""
        context.host.steering.open_window(context.plan.ports, context.target.name)
        context.host.steering.steady(context.source.name)
