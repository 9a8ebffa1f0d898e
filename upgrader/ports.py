"""What the coordinator needs of a host, as protocols; `upgrader.adapters` holds one implementation a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from upgrader.core.control import Control
from upgrader.core.health import Pulse
from upgrader.core.journal import Event, Heading, RunView
from upgrader.core.lifecycle import RunState
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
from upgrader.core.plan import Plan
from upgrader.core.proof import Difference
from upgrader.core.replica import Copied


class DeathWatch(Protocol):
    """Tells of the death of one process at its first sign, which may be long before it is gone."""

    @property
    def early(self) -> bool:
        """Whether it does so; else when the process is gone."""

    def fileno(self) -> int:
        """For select(2): readable when `died` is worth asking."""

    def died(self) -> bool:
        """Whether no thread of it will come back to its program; takes up what made it readable."""

    def close(self) -> None: ...


class Probe(Protocol):
    """Looks at a switch without ever waiting for it."""

    def pulse(self) -> Pulse | None:
        """One look; None when the process is gone."""

    def close(self) -> None: ...


class Processes(Protocol):
    """The two daemons of a slot."""

    def status(self, slot: Slot) -> SlotStatus: ...
    def running_version(self, slot: Slot) -> str | None: ...
    def installed_version(self, slot: Slot) -> str | None: ...
    def dpdk_version(self, slot: Slot) -> str | None:
        """Of the DPDK that the slot's binary is built on, e.g. ``22.11.11``; None where it does not say."""

    def start_database(self, slot: Slot, image: Path | None = None) -> int: ...
    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int: ...
    def polled_queues(self, slot: Slot) -> dict[str, int]:
        """How many receive queues of each port a PMD thread polls and the peer has enabled."""

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        """Whether the switch writes a log line for each vhost message; it takes longer than what the line tells of."""

    def stop(self, slot: Slot) -> None: ...
    def kill_switch(self, slot: Slot) -> None: ...
    def watch(self, slot: Slot) -> DeathWatch | None:
        """What tells of the death of the slot's switch, None where none runs; the caller closes it."""

    def probe(self, slot: Slot) -> Probe | None:
        """What looks at how the slot's switch works, None where none runs; the caller closes it."""

    def fence(self, slot: Slot, pids: Collection[int] = ()) -> frozenset[int]:
        """SIGKILL the slot's switch where it lives, and return once none of its threads will run in user space again.

        That is before the kernel has unmapped its memory and closed its sockets. `pids`: processes that were known to be
        the slot's switch, in case the pid file tells of none any more. Returns those that are proved harmless; a living
        process that is not the slot's is left alone and is not among them. Idempotent; raises HostError when a thread stays.
        """

    def start_at_boot(self, slot: Slot) -> None:
        """From the next boot on this slot's daemons are started, and not the other's, where that is ours to say."""


