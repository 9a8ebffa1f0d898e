"""Give one VM its second connection, and wait until the new switch stands by on it, parked."""

from __future__ import annotations

import os

from upgrader.core.errors import HostError, StepError
from upgrader.core.model import PortBinding
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data, port_of

_POLL_S = 0.01


def binding_of(context: Context, interface: str) -> PortBinding:
    return next(b for b in context.plan.bindings if b.interface == interface)


class AttachStandby:
    undoable = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        host, port = context.host, port_of(step)
        binding = binding_of(context, port.interface)
        peer = context.target_pid()
        now = host.hypervisor.ownership(port)
        if now and now.standby and now.standby.ready and now.standby.pid == peer:
            return {"chardev": now.standby.chardev}
        if now and now.standby and now.standby.chardev != binding.chardev:
            host.hypervisor.detach_standby(port)
        chardev = binding.chardev or port.chardev
        if binding.fresh:
            listener = host.resources.listen(binding.listener)
            try:
                host.resources.redirect(binding.socket, binding.listener)
                host.hypervisor.attach_standby(port, chardev, listener, peer)
            finally:
                os.close(listener)  # QEMU has a duplicate of its own
        else:
            host.hypervisor.attach_standby(port, chardev, None, peer)
        return {"chardev": chardev}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """Ready in QEMU's eyes, and polled by a PMD in the new switch's."""
        host, port = context.host, port_of(step)
        deadline = host.clock.monotonic_s() + host.ready_timeout_s
        reason = "it never connected"
        while True:
            now = host.hypervisor.ownership(port)
            standby = now.standby if now else None
            if standby and standby.ready and standby.pid == context.target_pid():
                queues = sum(1 for r in now.rings if r.enabled) // 2 if now else 0
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

    def undo(self, context: Context, step: PlannedStep) -> None:
        port = port_of(step)
        binding = binding_of(context, port.interface)
        try:
            now = context.host.hypervisor.ownership(port)
        except HostError:
            return  # the VM ended meanwhile: nothing of it is left to detach
        if binding.fresh:
            if now and now.standby and now.standby.chardev == binding.chardev:
                context.host.hypervisor.detach_standby(port)
            context.host.resources.remove(binding.socket)
            context.host.resources.remove(binding.listener)
