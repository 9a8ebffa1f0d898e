"""Copy what controllers and the network taught the old switch, and prove both equal before any VM moves."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


class Replicate:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, source, target = context.host, context.source, context.target
        bridges = [b.name for b in host.database.read(source).bridges]
        flows = {b: host.openflow.copy(source, target, b) for b in bridges}
        return {"flows": sum(flows.values()), "neighbours": host.openflow.copy_neighbours(source, target)}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        for bridge in context.host.database.read(context.source).bridges:
            difference = context.host.openflow.difference(context.source, context.target, bridge.name)
            if difference:
                raise StepError(
                    "SWITCHES_DIFFER",
                    f"bridge {bridge.name} of slot {context.target.name} is not what slot {context.source.name} has "
                    f"(- missing, + too much):\n{difference}",
                    state="no VM was moved",
                    next="upgrade --host localhost   (a controller may have written in between)",
                )

    def undo(self, context: Context, step: PlannedStep) -> None:
        """Nothing of its own: the standby that holds the copy goes with the step that started it."""
