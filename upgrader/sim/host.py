"""A host in memory, under the same protocols as the real one, in which any call can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from upgrader.core import openflow
from upgrader.core.control import Control
from upgrader.core.model import (
    CHARDEV_PREFIX,
    ORIGIN_KEY,
    SLOTS,
    HugepagePool,
    Interface,
    NicFacts,
    PortBinding,
    RingOwnership,
    Slot,
    SlotName,
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
from upgrader.ports import Host
from upgrader.sim.facts import slot, switch_facts, vm_interface
from upgrader.sim.processes import SimProcesses
from upgrader.sim.world import World, refused


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

    def sync(self, source: Slot, target: Slot, bindings: Sequence[PortBinding], *, applied: bool = True) -> Copied:
        self._w.call(f"sync {source.name} {target.name}")
        # a port without a binding keeps what it has
        both = (*self._w.bound.get(target.name, ()), *bindings)
        self._w.bound[target.name] = tuple({b.interface: b for b in both}.values())
        return Copied(bridges=tuple(b.name for b in self._w.switch.bridges))

    def differences(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> tuple[Difference, ...]:
        self._w.look(f"differences {source.name} {target.name}")
        return ()

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
        if now.owner == chardev:
            raise refused(f"Chardev '{chardev}' is busy")
        self._set(port, replace(now, standby=Standby(chardev, False, False, "not connected", None, peer_pid)))
        self._w.reconnect()

    def drop_connection(self, port: VmPort, chardev: str) -> None:
        self._w.call(f"drop {port.domain} {chardev}")
        now = self.ownership(port)
        if now is None:
            return
        if now.owner == chardev:
            raise refused(f"Chardev '{chardev}' is busy")
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
        if self._w.links.get(path) == target:
            return
        self._w.call(f"redirect {path.name}")
        self._w.links[path] = target
        self._w.reconnect()

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


def make_world(vms: int) -> World:
    """A host whose slot a serves `vms` VMs, and nothing in slot b."""
    machines = {f"vm{i}": vm_interface(i) for i in range(vms)}
    world = World(vms=machines, pids={"a": 1001, "b": None}, switch=switch_facts(vms))
    for name in ("br-int", "br-phy"):
        world.flows["a", name] = ("priority=10 actions=drop",)
    return world


def make_programs(prefix: Path) -> None:
    """What a slot is looked at for before it is started: files of these names."""
    for program in ("sbin/ovs-vswitchd", "sbin/ovsdb-server", "bin/ovs-appctl", "bin/ovs-ofctl", "bin/ovsdb-client"):
        path = prefix / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def make_host(world: World) -> Host:
    """Every port, onto one world."""
    return Host(
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


def make(tmp: Path, vms: int = 2) -> tuple[World, Host, dict[SlotName, Slot]]:
    """A host in memory, and its slots; their folders are under `tmp`."""
    world = make_world(vms)
    make_programs(tmp / "ovs")
    return world, make_host(world), {name: slot(name, rundir=tmp / name, prefix=tmp / "ovs") for name in SLOTS}


def is_ours(chardev: str) -> bool:
    return chardev.startswith(CHARDEV_PREFIX)
