"""Copy everything the old switch is and knows to the new one. Done again between steps, so that it stays so."""

from __future__ import annotations

from upgrader.core.plan import PlannedStep
from upgrader.steps import replication
from upgrader.steps.base import Context, Data


class Replicate:
    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        """Nothing to copy when the old switch is gone: its flows went with it."""
        if context.pid(context.source) is None:
            return replication.nobody_to_follow(context)
        return replication.follow(context, *replication.sides(context))

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """Nothing here: that both are equal is a step of its own, which looks at all of it."""

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Nothing of its own: the standby that holds the copy goes with the step that started it."""
        return {}
