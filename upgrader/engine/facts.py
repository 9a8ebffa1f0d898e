"""Reading a host: everything a plan stands on, and nothing changed."""

from __future__ import annotations

from dataclasses import replace

from upgrader.core.errors import HostError
from upgrader.core.inventory import active_slot, join
from upgrader.core.model import SLOTS, HostFacts, Slot, SlotFacts, SlotName, SwitchFacts, VmInterface
from upgrader.ports import Host


def gather(name: str, slots: dict[SlotName, Slot], host: Host, *, vni_key: str, adapter: str) -> HostFacts:
    """Look at both slots, every running VM, the pools and the steering rules.

    A part that does not answer at all (libvirt, a database) raises HostError: without it there are no facts.
    """
    status = {n: host.processes.status(slots[n]) for n in SLOTS}
    vms: tuple[VmInterface, ...] = host.hypervisor.vm_interfaces()
    active = active_slot(status, vms)
    # half-way through a cut-off run both databases say the same of the ports; the one that runs longest is enough
    reading = active or next((n for n in SLOTS if status[n].ovsdb_pid is not None), None)
    switch = _switch(slots[reading], host) if reading and status[reading].ovsdb_pid is not None else None
    ports, orphans = join(vms, switch, vni_key) if switch else ((), ())
    return HostFacts(
        host=name,
        slots=(_slot_facts(slots["a"], host), _slot_facts(slots["b"], host)),
        active=active,
        switch=switch,
        ports=ports,
        orphans=orphans,
        hugepages=host.resources.hugepages(),
        steering_adapter=adapter,
        steering_problem=_steering_problem(host),
    )


def _slot_facts(slot: Slot, host: Host) -> SlotFacts:
    netns = host.resources.netns_exists(slot.netns)
    programs = (
        "sbin/ovs-vswitchd",
        "sbin/ovsdb-server",
        "bin/ovs-appctl",
        "bin/ovs-ofctl",
        "bin/ovsdb-client",
    )
    present = all((slot.prefix / p).exists() for p in programs)
    return SlotFacts(
        slot=slot,
        status=host.processes.status(slot),
        running_version=host.processes.running_version(slot),
        binaries_present=present,
        netns_present=netns,
        vf_present=netns and host.resources.netdev_exists(slot.netns, slot.vf),
        installed_version=host.processes.installed_version(slot) if present else None,
    )


def _switch(slot: Slot, host: Host) -> SwitchFacts:
    facts = host.database.read(slot)
    if host.processes.status(slot).vswitchd_pid is None:
        return facts
    return replace(facts, bridges=tuple(replace(b, flows=host.openflow.flows(slot, b.name)) for b in facts.bridges))


def _steering_problem(host: Host) -> str | None:
    try:
        host.steering.rules()
    except HostError as error:
        return error.what
    return None
