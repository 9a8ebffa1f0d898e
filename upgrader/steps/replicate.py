"""Copy what controllers and the network taught the old switch, and prove both equal before any VM moves."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


class Replicate:
    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, source, target = context.host, context.source, context.target
        bridges = [b.name for b in host.database.read(source).bridges]
        flows = {b: host.openflow.copy(source, target, b) for b in bridges}
        return {"flows": sum(flows.values()), "neighbours": host.openflow.copy_neighbours(source, target)}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        require_equal(context)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Nothing of its own: the standby that holds the copy goes with the step that started it."""
        return {}


class Compare:
    """Before VMs go to a switch that an earlier run started: is it what the other one is?"""

    pause_safe = True
    lasting = False

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return {}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """Nothing to compare with when the other switch is gone: then any switch is better than none."""
        if context.pid(context.source) is not None:
            require_equal(context)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        return {}


def require_equal(context: Context) -> None:
    """Raise unless both switches have the same port numbers and the same OpenFlow state. Prints what differs."""
    database, openflow = context.host.database, context.host.openflow
    old, new = database.read(context.source), database.read(context.target)
    ports = {i.name: i.ofport for i in old.interfaces}, {i.name: i.ofport for i in new.interfaces}
    differences = [
        f"port {name}: number {ports[0].get(name)} in slot {context.source.name}, {ports[1].get(name)} in {context.target.name}"
        for name in sorted({*ports[0], *ports[1]})
        if ports[0].get(name) != ports[1].get(name)
    ]
    for bridge in old.bridges:
        if difference := openflow.difference(context.source, context.target, bridge.name):
            differences.append(f"bridge {bridge.name} (- missing, + too much):\n{difference}")
    if differences:
        raise StepError(
            "SWITCHES_DIFFER",
            f"slot {context.target.name} is not what slot {context.source.name} is: " + "\n".join(differences),
            state="no VM was moved",
            next="upgrade --host localhost",
        )
