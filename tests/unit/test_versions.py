"""What versions can do: the table, and the findings that follow from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from upgrader.core.findings import Severity, find
from upgrader.core.model import HostFacts
from upgrader.core.versions import Dpdk, Libvirt, Ovs, Qemu, can, parse
from upgrader.sim.facts import host_facts


@pytest.mark.parametrize(
    ("what", "version", "expected"),
    [
        (Dpdk.RING_LOCK, "17.11.0", False),
        (Dpdk.RING_LOCK, "17.11", False),
        (Dpdk.RING_LOCK, "17.11.1", True),
        (Dpdk.RING_LOCK, "17.11.10", True),
        (Dpdk.RING_LOCK, "17.08.2", False),
        (Dpdk.RING_LOCK, "18.02.0", True),
        (Dpdk.LIVE_TABLE, "17.11.3", False),
        (Dpdk.LIVE_TABLE, "17.11.4", True),
        (Dpdk.LIVE_TABLE, "18.02.2", False),
        (Dpdk.LIVE_TABLE, "22.11.11", True),
        (Dpdk.REPLY_ACK, "17.11.10", False),
        (Dpdk.REPLY_ACK, "20.08.0", True),
        (Ovs.ROW_UUIDS, "2.12.4", False),
        (Ovs.ROW_UUIDS, "2.13.0", True),
        (Ovs.OPENFLOW15, "2.11.9", False),
        (Ovs.OPENFLOW15, "2.12.0", True),
        (Ovs.TRACE_NAMES, "3.0.5", False),
        (Ovs.TRACE_NAMES, "3.1.0", True),
        (Ovs.LOG_LEVELS, "2.9.0", False),
        (Ovs.LOG_LEVELS, "3.1.0", True),
        (Libvirt.PASS_FDS, "7.0.0", False),
        (Libvirt.PASS_FDS, "8.2.0", True),
        (Libvirt.PASS_FDS, "9.0.0", True),
        (Qemu.BARRIER, "2.9.0", True),
        (Qemu.BARRIER, "2.9.1", True),
        (Qemu.BARRIER, "7.2.19", False),
        (Qemu.MEMFD, "2.9.0", False),
        (Qemu.MEMFD, "7.2.19", True),
        (Dpdk.RING_LOCK, None, None),
        (Dpdk.RING_LOCK, "unknown", None),
    ],
)
def test_the_table(what: Dpdk | Libvirt | Ovs | Qemu, version: str | None, expected: bool | None) -> None:
    assert can(what, version) is expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("DPDK 17.11.10", (17, 11, 10)),
        ("22.11.11-rc1", (22, 11, 11)),
        ("QEMU emulator version 2.9.0", (2, 9, 0)),
        ("3.1.0", (3, 1, 0)),
        (None, ()),
        ("", ()),
    ],
)
def test_numbers(text: str | None, numbers: tuple[int, ...]) -> None:
    assert parse(text) == numbers


def on(a: str, b: str, *, qemu: str | None = None, iommu: bool = False) -> HostFacts:
    """A sound host whose slots are on these DPDKs, and whose VMs are on this QEMU."""
    facts = host_facts()
    first, second = facts.slots
    assert first.switch is not None
    return replace(
        facts,
        slots=(
            replace(first, dpdk_version=a, switch=replace(first.switch, vhost_iommu=iommu)),
            replace(second, dpdk_version=b),
        ),
        ports=tuple(replace(p, qemu=qemu) for p in facts.ports),
    )


def found(facts: HostFacts) -> list[tuple[str, Severity]]:
    return [(f.code, f.severity) for f in find(facts)]


@pytest.mark.parametrize(("a", "b"), [("17.11.0", "17.11.10"), ("17.11.10", "17.11.0")])
def test_a_dpdk_without_ring_lock_blocks_in_either_slot(a: str, b: str) -> None:
    assert found(on(a, b, qemu="2.9.0")) == [("RING_LOCK_MISSING", Severity.BLOCKING)]


def test_a_fixed_memory_table_is_a_warning() -> None:
    assert found(on("17.11.1", "17.11.4", qemu="2.9.0")) == [("MEMORY_TABLE_FIXED", Severity.WARNING)]


def test_a_qemu_that_needs_answers_and_a_switch_that_hides_them() -> None:
    (finding,) = find(on("17.11.10", "22.11.11", qemu="7.2.19"))
    assert (finding.code, finding.severity) == ("ANSWERS_HIDDEN", Severity.BLOCKING)
    assert "slot a" in finding.what
    assert "vhost-iommu-support=true" in finding.remedy


def of_ovs(version: str, controllers: tuple[str, ...] = ()) -> HostFacts:
    """A sound host whose slot a has that Open vSwitch, led by these controllers."""
    facts = host_facts()
    first, second = facts.slots
    assert first.switch is not None
    bridges = tuple(replace(b, controllers=controllers) for b in first.switch.bridges)
    old = replace(first, installed_version=version, switch=replace(first.switch, bridges=bridges))
    return replace(facts, slots=(old, second))


def test_a_switch_of_2_9_is_told_of() -> None:
    assert found(of_ovs("2.9.0")) == [("ROWS_FIXED", Severity.WARNING)]
    assert found(of_ovs("2.13.0")) == []


def test_control_of_a_switch_of_2_9_cannot_move() -> None:
    assert ("CONTROL_FIXED", Severity.BLOCKING) in found(of_ovs("2.9.0", ("tcp:192.0.2.1:6653",)))
    assert "CONTROL_FIXED" not in {code for code, _ in found(of_ovs("2.13.0", ("tcp:192.0.2.1:6653",)))}


@pytest.mark.parametrize(
    ("libvirt", "root", "expected"),
    [
        ("7.0.0", False, [("SOCKET_NOT_PASSED", Severity.BLOCKING)]),
        ("7.0.0", None, [("SOCKET_NOT_PASSED", Severity.BLOCKING)]),
        ("7.0.0", True, []),
        ("9.0.0", False, []),
        (None, False, []),
    ],
)
def test_a_qemu_that_has_to_make_the_socket_by_itself(
    libvirt: str | None, root: bool | None, expected: list[tuple[str, Severity]]
) -> None:
    facts = on("22.11.11", "22.11.11")
    assert found(replace(facts, ports=tuple(replace(p, libvirt=libvirt, root=root) for p in facts.ports))) == expected


@pytest.mark.parametrize(
    "facts",
    [
        on("17.11.10", "17.11.10", qemu="2.9.0"),
        on("17.11.10", "22.11.11", qemu="2.9.0"),
        on("17.11.10", "22.11.11", qemu="7.2.19", iommu=True),
        on("22.11.11", "22.11.11", qemu="7.2.19"),
        on("22.11.11", "22.11.11", qemu="2.9.0"),
        on("22.11.11", "22.11.11"),
    ],
)
def test_what_goes_together(facts: HostFacts) -> None:
    assert found(facts) == []


def test_two_qemus_on_one_host_are_told_apart() -> None:
    facts = on("17.11.10", "17.11.10", qemu="2.9.0")
    old, *others = facts.ports
    assert others
    mixed = replace(facts, ports=(old, *(replace(p, qemu="7.2.19") for p in others)))
    (first, _second) = find(mixed)
    assert old.domain not in first.what.split("QEMU of", 1)[1]
