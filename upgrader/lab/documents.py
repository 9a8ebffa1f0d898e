"""What `upgrade lab` prints with --json, as values. docs/schemas is made of these; fields are only ever added to a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from upgrader.core.report import SCHEMA_VERSION
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import Phase
from upgrader.lab.traffic.analysis import FlowFigures
from upgrader.lab.traffic.render import warnings
from upgrader.lab.traffic.selftest import Check
from upgrader.lab.traffic.session import TrafficRun
from upgrader.lab.up import GuestStatus, LabStatus, SlotView


@dataclass(frozen=True, slots=True)
class LabGuest:
    """One guest. qemu_pid: null where it does not run; channel: the socket of its agent."""

    name: str
    ip: str
    mac: str
    port: str
    channel: str
    qemu_pid: int | None
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LabDocument:
    """`lab up` and `lab status`. phase: null where there is none of this name; built, took_s: null but for `lab up`."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["lab"] = "lab"
    name: str
    phase: Phase | None
    healthy: bool
    problems: tuple[str, ...]
    config: str
    options: LabSpec
    libvirt_uri: str
    libvirtd_pid: int | None
    slots: tuple[SlotView, ...]
    guests: tuple[LabGuest, ...]
    built: bool | None = None
    took_s: float | None = None


@dataclass(frozen=True, slots=True)
class LinkChanges:
    """What a guest's interface went through meanwhile."""

    carrier_changes: int
    set_up_anew: bool
    restarted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficDocument:
    """`lab traffic`. flows: each VM and direction; windows: the same around what was marked; links: by VM."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["traffic"] = "traffic"
    seconds: float
    flows: tuple[FlowFigures, ...]
    windows: dict[str, tuple[FlowFigures, ...]]
    links: dict[str, LinkChanges]
    clock_error_us: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestDocument:
    """`lab traffic --self-test`."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["traffic-self-test"] = "traffic-self-test"
    passed: bool
    checks: tuple[Check, ...]


def lab_document(seen: LabStatus, *, built: bool | None = None, took_s: float | None = None) -> LabDocument:
    return LabDocument(
        name=seen.spec.name,
        phase=seen.phase,
        healthy=seen.healthy,
        problems=seen.problems,
        config=str(seen.spec.config_path),
        options=seen.spec,
        libvirt_uri=seen.spec.libvirt_uri,
        libvirtd_pid=seen.libvirtd_pid,
        slots=seen.slots,
        guests=tuple(map(_guest, seen.guests)),
        built=built,
        took_s=took_s,
    )


def traffic_document(run: TrafficRun, control: TrafficRun | None) -> TrafficDocument:
    """The whole run; with `control_gap_us` per flow when there was a control run."""
    return TrafficDocument(
        seconds=run.seconds,
        flows=run.figures(control=control),
        windows={window.label: run.figures(window, control=control) for window in run.windows},
        links={
            vm: LinkChanges(
                after.carrier_changes - before.carrier_changes,
                after.ifindex != before.ifindex or after.rx_packets < before.rx_packets,
                after.uptime_ns < before.uptime_ns,
            )
            for vm, (before, after) in run.links.items()
        },
        clock_error_us=run.clock_error_us,
        warnings=tuple(warnings(run)),
    )


def self_test_document(checks: Sequence[Check]) -> SelfTestDocument:
    return SelfTestDocument(passed=all(check.passed for check in checks), checks=tuple(checks))


def _guest(guest: GuestStatus) -> LabGuest:
    vm = guest.vm
    return LabGuest(vm.name, vm.ip, vm.mac, vm.port, str(vm.channel), guest.qemu_pid, guest.ready)
