"""What the versions of a host's switches and QEMUs cannot do together; pure. The table is `upgrader.core.versions`."""

from __future__ import annotations

from collections.abc import Iterator

from upgrader.core.finding import Finding, Severity, blocking, some
from upgrader.core.model import HostFacts, SlotFacts
from upgrader.core.versions import Dpdk, Libvirt, Ovs, Qemu, can


def versions(facts: HostFacts) -> Iterator[Finding]:
    """Of both slots: rings leave the one as they enter the other, and may have to come back."""
    need_answers = sorted({p.domain for p in facts.ports if p.ownership and can(Qemu.BARRIER, p.qemu) is False})
    hidden_by_config = facts.switch is None or not facts.switch.vhost_iommu
    not_handed = {
        p.domain for p in facts.ports if p.ownership and can(Libvirt.PASS_FDS, p.libvirt) is False and not p.root
    }
    if not_handed:
        yield blocking(
            "SOCKET_NOT_PASSED",
            f"libvirt hands no descriptors on (that came with 8.2), so the QEMU of {some(not_handed)} would have to make "
            "the standby's socket by itself, in a folder of root's, and it does not run as root",
            'newer libvirt, where it takes this QEMU; else user = "root" in /etc/libvirt/qemu.conf, and the VMs restarted',
        )
    for slot in facts.slots:
        yield from _switch(slot)
        name, dpdk = slot.slot.name, slot.dpdk_version
        if can(Dpdk.RING_LOCK, dpdk) is False:
            yield blocking(
                "RING_LOCK_MISSING",
                f"slot {name} has DPDK {dpdk}, which crashes when the address of a live ring changes",
                f"install OVS on DPDK 17.11.1 or later in slot {name}; a switch that runs has to be restarted once",
            )
        elif can(Dpdk.LIVE_TABLE, dpdk) is False:
            yield Finding(
                "MEMORY_TABLE_FIXED",
                Severity.WARNING,
                f"slot {name} has DPDK {dpdk}: when memory is plugged into a VM that it serves, it goes on with the old addresses",
                f"nothing, if no VM's memory is plugged meanwhile; else install OVS on DPDK 17.11.4 or later in slot {name}",
            )
        if need_answers and hidden_by_config and can(Dpdk.REPLY_ACK, dpdk) is False:
            yield blocking(
                "ANSWERS_HIDDEN",
                f"slot {name} has DPDK {dpdk}, which acknowledges messages only with vhost-iommu-support, and the QEMU of "
                f"{some(need_answers)} hands rings over by acknowledgements",
                "ovs-vsctl set Open_vSwitch . other_config:vhost-iommu-support=true   (read when a switch starts: the one "
                "that runs has to be restarted once)",
            )


def _switch(slot: SlotFacts) -> Iterator[Finding]:
    """Of the switch itself and its database server."""
    name, ovs = slot.slot.name, slot.installed_version
    if can(Ovs.ROW_UUIDS, ovs) is False:
        switch = slot.switch
        led = [*switch.managers, *(c for b in switch.bridges for c in b.controllers)] if switch else []
        if led:
            yield blocking(
                "CONTROL_FIXED",
                f"the database server of slot {name} (OVS {ovs}) takes no rows with the UUIDs they have elsewhere, so "
                f"control by {some(led)} cannot be moved to and fro",
                "take controllers and managers away for the time of the run, or install OVS 2.13 or later in that slot",
            )
        yield Finding(
            "ROWS_FIXED",
            Severity.WARNING,
            f"the database server of slot {name} (OVS {ovs}) takes no rows with the UUIDs they have elsewhere: a port "
            "that is added to the other slot during a run, or while this one is kept, cannot be copied, and the run stops",
            "nothing, if no VM is started meanwhile; else install OVS 2.13 or later in that slot",
        )
