"""The databases of slots in memory: what each holds, who is in control by it, and what a switch tells in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from upgrader.core import proof
from upgrader.core.control import Control
from upgrader.core.inventory import origin
from upgrader.core.model import ORIGIN_KEY, Bridge, Interface, PortBinding, Slot, SwitchFacts
from upgrader.core.proof import Difference
from upgrader.core.replica import VHOST, Copied
from upgrader.sim.world import Database, World, refused

_APPLIED_S = 60.0


class SimDatabase:
    def __init__(self, world: World) -> None:
        self._w = world

    def read(self, slot: Slot) -> SwitchFacts:
        self._w.look(f"read {slot.name}")
        held = self._filled(slot)
        linked = {str(socket) for socket in self._w.linked(slot.name)}

        def told(interface: Interface) -> Interface:
            if not held.taken:
                return replace(interface, ofport=None, link_state=None)
            vhost = interface.type in VHOST
            up = (slot.name, interface.name) not in self._w.silent
            up = up and (not vhost or origin(interface) in linked)
            return replace(interface, link_state="up" if up else "down")

        bridges = held.switch.bridges if held.note is None else tuple(_quiet(b, slot) for b in held.switch.bridges)
        return replace(
            held.switch,
            bridges=tuple(replace(b, flows=(), groups=()) for b in sorted(bridges, key=lambda b: b.name)),
            interfaces=tuple(map(told, sorted(held.switch.interfaces, key=lambda i: i.name))),
            managers=held.switch.managers if held.note is None else (),
        )

    def bridges(self, slot: Slot) -> tuple[str, ...]:
        self._w.look(f"bridges {slot.name}")
        held = self._opened(slot)
        return tuple(sorted(b.name for b in held.switch.bridges)) if held else ()

    def sync(self, source: Slot, target: Slot, bindings: Sequence[PortBinding], *, applied: bool = True) -> Copied:
        self._w.call(f"sync {source.name} {target.name}")
        wanted = self._wanted(source, target, bindings)
        now = self._opened(target)
        changes = _changes(now, wanted)
        if changes:
            self._change(target, wanted, applied=applied)
        return Copied(changes=changes, bridges=tuple(sorted(b.name for b in wanted.switch.bridges)))

    def image(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> Path | None:
        """None: rows can be written with UUIDs of their own here, as by every version but the oldest."""
        return None

    def differences(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> tuple[Difference, ...]:
        self._w.look(f"differences {source.name} {target.name}")
        old, new = _told(self._wanted(source, target, bindings)), _told(self._opened(target))
        numbers = [{i.name: str(i.ofport) for i in self.read(s).interfaces} for s in (source, target)]
        both = numbers[0].keys() & numbers[1].keys()
        of_both = ({n: of[n] for n in both} for of in numbers)
        return (
            *(d for kind in old for d in proof.compare(kind, "database", old[kind], new[kind])),
            *proof.compare("port number", "database", *of_both),
        )

    def in_control(self, slot: Slot) -> bool:
        self._w.look(f"in_control {slot.name}")
        held = self._opened(slot)
        return held is not None and held.note is None

    def control(self, slot: Slot) -> Control:
        self._w.look(f"control {slot.name}")
        held = self._filled(slot)
        bridges, managers = held.switch.bridges, held.switch.managers
        if held.note == "handed over":
            bridges, managers = tuple(_quiet(b, slot) for b in bridges), ()
        led = tuple((b.name, tuple(sorted(b.controllers))) for b in bridges if b.controllers)
        exerted = held.note is None and self._w.pids[slot.name] is not None
        return Control(
            controllers=led,
            managers=managers,
            fail_modes=tuple(sorted((b.name, b.fail_mode or "standalone") for b in bridges)),
            connected=frozenset((*(t for _, targets in led for t in targets), *managers)) if exerted else frozenset(),
        )

    def release_control(self, slot: Slot) -> None:
        self._w.call(f"release_control {slot.name}")
        held = self._opened(slot)
        if held is not None and held.note is None:
            self._change(slot, replace(held, note="handed over"), applied=True)

    def assume_control(self, slot: Slot) -> None:
        self._w.call(f"assume_control {slot.name}")
        held = self._opened(slot)
        if held is None or held.note != "kept":
            return
        holder = self._w.in_control
        if holder is not None and self._w.pids[holder] is not None:
            self._w.trouble.append(f"slot {slot.name} took control while {holder} had it")
        self._change(slot, replace(held, note=None), applied=True)

    def unready(self, slot: Slot, expected_up: Sequence[str]) -> tuple[str, ...]:
        self._w.look(f"unready {slot.name}")
        there = {i.name: i for i in self.read(slot).interfaces}
        found = [f"{n}: the slot has no such interface" for n in expected_up if n not in there]
        for name, interface in sorted(there.items()):
            if interface.ofport is None:
                found.append(f"{name}: no OpenFlow number")
            elif name in expected_up and interface.link_state != "up":
                found.append(f"{name}: link {interface.link_state or 'unknown'}")
        return tuple(found)

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        lacking = self.unready(slot, interfaces)
        named = [text for text in lacking if text.partition(":")[0] in interfaces]
        if named:
            self._w.now += timeout_s
            raise refused(f"slot {slot.name} did not bring up {', '.join(named)} in time", "PORTS_NOT_READY")
        self._w.ask(slot.name)

    def _opened(self, slot: Slot) -> Database | None:
        """What the slot's database holds, None where it is empty. Raises HostError where none runs."""
        if self._w.database_pids[slot.name] is None:
            raise refused(f"the database of slot {slot.name} does not answer", "DATABASE_UNREACHABLE")
        return self._w.databases.get(slot.name)

    def _filled(self, slot: Slot) -> Database:
        return self._opened(slot) or Database(SwitchFacts("", (), ()))

    def _wanted(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> Database:
        old, new = self._opened(source), self._opened(target)
        if old is None:
            raise refused(f"the database of slot {source.name} holds no configuration", "DATABASE_EMPTY")
        return _following(old, new, target, bindings)

    def _change(self, slot: Slot, held: Database, *, applied: bool) -> None:
        self._w.databases[slot.name] = held
        if applied and self._w.pids[slot.name] is None:
            self._w.now += _APPLIED_S
            raise refused(f"no switch of slot {slot.name} took its new configuration", "CONFIGURATION_NOT_APPLIED")
        if applied:
            self._w.ask(slot.name)


def _following(old: Database, new: Database | None, slot: Slot, bindings: Sequence[PortBinding]) -> Database:
    """What `core.replica.standby` and `core.control.parked` make of a follower's database."""
    here = {i.name: i for i in new.switch.interfaces} if new else {}
    bound = {b.interface: b for b in bindings}
    own = tuple(_own(i, here.get(i.name), bound.get(i.name), slot) for i in old.switch.interfaces)
    switch = replace(old.switch, interfaces=own)
    if new is None:
        return Database(switch, old.note or "kept")
    if old.note is None or (old.note, new.note) == ("kept", "handed over"):
        return Database(switch, "kept", new.taken)
    led = {b.name: b for b in new.switch.bridges}
    bridges = tuple(
        replace(b, controllers=led[b.name].controllers, fail_mode=led[b.name].fail_mode) if b.name in led else b
        for b in switch.bridges
    )
    return Database(replace(switch, bridges=bridges, managers=new.switch.managers), new.note, new.taken)


def _own(interface: Interface, here: Interface | None, binding: PortBinding | None, slot: Slot) -> Interface:
    """The slot's copy of one interface: VF and sockets are its own."""
    options = dict(interface.options)
    if interface.name == slot.uplink:
        return replace(interface, options=tuple({**options, "dpdk-devargs": slot.devargs}.items()))
    if interface.type not in VHOST:
        return interface
    if binding:
        path, known = str(binding.socket), str(binding.origin)
    elif here:
        path, known = here.option("vhost-server-path") or "", here.external_id(ORIGIN_KEY) or ""
    else:
        path, known = str(slot.vhost_dir / interface.name), origin(interface)
    ids = {k: v for k, v in interface.external_ids if k != ORIGIN_KEY} | ({ORIGIN_KEY: known} if known else {})
    return replace(
        interface, options=tuple({**options, "vhost-server-path": path}.items()), external_ids=(*ids.items(),)
    )


def _quiet(bridge: Bridge, slot: Slot) -> Bridge:
    """A bridge of a slot that is not in control: where it has controllers, one that nobody answers stands in."""
    if not any(not t.startswith("p") for t in bridge.controllers):
        return replace(bridge, controllers=())
    return replace(bridge, controllers=(f"unix:{slot.rundir}/{bridge.name}.standby",), fail_mode="secure")


def _told(held: Database | None) -> dict[str, dict[str, str]]:
    """What a database holds, by kind and name, in words."""
    found: dict[str, dict[str, str]] = {"bridge": {}, "interface": {}, "open_vswitch": {}}
    if held is None:
        return found
    switch = held.switch
    for b in switch.bridges:
        found["bridge"][b.name] = f"{b.datapath_type} {b.fail_mode} {','.join((*b.controllers, *b.protocols))}"
    for i in switch.interfaces:
        settings = (f"{k}={v}" for k, v in (*sorted(i.options), *sorted(i.external_ids)))
        found["interface"][i.name] = " ".join((i.bridge, i.type, *settings))
    found["open_vswitch"]["Open_vSwitch"] = f"control {held.note}, managers {','.join(switch.managers)}"
    return found


def _changes(now: Database | None, wanted: Database) -> tuple[str, ...]:
    """As `Copied.changes` tells them."""
    if now == wanted:
        return ()
    old, new = _told(now), _told(wanted)
    return tuple(
        f"{_verb(old[kind], new[kind], name)} {kind.capitalize()} {name}"
        for kind in new
        for name in sorted({*old[kind], *new[kind]})
        if old[kind].get(name) != new[kind].get(name)
    )


def _verb(old: Mapping[str, str], new: Mapping[str, str], name: str) -> str:
    return "update" if name in old and name in new else "insert" if name in new else "delete"
