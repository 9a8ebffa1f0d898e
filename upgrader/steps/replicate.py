"""Copy everything the old switch is and knows to the new one. Done again between steps, so that it stays so."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps import replication
from upgrader.steps.base import Context, Data


class Replicate:
    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()
        if context.pid(context.source) is None:
            raise StepError(
                "OLD_SWITCH_DIED",
                f"ovs-vswitchd of slot {context.source.name} died before its flows were copied, and they went with it",
                state=f"slot {context.target.name} runs with the same ports and without flows",
                next=f"upgrade --host localhost --restore {context.target.name}   (every VM to it; controllers write "
                "their flows anew, others are to be written by hand)",
            )

    def do(self, context: Context, step: PlannedStep) -> Data:
        return replication.follow(context, *replication.sides(context))

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """Nothing here: that both are equal is a step of its own, which looks at all of it."""

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Nothing of its own: the standby that holds the copy goes with the step that started it."""
        return {}
