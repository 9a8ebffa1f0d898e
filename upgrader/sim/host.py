"""A host in memory, under the same protocols as the real one, in which any call can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from upgrader.core.errors import HostError
from upgrader.core.model import (
    CHARDEV_PREFIX,
    SLOTS,
    HugepagePool,
    NicFacts,
    Slot,
    SlotName,
    SteeringCapabilities,
    SteeringRule,
    VmPort,
)
from upgrader.ports import Host
from upgrader.sim.database import SimDatabase
from upgrader.sim.facts import slot, switch_facts, vm_interface
from upgrader.sim.hypervisor import SimHypervisor
from upgrader.sim.openflow import SimOpenFlow
from upgrader.sim.processes import SimProcesses
from upgrader.sim.world import Database, World, refused


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

    def fence(self, slot: SlotName) -> None:
        with suppress(HostError):
            self._w.call(f"fence_vf {slot}")
        if self._w.pids[slot] is not None:
            self._w.trouble.append(f"slot {slot}'s VF was stopped under a running switch")

    def arrived(self) -> dict[SlotName, int]:
        return {"a": 0, "b": 0}

    def neighbours(self) -> Mapping[str, str]:
        return {}

    def rules(self) -> tuple[SteeringRule, ...]:
        self._w.look("rules")
        single = [SteeringRule(vni, mac, to, 0) for (vni, mac), to in self._w.rules.items()]
        return (*single, SteeringRule(None, None, self._w.steady, 0))

    def rule(self, port: VmPort) -> SteeringRule | None:
        self._w.look("rule")
        slots = self._w.rules.get((port.vni, port.mac))
        return SteeringRule(port.vni, port.mac, slots, 0) if slots else None


class SimResources:
    def __init__(self, world: World) -> None:
        self._w = world

    def hugepages(self) -> tuple[HugepagePool, ...]:
        return (HugepagePool(0, 2048, 256, 128),)

    def netns_exists(self, netns: str | None) -> bool:
        return netns is None or netns in {slot(n).netns for n in SLOTS}

    def vf_exists(self, netns: str | None, vf: str) -> bool:
        return (netns, vf) in {(slot(n).netns, slot(n).vf) for n in SLOTS}

    def listen(self, path: Path) -> int:
        self._w.call(f"listen {path.name}")
        self._w.listeners.add(path)
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def redirect(self, path: Path, target: Path) -> None:
        if self._w.links.get(path) == target:
            return
        self._w.call(f"redirect {path.name}")
        self._w.links[path] = target
        self._w.listeners.discard(path)
        self._w.reconnect()

    def remove(self, path: Path) -> None:
        self._w.listeners.discard(path)
        self._w.links.pop(path, None)
        if path.suffix == ".db":
            self._w.removed.add(path)

    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        self._w.call("copy_addresses")
        for name in netdevs:
            if not (found := self._w.addresses.get((source.name, name))):
                continue
            if (target.name, name) not in self._w.addresses:
                raise refused(f"slot {target.name} has no netdev {name}", "NETDEV_MISSING")
            self._w.addresses[target.name, name] = found


class SimWellKnown:
    def __init__(self, world: World) -> None:
        self._w = world

    def adopt(self) -> None:
        pass

    def mend(self) -> SlotName | None:
        """The slot that has the names, when it runs; where none has, the one that runs, if only one does."""
        running = [n for n in SLOTS if self._runs(n)]
        name = self._w.control
        if name is None and len(running) == 1:
            name = running[0]
        if name not in running:
            return None
        self._w.control = name
        self._w.named = self._bridges(name)
        return name

    def current(self) -> SlotName | None:
        return self._w.control

    def problem(self) -> str | None:
        return None

    def point_to(self, name: SlotName, bridges: Sequence[str]) -> None:
        self._w.call(f"point_to {name}")
        if not self._runs(name):
            raise refused(f"slot {name} is down", "SLOT_DOWN")
        self._w.control = name
        self._w.named = set(bridges)

    def _runs(self, name: SlotName) -> bool:
        return self._w.pids[name] is not None and self._w.database_pids[name] is not None

    def _bridges(self, name: SlotName) -> set[str]:
        held = self._w.databases.get(name)
        return {b.name for b in held.switch.bridges} if held else set()

    def drop_clients(self, slot: SlotName) -> bool:
        self._w.call(f"drop_clients {slot}")
        return True

    def who_answers(self, bridges: Sequence[str]) -> dict[str, int | None]:
        self._w.look("who_answers")
        if self._w.control:
            self._w.ask(self._w.control)
        pid = self._w.pids[self._w.control] if self._w.control else None
        database = self._w.database_pids[self._w.control] if self._w.control else None
        names: dict[str, int | None] = {"ovs-vswitchd": pid, "ovsdb-server": database, "db.sock": database}
        there = self._w.named & self._bridges(self._w.control) if self._w.control else set()
        return names | {f"{b}.mgmt": pid if b in there else None for b in bridges}


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
        self._w.waiting()


def make_world(vms: int) -> World:
    """A host whose slot a serves `vms` VMs, and nothing in slot b."""
    machines = {f"vm{i}": vm_interface(i) for i in range(vms)}
    world = World(
        vms=machines,
        pids={"a": 1001, "b": None},
        database_pids={"a": 1002, "b": None},
        databases={"a": Database(switch_facts(vms), taken=True)},
    )
    for name in ("br-int", "br-phy"):
        world.flows["a", name] = ("priority=10 actions=drop",)
        world.named.add(name)
    world.addresses["a", "br-phy"] = ("192.0.2.1/24",)
    world.learned["a", "neighbours", "br-phy", "192.0.2.2"] = "02:09:00:00:00:02"
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
