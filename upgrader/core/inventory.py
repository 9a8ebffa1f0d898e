"""Joining what libvirt says of VMs with what OVSDB says of ports; pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upgrader.core.model import (
    CHARDEV_PREFIX,
    ORIGIN_KEY,
    Interface,
    OrphanInterface,
    PortBinding,
    Slot,
    SlotName,
    SlotStatus,
    SwitchFacts,
    VmInterface,
    VmPort,
)


def origin(interface: Interface) -> str:
    """Socket path by which libvirt knows the VM behind a vhost interface."""
    return interface.external_id(ORIGIN_KEY) or interface.option("vhost-server-path") or ""


def join(
    vms: Sequence[VmInterface], switch: SwitchFacts, vni_key: str
) -> tuple[tuple[VmPort, ...], tuple[OrphanInterface, ...]]:
    """Pair each running VM's interface with the OVS interface on the same socket; the rest of either are orphans."""
    by_socket = {origin(i): i for i in switch.vhost_interfaces()}
    ports = []
    orphans = []
    for vm in vms:
        interface = by_socket.pop(str(vm.socket), None)
        if interface is None or interface.ofport is None or interface.ofport < 0:
            orphans.append(OrphanInterface(vm.domain, interface.name if interface else None, str(vm.socket)))
            continue
        ports.append(
            VmPort(
                domain=vm.domain,
                domain_uuid=vm.domain_uuid,
                mac=vm.mac,
                socket=vm.socket,
                netdev=vm.netdev,
                chardev=vm.chardev,
                interface=interface.name,
                ofport=interface.ofport,
                vni=_vni(interface.external_id(vni_key)),
                ownership=vm.ownership,
                qemu=vm.qemu,
                libvirt=vm.libvirt,
                root=vm.root,
            )
        )
    orphans += [OrphanInterface(None, i.name, socket) for socket, i in sorted(by_socket.items())]
    return tuple(ports), tuple(orphans)


def _vni(text: str | None) -> int | None:
    """A VNI is 24 bits (RFC 7348); anything else is none."""
    return int(text) if text is not None and text.isdecimal() and int(text) < 1 << 24 else None


def active_slot(
    status: dict[SlotName, SlotStatus], vms: Sequence[VmInterface], steady: Sequence[SlotName]
) -> SlotName | None:
    """The slot whose switch runs; where both do, the one that owns every ring, or with no VM the one steered to.

    None where that is not one slot.
    """
    running = [name for name, s in status.items() if s.vswitchd_pid is not None]
    if len(running) < 2:
        return running[0] if running else None
    owners = {vm.ownership.owner_pid for vm in vms if vm.ownership}
    owning = [name for name in running if status[name].vswitchd_pid in owners] or list(steady)
    return owning[0] if len(owning) == 1 else None


def bindings(ports: Sequence[VmPort], switch: SwitchFacts, target: Slot) -> tuple[PortBinding, ...]:
    """Where each vhost interface of the target slot connects.

    Each at a path in the slot's folder, on which nobody listens: the standby answers for no VM. When it is attached to
    one, the path is made a link to the socket that is free (steps/attach_standby.py).
    """
    by_interface = {p.interface: p for p in ports}
    found = []
    for interface in switch.vhost_interfaces():
        path = Path(origin(interface))
        own = target.vhost_dir / interface.name
        port = by_interface.get(interface.name)
        chardev = f"{CHARDEV_PREFIX}-{target.name}-{port.netdev}" if port else None
        found.append(PortBinding(interface.name, interface.ofport or 0, own, path, chardev, fresh=port is not None))
    return tuple(found)


def standing_bindings(ports: Sequence[VmPort], switch: SwitchFacts, slot: Slot) -> tuple[PortBinding, ...]:
    """Where each port's interface connects in a slot whose switch runs already, by that switch's own database."""
    by_interface = {p.interface: p for p in ports}
    found = []
    for interface in switch.vhost_interfaces():
        port = by_interface.get(interface.name)
        if port is None:
            continue
        dialled, known = Path(interface.option("vhost-server-path") or ""), Path(origin(interface))
        fresh = dialled != known
        chardev = f"{CHARDEV_PREFIX}-{slot.name}-{port.netdev}" if fresh else port.chardev
        found.append(PortBinding(interface.name, port.ofport, dialled, known, chardev, fresh=fresh))
    return tuple(found)
