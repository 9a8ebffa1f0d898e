"""A host in memory, under the same protocols as the real one, in which any call can be made to fail.

It keeps the promises that QEMU's patches and the kernel keep (tests/integration holds the real ones to them): rings
have one owner, a switch of owner names the owner and generation it expects, a dead owner's rings go to a ready
standby. `World.trouble` lists every broken promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from upgrader.core import openflow
from upgrader.core.control import Control
from upgrader.core.errors import HostError
from upgrader.core.model import (
    CHARDEV_PREFIX,
    ORIGIN_KEY,
    HugepagePool,
    Interface,
    NicFacts,
    PortBinding,
    RingOwnership,
    Slot,
    SlotName,
    SlotStatus,
    Standby,
    SteeringCapabilities,
    SteeringRule,
    SwitchFacts,
    SwitchResult,
    VmInterface,
    VmPort,
)
from upgrader.core.openflow import BridgeState
from upgrader.core.proof import Difference
from upgrader.core.replica import Copied
from upgrader.ports import Follower, Host
from upgrader.sim.facts import ovs_interface, ownership, slot, switch_facts, vm_interface


def refused(what: str) -> HostError:
    return HostError("SIMULATED", what, state="simulated", next="nothing")


@dataclass
class World:
    """The host's state, and the log of every call with an effect."""

    vms: dict[str, VmInterface]
    pids: dict[SlotName, int | None]
    switch: SwitchFacts
    flows: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    bound: dict[SlotName, tuple[PortBinding, ...]] = field(default_factory=dict)
    fail_modes: dict[str, str | None] = field(default_factory=dict)
    steady: tuple[SlotName, ...] = ("a",)
    in_control: SlotName | None = "a"
    rules: dict[tuple[int | None, str], tuple[SlotName, ...]] = field(default_factory=dict)
    listeners: set[Path] = field(default_factory=set)
    links: dict[Path, Path] = field(default_factory=dict)
    control: SlotName | None = "a"
    dual: bool = True
    next_pid: int = 5000
    dials_libvirt: SlotName = "a"  # whose ports connect to the sockets that libvirt made
    now: float = 0.0
    chardevs: set[tuple[str, str]] = field(default_factory=set)  # ours, by domain
    calls: list[str] = field(default_factory=list)
    looks: int = 0
    look_fault: Callable[[str, int], BaseException | None] = lambda name, count: None
    fault: Callable[[str, int], BaseException | None] = lambda name, count: None
    trouble: list[str] = field(default_factory=list)
    fails_over: bool = True  # QEMU brings rings over by itself
    watchable: bool = False  # a thread may wait for a switch to die
    watchers: dict[SlotName, list[int]] = field(default_factory=dict)

    def call(self, name: str) -> None:
        """Record an effect, or let it fail before it has any."""
        self.calls.append(name)
        error = self.fault(name, len(self.calls))
        if error is not None:
            raise error

    def look(self, name: str) -> None:
        """Let a look at the host fail."""
        self.looks += 1
        error = self.look_fault(name, self.looks)
        if error is not None:
            raise error

    def slot_of(self, pid: int | None) -> SlotName | None:
        return next((n for n, p in self.pids.items() if p is not None and p == pid), None)

    def owners(self) -> dict[str, SlotName | None]:
        """By domain, the slot that serves it."""
        return {d: self.slot_of(v.ownership.owner_pid) if v.ownership else None for d, v in self.vms.items()}

    def reached(self, vm: VmInterface) -> tuple[SlotName, ...]:
        return self.rules.get((100, vm.mac), self.steady)

    def unreached(self) -> list[str]:
        """Domains whose overlay traffic goes only to a switch that does not serve them."""
        return [d for d, owner in self.owners().items() if owner not in self.reached(self.vms[d])]

    def idle_port(self, number: int) -> None:
        """The switch has a port for a VM that does not run."""
        self.switch = replace(self.switch, interfaces=(*self.switch.interfaces, ovs_interface(number)))

    def restart(self, domain: str) -> None:
        """End a VM and start it again: its QEMU listens on libvirt's socket, which the active switch dials."""
        vm = self.vms[domain]
        self.chardevs = {(d, c) for d, c in self.chardevs if d != domain}
        self.vms[domain] = replace(vm, ownership=ownership(vm.chardev, self.pids[self.dials_libvirt] or 0))

    def die(self, name: SlotName) -> None:
        """Kill a slot's switch: QEMU brings its rings to a ready standby by itself."""
        pid, self.pids[name] = self.pids[name], None
        for domain, vm in self.vms.items():
            o = vm.ownership
            if o is None or pid is None:
                continue
            if o.owner_pid == pid and o.standby and o.standby.ready and self.fails_over:
                new = replace(
                    o,
                    owner=o.standby.chardev,
                    owner_pid=o.standby.pid,
                    generation=o.generation + 1,
                    standby=Standby(o.owner, False, False, "lost", None, pid),
                )
            elif o.owner_pid == pid:
                new = replace(o, owner_connected=False, owner_pid=None)
            elif o.standby and o.standby.pid == pid:
                new = replace(o, standby=replace(o.standby, connected=False, ready=False, reason="lost", pid=None))
            else:
                continue
            self.vms[domain] = replace(vm, ownership=new)
        for end in self.watchers.pop(name, []):
            os.close(end)


