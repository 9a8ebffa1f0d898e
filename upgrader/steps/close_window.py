"""Turn the rule for all overlay traffic to the new switch, then take the rules of single VMs away."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep, StepKind
from upgrader.steps.base import Context, Data


class CloseWindow:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """Only when every VM is with the new switch."""
        context.target_pid()
        left = [port.label for port, slot in context.owners() if slot != context.target.name]
        if left:
            raise StepError(
                "VMS_LEFT_BEHIND",
                f"{', '.join(left[:5])} are not served by slot {context.target.name}",
                state="every VM is reached at the switch that serves it",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )

    def do(self, context: Context, step: PlannedStep) -> Data:
        context.host.steering.close_window(context.target.name)
        context.host.processes.log_vhost_messages(context.target, on=True)
        return {}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        context.target_pid()
        rules = context.host.steering.rules()
        if len(rules) != 1 or rules[0].targets != (context.target.name,) or rules[0].mac is not None:
            raise StepError(
                "STEERING_NOT_AS_SET",
                f"all overlay traffic should go to slot {context.target.name} by one rule, the NIC has {len(rules)} rules",
                state="every VM is served by the switch that owns its rings",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Rules for single VMs again, to where the VMs are now: they are about to be moved back one by one."""
        served = [(port, slot) for port, slot in context.owners() if slot is not None]
        if served and any(s.kind is StepKind.OPEN_WINDOW for s in context.plan.steps):
            context.host.steering.open_window(served)
        else:  # nobody moves back, and no step to come would close a window
            context.steer_to_owners()
        return {}
