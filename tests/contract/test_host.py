"""The simulated host, held to what the real adapters are held to in tests/integration/test_contracts.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.contracts import (
    DatabaseContract,
    HypervisorContract,
    OpenFlowContract,
    ProcessesContract,
    ResourcesContract,
    Rig,
    SocketsContract,
    WellKnownContract,
)
from tests.support.contracts.rig import BRIDGE
from upgrader.adapters.host_resources import HostResources
from upgrader.core.model import Bridge, Slot, VmPort
from upgrader.sim.host import make
from upgrader.sim.openflow import apply


class SimRig(Rig):
    def __init__(self, folder: Path) -> None:
        self.world, host, slots = make(folder, vms=3)
        self.world.watchable = True
        super().__init__(host, slots)

    def add_bridge(self, slot: Slot, controllers: Sequence[str] = ()) -> None:
        held = self.world.databases[slot.name]
        bridge = Bridge(BRIDGE, "netdev", "standalone", tuple(controllers))
        switch = replace(held.switch, bridges=(*held.switch.bridges, bridge))
        self.world.databases[slot.name] = replace(held, switch=switch)

    def delete_bridge(self, slot: Slot) -> None:
        held = self.world.databases[slot.name]
        left = tuple(b for b in held.switch.bridges if b.name != BRIDGE)
        self.world.databases[slot.name] = replace(held, switch=replace(held.switch, bridges=left))

    def write(self, slot: Slot, *lines: str) -> None:
        apply(self.world, slot.name, BRIDGE, lines)

    def write_meter(self, slot: Slot, meter: str) -> None:
        self.world.meters[slot.name, BRIDGE] = (meter,)

    def write_tlv(self, slot: Slot, mapping: str) -> None:
        self.world.tlvs[slot.name, BRIDGE] = (mapping,)

    def teach_neighbour(self, slot: Slot, bridge: str, ip: str, mac: str) -> None:
        self.world.learned[slot.name, "neighbours", bridge, ip] = mac

    def teach_route(self, slot: Slot, bridge: str, prefix: str) -> None:
        self.world.learned[slot.name, "routes", bridge, prefix] = f"dev {bridge}"

    def on_link(self, slot: Slot, bridge: str) -> str:
        self.teach_route(slot, bridge, "198.51.100.0/24")
        return "198.51.100.9"

    def chardevs(self, port: VmPort) -> set[str]:
        return {chardev for domain, chardev in self.world.chardevs if domain == port.domain}

    def end_vm(self, port: VmPort) -> None:
        self.world.end(port.domain)

    @contextmanager
    def migrating(self, port: VmPort) -> Iterator[None]:
        self.world.migrate(port.domain)
        yield
        self.world.migrated(port.domain, stays=True)

    def listens(self, path: Path) -> bool:
        return path in self.world.listeners

    def leads_to(self, path: Path) -> Path | None:
        return self.world.links.get(path)

    def addresses(self, slot: Slot, netdev: str) -> set[str]:
        return set(self.world.addresses.get((slot.name, netdev), ()))


class MachineRig(SimRig):
    """The same, with socket files of this machine: these need no lab."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.host = replace(self.host, resources=HostResources())

    def listens(self, path: Path) -> bool:
        return path.is_socket() and not path.is_symlink()

    def leads_to(self, path: Path) -> Path | None:
        return path.readlink() if path.is_symlink() else None


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return SimRig(tmp_path)


class TestProcesses(ProcessesContract):
    pass


class TestDatabase(DatabaseContract):
    pass


class TestOpenFlow(OpenFlowContract):
    pass


class TestWellKnown(WellKnownContract):
    pass


class TestResources(ResourcesContract):
    pass


class TestSocketsOfTheMachine(SocketsContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Rig:
        return MachineRig(tmp_path)


class TestHypervisor(HypervisorContract):
    pass
