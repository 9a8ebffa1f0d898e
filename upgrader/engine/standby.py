"""The VMs of an armed host and their standby: which there are, who came, who went astray."""

from __future__ import annotations

from dataclasses import replace

from upgrader.core.errors import StepError
from upgrader.core.inventory import join, standing_bindings
from upgrader.core.model import PortBinding, VmPort
from upgrader.core.plan import without_rings
from upgrader.steps import Context
from upgrader.steps.attach_standby import attach
from upgrader.steps.base import Freshness
from upgrader.steps.catch_up import bring_late
from upgrader.steps.sockets import keep_away, reverse


def bring_strays(context: Context) -> None:
    """VMs that were restarted and found the standby first, which dials the same socket: back to the active."""
    if context.served_by(context.target):
        bring_late(replace(reverse(context), freshness=Freshness()))


def known_vms(context: Context) -> tuple[tuple[VmPort, ...], tuple[PortBinding, ...]]:
    """VMs of the switch as they are now, and where the standby dials them."""
    switch = context.host.database.read(context.target)
    ports, _ = join(context.host.hypervisor.vm_interfaces(), switch, context.host.vni_key)
    ports = tuple(without_rings(p) for p in ports)
    return ports, standing_bindings(ports, switch, context.target)


def attached(context: Context, port: VmPort) -> str:
    """Why the standby does not stand by on this VM, empty where it does; one that came is attached, to be looked at again."""
    peer = context.target_pid()
    now = port.ownership
    if now is None:
        return "its QEMU has no second connection"
    binding = next((b for b in context.plan.bindings if b.interface == port.interface), None)
    if now.standby and now.standby.ready and now.standby.pid == peer:
        if binding is not None:
            keep_away(context, binding)
        return ""
    if now.standby and now.standby.expected_pid == peer:
        return now.standby.reason or "not connected yet"
    if binding is None:
        raise StepError("VM_WITHOUT_PORT", f"{port.label} has no port in slot {context.target.name}",
                        state="its switch serves it", next="upgrade status")  # fmt: skip
    return str(attach(context, port, binding).get("later", "attached a moment ago"))