class Database(Protocol):
    """The OVSDB of a slot."""

    def read(self, slot: Slot) -> SwitchFacts:
        """What the slot is configured to do: nothing where its database was made and not filled yet.

        Raises HostError where no database answers, as all that follows does.
        """

    def bridges(self, slot: Slot) -> tuple[str, ...]:
        """Names of the slot's bridges; costs less than to read all of it."""

    def sync(self, source: Slot, target: Slot, bindings: Sequence[PortBinding], *, applied: bool = True) -> Copied:
        """Make the target's configuration that of a standby of the source, row UUIDs kept, in one transaction.

        VF, DPDK options, sockets stay the slot's own (core/replica.py says what); who is in control of the source is
        noted, not exerted. With `applied`, returns once the target's switch has taken it; for one that does not run
        yet, without. Idempotent.
        """

    def image(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> Path | None:
        """What `sync` would make of an empty database, as a file for the target's server to start from.

        None for a server that takes rows with the UUIDs they have, which is what `sync` gives it.
        """

    def differences(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> tuple[Difference, ...]:
        """What `sync` would change, and ports whose OpenFlow numbers are not the same."""

    def in_control(self, slot: Slot) -> bool:
        """Whether the slot is the one that controllers and managers are with (core/control.py)."""

    def control(self, slot: Slot) -> Control:
        """Who is in control of the slot, or would be after `assume_control`."""

    def release_control(self, slot: Slot) -> None:
        """Take controllers and managers away; no flow is lost by it. Idempotent."""

    def assume_control(self, slot: Slot) -> None:
        """Exert the control that the slot's database has a note of. Idempotent; nothing where there is none."""

    def unready(self, slot: Slot, expected_up: Sequence[str]) -> tuple[str, ...]:
        """What a slot's ports lack, in words: each an OpenFlow number; a link and a memory pool those named.

        Their `error` column is not looked at: it stays empty when a port has no memory.
        """

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        """Return once each interface has its ofport and its link is up. Raises HostError naming those that lack it."""


class OpenFlow(Protocol):
    """What controllers and the network taught a slot's bridges, in the words of ovs-ofctl(8) and ovs-vswitchd(8)."""

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]: ...
    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]: ...
    def settings(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """What OpenFlow set beside its tables and no copy is made of: ``port 3 NO_FWD``, ``fragments drop``."""

    def sync(self, source: Slot, target: Slot, bridge: str, *, hold: bool, moving: bool = False) -> Mapping[str, int]:
        """Make the target's flows, groups, meters and TLV map those of the source; returns what was changed.

        With `hold` time-outs are held off: on the side that sees no traffic they would run out. While VMs are
        `moving`, flows that may have run out on the source for the same reason are kept.
        """

    def release_flows(self, slot: Slot, bridge: str) -> int:
        """Let flows that are held, and have no other time-out to go back to, run out by themselves; how many."""

    def differences(self, source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[Difference, ...]:
        """What of the above is not the same; with `hold`, time-outs aside."""

    def sync_learned(self, source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
        """Give the target the tunnel neighbours, user's routes and learned addresses that the source has."""

    def teach_neighbours(self, slot: Slot, neighbours: Mapping[str, str]) -> int:
        """Have the switch know the MAC of each IP address that it reaches with no gateway between; how many were new."""

    def learned_differences(self, source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
        """Neighbours, routes and learned addresses of the source that the target lacks or has otherwise."""

    def traces(self, source: Slot, target: Slot, limit: int) -> tuple[int, tuple[Difference, ...]]:
        """Trace live megaflows of the source in both; how many were traced, and those that end otherwise."""


class Fence(Protocol):
    """A descriptor by which one VM's QEMU is told that its owner is fenced. Nobody else can say it but who gave it.

    name  what `RingOwnership.fence` says as long as QEMU waits for it
    pid   the owner
    """

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    def say(self) -> None:
        """That process is fenced: QEMU does by itself, and soon, what `switch` with `fenced` does. Without effect when the
        VM has got another owner or standby since, or said again; nothing is returned, `ownership` tells.
        """

    def close(self) -> None:
        """Nothing will be said by it any more."""


class Hypervisor(Protocol):
    """Running VMs and the vhost-user connections of their QEMU."""

    def vm_interfaces(self) -> tuple[VmInterface, ...]: ...
    def ownership(self, port: VmPort) -> RingOwnership | None:
        """Who serves the port's rings; None when the VM or its netdev is gone."""

    def migrating(self, port: VmPort) -> bool:
        """Whether the VM is on its way to or from another host: QEMU has taken its standby away, and takes none."""

    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None:
        """Give the VM its second connection; with `listener_fd`, over a socket that is handed to QEMU.

        What an earlier run left under that name is refused; it has to be dropped before the socket is bound: QEMU unlinks
        its path. Raises HostError.
        """

    def drop_connection(self, port: VmPort, chardev: str) -> None:
        """Detach `chardev` where it is the standby, and remove it where it is ours. Idempotent; not for the owner."""

    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult: ...
    def give_fence(self, port: VmPort, pid: int) -> Fence | None:
        """Give a VM that process `pid` serves, and on which another one stands by, a new one; the former is void.

        None where QEMU or libvirt cannot. Raises HostError where QEMU refuses: nothing was changed.
        """


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

    def fence(self, slot: SlotName) -> None:
        """Stop the VF of a switch that is dead, where the NIC can; `prepare` lifts it. It takes up to 300 ms.

        Never raises: nothing depends on it.
        """

    def rules(self) -> tuple[SteeringRule, ...]: ...
    def rule(self, port: VmPort) -> SteeringRule | None:
        """The one of `rules` that is this port's alone, read from the NIC at a cost that others' rules do not add to."""

    def arrived(self) -> dict[SlotName, int]:
        """Packets each slot's VF was given so far. What `core.steering.judge` verifies by: a return code may lie."""

    def neighbours(self) -> Mapping[str, str]:
        """MAC by IP address of who answers to the PF, where the VFs get no copy of that and switches have to be told.

        Empty where they do (`capabilities().copies_answers`).
        """


class Resources(Protocol):
    """What a slot needs of the machine."""

    def hugepages(self) -> tuple[HugepagePool, ...]: ...
    def netns_exists(self, netns: str | None) -> bool: ...
    def vf_exists(self, netns: str | None, vf: str) -> bool:
        """A slot's VF: a netdev in its namespace, or a PCI device that is bound to vfio-pci."""

    def listen(self, path: Path) -> int:
        """Bind and listen on a unix socket for one peer; returns the descriptor. The folder must be 0700."""

    def redirect(self, path: Path, target: Path) -> None:
        """Put a symbolic link to `target` in the place of the socket `path`, in one step."""

    def remove(self, path: Path) -> None:
        """Remove a socket file; one that is not there is fine."""

    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        """Give the target's netdevs (bridge LOCAL ports) the addresses, state and routes of the source's."""


class WellKnown(Protocol):
    """The names by which tools and clients reach the switch without being told where it is: the control plane."""

    def adopt(self) -> None:
        """Make a switch that runs under the well-known names themselves reachable by its slot's as well. Idempotent."""

    def mend(self) -> SlotName | None:
        """Follow bridges and pids of the slot that has the names; where none has, and one runs, it gets them."""

    def current(self) -> SlotName | None:
        """The slot the names lead to; None where that is not one slot."""

    def problem(self) -> str | None:
        """Why no slot may be given the names; None where one may."""

    def point_to(self, name: SlotName, bridges: Sequence[str]) -> None:
        """Make every name lead to that slot. Idempotent; raises HostError where a switch that is neither's has them."""

    def drop_clients(self, slot: SlotName) -> bool:
        """Make clients of the slot's database connect anew by the names; False where they follow when it ends."""

    def who_answers(self, bridges: Sequence[str]) -> dict[str, int | None]:
        """Pid that answers each name: ``ovs-vswitchd``, ``ovsdb-server``, ``db.sock``, ``<bridge>.mgmt``."""


class Clock(Protocol):
    """Time, so that a test can give it."""

    def now_ns(self) -> int:
        """CLOCK_REALTIME, ns since the epoch."""

    def monotonic_s(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class Journal(Protocol):
    """Runs and their events, kept so that they survive whoever writes them. One coordinator writes, anybody reads.

    What `begin` and `append` were given is on the disk when they return. Both raise SupersededError, and write
    nothing, when another coordinator has claimed the journal since.
    """

    def claim(self) -> int:
        """Become the one writer: raise the coordinator's generation, and return it."""

    def require_claim(self) -> None:
        """Raises SupersededError when another coordinator has claimed the journal since."""

    def begin(self, plan: Plan, at_ns: int) -> RunView: ...
    def append(self, run_id: int, event: Event) -> None: ...
    def plan(self, run_id: int) -> Plan: ...
    def view(self, run_id: int) -> RunView | None: ...
    def latest(self) -> RunView | None:
        """The run that began last."""

    def headings(self, limit: int, *, steps: bool = True) -> tuple[tuple[Heading, RunState, int], ...]:
        """The newest runs first: heading, state, and when the last event came (CLOCK_REALTIME, ns).

        Without `steps` headings have none: of many runs of many VMs they take a second to read.
        """


#: Who is told how a run goes, after the journal has it. Must not hold the run up.
Watcher = Callable[[RunView, Event], None]


@dataclass(frozen=True, slots=True)
class Host:
    """Every port of one host, and the limits a run keeps."""

    processes: Processes
    database: Database
    openflow: OpenFlow
    hypervisor: Hypervisor
    steering: Steering
    resources: Resources
    well_known: WellKnown
    clock: Clock
    ready_timeout_s: float
    vni_key: str = "vni"  # of Interface.external_ids
