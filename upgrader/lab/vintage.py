"""What a lab does otherwise for a switch or a QEMU of an older version than the stack's: where their memory is."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from upgrader.adapters import gate
from upgrader.core.errors import CommandError
from upgrader.core.model import SLOTS, SlotName
from upgrader.core.versions import Dpdk, Qemu, can
from upgrader.lab import spec as names
from upgrader.lab.spec import LabSpec

_RUN = Path("/var/run")
_BUSY_S = 5.0


@cache
def _said(program: Path) -> str:
    """What `program --version` prints; empty where it is not there or does not start."""
    try:
        return gate.run([str(program), "--version"], timeout_s=20).stdout
    except (CommandError, OSError):
        return ""


def _dpdk(prefix: Path) -> str | None:
    """The line of an installed OVS about its DPDK."""
    return next((line for line in _said(prefix / "sbin/ovs-vswitchd").splitlines() if line.startswith("DPDK ")), None)


def keeps_files(prefix: Path) -> bool:
    """Whether the DPDK of that OVS has its hugepages in files; False where its version is not known."""
    return can(Dpdk.IN_MEMORY, _dpdk(prefix)) is False


def hides_answers(lab: LabSpec) -> bool:
    """Whether the guests' QEMU needs acknowledgements that a slot's DPDK has with vhost-iommu-support only."""
    hidden = any(can(Dpdk.REPLY_ACK, _dpdk(lab.prefix(slot))) is False for slot in SLOTS)
    return hidden and can(Qemu.BARRIER, _said(lab.qemu_binary)) is False


def has_memfd(qemu_binary: Path) -> bool:
    """Whether that QEMU takes guest memory as a memfd; True where its version is not known."""
    return can(Qemu.MEMFD, _said(qemu_binary)) is not False


def mount(lab: LabSpec, slot: SlotName) -> None:
    """Hugepages for a slot whose DPDK would take all that there are: no more than this mount has."""
    if keeps_files(lab.prefix(slot)):
        lab.hugetlbfs(slot).mkdir()
        size = f"size={names.SLOT_MEMORY_MIB + names.SLOT_MEMORY_SLACK_MIB}M"
        gate.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize=2M,{size}", lab.name, str(lab.hugetlbfs(slot))])


def unmount(lab: LabSpec) -> None:
    """Take the mounts away, and what such a DPDK left outside of the lab's directory. Idempotent."""
    for slot in SLOTS:
        if lab.hugetlbfs(slot).is_mount():
            _umount(lab.hugetlbfs(slot))
        for left in _RUN.glob(f".{lab.name}-{slot}_*"):  # named by its --file-prefix
            left.unlink(missing_ok=True)


def _umount(where: Path) -> None:
    """The kernel may still be at what a process had there, that has ended. Raises CommandError."""
    deadline = time.monotonic() + _BUSY_S
    while gate.run(["umount", str(where)], check=time.monotonic() > deadline).returncode != 0:
        time.sleep(0.1)
