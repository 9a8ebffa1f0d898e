"""What a lab is: its options, and every name, address and path that follows from them. Pure; nothing is read or made."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, Literal

from upgrader.core.errors import UsageError
from upgrader.core.model import SlotName

RUN_ROOT: Final = Path("/run/ovs-upgrade-lab")
REPOSITORY: Final = Path(__file__).resolve().parents[2]
BUILD_DIR: Final = REPOSITORY / "build"
DEFAULT_OVS_PREFIX: Final = BUILD_DIR / "stack" / "ovs"
DEFAULT_QEMU_BINARY: Final = BUILD_DIR / "stack" / "qemu" / "bin" / "qemu-system-x86_64"

VNI: Final = 100
VXLAN_PORT: Final = 4789
UNDERLAY_MTU: Final = 1500
#: RFC 7348: outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
OVERLAY_MTU: Final = UNDERLAY_MTU - 50

HOST_VTEP: Final = "10.9.0.1"
REMOTE_VTEP: Final = "10.9.0.2"
PF_MAC: Final = "02:09:00:00:00:01"
REMOTE_UNDERLAY_MAC: Final = "02:09:00:00:00:02"
REMOTE_OVERLAY_IP: Final = "172.31.0.1"
REMOTE_OVERLAY_MAC: Final = "52:54:00:1f:00:01"
FIRST_VM_IP: Final = IPv4Address("172.31.0.10")

PF: Final = "pf0"
UPLINK: Final = "uplink0"
BR_PHY: Final = "br-phy"
BR_INT: Final = "br-int"
TUNNEL_PORT: Final = "vx0"
TRAFFIC_CHANNEL: Final = "org.ovs-upgrade.traffic"

Pages = Literal["4k", "2m"]
HUGEPAGE_KIB: Final = 2048
GUEST_MEMORY_MIB: Final = 128
SLOT_MEMORY_MIB: Final = 64
#: MiB of hugepages that a DPDK process takes on top of its socket memory while it starts.
SLOT_MEMORY_SLACK_MIB: Final = 32

# Unix socket paths end at 107 bytes (unix(7)); libvirt's and the coordinator's stand below the state directory.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}")
_MAX_VMS = 16
_MAX_QUEUES = 4


def _refuse(code: str, what: str, next_command: str) -> UsageError:
    return UsageError(code, what, state="nothing was changed", next=next_command)


@dataclass(frozen=True, slots=True)
class Vm:
    """One guest: `index` counts from 0 and everything else follows from it."""

    index: int
    lab_dir: Path

    @property
    def name(self) -> str:
        return f"vm{self.index}"

    @property
    def mac(self) -> str:
        return f"52:54:00:1f:01:{self.index + 10:02x}"

    @property
    def ip(self) -> str:
        return str(FIRST_VM_IP + self.index)

    @property
    def port(self) -> str:
        """Its OVS interface."""
        return f"vhu{self.index}"

    @property
    def ofport(self) -> int:
        return 10 + self.index

    @property
    def vhost_socket(self) -> Path:
        """Where QEMU listens for the switch."""
        return self.lab_dir / "vhost" / f"{self.port}.sock"

    @property
    def channel(self) -> Path:
        """Where QEMU listens for whoever drives the traffic agent inside."""
        return self.lab_dir / "guests" / f"{self.name}.sock"

    @property
    def console(self) -> Path:
        return self.lab_dir / "guests" / f"{self.name}.console"


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Named network namespaces of one lab."""

    fabric: str
    remote: str
    host: str
    slot_a: str
    slot_b: str

    def all(self) -> tuple[str, ...]:
        return (self.fabric, self.remote, self.host, self.slot_a, self.slot_b)


