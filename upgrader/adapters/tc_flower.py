"""VF steering by tc flower, as switchdev NICs (E810, ConnectX) take it into hardware: one filter on the PF's ingress.

The filter takes all of the overlay, by the outer header, to one slot's VF representor; or, where the NIC can mirror, to
both slots while a window is open: each switch delivers to the VMs whose rings it owns. A single VM's packets cannot be
told there without taking the tunnel off them, which is the switches' work. Run in software only so far, not on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import Requests, netlink, route_socket
from upgrader.core import tc
from upgrader.core.errors import HostError
from upgrader.core.model import NicFacts, SlotName, SteeringCapabilities, SteeringRule, VmPort
from upgrader.core.steering import majority
from upgrader.core.tc import FlowerFilter

INGRESS, CLSACT_INGRESS = 0xFFFF0000, 0xFFFFFFF2  # linux/pkt_sched.h
PRIO, HANDLE = 20, 1  # place of our one filter; all others are not ours
_UNPROVEN = (
    "tc flower with skip_sw has been run in software only, and not on hardware: whether this NIC takes the rule, turns it in "
    "one step and counts by it is not known"
)


@dataclass(frozen=True, slots=True)
class _State:
    """One PF's filters, read over a socket that is open."""

    ipr: IPRoute
    pf: int
    parent: int
    representors: dict[SlotName, int]
    has_qdisc: bool
    ours: FlowerFilter | None
    foreign: tuple[str, ...]

    def slots(self) -> tuple[SlotName, ...]:
        """Where our filter points to; none when it points to a stranger, too."""
        by_index = {index: slot for slot, index in self.representors.items()}
        to = self.ours.ifindexes if self.ours else ()
        return tuple(by_index[i] for i in to) if all(i in by_index for i in to) else ()


class TcFlower:
    """Steering for one PF.

    pf            netdev of the PF (its uplink representor), in the network namespace `netns` (None: the host's)
    representors  netdev of each slot's VF there
    hardware      the NIC has to take the filter (skip_sw); else this machine's CPUs do
    mirror        it can give a packet to two VFs
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
    ) -> None:
        self._pf = pf
        self._netns = netns
        self._representors = representors
        self._vxlan_port = vxlan_port
        self._hardware = hardware
        self._mirror = mirror
        self._served: dict[tuple[int | None, str], SlotName] = {}

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(
            dual_delivery=self._mirror,
            per_vm=False,
            hardware=self._hardware,
            unproven=_UNPROVEN if self._hardware else None,
        )

    def facts(self) -> NicFacts:
        with self._state() as state:
            used = len(state.foreign) + (state.ours is not None)
            return NicFacts("switchdev", os.uname().release, "", "", "tc flower", used, state.foreign)

    def prepare(self, slot: SlotName) -> None:
        """In switchdev mode a VF's traffic is the representor's; nothing is set on the VF."""

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:
        self._served.clear()
        self._point((slot,), anew=anew)

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        self._served = {(port.vni, port.mac): slot for port, slot in served}
        if self._mirror:
            self._point(tuple(self._representors))
        elif served:
            self._follow()

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        if len(slots) == 1:
            self._served[port.vni, port.mac] = slots[0]
        if self._mirror:
            self._point(tuple(self._representors))
        else:
            self._follow()

    def close_window(self, slot: SlotName) -> None:
        self.steady(slot)

    def failover(self, slot: SlotName) -> None:
        self._served = dict.fromkeys(self._served, slot)
        self._point((slot,))

    def rules(self) -> tuple[SteeringRule, ...]:
        with self._state() as state:
            return (SteeringRule(None, None, state.slots(), state.ours.packets),) if state.ours else ()

    def arrived(self) -> dict[SlotName, int]:
        with self._state() as state:
            links = {s: state.ipr.get_links(i)[0].get_attr("IFLA_STATS64") for s, i in state.representors.items()}
        return {slot: int(counters["tx_packets"]) for slot, counters in links.items()}

    def _follow(self) -> None:
        with self._state() as state:
            points = state.slots()
        self._point((majority(self._served.values(), points[0] if points else next(iter(self._served.values()))),))

    def _point(self, slots: tuple[SlotName, ...], *, anew: bool = False) -> None:
        """Make our filter point to these slots: put in the place of the one that is there."""
        with self._state() as state:
            if state.slots() == slots and not anew:
                return
            if not state.has_qdisc:
                state.ipr.tc("add", "ingress", index=state.pf, handle=INGRESS)
            actions = tc.deliver([state.representors[s] for s in slots])
            message = tc.filter_message(
                tc.NEW_FILTER,
                tc.CREATE | tc.REPLACE,
                ifindex=state.pf,
                parent=state.parent,
                prio=PRIO,
                handle=HANDLE,
                classifier="flower",
                options=tc.flower_options(self._vxlan_port, actions, skip_sw=self._hardware),
            )
            with route_socket(self._netns) as sock:
                Requests(sock).send([message])

    @contextmanager
    def _state(self) -> Iterator[_State]:
        try:
            with netlink(self._netns) as ipr:
                pf = self._index(ipr, self._pf)
                representors = {slot: self._index(ipr, name) for slot, name in self._representors.items()}
                kinds = {q.get_attr("TCA_KIND") for q in ipr.get_qdiscs(index=pf)}
                parent = CLSACT_INGRESS if "clsact" in kinds else INGRESS
                has_qdisc = bool(kinds & {"ingress", "clsact"})
                ours, foreign = self._read(ipr, pf, parent) if has_qdisc else (None, ())
                yield _State(ipr, pf, parent, representors, has_qdisc, ours, foreign)
        except FileNotFoundError as error:
            raise self._error(f"there is no network namespace {self._netns}") from error
        except (NetlinkError, OSError) as error:
            raise self._error(f"the kernel or the NIC refused a flower rule on {self._pf}: {error}") from error

    def _read(self, ipr: IPRoute, pf: int, parent: int) -> tuple[FlowerFilter | None, tuple[str, ...]]:
        """Our filter, and all others in words. Raises HostError where a stranger stands in our place."""
        ours = None
        foreign = []
        for message in ipr.get_filters(index=pf, parent=parent):
            kind, prio, handle = message.get_attr("TCA_KIND"), message["info"] >> 16, message["handle"]
            options = _payload(message.get_attr("TCA_OPTIONS"))
            if not options or not handle:
                continue  # the priority's own entry
            words = f"{kind} filter {handle:#x} at priority {prio}"
            if (prio, handle) != (PRIO, HANDLE):
                foreign.append(words)
                continue
            found = tc.read_flower(options, self._vxlan_port) if kind == "flower" else None
            if found is None or not found.takes_overlay:
                raise self._error(f"the {words} of {self._pf} is somebody else's, and stands where ours has to")
            ours = found
        return ours, tuple(foreign)

    def _index(self, ipr: IPRoute, name: str) -> int:
        found = ipr.link_lookup(ifname=name)
        if not found:
            raise self._error(f"there is no netdev {name} in {self._netns or 'the host'}")
        return int(found[0])

    def _error(self, what: str) -> HostError:
        inside = f"ip netns exec {self._netns} " if self._netns else ""
        return HostError(
            "STEERING_FAILED",
            what,
            state="overlay traffic goes where it went before",
            next=f"{inside}tc -s filter show dev {self._pf} ingress",
        )


def _payload(options: Any) -> bytes:
    """The bytes of TCA_OPTIONS. pyroute2 0.9 knows no flower, and gives them as text: ``08:00:…``."""
    return bytes.fromhex(options.replace(":", "")) if isinstance(options, str) else b""
