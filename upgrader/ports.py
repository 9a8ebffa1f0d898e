"""What the coordinator needs of a host, as protocols; `upgrader.adapters` holds one implementation a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from upgrader.core.model import (
    HugepagePool,
    NicFacts,
    PortBinding,
    RingOwnership,
    Slot,
    SlotName,
    SlotStatus,
    SteeringCapabilities,
    SteeringRule,
    SwitchFacts,
    SwitchResult,
    VmInterface,
    VmPort,
)


class Processes(Protocol):
    """The two daemons of a slot."""

    def status(self, slot: Slot) -> SlotStatus: ...
    def running_version(self, slot: Slot) -> str | None: ...
    def installed_version(self, slot: Slot) -> str | None: ...
    def start_database(self, slot: Slot, image: Path | None = None) -> int: ...
    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int: ...
    def polled_queues(self, slot: Slot) -> dict[str, int]:
        """How many receive queues of each port a PMD thread polls and the peer has enabled."""

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        """Whether the switch writes a log line for each vhost message; it takes longer than what the line tells of."""

    def stop(self, slot: Slot) -> None: ...
    def kill_switch(self, slot: Slot) -> None: ...


class Database(Protocol):
    """The OVSDB of a slot."""

    def read(self, slot: Slot) -> SwitchFacts: ...
    def backup(self, slot: Slot, target: Path) -> None:
        """Write a copy of the database, row UUIDs kept, to the file `target`."""

    def rehome(self, slot: Slot, bindings: Sequence[PortBinding]) -> None:
        """Turn a copy into the slot's own: its VF, DPDK options, sockets; controllers and managers left out."""

    def set_fail_modes(self, slot: Slot, modes: dict[str, str | None]) -> None:
        """Set Bridge.fail_mode by bridge name; None leaves it to OVS' default."""

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        """Return once each interface has its ofport and its link is up. Raises HostError naming those that lack it."""


class OpenFlow(Protocol):
    """OpenFlow state of a slot's bridges, in the words of ovs-ofctl(8)."""

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]: ...
    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]: ...
    def copy(self, source: Slot, target: Slot, bridge: str) -> int:
        """Make the target's tables, groups, meters and TLV map those of the source; returns the number of flows."""

    def difference(self, source: Slot, target: Slot, bridge: str) -> str:
        """What `target` lacks (-) or has too much (+) against `source`, empty when equal."""

    def copy_neighbours(self, source: Slot, target: Slot) -> int:
        """Give the target's tunnels the neighbours the source knows; returns how many."""


class Hypervisor(Protocol):
    """Running VMs and the vhost-user connections of their QEMU."""

    def vm_interfaces(self) -> tuple[VmInterface, ...]: ...
    def ownership(self, port: VmPort) -> RingOwnership | None:
        """Who serves the port's rings; None when the VM or its netdev is gone."""

    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None: ...
    def drop_connection(self, port: VmPort, chardev: str) -> None:
        """Detach `chardev` where it is the standby, and remove it where it is ours. Idempotent; not for the owner."""

    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult: ...


class Steering(Protocol):
    """Who of the two slots gets the overlay's traffic. Every verb may be said twice, and after a crash between any two.

    A NIC without rules for single VMs (`capabilities().per_vm`) keeps the whole port where most VMs are served while a
    window is open.
    """

    def capabilities(self) -> SteeringCapabilities: ...
    def facts(self) -> NicFacts: ...
    def prepare(self, slot: SlotName) -> None:
        """Set what the slot's VF needs. Before a switch opens it: some of it resets the VF."""

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:
        """All overlay traffic to one slot, by one rule; `anew` writes the rule again though it looks right.

        A VF that was reset is a new target to the NIC, and rules keep the old one.
        """

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        """A rule for each port, to the slot that serves it; the rest to both slots where dual delivery is to be had."""

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        """One port's traffic to these slots: one, or both where dual delivery is to be had."""

    def close_window(self, slot: SlotName) -> None:
        """All overlay traffic to `slot`, and no rule for single ports any more."""

    def failover(self, slot: SlotName) -> None:
        """Everything to `slot`, as fast as can be, in whatever state steering is: the other switch is dead."""

    def rules(self) -> tuple[SteeringRule, ...]: ...
    def arrived(self) -> dict[SlotName, int]:
        """Packets each slot's VF was given so far. What `core.steering.judge` verifies by: a return code may lie."""


class Resources(Protocol):
    """What a slot needs of the machine."""

    def hugepages(self) -> tuple[HugepagePool, ...]: ...
    def netns_exists(self, netns: str | None) -> bool: ...
    def netdev_exists(self, netns: str | None, name: str) -> bool: ...
    def listen(self, path: Path) -> int:
        """Bind and listen on a unix socket for one peer; returns the descriptor. The folder must be 0700."""

    def redirect(self, path: Path, target: Path) -> None:
        """Put a symbolic link to `target` in the place of the socket `path`, in one step."""

    def remove(self, path: Path) -> None:
        """Remove a socket file; one that is not there is fine."""

    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        """Give the target's netdevs (bridge LOCAL ports) the addresses, state and routes of the source's."""


class Clock(Protocol):
    """Time, so that a test can give it."""

    def now_ns(self) -> int:
        """CLOCK_REALTIME, ns since the epoch."""

    def monotonic_s(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class Recorder(Protocol):
    """Who is told, and keeps, how a run goes: a terminal, a log, a journal. `intent` comes before the effect."""

    def intent(self, number: int, total: int, title: str) -> None: ...
    def outcome(self, number: int, title: str, took_s: float, data: Mapping[str, object]) -> None: ...
    def failed(self, number: int, title: str, error: Exception) -> None: ...
    def undone(self, number: int, title: str, error: Exception | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Host:
    """Every port of one host, and the limits a run keeps."""

    processes: Processes
    database: Database
    openflow: OpenFlow
    hypervisor: Hypervisor
    steering: Steering
    resources: Resources
    clock: Clock
    ready_timeout_s: float
