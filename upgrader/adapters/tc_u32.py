"""VF steering in software: tc u32 filters and mirred actions on the PF's ingress, over netlink.

Works on any netdev. One filter takes all of the overlay (UDP to the VXLAN port) and, while a window is open, one
filter a VM in front of it takes the VM's own (VNI and inner destination MAC). What a filter does is changed in one step
(RCU), so no packet meets a gap: its mirred action where it has one, else the whole filter by its handle.

Once the filters have been read, the messages that turn each of them to either slot stand ready, and turning one is one
message and its answer: `move_vm`, and `failover` of all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import Requests, netlink, route_socket
from upgrader.core import tc
from upgrader.core.errors import HostError
from upgrader.core.model import NicFacts, SlotName, SteeringCapabilities, SteeringRule, VmPort
from upgrader.core.tc import Mirred

# Where the filters of a PF hang: the old ingress qdisc, or the ingress side of clsact (linux/pkt_sched.h)
INGRESS = 0xFFFF0000
CLSACT_INGRESS = 0xFFFFFFF2
PRIO_VM = 10  # single VMs, in front of
PRIO_STEADY = 20  # the rest of the overlay; priorities 1 to 49 are ours

# a filter of ours: its priority, VNI and inner MAC
Key = tuple[int, int | None, str | None]
_STEADY: Key = (PRIO_STEADY, None, None)


@dataclass(frozen=True, slots=True)
class _Filter:
    """One u32 filter of ours in the kernel, and its mirred actions in order: netdev and index of each."""

    key: Key
    handle: int
    ifindexes: tuple[int, ...]
    indexes: tuple[int, ...]
    packets: int


@dataclass(frozen=True, slots=True)
class _Armed:
    """What turns one filter at once.

    action   messages that change its one action, by slot; empty where it has two, or a new one not read yet
    replace  the message that replaces the filter by one to these slots
    """

    action: dict[SlotName, bytes]
    replace: Callable[[tuple[SlotName, ...]], bytes]


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
        self._armed: dict[Key, _Armed] = {}
        self._socket: Requests | None = None

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(dual_delivery=True)

    def facts(self) -> NicFacts:
        with self._kernel() as kernel:
            ours, foreign = len(kernel.filters), tuple(kernel.foreign)
        return NicFacts("any", os.uname().release, "", "", "tc u32 in the kernel", ours + len(foreign), foreign)

    def prepare(self, slot: SlotName) -> None:
        """A netdev that packets are sent to needs nothing."""

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:  # noqa: ARG002 - a netdev does not forget
        with self._kernel() as kernel:
            kernel.set(_STEADY, (slot,))

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        """The single rules first, then the rest (broadcast, unknown MACs) to both: nothing misses its switch."""
        with self._kernel() as kernel:
            for port, slot in served:
                kernel.set(_key(port), (slot,))
            kernel.set(_STEADY, tuple(self._representors))
        with self._kernel():  # read again: new filters have handles and indexes now
            pass

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        key = _key(port)
        if not self._turn([key], tuple(slots)):
            with self._kernel() as kernel:
                kernel.set(key, tuple(slots))

    def close_window(self, slot: SlotName) -> None:
        """The rule for all is turned first, the single ones go after it: at no time is a packet without a rule."""
        with self._kernel() as kernel:
            kernel.set(_STEADY, (slot,))
            kernel.remove(PRIO_VM)

    def failover(self, slot: SlotName) -> None:
        """Every filter to `slot`; the single ones stay, so that a run's window can be closed in order."""
        if _STEADY in self._armed and self._turn(list(self._armed), (slot,)):
            return
        with self._kernel() as kernel:
            for key in (_STEADY, *(k for k in kernel.filters if k != _STEADY)):
                kernel.set(key, (slot,))

    def rules(self) -> tuple[SteeringRule, ...]:
        with self._kernel() as kernel:
            return tuple(
                SteeringRule(vni, mac, kernel.slots(f.ifindexes), f.packets)
                for (_, vni, mac), f in kernel.filters.items()
            )

    def arrived(self) -> dict[SlotName, int]:
        with self._links() as (ipr, links):
            counters = {
                s: ipr.get_links(links[name])[0].get_attr("IFLA_STATS64") for s, name in self._representors.items()
            }
        return {slot: int(c["tx_packets"]) for slot, c in counters.items()}

    def _turn(self, keys: list[Key], slots: tuple[SlotName, ...]) -> bool:
        """Turn these filters by what is armed. False where one is not, or was not what we thought."""
        if self._socket is None or not all(key in self._armed for key in keys):
            return False
        actions, filters = [], []
        for key in keys:
            armed = self._armed[key]
            if armed.action and len(slots) == 1:
                actions.append(armed.action[slots[0]])
            else:
                filters.append(armed.replace(slots))
                self._armed[key] = _Armed({}, armed.replace)  # its actions are new ones
        try:
            self._socket.send(filters + tc.change_actions(actions))
        except OSError:  # somebody has changed the filters since, or made netdevs anew: look again
            self._armed.clear()
            return False
        return True

    @contextmanager
    def _kernel(self) -> Iterator[_Kernel]:
        """The PF's filters, read once, over one socket in the PF's namespace; what is not changed stays armed."""
        with self._links() as (ipr, links):
            if self._socket is None:
                self._socket = Requests(route_socket(self._netns))
            representors = {slot: links[name] for slot, name in self._representors.items()}
            kernel = _Kernel(ipr, self._socket, links[self._pf], representors, self._vxlan_port)
            self._armed = {}
            yield kernel
            self._armed = kernel.arm()

    @contextmanager
    def _links(self) -> Iterator[tuple[IPRoute, dict[str, int]]]:
        """A socket in the PF's namespace, and the ifindex of the PF and each representor by name."""
        try:
            with netlink(self._netns) as ipr:
                links: dict[str, int] = {}
                for name in (self._pf, *self._representors.values()):
                    found = ipr.link_lookup(ifname=name)
                    if not found:
                        raise self._error(f"there is no netdev {name} in {self._where()}")
                    links[name] = found[0]
                yield ipr, links
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
    filters       by key; others on the same PF are `foreign`, in words, and never touched
    """

    def __init__(
        self, ipr: IPRoute, requests: Requests, pf: int, representors: dict[SlotName, int], vxlan_port: int
    ) -> None:
        self._ipr = ipr
        self._requests = requests
        self._pf = pf
        self._representors = representors
        self._vxlan_port = vxlan_port
        kinds = {q.get_attr("TCA_KIND") for q in ipr.get_qdiscs(index=pf)}
        self._has_qdisc = bool(kinds & {"ingress", "clsact"})
        self._parent = CLSACT_INGRESS if "clsact" in kinds else INGRESS
        self._changed: set[Key] = set()
        self.foreign: list[str] = []
        self.filters = self._read() if self._has_qdisc else {}

    def slots(self, ifindexes: tuple[int, ...]) -> tuple[SlotName, ...]:
        """The slots behind netdevs; none at all when one of them is a stranger: such a rule is not as we set it."""
        by_index = {index: slot for slot, index in self._representors.items()}
        return tuple(by_index[i] for i in ifindexes) if all(i in by_index for i in ifindexes) else ()

    def set(self, key: Key, slots: tuple[SlotName, ...]) -> None:
        """Make the one filter with this match point to these slots: changed in place, or added where there is none."""
        present = self.filters.get(key)
        if present and present.ifindexes == tuple(self._representors[s] for s in slots):
            return
        message = self._message(key, present.handle if present else 0, slots)
        if not self._has_qdisc:
            self._ipr.tc("add", "ingress", index=self._pf, handle=INGRESS)
            self._has_qdisc = True
        self._changed.add(key)
        self._requests.send([message])

    def remove(self, prio: int) -> None:
        """Take every filter of ours with this priority away."""
        ours = [f for f in self.filters.values() if f.key[0] == prio]
        self._requests.send(
            [
                tc.filter_message(
                    tc.DEL_FILTER,
                    0,
                    ifindex=self._pf,
                    parent=self._parent,
                    prio=prio,
                    handle=f.handle,
                    classifier="u32",
                )
                for f in ours
            ]
        )
        self.filters = {key: f for key, f in self.filters.items() if f not in ours}

    def arm(self) -> dict[Key, _Armed]:
        """Messages that turn each filter as it was read; one that was changed since is turned as a whole.

        None at all while there are filters that have not been read yet.
        """
        if self._changed - self.filters.keys():
            return {}
        return {
            key: _Armed(
                {s: Mirred(i, index=f.indexes[0]).encode() for s, i in self._representors.items()}
                if len(f.indexes) == 1 and key not in self._changed
                else {},
                partial(self._message, key, f.handle),
            )
            for key, f in self.filters.items()
        }

    def _message(self, key: Key, handle: int, slots: tuple[SlotName, ...]) -> bytes:
        """What makes the filter point to these slots: in the place of the one with that handle, or new (0)."""
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"slots to steer to: {slots}")
        prio, vni, mac = key
        targets = [self._representors[s] for s in slots]
        options = tc.u32_options(tc.overlay_words(self._vxlan_port, vni, mac), tc.deliver(targets))
        flags = tc.CREATE | (tc.REPLACE if handle else tc.EXCLUSIVE)
        return tc.filter_message(
            tc.NEW_FILTER, flags, ifindex=self._pf, parent=self._parent, prio=prio, handle=handle, classifier="u32",
            options=options,
        )  # fmt: skip

    def _read(self) -> dict[Key, _Filter]:
        found: dict[Key, _Filter] = {}
        for message in self._ipr.get_filters(index=self._pf, parent=self._parent):
            prio = message["info"] >> 16
            kind = message.get_attr("TCA_KIND")
            options = message.get_attr("TCA_OPTIONS")
            if options is None:
                continue
            selector = options.get_attr("TCA_U32_SEL") if kind == "u32" else None
            if kind == "u32" and selector is None:
                continue  # the hash table's own entry
            # from the bytes: pyroute2 0.9 decodes keys four bytes early
            words = tc.read_u32_keys(selector.data[selector.offset + 4 :]) if selector is not None else {}
            actions = options.get_attr("TCA_U32_ACT") if selector is not None else None
            match = tc.read_overlay(words, self._vxlan_port)
            key = (prio, *match) if match else None
            if key is None or actions is None or (prio, match == (None, None)) not in _OURS:
                self.foreign.append(f"{kind} filter {message['handle']:#x} at priority {prio}")
                continue
            targets, indexes, packets = _read_actions(actions)
            found[key] = _Filter(key, message["handle"], targets, indexes, packets)
        return found


_OURS = frozenset({(PRIO_VM, False), (PRIO_STEADY, True)})  # priority, and whether it takes the rest


def _key(port: VmPort) -> Key:
    if port.vni is None:
        raise HostError(
            "STEERING_NO_VNI",
            f"{port.label} has no VNI in the database, so its overlay traffic cannot be told from the rest",
            state="its steering was not changed",
            next=f"ovs-vsctl set Interface {port.interface} external_ids:vni=…",
        )
    return PRIO_VM, port.vni, port.mac.lower()


def _read_actions(actions: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Netdevs a filter's mirred actions send to, their indexes, and the packets the first of them has seen."""
    targets: list[int] = []
    indexes: list[int] = []
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
        indexes.append(parms["index"])
    return tuple(targets), tuple(indexes), packets


def _attrs(message: Any) -> Iterable[tuple[str, Any]]:
    return ((a[0], a[1]) for a in message["attrs"])
