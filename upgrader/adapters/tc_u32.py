"""VF steering in software: tc u32 filters and mirred actions on the PF's ingress, over netlink.

Works on any netdev. Two filters give both VFs what neighbours answer (`tc_neighbours`). One filter takes all of the overlay (UDP to the VXLAN port) and, while a window is open, one
filter a VM in front of it takes the VM's own (VNI and inner destination MAC). What a filter does is changed in one step
(RCU), so no packet meets a gap: its mirred action where it has one, else the whole filter by its handle.

Once the filters have been read, the messages that turn each of them to either slot stand ready, and turning one is one
message and its answer: `move_vm`, and `failover` of all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from upgrader.adapters.netlink import Requests, route_socket
from upgrader.adapters.tc_links import Links, TcLinks
from upgrader.adapters.tc_neighbours import copies_answers, copy_answers
from upgrader.adapters.tc_u32_read import read_targets, read_words
from upgrader.core import tc
from upgrader.core.errors import HostError
from upgrader.core.model import NicFacts, SlotName, SteeringCapabilities, SteeringRule, VmPort
from upgrader.core.tc import Mirred, Underlay

# Priorities of single VMs' filters, and behind them of the one for the rest; 1 to 49 are ours. The kernel wants
# another one for each protocol.
_PRIOS = {Underlay.IPV4: (10, 20), Underlay.IPV6: (11, 21)}

# a filter of ours: VNI and inner MAC; none for the rest of the overlay
Key = tuple[int | None, str | None]
_STEADY: Key = (None, None)


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

    action       messages that change its one action, by slot; empty where it has two, or a new one not read yet
    replace      the message that replaces the filter by one to these slots
    get          the message that asks for it
    representors netdevs by slot, as they were
    """

    action: dict[SlotName, bytes]
    replace: Callable[[tuple[SlotName, ...]], bytes]
    get: bytes
    representors: dict[SlotName, int]


class TcU32:
    """Steering for one PF.

    pf               netdev of the PF, in the network namespace `netns` (None: the host's)
    representors     netdev in that namespace through which each slot's VF is reached
    vxlan_port       UDP destination port of the overlay
    underlay         what carries it
    """

    def __init__(
        self,
        pf: str,
        netns: str | None,
        representors: dict[SlotName, str],
        vxlan_port: int,
        underlay: Underlay = Underlay.IPV4,
    ) -> None:
        self._tc = TcLinks(pf, netns, representors)
        self._vxlan_port = vxlan_port
        self._underlay = underlay
        self._armed: dict[Key, _Armed] = {}
        self._socket: Requests | None = None

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(dual_delivery=True, underlay=self._underlay.version)

    def facts(self) -> NicFacts:
        with self._kernel() as kernel:
            ours, foreign = len(kernel.filters), tuple(kernel.foreign)
        return NicFacts("any", os.uname().release, "", "", "tc u32 in the kernel", ours + len(foreign), foreign)

    def prepare(self, slot: SlotName) -> None:  # noqa: ARG002 - both get what neighbours answer
        """A netdev that packets are sent to needs nothing else."""
        with self._kernel() as kernel:
            kernel.copy_answers()

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:  # noqa: ARG002 - a netdev does not forget
        with self._kernel() as kernel:
            kernel.copy_answers()
            kernel.set(_STEADY, (slot,))

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        """The single rules first, then the rest (broadcast, unknown MACs) to both: nothing misses its switch."""
        with self._kernel() as kernel:
            for port, slot in served:
                kernel.set(_key(port), (slot,))
            kernel.set(_STEADY, tuple(self._tc.representors))
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
            kernel.remove_single()

    def failover(self, slot: SlotName) -> None:
        """Every filter to `slot`; the single ones stay, so that a run's window can be closed in order."""
        if _STEADY in self._armed and self._turn(list(self._armed), (slot,)):
            return
        with self._kernel() as kernel:
            for key in (_STEADY, *(k for k in kernel.filters if k != _STEADY)):
                kernel.set(key, (slot,))

    def fence(self, slot: SlotName) -> None:
        """A netdev that no packets are sent to needs none."""

    def rules(self) -> tuple[SteeringRule, ...]:
        with self._kernel() as kernel:
            return tuple(
                SteeringRule(vni, mac, kernel.slots(f.ifindexes), f.packets) for (vni, mac), f in kernel.filters.items()
            )

    def rule(self, port: VmPort) -> SteeringRule | None:
        """Of one that is armed only that filter is asked for. All are read where it is not as it was."""
        key = _key(port)
        if self._socket and (armed := self._armed.get(key)):
            with suppress(OSError):
                message = tcmsg(self._socket.ask(armed.get))
                message.decode()
                found = _read_filter(message, self._vxlan_port, self._underlay)
                slots = tc.slots_behind(found.ifindexes, armed.representors) if isinstance(found, _Filter) else ()
                if isinstance(found, _Filter) and found.key == key and slots:
                    return SteeringRule(*key, slots, found.packets)
        return next((r for r in self.rules() if (r.vni, r.mac) == key), None)

    def arrived(self) -> dict[SlotName, int]:
        return self._tc.arrived()

    def neighbours(self) -> Mapping[str, str]:
        """None: both VFs see what is answered."""
        return {}

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
                self._armed[key] = replace(armed, action={})  # its actions are new ones
        try:
            self._socket.send(filters + tc.change_actions(actions))
        except OSError:  # somebody has changed the filters since, or made netdevs anew: look again
            self._armed.clear()
            return False
        return True

    @contextmanager
    def _kernel(self) -> Iterator[_Kernel]:
        """The PF's filters, read once, over one socket in the PF's namespace; what is not changed stays armed."""
        with self._tc.open() as links:
            if self._socket is None:
                self._socket = Requests(route_socket(self._tc.netns))
            kernel = _Kernel(links, self._socket, self._vxlan_port, self._underlay)
            self._armed = {}
            yield kernel
            self._armed = kernel.arm()


