"""Watch the new switch for a while before the old one is given up: it lives, and serves every VM without a break."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.catch_up import bring_late

_POLL_S = 0.2


class Soak:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        """VMs that come meanwhile are moved as they come."""
        clock = context.host.clock
        moves: list[dict[str, object]] = []
        deadline = clock.monotonic_s() + context.plan.policy.soak_s
        while True:
            moves += bring_late(context)
            require_served(context)
            if clock.monotonic_s() >= deadline:
                break
            context.wait(_POLL_S)
        return {"moves": moves}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        require_served(context)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Nothing of its own; VMs that came go back with the step that follows them."""
        return {}


def require_served(context: Context) -> None:
    """Raise unless the new switch lives and owns every VM's rings."""
    context.target_pid()
    lost = [port.label for port, slot in context.owners() if slot != context.target.name]
    if lost:
        raise StepError(
            "VM_NOT_SERVED",
            f"{', '.join(lost[:5])} are not served by slot {context.target.name} any more",
            state="QEMU serves each VM by the switch that owns its rings",
            next=f"tail {context.target.rundir / 'ovs-vswitchd.log'}",
        )
