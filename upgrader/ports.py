"""What the coordinator needs of a host, as protocols; `upgrader.adapters` holds one implementation a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from upgrader.core.model import (
    HugepagePool,
    RingOwnership,
    Slot,
    SlotName,
    SlotStatus,
    SwitchFacts,
    SwitchResult,
    VmPort,
)


class Processes(Protocol):
    """The two daemons of a slot."""

    def status(self, slot: Slot) -> SlotStatus: ...
    def installed_version(self, slot: Slot) -> str | None: ...
    def start_database(self, slot: Slot, image: Path | None = None) -> int: ...
    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int: ...
    def stop(self, slot: Slot) -> None: ...
    def kill_switch(self, slot: Slot) -> None: ...


@dataclass(frozen=True, slots=True)
class PortBinding:
    """Where the standby's copy of one vhost interface connects to, and the path libvirt knows it by."""

    interface: str
    ofport: int
    socket: Path
    origin: Path


class Database(Protocol):
    """The OVSDB of a slot."""

    def read(self, slot: Slot) -> SwitchFacts: ...
    def backup(self, slot: Slot, target: Path) -> None:
        """Write a copy of the database, row UUIDs kept, to the file `target`."""

    def rehome(self, slot: Slot, bindings: Sequence[PortBinding]) -> None:
        """Turn a copy into the slot's own: its VF, DPDK options, sockets; controllers and managers left out."""

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        """Return once each interface has its ofport and its link is up. Raises HostError naming those that lack it."""

    def bind_socket(self, slot: Slot, interface: str, socket: Path) -> None:
        """Let one vhost interface connect to another socket from its next connection on."""


class OpenFlow(Protocol):
    """OpenFlow state of a slot's bridges, in the words of ovs-ofctl(8)."""

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]: ...
    def copy(self, source: Slot, target: Slot, bridge: str) -> int:
        """Make the target's tables, groups, meters and TLV map those of the source; returns the number of flows."""

    def difference(self, source: Slot, target: Slot, bridge: str) -> str:
        """What `target` lacks (-) or has too much (+) against `source`, empty when equal."""

    def copy_neighbours(self, source: Slot, target: Slot) -> int:
        """Give the target's tunnels the neighbours the source knows; returns how many."""


class Hypervisor(Protocol):
    """Running VMs and the vhost-user connections of their QEMU."""

    def vm_interfaces(self) -> tuple[VmInterface, ...]: ...
    def ownership(self, port: VmPort) -> RingOwnership | None: ...
    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None: ...
    def detach_standby(self, port: VmPort) -> None: ...
    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult: ...


@dataclass(frozen=True, slots=True)
class VmInterface:
    """One vhost-user interface of a running domain, as libvirt and its QEMU tell it."""

    domain: str
    domain_uuid: str
    mac: str
    socket: Path
    netdev: str
    chardev: str
    ownership: RingOwnership | None


@dataclass(frozen=True, slots=True)
class SteeringCapabilities:
    """What a NIC can do for a run.

    per_vm          one VM's overlay traffic can be sent elsewhere than the rest
    dual_delivery   one VM's traffic can be given to both slots at once, so that the hand-over needs no exact moment
    atomic_replace  a rule changes its target without a gap
    """

    per_vm: bool
    dual_delivery: bool
    atomic_replace: bool


@dataclass(frozen=True, slots=True)
class SteeringRule:
    """One rule of ours as read back from the NIC. `mac` and `vni` are None for the rule that takes all overlay traffic."""

    vni: int | None
    mac: str | None
    targets: tuple[SlotName, ...]
    packets: int


class Steering(Protocol):
    """Who of the two slots gets the overlay's traffic."""

    def capabilities(self) -> SteeringCapabilities: ...
    def steady(self, slot: SlotName) -> None:
        """All overlay traffic to one slot, by one rule."""

    def open_window(self, ports: Sequence[VmPort], slot: SlotName) -> None:
        """A rule for each port, all still to `slot`."""

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        """One port's traffic to these slots: one, or both where dual delivery is to be had."""

    def close_window(self, slot: SlotName) -> None:
        """All overlay traffic to `slot`, and no rule for single ports any more."""

    def rules(self) -> tuple[SteeringRule, ...]: ...


class Resources(Protocol):
    """What a slot needs of the machine."""

    def hugepages(self) -> tuple[HugepagePool, ...]: ...
    def netns_exists(self, netns: str | None) -> bool: ...
    def netdev_exists(self, netns: str | None, name: str) -> bool: ...
    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        """Give the target's netdevs (bridge LOCAL ports) the addresses, state and routes of the source's."""


class Progress(Protocol):
    """Who is told how a run goes: a terminal, a log, later a journal."""

    def step(self, number: int, total: int, title: str) -> None: ...
    def done(self, number: int, title: str, took_s: float, detail: str) -> None: ...
    def failed(self, number: int, title: str, error: Exception) -> None: ...
    def undone(self, title: str, error: Exception | None) -> None: ...
