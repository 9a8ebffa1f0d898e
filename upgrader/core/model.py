"""Values that the coordinator reasons about. Frozen, no behaviour beyond what follows from the fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SlotName = Literal["a", "b"]
# Interface.external_ids key under which a standby's copy of a vhost port keeps the socket path libvirt knows
ORIGIN_KEY = "hot-upgrade-socket"
# QEMU chardevs with this prefix are ours to remove; libvirt's own socket stays with libvirt
CHARDEV_PREFIX = "hotup"
SLOTS: tuple[SlotName, SlotName] = ("a", "b")


def other_slot(slot: SlotName) -> SlotName:
    """The other of the two slots."""
    return "b" if slot == "a" else "a"


@dataclass(frozen=True, slots=True)
class Slot:
    """Everything one switch instance owns.

    prefix          where its OVS is installed: sbin/ovs-vswitchd, bin/ovs-vsctl, share/openvswitch/…
    rundir          control sockets, pid files, database, logs; the `vhost` folder holds the standby sockets
    netns           named network namespace of its own, None for the host's
    vf              netdev of its VF as seen inside `netns`, or the PCI address of one that is bound to vfio-pci
    representor     netdev on the host's side through which steering reaches the VF, None where the NIC needs none
    uplink          name of the OVS interface that stands on the VF; the same in both slots
    devargs         DPDK device arguments of that interface
    pmd_cpu_mask    hexadecimal mask of its PMD cores, as OVS takes it
    socket_mem_mib  hugepage memory of the process, MiB per NUMA node as DPDK takes it ("64" or "64,64")
    dpdk_extra      further EAL arguments
    env             further environment of its two daemons
    catch_port      OVS interface by which it is given what steering in software brings, beside the VF; the same in both
                    slots, on a netdev of each one's namespace. None where the VF is that way itself
    """

    name: SlotName
    prefix: Path
    rundir: Path
    netns: str | None
    vf: str
    representor: str | None
    uplink: str
    devargs: str
    pmd_cpu_mask: str
    socket_mem_mib: str
    dpdk_extra: str
    env: tuple[tuple[str, str], ...] = ()
    catch_port: str | None = None

    @property
    def db_socket(self) -> Path:
        return self.rundir / "db.sock"

    @property
    def db_file(self) -> Path:
        return self.rundir / "conf.db"

    @property
    def vswitchd_pidfile(self) -> Path:
        return self.rundir / "ovs-vswitchd.pid"

    @property
    def ovsdb_pidfile(self) -> Path:
        return self.rundir / "ovsdb-server.pid"

    @property
    def vswitchd_ctl(self) -> Path:
        return self.rundir / "ovs-vswitchd.ctl"

    @property
    def ovsdb_ctl(self) -> Path:
        return self.rundir / "ovsdb-server.ctl"

    @property
    def vhost_dir(self) -> Path:
        return self.rundir / "vhost"


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """What of a slot runs now. A pid is None when that daemon does not run."""

    vswitchd_pid: int | None
    ovsdb_pid: int | None


@dataclass(frozen=True, slots=True)
class Ring:
    """One split vring as it stands in guest memory. Indexes are the free-running 16-bit ones of the virtio spec."""

    index: int
    size: int
    avail_idx: int
    used_idx: int
    enabled: bool

    @property
    def pending(self) -> int:
        """Buffers made available and not yet used."""
        return (self.avail_idx - self.used_idx) & 0xFFFF


@dataclass(frozen=True, slots=True)
class Standby:
    """The parked connection of a netdev. `reason` says why it is not ready, in QEMU's words."""

    chardev: str
    connected: bool
    ready: bool
    reason: str | None
    pid: int | None
    expected_pid: int | None


@dataclass(frozen=True, slots=True)
class RingOwnership:
    """QEMU's answer about one vhost-user netdev: who serves the guest's rings, who stands by.

    owner        chardev id of the connection that serves the guest
    owner_pid    process at its other end, None when not connected
    generation   raised by QEMU each time the owner changes
    in_doubt     an exchange missed its deadline; QEMU waits for late answers before anybody owns the rings
    fence        name of the descriptor by which QEMU waits to be told that the owner is fenced, empty: none; None: this
                 QEMU knows of no such thing
    """

    owner: str
    owner_connected: bool
    owner_pid: int | None
    generation: int
    standby: Standby | None
    in_doubt: bool
    rings: tuple[Ring, ...]
    fence: str | None = None


