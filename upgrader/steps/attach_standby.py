"""Give one VM its second connection, and wait until the new switch stands by on it, parked."""

from __future__ import annotations

import os
from collections.abc import Callable

from upgrader.core.errors import HostError, StepError
from upgrader.core.model import PortBinding, VmPort, owned_by
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data, port_of
from upgrader.steps.sockets import keep_away, known_ports, reverse

_POLL_S = 0.01
_MIGRATION_S = 600.0
_MIGRATION_POLL_S = 0.5


class AttachStandby:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return attach(context, port_of(step), _binding(context, step))

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        await_ready(context, port_of(step), _binding(context, step))

    def undo(self, context: Context, step: PlannedStep) -> Data:
        detach(context, port_of(step), _binding(context, step))
        return {}


def attach(context: Context, port: VmPort, binding: PortBinding, *, anew: bool = False) -> Data:
    """Give QEMU the socket that the new switch dials. One that stands by already is left as it is, unless `anew`.

    A VM that is being migrated takes none: it is said to come later, and may not.
    That is libvirt's own where the VM is served over another one, else one that we make.
    """
    host = context.host
    peer = context.target_pid()
    now = host.hypervisor.ownership(port)
    if now is None:
        return {"gone": port.label}
    if now.standby and now.standby.ready and now.standby.pid == peer and not anew:
        keep_away(context, binding)
        return {"chardev": now.standby.chardev}
    if now.owner == binding.chardev or owned_by(now, peer):
        return {"already": now.owner}  # QEMU's failover, or a run before this one, made it the owner
    chardev = binding.chardev if now.owner == port.chardev and binding.chardev else port.chardev
    stale = {now.standby.chardev} if now.standby and (anew or now.standby.chardev != chardev) else set()
    if chardev != port.chardev:
        # maybe left over from a run that died: when it goes QEMU unlinks its path, so it goes before that is bound anew
        stale.add(chardev)
    try:
        for name in stale:
            host.hypervisor.drop_connection(port, name)
        _attach(context, port, binding, chardev)
    except HostError:
        after = host.hypervisor.ownership(port)
        if after is not None and after.owner == now.owner:
            if host.hypervisor.migrating(port):
                return {"later": f"{port.label} is being migrated"}
            raise
        return attach(context, port, binding)  # it was restarted, or ended, at that moment
    return {"chardev": chardev}


def _attach(context: Context, port: VmPort, binding: PortBinding, chardev: str) -> None:
    host, peer = context.host, context.target_pid()
    if chardev == port.chardev:
        host.hypervisor.attach_standby(port, chardev, None, peer)
        if binding.fresh:  # QEMU knows whom to expect by now
            host.resources.redirect(binding.socket, binding.origin)
        return
    listener = host.resources.listen(binding.listener)
    try:
        host.resources.redirect(binding.socket, binding.listener)
        host.hypervisor.attach_standby(port, chardev, listener, peer)
    finally:
        os.close(listener)  # QEMU has a duplicate of its own


def await_ready(context: Context, port: VmPort, binding: PortBinding) -> bool:
    """Wait until the new switch stands by: ready in QEMU's eyes, and polled by a PMD in its own. Raises StepError.

    From then on it keeps away from libvirt's socket: a VM that is restarted comes to the old switch. Returns False where
    that has happened since the VM was attached.
    """
    host = context.host
    deadline = host.clock.monotonic_s() + host.ready_timeout_s
    reason = "it never connected"
    while True:
        now = host.hypervisor.ownership(port)
        if now is None or now.owner_pid == context.target_pid():
            return True
        standby = now.standby
        if standby is None and owned_by(now, context.pid(context.source)):
            return False
        if standby and standby.ready and standby.pid == context.target_pid():
            queues = sum(1 for r in now.rings if r.enabled) // 2
            polled = host.processes.polled_queues(context.target).get(port.interface, 0)
            if polled >= queues:
                keep_away(context, binding)
                return True
            reason = f"ready, but slot {context.target.name} polls {polled} of {queues} queues"
        elif standby:
            reason = standby.reason or reason
        if host.clock.monotonic_s() > deadline:
            raise StepError(
                "STANDBY_NOT_READY",
                f"{port.label}: slot {context.target.name} did not come to stand by within "
                f"{host.ready_timeout_s:g} s: {reason}",
                state=f"{port.label} is served by slot {context.source.name} as before",
                next=f"tail {context.target.rundir / 'ovs-vswitchd.log'}",
            )
        host.clock.sleep(_POLL_S)


def await_migration(context: Context, port: VmPort, wait: Callable[[float], None]) -> None:
    """Return when the VM is on no way to another host: it has gone there, or stays. Raises StepError after a long time."""
    clock = context.host.clock
    deadline = clock.monotonic_s() + _MIGRATION_S
    while context.host.hypervisor.migrating(port):
        if clock.monotonic_s() > deadline:
            raise StepError(
                "VM_MIGRATES",
                f"{port.label} has been being migrated for {_MIGRATION_S:g} s, and QEMU takes no second connection meanwhile",
                state=f"{port.label} is served by the switch that it was served by",
                next=f"virsh domjobinfo {port.domain}; virsh domjobabort {port.domain}",
            )
        wait(_MIGRATION_POLL_S)


def stand_by_again(context: Context, port: VmPort) -> None:
    """Attach the old switch to a VM that came up with the new one, after that had libvirt's sockets. Raises StepError.

    It is about to be in charge again: from its next connection on it dials what libvirt knows.
    """
    back = reverse(context)
    vms = [v for v in context.host.hypervisor.vm_interfaces() if (v.domain, v.netdev) == (port.domain, port.netdev)]
    for found, binding in known_ports(back, vms):
        attach(back, found, binding)
        await_ready(back, found, binding)
        if binding.fresh:
            context.host.resources.redirect(binding.socket, binding.origin)
            context.host.resources.remove(binding.listener)


def detach(context: Context, port: VmPort, binding: PortBinding) -> None:
    """Detach and remove what is ours; libvirt's own socket stays attached, with a peer that will be gone."""
    if binding.fresh and binding.chardev:
        _require_not_served(context, port, binding.chardev)
        try:
            context.host.hypervisor.drop_connection(port, binding.chardev)
        except HostError:
            _require_not_served(context, port, binding.chardev)  # brought there in between: QEMU removes no owner's
            raise
        context.host.resources.remove(binding.socket)
        context.host.resources.remove(binding.listener)


def _require_not_served(context: Context, port: VmPort, chardev: str) -> None:
    now = context.host.hypervisor.ownership(port)
    if now is not None and now.owner == chardev:  # QEMU's failover brought it there
        raise StepError(
            "VM_SERVED_THERE",
            f"{port.label} is served over the connection that is to be taken away (process {now.owner_pid})",
            state=f"{port.label} goes on being served over it",
            next="upgrade resume   (it brings the other VMs there, too)",
        )


def _binding(context: Context, step: PlannedStep) -> PortBinding:
    interface = port_of(step).interface
    return next(b for b in context.plan.bindings if b.interface == interface)
