"""Start the other slot's switch on a copy of the database, silent: no controller, no VM, no overlay traffic yet."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import Slot
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.move_control import hand_control
from upgrader.steps.promote import hand_names


class StartStandby:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """A switch left in the slot by a run that died may go only if it serves nobody, and there is one to copy."""
        _require_idle(context)
        if context.pid(context.source) is None:
            raise StepError(
                "OLD_SWITCH_DIED",
                f"ovs-vswitchd of slot {context.source.name} does not run, so there is nothing to copy",
                state="nothing was started or stopped",
                next=f"upgrade --host localhost --restore {context.target.name}   (where its switch runs)",
            )

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, source, target = context.host, context.source, context.target
        reclaimed = _reclaim(context)
        host.processes.stop(target)
        host.resources.remove(target.db_file)  # of an earlier run: the new one has the schema of its version
        for binding in context.plan.bindings:
            if binding.socket != binding.origin:
                host.resources.remove(binding.socket)  # may lead to libvirt's, if that one was in charge
        image = host.database.image(source, target, context.plan.bindings)
        host.processes.start_database(target, image)
        if image is None:
            host.database.sync(source, target, context.plan.bindings, applied=False)
        host.steering.prepare(target.name)  # before its switch opens the VF: it may reset it
        pid = host.processes.start_switch(target, host.ready_timeout_s)
        facts = host.database.read(target)
        host.resources.copy_addresses(source, target, [b.name for b in facts.bridges])
        return {"pid": pid, "reclaimed": reclaimed}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        context.target_pid()
        context.host.database.wait_for_ports(context.target, [context.target.uplink], context.host.ready_timeout_s)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Stop it again, unless somebody needs it: a VM it serves, or the host whose other switch is gone."""
        if context.pid(context.source) is None:
            raise StepError(
                "OLD_SWITCH_DIED",
                f"ovs-vswitchd of slot {context.source.name} does not run any more",
                state=f"slot {context.target.name} is the only switch of this host and is kept",
                next=f"tail {context.source.rundir / 'ovs-vswitchd.log'}",
            )
        _require_idle(context)
        reclaimed = _reclaim(context)
        context.host.processes.stop(context.target)
        return {"reclaimed": reclaimed}


def _reclaim(context: Context) -> list[str]:
    """What the slot has from an earlier run goes to the old switch, which serves the VMs: controllers, names, traffic.

    So it is where a switch that was kept standing by was left alone by the death of the one in charge. Returns what was
    brought back.
    """
    host, source, target = context.host, context.source, context.target
    found = []
    if _control_is_not_with(context, source, target):
        hand_control(context, target, source)
        found.append("control")
    if host.well_known.current() == target.name:
        hand_names(context, target, source)
        found.append("names")
    if any(rule.targets != (source.name,) for rule in host.steering.rules()):
        context.steer_to_owners()
        found.append("traffic")
    return found


def _control_is_not_with(context: Context, source: Slot, target: Slot) -> bool:
    """A database server of the old switch that died tells nothing: then it counts whether the other one has control."""
    host = context.host
    if host.processes.status(source).ovsdb_pid is not None:
        return not host.database.in_control(source)
    return host.processes.status(target).ovsdb_pid is not None and host.database.in_control(target)


def _require_idle(context: Context) -> None:
    served = context.served_by(context.target)
    if served:
        raise StepError(
            "STANDBY_SERVES_VMS",
            f"the switch that runs in slot {context.target.name} serves {', '.join(v.domain for v in served[:5])}",
            state="it goes on serving them",
            next=f"upgrade --host localhost --restore {context.target.name}",
        )
