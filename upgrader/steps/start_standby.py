"""Start the other slot's switch on a copy of the database, silent: no controller, no VM, no overlay traffic yet."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


class StartStandby:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        """A switch left in the slot by a run that died may go only if it serves nobody."""
        self._require_idle(context)

    def _require_idle(self, context: Context) -> None:
        pid = context.host.processes.status(context.target).vswitchd_pid
        if pid is None:
            return
        served = [
            p.label for p in context.plan.ports if (o := context.host.hypervisor.ownership(p)) and o.owner_pid == pid
        ]
        if served:
            raise StepError(
                "STANDBY_SERVES_VMS",
                f"the switch that runs in slot {context.target.name} serves {', '.join(served)}",
                state="it goes on serving them",
                next=f"upgrade --host localhost --restore {context.target.name}",
            )

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, source, target = context.host, context.source, context.target
        host.processes.stop(target)
        target.rundir.mkdir(parents=True, exist_ok=True)
        image = target.rundir / "conf.db.copy"
        host.database.backup(source, image)
        host.processes.start_database(target, image)
        host.database.rehome(target, context.plan.bindings)
        pid = host.processes.start_switch(target)
        facts = host.database.read(target)
        host.resources.copy_addresses(source, target, [b.name for b in facts.bridges])
        return {"pid": pid}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        context.target_pid()
        context.host.database.wait_for_ports(context.target, [context.target.uplink], context.host.ready_timeout_s)

    def undo(self, context: Context, step: PlannedStep) -> None:
        self._require_idle(context)
        context.host.processes.stop(context.target)
