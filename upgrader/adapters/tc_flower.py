"""VF steering by tc flower, as switchdev NICs (E810, ConnectX) take it into hardware: one filter on the PF's ingress.

The filter takes all of the overlay, by the outer header, to one slot's VF representor; or, where the NIC can mirror, to
both slots while a window is open: each switch delivers to the VMs whose rings it owns. A single VM's packets cannot be
told there without taking the tunnel off them, which is the switches' work. Two filters beside it give both VFs what
neighbours answer (`tc_neighbours`), by this machine's CPUs. Run in software only so far, not on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from upgrader.adapters.netlink import Requests, route_socket
from upgrader.adapters.tc_links import Links, TcLinks
from upgrader.adapters.tc_neighbours import copies_answers, copy_answers
from upgrader.adapters.tc_u32_read import read_words
from upgrader.core import tc
from upgrader.core.model import NicFacts, SlotName, SteeringCapabilities, SteeringRule, VmPort
from upgrader.core.steering import majority
from upgrader.core.tc import FlowerFilter, Underlay

# place of our one filter; all others are not ours. The kernel wants another priority for each protocol.
_PRIOS = {Underlay.IPV4: 20, Underlay.IPV6: 21}
_HANDLE = 1
_UNPROVEN = (
    "tc flower with skip_sw has been run in software only, and not on hardware: whether this NIC takes the rule, turns it in "
    "one step and counts by it is not known"
)


@dataclass(frozen=True, slots=True)
class _State:
    """One PF's filters, read over a socket that is open."""

    links: Links
    ours: FlowerFilter | None
    foreign: tuple[str, ...]

    def slots(self) -> tuple[SlotName, ...]:
        """Where our filter points to; none when it points to a stranger, too."""
        return tc.slots_behind(self.ours.ifindexes if self.ours else (), self.links.representors)


class TcFlower:
    """Steering for one PF.

    pf            netdev of the PF (its uplink representor), in the network namespace `netns` (None: the host's)
    representors  netdev of each slot's VF there
    hardware      the NIC has to take the filter (skip_sw); else this machine's CPUs do
    mirror        it can give a packet to two VFs
    underlay      what carries the overlay
    """

    def __init__(
        self,
        pf: str,
        netns: str | None,
        representors: dict[SlotName, str],
        vxlan_port: int,
        *,
        hardware: bool,
        mirror: bool,
        underlay: Underlay = Underlay.IPV4,
    ) -> None:
        self._tc = TcLinks(pf, netns, representors)
        self._vxlan_port = vxlan_port
        self._underlay = underlay
        self._hardware = hardware
        self._mirror = mirror
        self._served: dict[tuple[int | None, str], SlotName] = {}

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(
            dual_delivery=self._mirror,
            per_vm=False,
            hardware=self._hardware,
            underlay=self._underlay.version,
            unproven=_UNPROVEN if self._hardware else None,
        )

    def facts(self) -> NicFacts:
        with self._state() as state:
            used = len(state.foreign) + (state.ours is not None)
            return NicFacts("switchdev", os.uname().release, "", "", "tc flower", used, state.foreign)

    def prepare(self, slot: SlotName) -> None:  # noqa: ARG002 - both get what neighbours answer
        """In switchdev mode a VF's traffic is the representor's; nothing is set on the VF."""
        with self._tc.open() as links:
            self._copy_answers(links)

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:
        self._served.clear()
        with self._state() as state:  # not where a stranger stands in our place
            self._copy_answers(state.links)
        self._point((slot,), anew=anew)

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        self._served = {(port.vni, port.mac): slot for port, slot in served}
        if self._mirror:
            self._point(tuple(self._tc.representors))
        elif served:
            self._follow()

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        if len(slots) == 1:
            self._served[port.vni, port.mac] = slots[0]
        if self._mirror:
            self._point(tuple(self._tc.representors))
        else:
            self._follow()

    def close_window(self, slot: SlotName) -> None:
        self.steady(slot)

    def failover(self, slot: SlotName) -> None:
        self._served = dict.fromkeys(self._served, slot)
        self._point((slot,))

    def fence(self, slot: SlotName) -> None:
        """A netdev that no packets are sent to needs none."""

    def rules(self) -> tuple[SteeringRule, ...]:
        with self._state() as state:
            return (SteeringRule(None, None, state.slots(), state.ours.packets),) if state.ours else ()

    def rule(self, port: VmPort) -> SteeringRule | None:
        """None: there is one for the whole port."""

    def arrived(self) -> dict[SlotName, int]:
        return self._tc.arrived()

    def neighbours(self) -> Mapping[str, str]:
        """None: both VFs see what is answered."""
        return {}

    def _copy_answers(self, links: Links) -> None:
        with route_socket(self._tc.netns) as sock:
            copy_answers(links, Requests(sock))

    def _follow(self) -> None:
        with self._state() as state:
            points = state.slots()
        self._point((majority(self._served.values(), points[0] if points else next(iter(self._served.values()))),))

    def _point(self, slots: tuple[SlotName, ...], *, anew: bool = False) -> None:
        """Make our filter point to these slots: put in the place of the one that is there."""
        with self._state() as state:
            if state.slots() == slots and not anew:
                return
            links = state.links
            message = tc.filter_message(
                tc.NEW_FILTER,
                tc.CREATE | tc.REPLACE,
                ifindex=links.pf,
                parent=links.attach_ingress(),
                prio=_PRIOS[self._underlay],
                handle=_HANDLE,
                classifier="flower",
                underlay=self._underlay,
                options=tc.flower_options(
                    self._vxlan_port,
                    tc.deliver([links.representors[s] for s in slots]),
                    skip_sw=self._hardware,
                    underlay=self._underlay,
                ),
            )
            with route_socket(self._tc.netns) as sock:
                Requests(sock).send([message])

    @contextmanager
    def _state(self) -> Iterator[_State]:
        with self._tc.open() as links:
            yield _State(links, *self._read(links))

    def _read(self, links: Links) -> tuple[FlowerFilter | None, tuple[str, ...]]:
        """Our filter, and all others in words. Raises HostError where a stranger stands in our place."""
        ours = None
        foreign = []
        present = links.ipr.get_filters(index=links.pf, parent=links.parent) if links.parent is not None else ()
        for message in present:
            kind, prio, handle = message.get_attr("TCA_KIND"), message["info"] >> 16, message["handle"]
            compared = read_words(message)
            if compared is None or not handle or copies_answers(prio, compared):
                continue  # the entry of a priority or a hash table, or a copy of answers
            words = f"{kind} filter {handle:#x} at priority {prio}"
            if (prio, handle) != (_PRIOS[self._underlay], _HANDLE):
                foreign.append(words)
                continue
            options = _payload(message.get_attr("TCA_OPTIONS"))
            found = tc.read_flower(options, self._vxlan_port, self._underlay) if kind == "flower" else None
            if found is None or not found.takes_overlay:
                raise self._tc.error(f"the {words} of {self._tc.pf} is somebody else's, and stands where ours has to")
            ours = found
        return ours, tuple(foreign)


def _payload(options: Any) -> bytes:
    """The bytes of TCA_OPTIONS. pyroute2 0.9 knows no flower, and gives them as text: ``08:00:…``."""
    return bytes.fromhex(options.replace(":", "")) if isinstance(options, str) else b""