@dataclass(frozen=True, slots=True)
class LabSpec:
    """Options of one lab.

    vms         guests, 1 to 16
    queues      queue pairs of each guest's interface, and its vCPUs, 1 to 4
    pages       what guest memory stands on: 4 KiB pages or 2 MiB hugepages
    ovs_prefix  where the OVS of slot a is installed (sbin/ovs-vswitchd, bin/ovs-vsctl, share/openvswitch/…)
    qemu_binary the QEMU of the guests
    new_prefix  where that of slot b is, None where it is the same
    libvirtd    the libvirtd; that of the distribution refuses QEMUs older than it supports
    tickless    guests have no tick while they idle: for many guests with little to do; each packet then costs more
    """

    name: str = "lab"
    vms: int = 4
    queues: int = 1
    pages: Pages = "4k"
    ovs_prefix: Path = DEFAULT_OVS_PREFIX
    qemu_binary: Path = DEFAULT_QEMU_BINARY
    new_prefix: Path | None = None
    libvirtd: Path = Path("libvirtd")
    tickless: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise _refuse(
                "LAB_NAME",
                f"{self.name!r} cannot name a lab: a small letter, then at most 11 small letters, digits or dashes",
                "upgrade lab up --name lab",
            )
        if not 1 <= self.vms <= _MAX_VMS:
            raise _refuse("LAB_OPTION", f"--vms {self.vms}: a lab has 1 to {_MAX_VMS} guests", "upgrade lab up --vms 4")
        if not 1 <= self.queues <= _MAX_QUEUES:
            raise _refuse(
                "LAB_OPTION",
                f"--queues {self.queues}: a guest has 1 to {_MAX_QUEUES} queue pairs",
                "upgrade lab up --queues 1",
            )
        if self.pages not in ("4k", "2m"):
            raise _refuse("LAB_OPTION", f"--pages {self.pages}: either 4k or 2m", "upgrade lab up --pages 4k")

    @property
    def directory(self) -> Path:
        """The lab's state directory; everything it makes in the file system stands below it."""
        return RUN_ROOT / self.name

    @property
    def config_path(self) -> Path:
        return self.directory / "config.toml"

    @property
    def well_known(self) -> Path:
        """What /run/openvswitch is on a real host: OVS tools with this OVS_RUNDIR reach the active slot."""
        return self.directory / "openvswitch"

    @property
    def libvirt_directory(self) -> Path:
        return self.directory / "libvirt"

    @property
    def libvirt_socket(self) -> Path:
        return self.libvirt_directory / "run" / "libvirt-sock"

    @property
    def libvirt_uri(self) -> str:
        return f"qemu+unix:///system?socket={self.libvirt_socket}"

    @property
    def namespaces(self) -> Namespaces:
        return Namespaces(*(f"{self.name}-{part}" for part in ("fabric", "remote", "host", "slot-a", "slot-b")))

    @property
    def guests(self) -> tuple[Vm, ...]:
        return tuple(Vm(i, self.directory) for i in range(self.vms))

    def prefix(self, slot: SlotName) -> Path:
        return self.new_prefix if slot == "b" and self.new_prefix else self.ovs_prefix

    def hugetlbfs(self, slot: SlotName) -> Path:
        """Where a DPDK that keeps its hugepages in files has them; mounted for such a one only."""
        return self.directory / f"huge-{slot}"

    @property
    def hugepages(self) -> int:
        """2 MiB pages to reserve: both slots, and the guests where their memory stands on them."""
        mib = 2 * (SLOT_MEMORY_MIB + SLOT_MEMORY_SLACK_MIB)
        if self.pages == "2m":
            mib += self.vms * GUEST_MEMORY_MIB
        return mib * 1024 // HUGEPAGE_KIB

    def to_json(self) -> dict[str, Any]:
        """The options as plain values, for the state file."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> LabSpec:
        """Inverse of `to_json`. Raises TypeError for unknown keys, KeyError for missing ones."""
        paths: dict[str, Path | None] = {k: Path(raw[k]) for k in ("ovs_prefix", "qemu_binary", "libvirtd")}
        paths["new_prefix"] = Path(raw["new_prefix"]) if raw["new_prefix"] else None
        return cls(**{**raw, **paths})
