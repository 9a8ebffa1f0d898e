"""End the old switch once it serves nobody, and make the new one's connections last beyond a restart of a VM."""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import CHARDEV_PREFIX
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data


class Retire:
    undoable = False

    def check(self, context: Context, step: PlannedStep) -> None:
        """Refuse while the old switch owns any ring."""
        target = context.target_pid()
        for port in context.plan.ports:
            now = context.host.hypervisor.ownership(port)
            if now is not None and now.owner_pid != target:
                raise StepError(
                    "OLD_SWITCH_STILL_SERVES",
                    f"{port.label} is served by process {now.owner_pid}, not by slot {context.target.name} ({target})",
                    state="nothing was retired",
                    next=f"upgrade --host localhost --restore {context.target.name}",
                )

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, source, target = context.host, context.source, context.target
        if host.processes.status(source).ovsdb_pid is not None:
            modes = {b.name: b.fail_mode for b in host.database.read(source).bridges}
            host.database.set_fail_modes(target, modes)
        for port in context.plan.ports:
            now = host.hypervisor.ownership(port)
            # libvirt's own socket stays attached, without a peer: a switch that is restarted may come back on it
            if now and now.standby and now.standby.chardev.startswith(CHARDEV_PREFIX):
                host.hypervisor.detach_standby(port)
        host.processes.stop(source)
        for binding in context.plan.bindings:
            if binding.socket != binding.origin:
                # from its next connection on the new switch dials the path a restarted VM listens on
                host.resources.redirect(binding.socket, binding.origin)
                host.resources.remove(binding.listener)
            host.resources.remove(source.vhost_dir / binding.interface)
        return {}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        status = context.host.processes.status(context.source)
        if status.vswitchd_pid or status.ovsdb_pid:
            raise StepError(
                "OLD_SWITCH_RUNS",
                f"slot {context.source.name} still runs (vswitchd {status.vswitchd_pid}, ovsdb {status.ovsdb_pid})",
                state=f"every VM is served by slot {context.target.name}",
                next=f"OVS_RUNDIR={context.source.rundir} ovs-appctl exit",
            )

    def undo(self, context: Context, step: PlannedStep) -> None:
        raise NotImplementedError("a retired switch is not brought back; upgrade again to go to the other slot")