class _Kernel:
    """One PF's filters of ours, while a netlink socket is open.

    filters   by key; others on the same PF are `foreign`, in words, and never touched
    """

    def __init__(self, links: Links, requests: Requests, vxlan_port: int, underlay: Underlay) -> None:
        self._links = links
        self._requests = requests
        self._vxlan_port = vxlan_port
        self._underlay = underlay
        self._parent = links.parent
        self._changed: set[Key] = set()
        self.foreign: list[str] = []
        self.filters = self._read(self._parent) if self._parent is not None else {}

    def slots(self, ifindexes: tuple[int, ...]) -> tuple[SlotName, ...]:
        return tc.slots_behind(ifindexes, self._links.representors)

    def set(self, key: Key, slots: tuple[SlotName, ...]) -> None:
        """Make the one filter with this match point to these slots: changed in place, or added where there is none."""
        present = self.filters.get(key)
        if present and present.ifindexes == tuple(self._links.representors[s] for s in slots):
            return
        if self._parent is None:
            self._parent = self._links.attach_ingress()
        message = self._message(key, present.handle if present else 0, slots)
        self._changed.add(key)
        self._requests.send([message])

    def copy_answers(self) -> None:
        """Both VFs see what neighbours answer to the PF, wherever the overlay goes."""
        copy_answers(self._links, self._requests)
        self._parent = self._parent or tc.INGRESS

    def remove_single(self) -> None:
        """Take every filter of a single VM away."""
        single = {key: f for key, f in self.filters.items() if key != _STEADY}
        self._requests.send([self._filter_message(tc.DEL_FILTER, 0, key, f.handle) for key, f in single.items()])
        self.filters = {key: f for key, f in self.filters.items() if key not in single}

    def arm(self) -> dict[Key, _Armed]:
        """Messages that turn each filter as it was read; one that was changed since is turned as a whole.

        None at all while there are filters that have not been read yet.
        """
        if self._changed - self.filters.keys():
            return {}
        return {
            key: _Armed(
                {s: Mirred(i, index=f.indexes[0]).encode() for s, i in self._links.representors.items()}
                if len(f.indexes) == 1 and key not in self._changed
                else {},
                partial(self._message, key, f.handle),
                self._filter_message(tc.GET_FILTER, 0, key, f.handle),
                self._links.representors,
            )
            for key, f in self.filters.items()
        }

    def _message(self, key: Key, handle: int, slots: tuple[SlotName, ...]) -> bytes:
        """What makes the filter point to these slots: in the place of the one with that handle, or new (0)."""
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"slots to steer to: {slots}")
        targets = [self._links.representors[s] for s in slots]
        words = tc.overlay_words(self._vxlan_port, *key, self._underlay)
        flags = tc.CREATE | (tc.REPLACE if handle else tc.EXCLUSIVE)
        return self._filter_message(tc.NEW_FILTER, flags, key, handle, tc.u32_options(words, tc.deliver(targets)))

    def _filter_message(self, kind: int, flags: int, key: Key, handle: int, options: bytes = b"") -> bytes:
        return tc.filter_message(
            kind,
            flags,
            ifindex=self._links.pf,
            parent=self._parent or tc.INGRESS,
            prio=_prio(key, self._underlay),
            handle=handle,
            classifier="u32",
            underlay=self._underlay,
            options=options,
        )

    def _read(self, parent: int) -> dict[Key, _Filter]:
        found: dict[Key, _Filter] = {}
        for message in self._links.ipr.get_filters(index=self._links.pf, parent=parent):
            one = _read_filter(message, self._vxlan_port, self._underlay)
            if isinstance(one, str):
                self.foreign.append(one)
            elif one:
                found[one.key] = one
        return found


def _prio(key: Key, underlay: Underlay) -> int:
    single, rest = _PRIOS[underlay]
    return rest if key == _STEADY else single


def _read_filter(message: Any, vxlan_port: int, underlay: Underlay) -> _Filter | str | None:
    """One of ours, or another one in words; None for what is no rule: copies of answers, the entry of a table or a priority."""
    prio, words = message["info"] >> 16, read_words(message)
    if words is None or copies_answers(prio, words):
        return None
    targets, indexes, packets = read_targets(message)
    key = tc.read_overlay(words, vxlan_port, underlay)
    if key is None or not targets or prio != _prio(key, underlay):
        return f"{message.get_attr('TCA_KIND')} filter {message['handle']:#x} at priority {prio}"
    return _Filter(key, message["handle"], targets, indexes, packets)


def _key(port: VmPort) -> Key:
    if port.vni is None:
        raise HostError(
            "STEERING_NO_VNI",
            f"{port.label} has no VNI in the database, so its overlay traffic cannot be told from the rest",
            state="its steering was not changed",
            next=f"ovs-vsctl set Interface {port.interface} external_ids:vni=…",
        )
    return port.vni, port.mac.lower()
