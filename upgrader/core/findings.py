"""Facts to findings: what stands against an upgrade of this host, each with a stable code and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from upgrader.core.errors import BlockedError
from upgrader.core.finding import ACCEPTABLE, Finding, Severity, blocking, some, target_slot
from upgrader.core.model import SLOTS, HostFacts, SlotName, other_slot
from upgrader.core.switch_findings import SWITCH_CHECKS
from upgrader.core.version_findings import versions

__all__ = ["ACCEPTABLE", "Finding", "Severity", "find", "forbidden", "target_slot"]

_HUGEPAGE_KIB = 2048


def forbidden(
    found: Sequence[Finding], several: str = "what each finding above says, then the same command again"
) -> BlockedError:
    """That these blocking findings forbid a run. `several`: what to type next; of a single one it is what that says."""
    one = len(found) == 1
    return BlockedError(
        "BLOCKED",
        f"{len(found)} finding{' forbids' if one else 's forbid'} the run: {', '.join(f.code for f in found)}",
        state="nothing was changed",
        next=found[0].remedy if one else several,
    )


def find(facts: HostFacts, accept: Collection[str] = ()) -> tuple[Finding, ...]:
    """All findings, blocking ones first. Codes in `accept` are shown, but do not block."""
    found: list[Finding] = []
    for check in _CHECKS:
        found += check(facts)
    lowered = [
        replace(f, severity=Severity.WARNING) if f.code in accept and f.severity is Severity.BLOCKING else f
        for f in found
    ]
    order = list(Severity)
    return tuple(sorted(lowered, key=lambda f: order.index(f.severity)))


def _switches(facts: HostFacts) -> Iterator[Finding]:
    running: dict[SlotName, int] = {n: pid for n in SLOTS if (pid := facts.slot(n).status.vswitchd_pid) is not None}
    if not running:
        dirs = " and ".join(str(facts.slot(n).slot.rundir) for n in SLOTS)
        yield blocking(
            "NO_SWITCH",
            f"no ovs-vswitchd runs in slot a or b (looked in {dirs})",
            "start the switch this host should have, or correct slots.*.rundir in the configuration",
        )
    elif facts.active is None:
        owned = {
            n: sum(1 for p in facts.ports if p.ownership and p.ownership.owner_pid == pid) for n, pid in running.items()
        }
        yield blocking(
            "BOTH_SLOTS_OWN_VMS",
            f"both slots run and neither serves all VMs: a {owned.get('a', 0)}, b {owned.get('b', 0)} (a run was cut off)",
            "upgrade --host localhost --restore a   (or b: the slot that shall serve all VMs)",
        )
    elif len(running) == 2:
        leftover = other_slot(facts.active)
        yield Finding(
            "STANDBY_LEFT_OVER",
            Severity.WARNING,
            f"slot {leftover} runs a switch that serves no VM (left by an earlier run)",
            f"nothing: it is stopped and started anew; by hand: upgrade --host localhost --restore {facts.active}",
        )


def _target(facts: HostFacts) -> Iterator[Finding]:
    target = target_slot(facts)
    if target is None:
        return
    s = target.slot
    if not target.binaries_present:
        yield blocking(
            "SLOT_BINARIES_MISSING",
            f"slot {s.name} has no OVS with DPDK under {s.prefix} (looked for sbin/ovs-vswitchd, sbin/ovsdb-server, bin/)",
            f"install it there, or correct slots.{s.name}.prefix in the configuration",
        )
    if not target.netns_present:
        yield blocking(
            "SLOT_NETNS_MISSING",
            f"the network namespace {s.netns} of slot {s.name} does not exist",
            f"ip netns add {s.netns}   (and move the VF {s.vf} into it)",
        )
    elif not target.vf_present and ":" in s.vf:
        yield blocking(
            "VF_MISSING",
            f"slot {s.name} has no VF: there is no PCI device {s.vf} bound to vfio-pci",
            f"dpdk-devbind.py --bind=vfio-pci {s.vf}",
        )
    elif not target.vf_present:
        yield blocking(
            "VF_MISSING",
            f"slot {s.name} has no VF: there is no netdev {s.vf} in {s.netns or 'the host'}",
            f"ip link set {s.vf} netns {s.netns}" if s.netns else f"ip link show {s.vf}",
        )
    old, new = facts.slot(other_slot(s.name)), target
    if (
        old.running_version
        and new.installed_version
        and _version(new.installed_version) < _version(old.running_version)
    ):
        yield Finding(
            "DOWNGRADE",
            Severity.WARNING,
            f"this is a downgrade: {old.running_version} runs, slot {s.name} has {new.installed_version}",
            "nothing if that is meant",
        )
    if int(old.slot.pmd_cpu_mask, 16) & int(s.pmd_cpu_mask, 16):
        yield blocking(
            "PMD_CORES_SHARED",
            f"PMD threads of both slots would share cores ({old.slot.pmd_cpu_mask} and {s.pmd_cpu_mask})",
            f'give slots.{s.name}.pmd_cpu_mask cores of its own, or accept it: policy.accept = ["PMD_CORES_SHARED"]',
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def _hugepages(facts: HostFacts) -> Iterator[Finding]:
    target = target_slot(facts)
    if target is None or target.status.vswitchd_pid is not None:
        return
    for node, wanted in enumerate(int(n) for n in target.slot.socket_mem_mib.split(",")):
        # DPDK counts per NUMA node; pools of 1 GiB pages serve as well as those of 2 MiB
        free = sum(p.free_mib for p in facts.hugepages if p.node == node and p.size_kib >= _HUGEPAGE_KIB)
        if free < wanted:
            short = -(-(wanted - free) * 1024 // _HUGEPAGE_KIB)
            have = sum(p.total for p in facts.hugepages if p.node == node and p.size_kib == _HUGEPAGE_KIB)
            yield blocking(
                "HUGEPAGES_SHORT",
                f"slot {target.slot.name} needs {wanted} MiB of hugepages on NUMA node {node}, {free} MiB are free",
                f"echo {have + short} > /sys/devices/system/node/node{node}/hugepages/hugepages-{_HUGEPAGE_KIB}kB/nr_hugepages",
            )


def _vms(facts: HostFacts) -> Iterator[Finding]:
    unpatched = [p.domain for p in facts.ports if p.ownership is None]
    if unpatched:
        yield blocking(
            "QEMU_UNPATCHED",
            f"{len(set(unpatched))} running VMs have a QEMU without a second vhost-user connection: {some(set(unpatched))}",
            "restart or migrate them onto the patched QEMU (qemu-patches/README.md), then run this again",
        )
    lost = [p.label for p in facts.ports if p.ownership and (not p.ownership.owner_connected or p.ownership.in_doubt)]
    if lost:
        yield blocking(
            "VM_NOT_SERVED",
            f"no switch serves {some(lost)} now",
            "mend that first: ovs-vsctl --columns=name,link_state,error list Interface",
        )
    active = facts.slot(facts.active) if facts.active else None
    if active:
        pid = active.status.vswitchd_pid
        strangers = [
            p.label for p in facts.ports if p.ownership and p.ownership.owner_connected and p.ownership.owner_pid != pid
        ]
        if strangers:
            yield blocking(
                "VM_SERVED_BY_OTHER",
                f"{some(strangers)} are served by another process than slot {active.slot.name}'s ovs-vswitchd (pid {pid})",
                "mend slots.*.rundir in the configuration, or move these VMs' ports to that switch",
            )
    for orphan in facts.orphans:
        if orphan.domain:
            yield Finding(
                "VM_WITHOUT_PORT",
                Severity.WARNING,
                f"{orphan.domain} has a vhost-user interface at {orphan.socket} that no port of this switch connects to",
                "nothing, if another program serves it: it is left alone",
            )
    no_vni = [p for p in facts.ports if p.vni is None]
    if no_vni:
        yield blocking(
            "VNI_UNKNOWN",
            f"{some([p.label for p in no_vni])}: the database does not say in which VNI these VMs are, so their "
            "traffic cannot be steered one by one",
            f"ovs-vsctl set Interface {no_vni[0].interface} external_ids:vni=<VNI>   (key: host.vni_external_id)",
        )


def _steering(facts: HostFacts) -> Iterator[Finding]:
    if facts.steering_problem:
        yield blocking(
            "STEERING_UNUSABLE",
            f"{facts.steering_adapter}: {facts.steering_problem}",
            "mend nic.* in the configuration, or the NIC",
        )


def _control(facts: HostFacts) -> Iterator[Finding]:
    if facts.control_problem:
        yield blocking(
            "WELL_KNOWN_TAKEN",
            facts.control_problem,
            "set host.well_known in the configuration to the directory that this host's switch may have, or end that one",
        )


_CHECKS: tuple[Callable[[HostFacts], Iterator[Finding]], ...] = (
    _switches,
    _target,
    versions,
    _hugepages,
    _vms,
    *SWITCH_CHECKS,
    _steering,
    _control,
)
