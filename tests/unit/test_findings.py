"""Each finding: what raises it, and that a sound host raises none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from upgrader.core.findings import Severity, find
from upgrader.core.model import Bridge, HostFacts, HugepagePool, Interface, OrphanInterface
from upgrader.sim.facts import (
    PID,
    host_facts,
    ownership,
    slot,
    slot_facts,
    switch_facts,
    vm_port,
)


def codes(facts: HostFacts, severity: Severity = Severity.BLOCKING) -> list[str]:
    return [f.code for f in find(facts) if f.severity is severity]


def bridge(**changes: object) -> HostFacts:
    sound = switch_facts(2)
    changed = replace(sound.bridges[0], **changes)  # type: ignore[arg-type]
    return host_facts(switch=replace(sound, bridges=(changed, sound.bridges[1])))


def test_a_sound_host_has_no_findings() -> None:
    assert find(host_facts()) == ()


@pytest.mark.parametrize(
    "flow",
    [
        "priority=10,ip actions=ct(commit),output:2",
        "priority=10,ct_state=+trk,ip actions=output:2",
        "priority=10,ip actions=ct_clear,output:2",
    ],
)
def test_connection_tracking_blocks(flow: str) -> None:
    found = find(bridge(flows=(flow,)))
    assert [f.code for f in found] == ["CONNTRACK_IN_USE"]
    assert flow in found[0].what


def test_a_name_that_only_looks_like_ct_does_not_block() -> None:
    assert codes(bridge(flows=("cookie=0xc7, priority=1,dl_dst=02:c7:00:00:00:01 actions=output:direct",))) == []


def test_too_few_hugepages_name_the_number_to_write() -> None:
    facts = host_facts(hugepages=(HugepagePool(0, 2048, 40, 10), HugepagePool(0, 1048576, 0, 0)))
    (found,) = find(facts)
    assert found.code == "HUGEPAGES_SHORT"
    # 64 MiB wanted, 20 MiB free: 22 pages of 2 MiB are missing on top of the 40 there are
    assert "echo 62 > " in found.remedy


def test_hugepages_are_counted_on_each_numa_node() -> None:
    b = slot_facts("b", runs=False, slot=slot("b", socket_mem_mib="64,64"))
    facts = host_facts(slots=(slot_facts("a", runs=True), b), hugepages=(HugepagePool(0, 2048, 512, 512),))
    (found,) = find(facts)
    assert "NUMA node 1" in found.what


def test_an_unpatched_qemu_blocks_and_names_the_vms() -> None:
    facts = host_facts(ports=(vm_port(0), vm_port(1, ownership=None)))
    (found,) = find(facts)
    assert found.code == "QEMU_UNPATCHED"
    assert "vm1" in found.what
    assert "vm0" not in found.what


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"binaries_present": False}, "SLOT_BINARIES_MISSING"),
        ({"netns_present": False, "vf_present": False}, "SLOT_NETNS_MISSING"),
        ({"vf_present": False}, "VF_MISSING"),
        ({"slot": slot("b", pmd_cpu_mask="0x3")}, "PMD_CORES_SHARED"),
        ({"slot": slot("b", uplink="uplink9")}, "UPLINK_UNKNOWN"),
    ],
)
def test_what_the_target_slot_lacks_blocks(changes: dict[str, object], code: str) -> None:
    facts = host_facts(slots=(slot_facts("a", runs=True), slot_facts("b", runs=False, **changes)))
    assert codes(facts) == [code]


def test_nothing_runs() -> None:
    facts = host_facts(active=None, ports=(), slots=(slot_facts("a", runs=False), slot_facts("b", runs=False)))
    assert codes(facts) == ["NO_SWITCH"]


def test_a_host_half_way_is_told_apart_from_a_standby_left_over() -> None:
    both = (slot_facts("a", runs=True), slot_facts("b", runs=True))
    half = host_facts(
        active=None, slots=both, ports=(vm_port(0), vm_port(1, ownership=ownership("hotup-b-hostnet0", PID["b"])))
    )
    assert codes(half) == ["BOTH_SLOTS_OWN_VMS"]
    left_over = host_facts(slots=both)
    assert codes(left_over) == []
    assert codes(left_over, Severity.WARNING) == ["STANDBY_LEFT_OVER"]


@pytest.mark.parametrize(
    "owner",
    [
        replace(ownership("charnet0", PID["a"]), owner_connected=False, owner_pid=None),
        replace(ownership("charnet0", PID["a"]), in_doubt=True),
    ],
)
def test_a_vm_that_nobody_serves_blocks(owner: object) -> None:
    assert codes(host_facts(ports=(vm_port(0, ownership=owner),))) == ["VM_NOT_SERVED"]


def test_a_vm_served_by_a_stranger_blocks() -> None:
    assert codes(host_facts(ports=(vm_port(0, ownership=ownership("charnet0", 77)),))) == ["VM_SERVED_BY_OTHER"]


def test_a_vm_without_vni_cannot_be_steered() -> None:
    assert codes(host_facts(ports=(vm_port(0, vni=None),))) == ["VNI_UNKNOWN"]


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (bridge(datapath_type="system"), "KERNEL_DATAPATH"),
        (bridge(controllers=("tcp:127.0.0.1:6653",)), "CONTROLLER_CONNECTED"),
        (host_facts(switch=switch_facts(2, managers=("ptcp:6640",))), "MANAGER_CONNECTED"),
        (host_facts(steering_problem="there is no netdev pf0"), "STEERING_UNUSABLE"),
    ],
)
def test_what_cannot_be_carried_blocks(facts: HostFacts, code: str) -> None:
    assert codes(facts) == [code]


def test_a_port_that_dies_with_the_switch_blocks() -> None:
    sound = switch_facts(2)
    server = Interface("vhs0", "br-int", "dpdkvhostuser", (), (), 30, "up", None)
    assert codes(host_facts(switch=replace(sound, interfaces=(*sound.interfaces, server)))) == ["VHOST_SERVER_MODE"]


def test_a_foreign_vhost_interface_is_only_mentioned() -> None:
    facts = host_facts(orphans=(OrphanInterface("vm9", None, "/run/other.sock"),))
    assert codes(facts) == []
    assert codes(facts, Severity.WARNING) == ["VM_WITHOUT_PORT"]


def test_a_downgrade_is_mentioned() -> None:
    facts = host_facts(slots=(slot_facts("a", runs=True), slot_facts("b", runs=False, installed_version="2.17.9")))
    assert codes(facts, Severity.WARNING) == ["DOWNGRADE"]


def test_an_accepted_finding_stays_visible() -> None:
    facts = host_facts(
        slots=(slot_facts("a", runs=True), slot_facts("b", runs=False, slot=slot("b", pmd_cpu_mask="0x1")))
    )
    (found,) = find(facts, accept=("PMD_CORES_SHARED",))
    assert (found.code, found.severity) == ("PMD_CORES_SHARED", Severity.WARNING)


def test_blocking_findings_come_first() -> None:
    facts = host_facts(
        orphans=(OrphanInterface("vm9", None, "/x"),),
        switch=switch_facts(2, bridges=(Bridge("br-int", "system", None, ()),)),
    )
    assert [f.severity for f in find(facts)] == [Severity.BLOCKING, Severity.WARNING]
