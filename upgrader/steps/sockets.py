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
    be brought after the others; with both at one socket, whoever is second could not stand by.
    """
    theirs, lives = _ways(context, old), context.pid(old) is not None
    for name, way in _ways(context, new).items():
        other = theirs.get(name)
        if way.ours:
            taken = lives and other is not None and not other.ours
            context.host.resources.redirect(way.dialled, listener(way.dialled) if taken else way.origin)
        if other is not None and other.ours:
            context.host.resources.redirect(other.dialled, listener(other.dialled))


def reverse(context: Context) -> Context:
    """The same host for what is done the other way round."""
    return replace(context, source=context.target, target=context.source)


def _ways(context: Context, slot: Slot) -> dict[str, _Way]:
    """By interface; nothing where the slot's database does not run."""
    if context.host.processes.status(slot).ovsdb_pid is None:
        return {}
    found = context.host.database.read(slot).vhost_interfaces()
    return {i.name: _Way(Path(i.option("vhost-server-path") or ""), Path(origin(i))) for i in found}
