"""Reading a host: everything a plan stands on, and nothing changed."""

from __future__ import annotations

from dataclasses import replace

from upgrader.core.errors import CommandError, HostError
from upgrader.core.inventory import active_slot, join
from upgrader.core.model import (
    SLOTS,
    HostFacts,
    Slot,
    SlotFacts,
    SlotName,
    SlotStatus,
    SteeringRule,
    SwitchFacts,
    VmInterface,
)
from upgrader.ports import Host


def gather(
    name: str, slots: dict[SlotName, Slot], host: Host, *, vni_key: str, adapter: str, ask_switches: bool = True
) -> HostFacts:
    """Look at both slots, every running VM, the pools and the steering rules.

    Without `ask_switches` no ovs-vswitchd is spoken to, since one may hang: flows and running versions are left out.
    A part that does not answer at all (libvirt, a database) raises HostError: without it there are no facts.
    """
    host.well_known.adopt()
    vms: tuple[VmInterface, ...] = host.hypervisor.vm_interfaces()
    rules, problem = _rules(host)
    steady = next((r.targets for r in rules if r.mac is None), ())
    read = {n: _slot_facts(slots[n], host, ask_switches) for n in SLOTS}
    facts = HostFacts(
        host=name,
        slots=(read["a"], read["b"]),
        active=active_slot({n: f.status for n, f in read.items()}, vms, steady),
        ports=(),
        orphans=(),
        hugepages=host.resources.hugepages(),
        steering_adapter=adapter,
        steering_problem=problem,
        control=host.well_known.current(),
        control_problem=host.well_known.problem(),
    )
    if facts.switch is None:
        return facts
    ports, orphans = join(vms, facts.switch, vni_key)
    return replace(facts, ports=ports, orphans=orphans)


def _slot_facts(slot: Slot, host: Host, ask_switch: bool) -> SlotFacts:
    """The slot as it is; a daemon that ended while it was asked is one that does not run, not one that fails."""
    status = host.processes.status(slot)
    try:
        return _read(slot, status, host, ask_switch)
    except (HostError, CommandError):
        now = host.processes.status(slot)
        if now == status:
            raise
        return _read(slot, now, host, ask_switch)


def _read(slot: Slot, status: SlotStatus, host: Host, ask_switch: bool) -> SlotFacts:
    netns = host.resources.netns_exists(slot.netns)
    programs = ("sbin/ovs-vswitchd", "sbin/ovsdb-server", "bin/ovs-appctl", "bin/ovs-ofctl", "bin/ovsdb-client")
    present = all((slot.prefix / p).exists() for p in programs)
    return SlotFacts(
        slot=slot,
        status=status,
        running_version=host.processes.running_version(slot) if ask_switch else None,
        binaries_present=present,
        netns_present=netns,
        vf_present=netns and host.resources.vf_exists(slot.netns, slot.vf),
        installed_version=host.processes.installed_version(slot) if present else None,
        switch=_switch(slot, host, runs=ask_switch and status.vswitchd_pid is not None)
        if status.ovsdb_pid is not None
        else None,
        dpdk_version=host.processes.dpdk_version(slot) if present else None,
    )


def _switch(slot: Slot, host: Host, *, runs: bool) -> SwitchFacts:
    facts = host.database.read(slot)
    if not runs:
        return facts
    bridges = tuple(
        replace(
            b,
            flows=host.openflow.flows(slot, b.name),
            groups=host.openflow.groups(slot, b.name),
            settings=host.openflow.settings(slot, b.name),
        )
        if not b.protocols or set(b.protocols) - {"OpenFlow10"}
        else b
        for b in facts.bridges
    )
    return replace(facts, bridges=bridges)


def _rules(host: Host) -> tuple[tuple[SteeringRule, ...], str | None]:
    try:
        return host.steering.rules(), None
    except HostError as error:
        return (), error.what
