"""Which sockets a switch dials: libvirt's, on which a VM that is started listens, are for the one in charge alone.

The path in the database of a switch that we started is a symbolic link of its own slot, so that it can be led elsewhere
while the switch runs; it counts from the next connection on. One that somebody else started has libvirt's path itself in
its database, and goes on dialling it as long as it lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from upgrader.core.inventory import join, origin, standing_bindings
from upgrader.core.model import PortBinding, Slot, VmInterface, VmPort, listener
from upgrader.steps.base import Context


@dataclass(frozen=True, slots=True)
class _Way:
    """What one port's interface dials, and the path by which libvirt knows its VM."""

    dialled: Path
    origin: Path

    @property
    def ours(self) -> bool:
        return self.dialled != self.origin


def known_ports(context: Context, vms: Sequence[VmInterface]) -> list[tuple[VmPort, PortBinding]]:
    """Those of these VMs that the new switch has a port for, with where it dials them."""
    if not vms:
        return []
    host = context.host
    switch = host.database.read(context.target)
    ports, _ = join(vms, switch, host.vni_key)
    bindings = {b.interface: b for b in standing_bindings(ports, switch, context.target)}
    return [(p, bindings[p.interface]) for p in ports]


def keep_away(context: Context, binding: PortBinding) -> None:
    """A switch that stands by must not be the first at a VM that is restarted. Idempotent."""
    if binding.fresh:
        context.host.resources.redirect(binding.socket, binding.listener)


def give_sockets(context: Context, old: Slot, new: Slot) -> None:
    """From its next connection on `new` dials libvirt's sockets, and `old` does not. Idempotent.

    Where `old` cannot be kept from it, `new` keeps to its own: a VM that is restarted comes to `old` for certain, and can
    be brought after the others; with both at one socket, whoever is second could not stand by. Nor is `new` led to a socket
    where `old` serves a VM and it does not stand by: it would wait in line there, and not hear of another one.
    """
    theirs, lives = _ways(context, old), context.pid(old) is not None
    for way in theirs.values():  # first: never both at one socket
        if way.ours:
            context.host.resources.redirect(way.dialled, listener(way.dialled))
    engaged = _engaged(context, new)
    for name, way in _ways(context, new).items():
        other = theirs.get(name)
        if way.ours:
            taken = way.origin in engaged or (lives and other is not None and not other.ours)
            context.host.resources.redirect(way.dialled, listener(way.dialled) if taken else way.origin)


def reverse(context: Context) -> Context:
    """The same host for what is done the other way round."""
    return replace(context, source=context.target, target=context.source)


def _engaged(context: Context, slot: Slot) -> set[Path]:
    """Of libvirt's sockets, those over which another switch serves a VM that this one is not connected to."""
    found = set()
    for vm in context.host.hypervisor.vm_interfaces():
        now = vm.ownership
        if now is None or now.owner != vm.chardev or not now.owner_connected:
            continue
        if context.pid(slot) not in (now.owner_pid, now.standby.pid if now.standby else None):
            found.add(vm.socket)
    return found


def _ways(context: Context, slot: Slot) -> dict[str, _Way]:
    """By interface; nothing where the slot's database does not run."""
    if context.host.processes.status(slot).ovsdb_pid is None:
        return {}
    found = context.host.database.read(slot).vhost_interfaces()
    return {i.name: _Way(Path(i.option("vhost-server-path") or ""), Path(origin(i))) for i in found}