@dataclass(frozen=True, slots=True)
class SwitchResult:
    """What one change of owner took inside QEMU, nanoseconds per step; `blackout_ns` is their sum."""

    from_chardev: str
    to_chardev: str
    generation: int
    reason: Literal["command", "failover"]
    fenced: bool
    quiesce_ns: int
    index_ns: int
    activate_ns: int
    notify_ns: int
    blackout_ns: int


@dataclass(frozen=True, slots=True)
class VmInterface:
    """One vhost-user interface of a running domain, as libvirt and its QEMU tell it.

    socket     path libvirt gave QEMU to listen on
    netdev     QEMU's netdev id, e.g. ``hostnet0``
    chardev    QEMU's chardev id of that socket, e.g. ``charnet0``
    ownership  None: this QEMU has no second connection (unpatched)
    qemu       its version, e.g. ``7.2.19``; None where it did not say
    libvirt    of libvirtd, e.g. ``9.0.0``; None where it did not say
    root       whether its QEMU runs as root, None where libvirt does not say
    """

    domain: str
    domain_uuid: str
    mac: str
    socket: Path
    netdev: str
    chardev: str
    ownership: RingOwnership | None
    qemu: str | None = None
    libvirt: str | None = None
    root: bool | None = None


@dataclass(frozen=True, slots=True)
class VmPort:
    """One vhost-user interface of a running VM, joined from libvirt (domain, netdev) and OVSDB (interface).

    The fields of `VmInterface`, whose socket is the key that joins the two, and of the OVS interface its name,
    OpenFlow port and the VNI of its tenant network.
    """

    domain: str
    domain_uuid: str
    mac: str
    socket: Path
    netdev: str
    chardev: str
    interface: str
    ofport: int
    vni: int | None
    ownership: RingOwnership | None
    qemu: str | None = None
    libvirt: str | None = None
    root: bool | None = None

    @property
    def label(self) -> str:
        """How reports and logs name it: the domain, and the interface behind a slash."""
        return f"{self.domain}/{self.interface}"


@dataclass(frozen=True, slots=True)
class Interface:
    """One row of OVSDB's Interface table, as far as an upgrade looks at it."""

    name: str
    bridge: str
    type: str
    options: tuple[tuple[str, str], ...]
    external_ids: tuple[tuple[str, str], ...]
    ofport: int | None
    link_state: str | None
    error: str | None

    def option(self, key: str) -> str | None:
        return dict(self.options).get(key)

    def external_id(self, key: str) -> str | None:
        return dict(self.external_ids).get(key)


@dataclass(frozen=True, slots=True)
class Bridge:
    """One row of OVSDB's Bridge table."""

    name: str
    datapath_type: str
    fail_mode: str | None
    controllers: tuple[str, ...]
    protocols: tuple[str, ...] = ()  # OpenFlow versions it allows; empty: all
    flows: tuple[str, ...] = ()  # `dump-flows` lines without statistics
    groups: tuple[str, ...] = ()  # `dump-groups` lines
    settings: tuple[str, ...] = ()  # what OpenFlow set beside its tables, e.g. ``port 3 NO_FWD``, ``fragments drop``


@dataclass(frozen=True, slots=True)
class SwitchFacts:
    """What one switch is configured to do. `vhost_iommu`: other_config:vhost-iommu-support."""

    version: str
    bridges: tuple[Bridge, ...]
    interfaces: tuple[Interface, ...]
    managers: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()  # what sends packets of its own accord, e.g. ``LACP on port bond0``
    vhost_iommu: bool = False

    def vhost_interfaces(self) -> tuple[Interface, ...]:
        return tuple(i for i in self.interfaces if i.type in ("dpdkvhostuserclient", "dpdkvhostuser"))


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One slot, what runs in it (and in which version), and whether its parts are there to start from."""

    slot: Slot
    status: SlotStatus
    running_version: str | None
    binaries_present: bool
    netns_present: bool
    vf_present: bool
    installed_version: str | None
    switch: SwitchFacts | None  # None when its database does not run
    dpdk_version: str | None = None  # of the installed binary


@dataclass(frozen=True, slots=True)
class HugepagePool:
    """Free and total hugepages of one size on one NUMA node."""

    node: int
    size_kib: int
    total: int
    free: int

    @property
    def free_mib(self) -> int:
        return self.free * self.size_kib // 1024


@dataclass(frozen=True, slots=True)
class OrphanInterface:
    """A libvirt vhost-user interface that no OVS interface serves, or the other way round."""

    domain: str | None
    interface: str | None
    socket: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Everything a plan stands on, read once, nothing changed.

    control          slot that tools and clients reach by the well-known names, None where that is not one slot
    control_problem  why no slot may be given those names, None where one may
    """

    host: str
    slots: tuple[SlotFacts, SlotFacts]
    active: SlotName | None
    ports: tuple[VmPort, ...]
    orphans: tuple[OrphanInterface, ...]
    hugepages: tuple[HugepagePool, ...]
    steering_adapter: str
    steering_problem: str | None = None
    control: SlotName | None = None
    control_problem: str | None = None

    def slot(self, name: SlotName) -> SlotFacts:
        return self.slots[SLOTS.index(name)]

    @property
    def switch(self) -> SwitchFacts | None:
        """What the active switch is configured to do; half-way through a cut-off run either says the same."""
        if self.active:
            return self.slot(self.active).switch
        return self.slots[0].switch or self.slots[1].switch

    def serving(self, port: VmPort) -> SlotName | None:
        """The slot whose switch owns the port's rings."""
        return next((n for n in SLOTS if owned_by(port.ownership, self.slot(n).status.vswitchd_pid)), None)