class SimProcesses:
    def __init__(self, world: World) -> None:
        self._w = world

    def status(self, slot: Slot) -> SlotStatus:
        pid = self._w.pids[slot.name]
        return SlotStatus(pid, pid + 1 if pid else None)

    def running_version(self, slot: Slot) -> str | None:
        return "3.1.0" if self._w.pids[slot.name] else None

    def installed_version(self, slot: Slot) -> str | None:
        return "3.1.0"

    def start_database(self, slot: Slot, image: Path | None = None) -> int:
        self._w.call(f"start_database {slot.name}")
        return 1

    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
        self._w.call(f"start_switch {slot.name}")
        for bridge in self._w.switch.bridges:  # a switch that starts has no flows
            self._w.flows[slot.name, bridge.name] = ()
        self._w.next_pid += 10
        self._w.pids[slot.name] = self._w.next_pid
        return self._w.next_pid

    def polled_queues(self, slot: Slot) -> dict[str, int]:
        return {i.name: 1 for i in self._w.switch.interfaces}

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        self._w.call(f"log_vhost {slot.name} {on}")

    def stop(self, slot: Slot) -> None:
        self._w.call(f"stop {slot.name}")
        serves = [d for d, owner in self._w.owners().items() if owner == slot.name]
        if serves:
            self._w.trouble.append(f"slot {slot.name} was stopped while it served {serves}")
        self._w.die(slot.name)

    def kill_switch(self, slot: Slot) -> None:
        self._w.call(f"kill {slot.name}")
        self._w.die(slot.name)

    def watch(self, slot: Slot) -> int | None:
        if self._w.pids[slot.name] is None or not self._w.watchable:
            return None
        readable, end = os.pipe()
        self._w.watchers.setdefault(slot.name, []).append(end)
        return readable

    def fence(self, slot: Slot, pids: Collection[int] = ()) -> frozenset[int]:
        self._w.call(f"fence {slot.name}")
        own = self._w.pids[slot.name]
        if own is not None:
            self._w.die(slot.name)
        return frozenset(p for p in {*pids, own} if p is not None and self._w.slot_of(p) is None)

    def start_at_boot(self, slot: Slot) -> None:
        self._w.call(f"start_at_boot {slot.name}")


