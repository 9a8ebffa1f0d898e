"""End the old switch once it serves nobody, and make the new one's connections last beyond a restart of a VM."""

from __future__ import annotations

from pathlib import Path

from upgrader.core.errors import StepError
from upgrader.core.inventory import join, origin
from upgrader.core.model import CHARDEV_PREFIX, SLOTS, listener
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.catch_up import bring_late
from upgrader.steps.move_vm import require_progress
from upgrader.steps.promote import require_names


class Retire:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        """Each effect looks first and holds when said again: a retirement that broke off is carried to its end.

        Refuses while the old switch owns any ring; a VM that has come since is moved first.
        """
        host, source, target = context.host, context.source, context.target
        moves = bring_late(context, all_=True)
        _require_works(context)
        _require_idle(context)  # also: a switch may have died since
        host.processes.stop(source)  # from here on there is no way back; all before it can be left as it is
        facts = host.database.read(target)
        ports, _ = join(host.hypervisor.vm_interfaces(), facts, host.vni_key)  # also those that came during the run
        for port in ports:
            now = host.hypervisor.ownership(port)
            # libvirt's own socket stays attached, without a peer: a switch that is restarted may come back on it
            for slot in SLOTS:
                chardev = f"{CHARDEV_PREFIX}-{slot}-{port.netdev}"
                if now is not None and now.owner != chardev:
                    host.hypervisor.drop_connection(port, chardev)
        for interface in facts.vhost_interfaces():
            dialled, known = Path(interface.option("vhost-server-path") or ""), Path(origin(interface))
            if dialled != known:
                # from its next connection on the new switch dials the path a restarted VM listens on
                host.resources.redirect(dialled, known)
                host.resources.remove(listener(dialled))
            host.resources.remove(source.vhost_dir / interface.name)
            host.resources.remove(listener(source.vhost_dir / interface.name))
        # what the old daemons left of their names goes, what they took with them comes back
        host.well_known.point_to(target.name, [b.name for b in facts.bridges])
        return {"moves": moves}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        context.target_pid()
        status = context.host.processes.status(context.source)
        if status.vswitchd_pid or status.ovsdb_pid:
            raise StepError(
                "OLD_SWITCH_RUNS",
                f"slot {context.source.name} still runs (vswitchd {status.vswitchd_pid}, ovsdb {status.ovsdb_pid})",
                state=f"every VM is served by slot {context.target.name}",
                next=f"OVS_RUNDIR={context.source.rundir} ovs-appctl exit",
            )
        require_names(context)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """Nothing, as long as the old switch runs: ending it comes before everything that could not be left as it is."""
        if context.pid(context.source) is None:
            raise StepError(
                "RETIRED",
                f"slot {context.source.name} has been retired",
                state=f"every VM is served by slot {context.target.name}",
                next="upgrade resume   (it finishes the run), then: upgrade --host localhost   (to go to the other slot)",
            )
        return {}


def _require_works(context: Context) -> None:
    """The last look before there is no way back: the new switch answers, and takes up what guests send."""
    context.host.processes.polled_queues(context.target)
    for port in context.plan.all_ports:
        now = context.host.hypervisor.ownership(port)
        if now is not None:
            require_progress(context, port, now)


def _require_idle(context: Context) -> None:
    context.target_pid()
    left = [v.domain for v in context.served_by(context.source)]
    left += [port.label for port, slot in context.owners() if slot != context.target.name and port.domain not in left]
    if left:
        raise StepError(
            "OLD_SWITCH_STILL_SERVES",
            f"{', '.join(left[:5])} are not served by slot {context.target.name}",
            state=f"slot {context.source.name} runs on and serves them",
            next=f"upgrade --host localhost --restore {context.target.name}",
        )
