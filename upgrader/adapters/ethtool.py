"""VF steering by the NIC's own rules (Intel X710 and its like): one rule that takes the whole overlay to one slot's VF.

Which rule depends on the driver (`core.i40e`). Rules for single VMs are not used: they miss broadcast, and the NIC does
not hold them beside a rule for the port. Turning the rule is a delete and an add inside the driver; what arrives in
between goes to the PF. A driver takes a rule before the hardware has it, and may be wrong; so where packets flow, or
another host can be made to send some, the VFs' counters have to show them at the new slot, or the old rule is put back.

With a `catch` (steering in software on the PF, `tc_u32`, to a port that each switch has there) nothing is lost to that
gap. As a `detour` it serves the whole window: the NIC's rule is taken away, the overlay reaches the PF, and is steered
there VM by VM to one or both switches; at the end one rule puts it back on the NIC.
"""

from __future__ import annotations

import errno
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, Protocol

import structlog

from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.core import i40e
from upgrader.core.errors import HostError
from upgrader.core.i40e import Driver, Flavour
from upgrader.core.model import SLOTS, NicFacts, SlotName, SteeringCapabilities, SteeringRule, VmPort
from upgrader.core.nfc import RxRule
from upgrader.core.steering import Arrival, judge, majority
from upgrader.ports import Steering

log = structlog.get_logger(__name__)

# So many in that time before a rule is turned, and silence afterwards is no chance; fewer may be broadcasts.
_LISTEN_S, _LISTEN_PACKETS = 0.1, 50
_ARRIVE_S = 2.0  # and how soon they have to come to where it points


class VirtualFunctions(Protocol):
    """What is needed of a PF's VFs, by number; see `adapters.vf`."""

    def prepare(self, vf: int) -> tuple[str, ...]: ...
    def fence(self, vf: int) -> None: ...
    def received(self, vf: int) -> int: ...


class Neighbours(Protocol):
    """What the PF's kernel knows of its neighbours; see `adapters.pf_neighbours`."""

    def accept(self) -> None: ...
    def known(self) -> Mapping[str, str]: ...


class Probe(Protocol):
    """Another host that sends packets of the overlay to this one; see `adapters.overlay_probe`."""

    def sending(self) -> AbstractContextManager[None]: ...


