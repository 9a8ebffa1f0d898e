"""Start the other slot's switch on a copy of the database, silent: no controller, no VM, no overlay traffic yet."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


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
        host.processes.stop(target)
        host.resources.remove(target.db_file)  # of an earlier run: the new one has the schema of its version
        image = host.database.image(source, target, context.plan.bindings)
        host.processes.start_database(target, image)
        if image is None:
            host.database.sync(source, target, context.plan.bindings, applied=False)
        host.steering.prepare(target.name)  # before its switch opens the VF: it may reset it
        pid = host.processes.start_switch(target, host.ready_timeout_s)
        facts = host.database.read(target)
        host.resources.copy_addresses(source, target, [b.name for b in facts.bridges])
        return {"pid": pid}

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
        context.host.processes.stop(context.target)
        return {}


def _require_idle(context: Context) -> None:
    served = context.served_by(context.target)
    if served:
        raise StepError(
            "STANDBY_SERVES_VMS",
            f"the switch that runs in slot {context.target.name} serves {', '.join(v.domain for v in served[:5])}",
            state="it goes on serving them",
            next=f"upgrade --host localhost --restore {context.target.name}",
        )