class SimDatabase:
    def __init__(self, world: World) -> None:
        self._w = world

    def read(self, slot: Slot) -> SwitchFacts:
        self._w.look(f"read {slot.name}")
        sockets = {b.interface: b for b in self._w.bound.get(slot.name, ())}

        def own(interface: Interface) -> Interface:
            binding = sockets.get(interface.name)
            if binding is None:
                return interface
            options = (("vhost-server-path", str(binding.socket)),)
            ids = (*interface.external_ids, (ORIGIN_KEY, str(binding.origin)))
            return replace(interface, options=options, external_ids=ids)

        return replace(self._w.switch, interfaces=tuple(own(i) for i in self._w.switch.interfaces))

    def backup(self, slot: Slot, target: Path) -> None:
        self._w.call(f"backup {slot.name}")

    def rehome(self, slot: Slot, bindings: Sequence[PortBinding]) -> None:
        self._w.call(f"rehome {slot.name}")
        self._w.bound[slot.name] = tuple(bindings)

    def sync(self, source: Slot, target: Slot, bindings: Sequence[PortBinding], *, applied: bool = True) -> Copied:
        self._w.call(f"sync {source.name} {target.name}")
        # a port without a binding keeps what it has
        both = (*self._w.bound.get(target.name, ()), *bindings)
        self._w.bound[target.name] = tuple({b.interface: b for b in both}.values())
        return Copied()

    def differences(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> tuple[Difference, ...]:
        self._w.look(f"differences {source.name} {target.name}")
        return ()

    def follow(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> Follower:
        raise NotImplementedError("the simulated host has nothing to monitor")

    def in_control(self, slot: Slot) -> bool:
        self._w.look(f"in_control {slot.name}")
        return self._w.in_control == slot.name

    def control(self, slot: Slot) -> Control:
        self._w.look(f"control {slot.name}")
        return Control((), (), (), frozenset())

    def release_control(self, slot: Slot) -> None:
        self._w.call(f"release_control {slot.name}")
        if self._w.in_control == slot.name:
            self._w.in_control = None

    def assume_control(self, slot: Slot) -> None:
        self._w.call(f"assume_control {slot.name}")
        holder = self._w.in_control
        if holder not in (None, slot.name) and self._w.pids[holder] is not None:
            self._w.trouble.append(f"slot {slot.name} took control while {self._w.in_control} had it")
        self._w.in_control = slot.name

    def unready(self, slot: Slot, expected_up: Sequence[str]) -> tuple[str, ...]:
        self._w.look(f"unready {slot.name}")
        return ()

    def set_fail_modes(self, slot: Slot, modes: dict[str, str | None]) -> None:
        self._w.call(f"set_fail_modes {slot.name}")
        self._w.fail_modes = modes

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        if self._w.pids[slot.name] is None:
            raise refused(f"slot {slot.name} is down")


class SimOpenFlow:
    def __init__(self, world: World) -> None:
        self._w = world

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        return self._w.flows.get((slot.name, bridge), ())

    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        return ()

    def sync(self, source: Slot, target: Slot, bridge: str, *, hold: bool, moving: bool = False) -> Mapping[str, int]:
        self._w.call(f"copy {bridge}")
        self._w.flows[target.name, bridge] = self.flows(source, bridge)
        return {"flow add": len(self.flows(source, bridge))}

    def release_flows(self, slot: Slot, bridge: str) -> int:
        return 0

    def differences(self, source: Slot, target: Slot, bridge: str, *, hold: bool) -> tuple[Difference, ...]:
        self._w.look(f"differences {bridge}")
        sides = BridgeState(flows=self.flows(source, bridge)), BridgeState(flows=self.flows(target, bridge))
        return openflow.differences(bridge, *sides)

    def sync_learned(self, source: Slot, target: Slot, bridges: Sequence[str]) -> Mapping[str, int]:
        self._w.call("sync_learned")
        return {"neighbours": 1}

    def learned_differences(self, source: Slot, target: Slot, bridges: Sequence[str]) -> tuple[Difference, ...]:
        return ()

    def traces(self, source: Slot, target: Slot, limit: int) -> tuple[int, tuple[Difference, ...]]:
        self._w.look("traces")
        return 0, ()


class SimHypervisor:
    def __init__(self, world: World) -> None:
        self._w = world

    def vm_interfaces(self) -> tuple[VmInterface, ...]:
        return tuple(self._w.vms[d] for d in sorted(self._w.vms))

    def ownership(self, port: VmPort) -> RingOwnership | None:
        self._w.look(f"ownership {port.domain}")
        vm = self._w.vms.get(port.domain)
        return vm.ownership if vm else None

    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None:
        self._w.call(f"attach {port.domain}")
        now = self._own(port)
        if chardev.startswith(CHARDEV_PREFIX):
            self._w.chardevs.add((port.domain, chardev))
        if now.standby and now.standby.chardev != chardev:
            raise refused("another standby is attached")
        self._set(port, replace(now, standby=Standby(chardev, True, True, None, peer_pid, peer_pid)))

    def drop_connection(self, port: VmPort, chardev: str) -> None:
        self._w.call(f"drop {port.domain} {chardev}")
        now = self.ownership(port)
        if now is None:
            return
        if now.owner == chardev:
            self._w.trouble.append(f"{port.domain}: the owner's connection was dropped")
        if now.standby and now.standby.chardev == chardev:
            self._set(port, replace(now, standby=None))
        self._w.chardevs.discard((port.domain, chardev))

    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult:
        self._w.call(f"switch {port.domain}")
        now = self._own(port)
        if (now.owner, now.generation) != (owner, generation):
            raise refused("owner or generation is another")
        if now.standby is None or not now.standby.ready:
            raise refused("the standby is not ready")
        if fenced and self._w.slot_of(now.owner_pid) is not None:
            self._w.trouble.append(f"{port.domain}: a switch without asking an owner that lives: two writers")
        if not fenced and now.owner_pid is None:
            raise refused("the owner does not answer")
        lives = now.owner_pid is not None and not fenced
        old = Standby(now.owner, lives, lives, None, now.owner_pid, now.owner_pid)
        new = replace(
            now,
            owner=now.standby.chardev,
            owner_pid=now.standby.pid,
            owner_connected=True,
            generation=generation + 1,
            standby=old,
        )
        self._set(port, new)
        return SwitchResult(
            old.chardev, new.owner, new.generation, "command", fenced, 300_000, 3_000, 400_000, 10_000, 713_000
        )

    def _own(self, port: VmPort) -> RingOwnership:
        vm = self._w.vms.get(port.domain)
        if vm is None or vm.ownership is None:
            raise refused(f"{port.domain} is gone")
        return vm.ownership

    def _set(self, port: VmPort, new: RingOwnership) -> None:
        self._w.vms[port.domain] = replace(self._w.vms[port.domain], ownership=new)


class SimSteering:
    def __init__(self, world: World) -> None:
        self._w = world

    def capabilities(self) -> SteeringCapabilities:
        return SteeringCapabilities(dual_delivery=self._w.dual)

    def facts(self) -> NicFacts:
        return NicFacts("simulated", "1", "", "", "simulated", 1 + len(self._w.rules), ())

    def prepare(self, slot: SlotName) -> None:
        self._w.call(f"prepare {slot}")
        if self._w.pids[slot] is not None:
            self._w.trouble.append(f"slot {slot}'s VF was prepared, and so reset, under a running switch")

    def steady(self, slot: SlotName, *, anew: bool = False) -> None:
        self._w.call(f"steady {slot}")
        self._w.steady = (slot,)

    def open_window(self, served: Sequence[tuple[VmPort, SlotName]]) -> None:
        for port, name in served:
            self.move_vm(port, (name,))
        if self._w.dual:
            self._w.call("steady both")
            self._w.steady = ("a", "b")

    def move_vm(self, port: VmPort, slots: Sequence[SlotName]) -> None:
        self._w.call(f"steer {port.domain} {'+'.join(slots)}")
        self._w.rules[port.vni, port.mac] = tuple(slots)

    def close_window(self, slot: SlotName) -> None:
        self._w.call(f"close_window {slot}")
        self._w.steady = (slot,)
        self._w.rules.clear()

    def failover(self, slot: SlotName) -> None:
        self._w.call(f"failover {slot}")
        self._w.steady = (slot,)
        self._w.rules = dict.fromkeys(self._w.rules, (slot,))

    def arrived(self) -> dict[SlotName, int]:
        return {"a": 0, "b": 0}

    def rules(self) -> tuple[SteeringRule, ...]:
        self._w.look("rules")
        single = [SteeringRule(vni, mac, to, 0) for (vni, mac), to in self._w.rules.items()]
        return (*single, SteeringRule(None, None, self._w.steady, 0))


class SimResources:
    def __init__(self, world: World) -> None:
        self._w = world

    def hugepages(self) -> tuple[HugepagePool, ...]:
        return (HugepagePool(0, 2048, 256, 128),)

    def netns_exists(self, netns: str | None) -> bool:
        return True

    def netdev_exists(self, netns: str | None, name: str) -> bool:
        return True

    def listen(self, path: Path) -> int:
        self._w.call(f"listen {path.name}")
        self._w.listeners.add(path)
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def redirect(self, path: Path, target: Path) -> None:
        self._w.call(f"redirect {path.name}")
        self._w.links[path] = target

    def remove(self, path: Path) -> None:
        self._w.listeners.discard(path)
        self._w.links.pop(path, None)

    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        self._w.call("copy_addresses")


class SimWellKnown:
    def __init__(self, world: World) -> None:
        self._w = world

    def adopt(self) -> None:
        pass

    def mend(self) -> SlotName | None:
        return self._w.control

    def current(self) -> SlotName | None:
        return self._w.control

    def problem(self) -> str | None:
        return None

    def point_to(self, name: SlotName, bridges: Sequence[str]) -> None:
        self._w.call(f"point_to {name}")
        if self._w.pids[name] is None:
            raise refused(f"slot {name} is down")
        self._w.control = name

    def drop_clients(self, slot: SlotName) -> bool:
        self._w.call(f"drop_clients {slot}")
        return True

    def who_answers(self, bridges: Sequence[str]) -> dict[str, int | None]:
        self._w.look("who_answers")
        pid = self._w.pids[self._w.control] if self._w.control else None
        database = pid + 1 if pid else None
        names: dict[str, int | None] = {"ovs-vswitchd": pid, "ovsdb-server": database, "db.sock": database}
        return names | {f"{b}.mgmt": pid for b in bridges}


class SimClock:
    """Time goes on only by sleeping."""

    def __init__(self, world: World) -> None:
        self._w = world

    def now_ns(self) -> int:
        return int(self._w.now * 1e9)

    def monotonic_s(self) -> float:
        return self._w.now

    def sleep(self, seconds: float) -> None:
        self._w.now += seconds


def make(tmp: Path, vms: int = 2) -> tuple[World, Host, dict[SlotName, Slot]]:
    """A host whose slot a serves `vms` VMs, and nothing in slot b."""
    machines = {f"vm{i}": vm_interface(i) for i in range(vms)}
    world = World(vms=machines, pids={"a": 1001, "b": None}, switch=switch_facts(vms))
    for name in ("br-int", "br-phy"):
        world.flows["a", name] = ("priority=10 actions=drop",)
    slots: dict[SlotName, Slot] = {"a": slot("a", rundir=tmp / "a"), "b": slot("b", rundir=tmp / "b")}
    for program in ("sbin/ovs-vswitchd", "sbin/ovsdb-server", "bin/ovs-appctl", "bin/ovs-ofctl", "bin/ovsdb-client"):
        path = tmp / "ovs" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    slots = {n: replace(s, prefix=tmp / "ovs") for n, s in slots.items()}
    host = Host(
        processes=SimProcesses(world),
        database=SimDatabase(world),
        openflow=SimOpenFlow(world),
        hypervisor=SimHypervisor(world),
        steering=SimSteering(world),
        resources=SimResources(world),
        well_known=SimWellKnown(world),
        clock=SimClock(world),
        ready_timeout_s=5.0,
    )
    return world, host, slots


def is_ours(chardev: str) -> bool:
    return chardev.startswith(CHARDEV_PREFIX)
