"""Give one VM its second connection, and wait until the new switch stands by on it, parked."""

from __future__ import annotations

import os

from upgrader.core.errors import HostError, StepError
from upgrader.core.model import PortBinding, VmPort
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data, port_of

_POLL_S = 0.01


class AttachStandby:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return attach(context, port_of(step), _binding(context, step))

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        await_ready(context, port_of(step))

    def undo(self, context: Context, step: PlannedStep) -> Data:
        detach(context, port_of(step), _binding(context, step))
        return {}


def attach(context: Context, port: VmPort, binding: PortBinding) -> Data:
    """Give QEMU the socket that the new switch dials. One that stands by already is left as it is."""
    host = context.host
    peer = context.target_pid()
    now = host.hypervisor.ownership(port)
    if now is None:
        return {"gone": port.label}
    if now.standby and now.standby.ready and now.standby.pid == peer:
        if binding.fresh:
            # one that was in charge before dials libvirt's socket next, and would be first at a VM that is restarted
            host.resources.redirect(binding.socket, binding.listener)
        return {"chardev": now.standby.chardev}
    chardev = binding.chardev or port.chardev
    if now.owner == chardev:
        return {"already": now.owner}  # QEMU's failover, or a run before this one, made it the owner
    if now.standby and now.standby.chardev != chardev:
        host.hypervisor.drop_connection(port, now.standby.chardev)
    if not binding.fresh:
        host.hypervisor.attach_standby(port, chardev, None, peer)
        return {"chardev": chardev}
    listener = host.resources.listen(binding.listener)
    try:
        host.resources.redirect(binding.socket, binding.listener)
        host.hypervisor.attach_standby(port, chardev, listener, peer)
    finally:
        os.close(listener)  # QEMU has a duplicate of its own
    return {"chardev": chardev}


def await_ready(context: Context, port: VmPort) -> None:
    """Wait until the new switch stands by: ready in QEMU's eyes, and polled by a PMD in its own. Raises StepError."""
    host = context.host
    deadline = host.clock.monotonic_s() + host.ready_timeout_s
    reason = "it never connected"
    while True:
        now = host.hypervisor.ownership(port)
        if now is None or now.owner_pid == context.target_pid():
            return
        standby = now.standby
        if standby and standby.ready and standby.pid == context.target_pid():
            queues = sum(1 for r in now.rings if r.enabled) // 2
            polled = host.processes.polled_queues(context.target).get(port.interface, 0)
            if polled >= queues:
                return
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
