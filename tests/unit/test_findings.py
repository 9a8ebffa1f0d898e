"""Each finding: what raises it, and that a sound host raises none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from upgrader.core.findings import ACCEPTABLE, Severity, find
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


def speaking(what: str) -> HostFacts:
    return host_facts(switch=switch_facts(2, speakers=(what,)))


def with_interface(kind: str) -> HostFacts:
    sound = switch_facts(2)
    more = Interface("x0", "br-int", kind, (), (), 30, "up", None)
    return host_facts(switch=replace(sound, interfaces=(*sound.interfaces, more)))


def test_a_port_for_what_is_caught_is_in_both_slots() -> None:
    """Its netdev has one name in two namespaces; any other device only one switch can have."""
    found = with_interface("dpdk")
    target = found.slot("b")
    catching = replace(found, slots=(found.slot("a"), replace(target, slot=replace(target.slot, catch_port="x0"))))
    assert find(catching) == ()
    assert codes(
        replace(catching, slots=(found.slot("a"), replace(target, slot=replace(target.slot, catch_port="x1"))))
    ) == [
        "CATCH_PORT_MISSING",
        "INTERFACE_NOT_SHARED",
    ]


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
        (bridge(controllers=("tcp:127.0.0.1:6653",)), "CONTROLLER_LOOPBACK"),
        (bridge(controllers=("tcp:192.0.2.1:6653", "ssl:[::1]:6653")), "CONTROLLER_LOOPBACK"),
        (host_facts(switch=switch_facts(2, managers=("ptcp:6640:127.0.0.1",))), "MANAGER_LOOPBACK"),
        (host_facts(switch=switch_facts(2, managers=("ptcp:6640",))), "MANAGER_LOOPBACK"),
        (host_facts(switch=switch_facts(2, managers=("pssl:6640:[::]",))), "MANAGER_LOOPBACK"),
        (speaking("LACP on port bond0"), "LACP_IN_USE"),
        (speaking("a bond on port bond0"), "BOND_IN_USE"),
        (speaking("STP on bridge br-int"), "STP_IN_USE"),
        (speaking("RSTP on bridge br-int"), "STP_IN_USE"),
        (speaking("BFD on interface vx0"), "BFD_IN_USE"),
        (speaking("CFM on interface vx0"), "BFD_IN_USE"),
        (speaking("mirrors on bridge br-int"), "MIRRORS_IN_USE"),
        (speaking("sFlow to 192.0.2.9:6343 on bridge br-int"), "FLOW_EXPORT_IN_USE"),
        (speaking("IPFIX to 127.0.0.1:4739 on bridge br-int"), "FLOW_EXPORT_LOOPBACK"),
        (speaking("NetFlow to localhost:5566 on bridge br-int"), "FLOW_EXPORT_LOOPBACK"),
        (with_interface("system"), "INTERFACE_NOT_SHARED"),
        (with_interface("dpdk"), "INTERFACE_NOT_SHARED"),
        (with_interface("quantum"), "INTERFACE_TYPE_UNKNOWN"),
        (host_facts(steering_problem="there is no netdev pf0"), "STEERING_UNUSABLE"),
    ],
)
def test_what_cannot_be_carried_blocks(facts: HostFacts, code: str) -> None:
    assert codes(facts) == [code]


@pytest.mark.parametrize(
    ("facts", "code", "severity"),
    [
        (speaking("QoS on port vhu0"), "QOS_RESTARTS", Severity.WARNING),
        (bridge(controllers=("tcp:192.0.2.1:6653",)), "CONTROLLER_STATE_NOT_CARRIED", Severity.INFO),
        (bridge(flows=("priority=1 actions=CONTROLLER:65535",)), "CONTROLLER_ACTIONS", Severity.WARNING),
        (bridge(flows=("priority=1 actions=controller(reason=no_match)",)), "CONTROLLER_ACTIONS", Severity.WARNING),
        (bridge(groups=("group_id=1,type=all,bucket=actions=CONTROLLER:9",)), "CONTROLLER_ACTIONS", Severity.WARNING),
        (with_interface("geneve"), None, Severity.WARNING),
        (host_facts(switch=switch_facts(2, managers=("ssl:192.0.2.1:6640",))), None, Severity.WARNING),
        (host_facts(switch=switch_facts(2, managers=("ptcp:6640:192.0.2.1",))), None, Severity.WARNING),
    ],
)
def test_what_is_carried_in_part_is_said_and_does_not_block(
    facts: HostFacts, code: str | None, severity: Severity
) -> None:
    assert [(f.code, f.severity) for f in find(facts)] == ([(code, severity)] if code else [])


def test_a_controller_on_loopback_is_reached_from_the_same_namespace() -> None:
    facts = bridge(controllers=("tcp:127.0.0.1:6653",))
    slots = (
        replace(facts.slots[0], slot=slot("a", netns=None)),
        slot_facts("b", runs=False, slot=slot("b", netns=None)),
    )
    assert codes(replace(facts, slots=slots)) == []


ELSEWHERE = ("STEERING_UNPROVEN", "SWITCH_EMPTY")  # made by core/steering.py and core/plan.py


@pytest.mark.parametrize("code", [c for c in ACCEPTABLE if c not in ELSEWHERE])
def test_what_can_be_accepted_is_said_with_how(code: str) -> None:
    """Every code that the configuration takes is one that a check makes, and its remedy names it."""
    shared = slot_facts("b", runs=False, slot=slot("b", pmd_cpu_mask="0x1"))
    hosts = [
        host_facts(slots=(slot_facts("a", runs=True), shared)),
        bridge(flows=("priority=1 actions=NORMAL",)),
        bridge(groups=("group_id=1,type=all,bucket=actions=NORMAL",)),
        bridge(settings=("port 3 NO_FWD",)),
        bridge(controllers=("tcp:127.0.0.1:6653",)),
        host_facts(switch=switch_facts(2, managers=("ptcp:6640:127.0.0.1",))),
        *(
            speaking(f"{what} on port p")
            for what in ("LACP", "a bond", "STP", "BFD", "mirrors", "sFlow to 192.0.2.9:1", "IPFIX to 127.0.0.1:1")
        ),
    ]
    found = [f for h in hosts for f in find(h) if f.code == code]
    assert found
    assert all(f'policy.accept = ["{code}"]' in f.remedy for f in found)
    assert not any(f.severity is Severity.BLOCKING for h in hosts for f in find(h, accept=(code,)) if f.code == code)


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