class Ethtool:
    """Steering for one PF.

    vf        number of each slot's VF
    location  place of our rule in the NIC's table; what stands there is ours, all other rules are not
    catch     steering in software on the same PF, or None
    detour    whether the catch takes the overlay while a window is open
    probe     sends while a rule is turned, None where only what flows anyway can show where it goes
    known     of neighbours by the PF's kernel, for switches that get no copy of what is answered: those without a catch
    """

    def __init__(
        self,
        device: EthtoolDevice,
        vfs: VirtualFunctions,
        known: Neighbours,
        vf: dict[SlotName, int],
        vxlan_port: int,
        location: int,
        *,
        catch: Steering | None = None,
        detour: bool = False,
        probe: Probe | None = None,
        kernel_release: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._vfs = vfs
        self._known = known
        self._vf = vf
        self._port = vxlan_port
        self._location = location
        self._catch = catch
        self._detour = catch if detour else None
        self._probe = probe
        self._kernel_release = kernel_release or platform.release()
        self._sleep = sleep
        self._driver: tuple[Driver, Flavour] | None = None
        self._served: dict[tuple[int | None, str], SlotName] = {}

    def capabilities(self) -> SteeringCapabilities:
        driver, flavour = self._identify()
        size, rules = self._table()
        detour = self._detour is not None
        return SteeringCapabilities(
            dual_delivery=detour,
            per_vm=detour,
            atomic=False,
            gap_caught=self._catch is not None,
            copies_answers=self._catch is not None,
            hardware=True,
            detour=detour,
            # in the window of a detour the rules are the catch's, and memory is their limit
            capacity=None if detour else i40e.capacity(flavour, size, tuple(r for r in rules if not self._is_ours(r))),
            unproven=None
            if flavour is Flavour.OUT_OF_TREE
            else i40e.UNPROVEN.format(flavour=flavour, version=driver.version),
        )

    def facts(self) -> NicFacts:
        driver, flavour = self._identify()
        _, rules = self._table()
        foreign = tuple(str(r) for r in rules if not self._is_ours(r))
        return NicFacts(driver.name, driver.version, driver.firmware, driver.bus, flavour, len(rules), foreign)

    def prepare(self, slot: SlotName) -> None:
        self._vfs.prepare(self._vf[slot])
        if self._catch:
            self._catch.prepare(slot)
        else:
            self._known.accept()

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:
        self._served.clear()
        if self._catch:
            self._catch.steady(slot)  # before the NIC's rule is touched: what falls to the PF has to find it
        self._turn(slot, anew=anew)

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        """With a detour the catch stands before the NIC's rule goes; without, the port goes where most VMs are."""
        self._served = {(port.vni, port.mac): slot for port, slot in served}
        if self._catch:
            self._catch.open_window(served)
        if self._detour:
            self._refuse_strangers()
            self._delete()
        elif served:
            self._follow()

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        if self._catch:
            self._catch.move_vm(port, slots)
        if len(slots) == 1:
            self._served[port.vni, port.mac] = slots[0]
        if not self._detour:
            self._follow()

    def close_window(self, slot: SlotName) -> None:
        self._served.clear()
        self._turn(slot)
        if self._catch:
            self._catch.close_window(slot)

    def failover(self, slot: SlotName) -> None:
        if self._catch:
            self._catch.failover(slot)
        self._served = dict.fromkeys(self._served, slot)
        self._turn(slot, hurry=True)

    def fence(self, slot: SlotName) -> None:
        """The VF that the rule points to is never stopped.

        Never raises: a driver may have no link state for VFs (igb has not), and packets go where they should all the same.
        """
        try:
            ours = self._ours()
            if ours is None or slot not in self._slots(ours):
                self._vfs.fence(self._vf[slot])
        except HostError as error:
            log.warning("the dead switch's VF is not fenced", slot=slot, error=str(error))

    def rules(self) -> tuple[SteeringRule, ...]:
        """The NIC's rule; in the window of a detour, when it has none, those of the catch."""
        ours = self._ours()
        if ours is not None:
            return (SteeringRule(None, None, self._slots(ours), None),)
        return self._catch.rules() if self._catch and self._detour else ()

    def rule(self, port: VmPort) -> SteeringRule | None:
        """That of the catch, in the window of a detour."""
        return self._catch.rule(port) if self._catch and self._detour and self._ours() is None else None

    def arrived(self) -> dict[SlotName, int]:
        """By the VFs' counters, and the catch's where there is one."""
        caught = self._catch.arrived() if self._catch else dict.fromkeys(SLOTS, 0)
        return {slot: count + caught[slot] for slot, count in self._received().items()}

    def neighbours(self) -> Mapping[str, str]:
        return {} if self._catch else self._known.known()

    def _received(self) -> dict[SlotName, int]:
        return {slot: self._vfs.received(self._vf[slot]) for slot in SLOTS}

    def _follow(self) -> None:
        """Turn the whole port to where most VMs are served."""
        ours = self._ours()
        points = self._slots(ours) if ours else ()
        now = points[0] if points else next(iter(self._served.values()))
        self._turn(majority(self._served.values(), now))

    def _turn(self, slot: SlotName, *, anew: bool = False, hurry: bool = False) -> None:
        """Make the one rule point to this slot. On a failure, put back what was there, and say what is.

        In a hurry only our place is looked at, not the whole table.
        """
        self._identify()
        if not hurry:
            self._refuse_strangers()
        before = self._ours()
        if before is not None and self._slots(before) == (slot,) and not anew:
            return
        with self._probe.sending() if self._probe and not hurry else nullcontext():
            # where the PF has the overlay, and no catch takes it on, VFs get nothing that could be missed
            seen = before is not None or self._detour is not None
            flows = not hurry and (self._probe is not None or (seen and self._flows()))
            self._write(slot, before, flows)

    def _write(self, slot: SlotName, before: RxRule | None, flows: bool) -> None:
        """The turn itself; with `flows` the VFs have to be given packets afterwards."""
        _, flavour = self._identify()
        wanted = i40e.whole_port(flavour, self._port, self._vf[slot], self._location)
        try:
            self._device.insert(wanted)
        except OSError as error:
            self._explain(error, wanted, self._put_back(flavour, before))
        now = self._at_our_place()
        if now is None or not self._is_ours(now) or self._slots(now) != (slot,):
            raise self._error(
                f"the driver of {self._device.name} took the rule for slot {slot}, and shows {now or 'none'} in its place",
                state="overlay traffic goes where that says",
                next=self._command("-n"),
            )
        if flows and (found := self._awaited(slot)) in (Arrival.SILENT, Arrival.ELSEWHERE):
            raise self._error(
                f"the NIC shows its rule pointing to slot {slot}, but by the VFs' counters {found}",
                state=self._put_back(flavour, before),
                next=f"dmesg | tail   (a rule that was queued and then failed is told there); {self._command('-n')}",
            )

    def _flows(self) -> bool:
        """Whether VFs are being given so many packets that their staying away would say something."""
        before = self.arrived()
        self._sleep(_LISTEN_S)
        now = self.arrived()
        return sum(now[s] - before[s] for s in SLOTS) >= _LISTEN_PACKETS

    def _awaited(self, slot: SlotName) -> Arrival:
        """Which VF packets arrive at now: a driver says yes before the hardware does, and instead of it."""
        for _ in range(round(_ARRIVE_S / _LISTEN_S)):
            before = self._received()
            self._sleep(_LISTEN_S)
            found = judge(slot, before, self._received(), _LISTEN_PACKETS)
            if found in (Arrival.AS_SET, Arrival.BOTH):
                break
        return found

    def _put_back(self, flavour: Flavour, before: RxRule | None) -> str:
        """A failed insert may have deleted what was there. Returns where traffic goes now."""
        points = self._slots(before) if before else ()
        if not points:
            self._delete()  # where it stands without effect it would be believed
            return "overlay traffic goes to the PF" + (", and is steered there" if self._detour else "")
        now = self._ours()
        if now is None or self._slots(now) != points:
            try:
                self._device.insert(i40e.whole_port(flavour, self._port, self._vf[points[0]], self._location))
            except OSError:
                return "the rule that was there is gone as well: overlay traffic goes to the PF"
        return f"overlay traffic goes to slot {points[0]} as before"

    def _delete(self) -> None:
        try:
            self._device.delete(self._location)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._explain(error, None, "overlay traffic goes where it went before")

    def _refuse_strangers(self) -> None:
        """Raise when a rule of somebody else stands at our place, takes the same, or would be broken by ours."""
        _, flavour = self._identify()
        if not self._ntuple():
            raise self._error(
                f"rules are switched off on {self._device.name}",
                state="nothing was changed",
                next=f"ethtool -K {self._device.name} ntuple on",
            )
        for r in self._table()[1]:
            if r.location == self._location:
                if not self._is_ours(r):
                    raise self._stranger(r)
                continue
            if i40e.same_match(r, flavour, self._port):
                why = f"rule {r.location} of {self._device.name} takes the overlay already: {r}"
            elif flavour is Flavour.OUT_OF_TREE and i40e.excludes(r):
                why = f"rule {r.location} of {self._device.name} is a filter by MAC, which a filter by port makes invalid: {r}"
            else:
                continue
            remedy = f"{self._command('-N')} delete {r.location}   (if nobody needs it)"
            raise self._error(why, state="nothing was changed", next=remedy)

    def _stranger(self, r: RxRule) -> HostError:
        remedy = f"name a free place: nic.location; or, if nobody needs it: {self._command('-N')} delete {r.location}"
        what = f"location {r.location} of {self._device.name} holds a rule of somebody else: {r}"
        return self._error(what, state="nothing was changed", next=remedy)

    def _is_ours(self, r: RxRule) -> bool:
        """Ours is what stands at our place and takes the overlay, whoever it points to: a VF that was reset has no name."""
        _, flavour = self._identify()
        return r.location == self._location and i40e.same_match(r, flavour, self._port)

    def _ours(self) -> RxRule | None:
        found = self._at_our_place()
        if found is not None and not self._is_ours(found):
            raise self._stranger(found)
        return found

    def _at_our_place(self) -> RxRule | None:
        try:
            return self._device.rule(self._location)
        except OSError as error:
            self._explain(error, None, "nothing was changed")

    def _slots(self, r: RxRule) -> tuple[SlotName, ...]:
        return tuple(slot for slot, number in self._vf.items() if number == r.vf)

    def _table(self) -> tuple[int, tuple[RxRule, ...]]:
        try:
            size, rules = self._device.table()
        except OSError as error:
            self._explain(error, None, "nothing was changed")
        return size, rules

    def _ntuple(self) -> bool:
        try:
            return self._device.ntuple()
        except OSError as error:
            self._explain(error, None, "nothing was changed")

    def _identify(self) -> tuple[Driver, Flavour]:
        if self._driver is None:
            try:
                driver = self._device.driver()
            except OSError as error:
                self._explain(error, None, "nothing was changed")
            self._driver = driver, driver.flavour(self._kernel_release)
        return self._driver

    def _explain(self, error: OSError, rule: RxRule | None, state: str) -> NoReturn:
        name = self._device.name
        if error.errno == errno.ENODEV:
            raise self._error(f"there is no netdev {name}", state=state, next="ip link show") from error
        if error.errno == errno.EOPNOTSUPP and rule is None:
            what = f"the driver of {name} has no receive rules (ethtool n-tuple)"
            raise self._error(what, state=state, next='nic.adapter = "tc_u32" steers on any netdev') from error
        if error.errno == errno.EINVAL and rule is not None and i40e.is_cloud(rule):
            # the driver does not show the parameter; this is how it answers without
            what = (
                f"the driver of {name} refused a rule for a UDP port, as it does when loaded without l4mode=0: {rule}"
            )
            remedy = 'modprobe -r i40e && modprobe i40e l4mode=0   (the link goes down), or nic.adapter = "tc_u32"'
            raise self._error(what, state=state, next=remedy) from error
        what = f"the driver of {name} refused {rule}: {error}" if rule else f"{name} cannot be asked: {error}"
        raise self._error(what, state=state, next=f"dmesg | tail; {self._command('-n')}") from error

    def _command(self, option: str) -> str:
        inside = f"ip netns exec {self._device.netns} " if self._device.netns else ""
        return f"{inside}ethtool {option} {self._device.name}"

    def _error(self, what: str, *, state: str, next: str) -> HostError:  # noqa: A002 - the operator's word
        return HostError("STEERING_FAILED", what, state=state, next=next)
