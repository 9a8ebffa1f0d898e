"""VF steering in software: tc u32 filters and mirred actions on the PF's ingress, over netlink.

Works on any netdev. One filter takes all of the overlay (UDP to the VXLAN port) and, while a window is open, one
filter a VM in front of it takes the VM's own (VNI and inner destination MAC). A filter is changed in place by its
handle: the kernel swaps it in one step (RCU), so no packet meets a gap. Offsets are those of an IPv4 header without
options (RFC 791), then UDP (RFC 768) and VXLAN (RFC 7348).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import netlink
from upgrader.core.errors import HostError
from upgrader.core.model import SlotName, SteeringCapabilities, SteeringRule, VmPort

# Where the filters of a PF hang: the old ingress qdisc, or the ingress side of clsact (linux/pkt_sched.h)
INGRESS = 0xFFFF0000
CLSACT_INGRESS = 0xFFFFFFF2
ETH_P_IP = 0x0800
PRIO_VM = 10  # single VMs, in front of
PRIO_STEADY = 20  # the rest of the overlay; priorities 1 to 49 are ours

_MATCH_UDP = ("0x05/0x0f+0", "0x11/0xff+9", "0x0000/0x1fff+6")  # no options, UDP, not a later fragment
_OFF_DPORT, _OFF_VNI, _OFF_INNER_MAC = 22, 32, 36


@dataclass(frozen=True, slots=True)
class _Filter:
    """One u32 filter of ours in the kernel."""

    prio: int
    handle: int
    vni: int | None
    mac: str | None
    ifindexes: tuple[int, ...]
    packets: int


class TcU32:
    """Steering for one PF.

    pf               netdev of the PF, in the network namespace `netns` (None: the host's)
    representors     netdev in that namespace through which each slot's VF is reached
    vxlan_port       UDP destination port of the overlay
    """

    def __init__(self, pf: str, netns: str | None, representors: dict[SlotName, str], vxlan_port: int) -> None:
        self._pf = pf
        self._netns = netns
        self._representors = representors
        self._vxlan_port = vxlan_port

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(dual_delivery=True)

    def steady(self, slot: SlotName) -> None:
        with self._kernel() as kernel:
            kernel.set(PRIO_STEADY, None, None, (slot,))

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        """The single rules first, then the rest (broadcast, unknown MACs) to both: nothing misses its switch."""
        with self._kernel() as kernel:
            for port, slot in served:
                kernel.set(PRIO_VM, _vni_of(port), port.mac.lower(), (slot,))
            kernel.set(PRIO_STEADY, None, None, tuple(self._representors))

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        with self._kernel() as kernel:
            kernel.set(PRIO_VM, _vni_of(port), port.mac.lower(), tuple(slots))

    def close_window(self, slot: SlotName) -> None:
        """The rule for all is turned first, the single ones go after it: at no time is a packet without a rule."""
        with self._kernel() as kernel:
            kernel.set(PRIO_STEADY, None, None, (slot,))
            kernel.remove(PRIO_VM)

    def rules(self) -> tuple[SteeringRule, ...]:
        with self._kernel() as kernel:
            return tuple(
                SteeringRule(f.vni, f.mac, kernel.slots(f.ifindexes), f.packets) for f in kernel.filters.values()
            )

    @contextmanager
    def _kernel(self) -> Iterator[_Kernel]:
        """The PF's filters, read once, over one socket in the PF's namespace."""
        try:
            with netlink(self._netns) as ipr:
                links: dict[str, int] = {}
                for name in (self._pf, *self._representors.values()):
                    found = ipr.link_lookup(ifname=name)
                    if not found:
                        raise self._error(f"there is no netdev {name} in {self._where()}")
                    links[name] = found[0]
                representors = {slot: links[name] for slot, name in self._representors.items()}
                yield _Kernel(ipr, links[self._pf], representors, self._vxlan_port)
        except FileNotFoundError as error:
            raise self._error(f"there is no network namespace {self._netns}") from error
        except (NetlinkError, OSError) as error:
            raise self._error(f"the kernel refused a tc rule on {self._pf}: {error}") from error

    def _where(self) -> str:
        return f"namespace {self._netns}" if self._netns else "the host's namespace"

    def _error(self, what: str) -> HostError:
        inside = f"ip netns exec {self._netns} " if self._netns else ""
        return HostError(
            "STEERING_FAILED",
            what,
            state="overlay traffic goes where it went before",
            next=f"{inside}tc -s filter show dev {self._pf} ingress",
        )


class _Kernel:
    """One PF's filters of ours, while a netlink socket is open.

    pf            ifindex of the PF
    representors  ifindex by slot
    filters       by (priority, VNI, inner MAC); those of others on the same PF are not ours to see
    """

    def __init__(self, ipr: IPRoute, pf: int, representors: dict[SlotName, int], vxlan_port: int) -> None:
        self._ipr = ipr
        self._pf = pf
        self._representors = representors
        self._vxlan_port = vxlan_port
        kinds = {q.get_attr("TCA_KIND") for q in ipr.get_qdiscs(index=pf)}
        self._has_qdisc = bool(kinds & {"ingress", "clsact"})
        self._parent = CLSACT_INGRESS if "clsact" in kinds else INGRESS
        self.filters = self._read() if self._has_qdisc else {}

    def slots(self, ifindexes: tuple[int, ...]) -> tuple[SlotName, ...]:
        """The slots behind netdevs; none at all when one of them is a stranger: such a rule is not as we set it."""
        by_index = {index: slot for slot, index in self._representors.items()}
        return tuple(by_index[i] for i in ifindexes) if all(i in by_index for i in ifindexes) else ()

    def set(self, prio: int, vni: int | None, mac: str | None, slots: tuple[SlotName, ...]) -> None:
        """Make the one filter with this match point at these slots: changed in place, or added where there is none."""
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"slots to steer to: {slots}")
        targets = tuple(self._representors[s] for s in slots)
        present = self.filters.get((prio, vni, mac))
        if present and present.ifindexes == targets:
            return
        *mirrors, last = targets
        request: dict[str, Any] = {
            "index": self._pf,
            "parent": self._parent,
            "prio": prio,
            "protocol": ETH_P_IP,
            "target": 0,
            "keys": _keys(self._vxlan_port, vni, mac),
            "action": [
                *({"kind": "mirred", "direction": "egress", "action": "mirror", "ifindex": i} for i in mirrors),
                {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": last},
            ],
        }
        if present:
            self._ipr.tc("replace-filter", "u32", handle=present.handle, **request)
            return
        if not self._has_qdisc:
            self._ipr.tc("add", "ingress", index=self._pf, handle=INGRESS)
            self._has_qdisc = True
        self._ipr.tc("add-filter", "u32", **request)

    def remove(self, prio: int) -> None:
        """Take every filter of ours with this priority away."""
        for f in self.filters.values():
            if f.prio == prio:
                self._ipr.tc(
                    "del-filter", "u32", index=self._pf, handle=f.handle, parent=self._parent, prio=prio,
                    protocol=ETH_P_IP, target=0,
                )  # fmt: skip

    def _read(self) -> dict[tuple[int, int | None, str | None], _Filter]:
        found = {}
        for message in self._ipr.get_filters(index=self._pf, parent=self._parent):
            prio = message["info"] >> 16
            options = message.get_attr("TCA_OPTIONS")
            if prio not in (PRIO_VM, PRIO_STEADY) or message.get_attr("TCA_KIND") != "u32" or options is None:
                continue
            selector = options.get_attr("TCA_U32_SEL")
            actions = options.get_attr("TCA_U32_ACT")
            if selector is None or actions is None:
                continue  # the hash table's own entry
            words = _read_keys(selector)
            if not _is_ours(words, self._vxlan_port):
                continue
            vni, mac = _read_match(words)
            targets, packets = _read_actions(actions)
            found[prio, vni, mac] = _Filter(prio, message["handle"], vni, mac, targets, packets)
        return found


def _vni_of(port: VmPort) -> int:
    if port.vni is None:
        raise HostError(
            "STEERING_NO_VNI",
            f"{port.label} has no VNI in the database, so its overlay traffic cannot be told from the rest",
            state="its steering was not changed",
            next=f"ovs-vsctl set Interface {port.interface} external_ids:vni=…",
        )
    return port.vni


def _keys(vxlan_port: int, vni: int | None, mac: str | None) -> list[str]:
    """u32 keys in pyroute2's notation value/mask+offset, each within one aligned 32-bit word."""
    keys = [*_MATCH_UDP, f"{vxlan_port:#06x}/0xffff+{_OFF_DPORT}"]
    if vni is not None:
        keys.append(f"{vni << 8:#010x}/0xffffff00+{_OFF_VNI}")
    if mac is not None:
        digits = mac.replace(":", "")
        keys += [f"0x{digits[:8]}/0xffffffff+{_OFF_INNER_MAC}", f"0x{digits[8:]}/0xffff+{_OFF_INNER_MAC + 4}"]
    return keys


def _read_keys(selector: Any) -> dict[int, tuple[int, int]]:
    """A filter's keys: offset -> (value, mask), 32 bits each.

    Read from the attribute's bytes (struct tc_u32_sel and tc_u32_key, linux/pkt_cls.h): pyroute2 0.9 writes keys
    rightly but decodes them four bytes early.
    """
    start = selector.offset + 4 + 16
    return {
        off: (value, mask)
        for mask, value, off, _ in (
            struct.unpack_from(">II", selector.data, start + 16 * i)
            + struct.unpack_from("=ii", selector.data, start + 16 * i + 8)
            for i in range(selector["nkeys"])
        )
    }


def _is_ours(words: dict[int, tuple[int, int]], vxlan_port: int) -> bool:
    """Whether a filter's keys are the ones we would have written."""
    return words.get(_OFF_DPORT) == (vxlan_port << 16, 0xFFFF0000)


def _read_match(words: dict[int, tuple[int, int]]) -> tuple[int | None, str | None]:
    """VNI and inner MAC a filter matches, read from its words."""
    vni = words[_OFF_VNI][0] >> 8 if _OFF_VNI in words else None
    mac = None
    if _OFF_INNER_MAC in words:
        high, low = words[_OFF_INNER_MAC][0], words[_OFF_INNER_MAC + 4][0] >> 16
        mac = (high.to_bytes(4, "big") + low.to_bytes(2, "big")).hex(":")
    return vni, mac


def _read_actions(actions: Any) -> tuple[tuple[int, ...], int]:
    """Netdevs a filter's mirred actions send to, in order, and the packets the first of them has seen."""
    targets: list[int] = []
    packets = 0
    for _, action in _attrs(actions):
        options = action.get_attr("TCA_ACT_OPTIONS")
        if action.get_attr("TCA_ACT_KIND") != "mirred" or options is None:
            continue
        parms = options.get_attr("TCA_MIRRED_PARMS")
        if not targets:
            stats = action.get_attr("TCA_ACT_STATS")
            basic = stats.get_attr("TCA_STATS_BASIC") if stats is not None else None
            packets = basic["packets"] if basic else 0
        targets.append(parms["ifindex"])
    return tuple(targets), packets


def _attrs(message: Any) -> Iterable[tuple[str, Any]]:
    return ((a[0], a[1]) for a in message["attrs"])
