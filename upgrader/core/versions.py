"""What a version of the switch, or of its DPDK, can do: a table, looked up by capability and never by a branch on a version.

Each entry was read in the source of the releases around it, or run; docs/versions.md says which. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Since:
    """The first release that can, and by release series (two numbers) the first of those that got it later.

    A series named in `backported` can from that patch level on; any other version can from `release` on.
    """

    release: Version
    backported: Mapping[Version, int] = field(default_factory=dict)

    def holds(self, version: Version) -> bool:
        if (level := self.backported.get(version[:2])) is not None:
            return (version[2:] or (0,)) >= (level,)
        return version >= self.release


@unique  # two of one release would be one
class Dpdk(Enum):
    """What DPDK's vhost library can do.

    RING_LOCK    SET_VRING_ADDR on a live ring waits until no PMD is in it (`access_lock`). Without it the switch
                 crashes when a ring moves, and an acknowledgement proves nothing
    LIVE_TABLE   another memory table may come while rings are live: their addresses are translated again
    REPLY_ACK    acknowledges messages. Before, the feature is hidden unless the IOMMU is supported
                 (``other_config:vhost-iommu-support=true``, ovs-vswitchd.conf.db(5))
    IN_MEMORY    the options --in-memory and --no-telemetry. Without, hugepages are files, and all that are free are
                 taken at start: a mount of hugetlbfs with a size of its own bounds them
    """

    RING_LOCK = Since((18, 2), {(17, 11): 1})
    LIVE_TABLE = Since((18, 5), {(17, 11): 4})
    REPLY_ACK = Since((20, 8))
    IN_MEMORY = Since((20, 5))


@unique
class Ovs(Enum):
    """What Open vSwitch can do.

    LOG_LEVELS  ``ovs-appctl dpdk/log-set``
    ROW_UUIDS   ovsdb-server takes rows with UUIDs of their own (ovsdb-server(7), 5.2.1)
    OPENFLOW15  bridges speak OpenFlow 1.5 without being told to. What was written by one version of the protocol reads
                otherwise by another one (``load`` by 1.4 is ``set_field`` by 1.5)
    TRACE_NAMES ``ofproto/trace --names``: outcomes of two switches, whose datapaths number ports otherwise, can be compared
    """

    LOG_LEVELS = Since((2, 14))
    ROW_UUIDS = Since((2, 13))
    OPENFLOW15 = Since((2, 12))
    TRACE_NAMES = Since((3, 1))


@unique
class Libvirt(Enum):
    """What a libvirtd can do.

    PASS_FDS  hand descriptors on to a QEMU's monitor (virDomainQemuMonitorCommandWithFiles). No release has both this
              and QEMUs before 2.11
    """

    PASS_FDS = Since((8, 2))


@unique
class Qemu(Enum):
    """What a version of QEMU, with the series of patches for it, can do.

    BARRIER   needs no acknowledgements (REPLY_ACK) of a switch: it asks GET_FEATURES behind each message instead
    MEMFD     guest memory in a memfd (memory-backend-memfd)
    """

    BARRIER = Since((99,), {(2, 9): 0})
    MEMFD = Since((2, 12))


def can(what: Dpdk | Ovs | Libvirt | Qemu, version: str | None) -> bool | None:
    """Whether that version can; None where the version is not known, which decides nothing."""
    numbers = parse(version)
    since: Since = what.value
    return since.holds(numbers) if numbers else None


def parse(text: str | None) -> Version:
    """The numbers of ``3.1.0``, ``DPDK 17.11.10``, ``22.11.11-rc1``; () where there are none."""
    found = re.search(r"\d+(?:\.\d+)+", text or "")
    return tuple(int(n) for n in found[0].split(".")[:3]) if found else ()