def owned_by(ownership: RingOwnership | None, pid: int | None) -> bool:
    """Whether that process serves the rings now: connected, and no answer outstanding."""
    return (
        ownership is not None
        and pid is not None
        and ownership.owner_connected
        and not ownership.in_doubt
        and ownership.owner_pid == pid
    )


@dataclass(frozen=True, slots=True)
class PortBinding:
    """Where the standby's copy of one vhost interface connects to.

    socket   path the new switch dials; a symbolic link where `fresh`
    origin   path libvirt knows, which a restarted VM listens on
    chardev  QEMU's chardev for the second socket that we make where the first is in use; None where no VM runs
    fresh    the VM runs, and `socket` is a link that leads where we say; else that is libvirt's path, or nobody listens
    """

    interface: str
    ofport: int
    socket: Path
    origin: Path
    chardev: str | None
    fresh: bool

    @property
    def listener(self) -> Path:
        return listener(self.socket)


def listener(dialled: Path) -> Path:
    """Where the socket is bound that a switch's path leads to. Not at that itself: QEMU unlinks what it was bound to."""
    return dialled.with_name(f"{dialled.name}.sock")


@dataclass(frozen=True, slots=True)
class SteeringCapabilities:
    """What a NIC, with its driver as it is, can do for a run.

    dual_delivery        traffic can be given to both slots at once, so that the hand-over needs no exact moment
    per_vm               one VM's traffic can be told from the rest; without, only the whole port can be turned
    atomic               a rule is turned in one step; without, it is deleted and then added, with a gap
    gap_caught           what arrives in that gap reaches the switch by way of the PF
    hardware             the NIC steers, not this machine's CPUs
    copies_answers       both VFs see what neighbours answer to the PF; without, the switches have to be told
    detour               while a window is open the overlay passes this machine's CPUs, on a NIC that steers otherwise
    capacity             rules we may have at once, None where memory is the only limit
    underlay             IP version of the packets that carry the overlay, as far as it is steered
    unproven             why overlay traffic may not arrive at a VF at all, None where that was shown to work
    """

    dual_delivery: bool
    per_vm: bool = True
    atomic: bool = True
    gap_caught: bool = False
    copies_answers: bool = True
    hardware: bool = False
    detour: bool = False
    capacity: int | None = None
    underlay: int = 4
    unproven: str | None = None


@dataclass(frozen=True, slots=True)
class SteeringRule:
    """One rule of ours as read back from the NIC. `mac` and `vni` are None for the rule that takes the rest.

    targets   slots it points to; none when it points to a stranger, or to a VF that was reset since
    packets   matched so far, None where the NIC does not count by rule
    """

    vni: int | None
    mac: str | None
    targets: tuple[SlotName, ...]
    packets: int | None


@dataclass(frozen=True, slots=True)
class NicFacts:
    """What a NIC says of itself, and how its rules are shared out.

    version   of the driver; the kernel's release for a driver that comes with the kernel
    flavour   which build of the driver it is, in words, as far as that matters for steering
    used      rules on the NIC, ours and others'
    foreign   rules that are not ours, in words; they are never touched
    """

    driver: str
    version: str
    firmware: str
    bus: str
    flavour: str
    used: int
    foreign: tuple[str, ...]
