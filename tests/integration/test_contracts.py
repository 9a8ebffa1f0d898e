"""The real adapters, held to what the simulated host is held to in tests/contract/test_host.py; one lab for all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.support.contracts import (
    DatabaseContract,
    HypervisorContract,
    OpenFlowContract,
    ProcessesContract,
    ResourcesContract,
    Rig,
    WellKnownContract,
)
from tests.support.contracts.rig import BRIDGE
from tests.support.lab_host import LabHost
from tests.support.migration import migrating
from tests.support.slots import ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ofctl.programs import appctl
from upgrader.core.model import CHARDEV_PREFIX, Slot, VmPort
from upgrader.lab import spec as names
from upgrader.lab.libvirtd import virsh
from upgrader.lab.up import Lab

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.parametrize("lab", [{"tag": "c", "vms": 3}], indirect=True),
]


class LabRig(Rig):
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        made = LabHost(lab)
        super().__init__(made.host, made.slots)

    def add_bridge(self, slot: Slot, controllers: Sequence[str] = ()) -> None:
        led = ["--", "set-controller", BRIDGE, *controllers] if controllers else []
        options = "datapath_type=netdev", "fail_mode=standalone"
        vsctl(slot, "add-br", BRIDGE, "--", "set", "Bridge", BRIDGE, *options, *led)

    def delete_bridge(self, slot: Slot) -> None:
        vsctl(slot, "del-br", BRIDGE)

    def write(self, slot: Slot, *lines: str) -> None:
        argv = [
            str(slot.prefix / "bin/ovs-ofctl"),
            "-O",
            "OpenFlow15",
            "bundle",
            f"unix:{slot.rundir}/{BRIDGE}.mgmt",
            "-",
        ]
        gate.run(argv, stdin="".join(f"{line}\n" for line in lines))

    def write_meter(self, slot: Slot, meter: str) -> None:
        ofctl(slot, "add-meter", BRIDGE, meter)

    def write_tlv(self, slot: Slot, mapping: str) -> None:
        ofctl(slot, "add-tlv-map", BRIDGE, mapping)

    def teach_neighbour(self, slot: Slot, bridge: str, ip: str, mac: str) -> None:
        appctl(slot, "tnl/neigh/set", bridge, ip, mac)

    def teach_route(self, slot: Slot, bridge: str, prefix: str) -> None:
        appctl(slot, "ovs/route/add", prefix, bridge, names.REMOTE_VTEP)  # without a gateway there is no way into it

    def on_link(self, slot: Slot, bridge: str) -> str:
        return str(ip_address(names.HOST_VTEP) + 76)

    def chardevs(self, port: VmPort) -> set[str]:
        command = json.dumps({"execute": "query-chardev"})
        told = json.loads(virsh(self.lab.spec, "qemu-monitor-command", port.domain, command))["return"]
        return {c["label"] for c in told if c["label"].startswith(CHARDEV_PREFIX)}

    def end_vm(self, port: VmPort) -> None:
        virsh(self.lab.spec, "destroy", port.domain)

    def migrating(self, port: VmPort) -> AbstractContextManager[None]:
        return migrating(self.lab, port.domain)

    def listens(self, path: Path) -> bool:
        return path.is_socket() and not path.is_symlink()

    def leads_to(self, path: Path) -> Path | None:
        return path.readlink() if path.is_symlink() else None

    def addresses(self, slot: Slot, netdev: str) -> set[str]:
        told = gate.run(["ip", "-j", "address", "show", "dev", netdev], netns=slot.netns, check=False)
        links = json.loads(told.stdout) if told.returncode == 0 else []
        found = [a for link in links for a in link.get("addr_info", ()) if a["scope"] != "link"]
        return {f"{a['local']}/{a['prefixlen']}" for a in found}


@pytest.fixture(scope="module", name="rig")
def rig_fixture(lab: Lab) -> Iterator[Rig]:
    yield LabRig(lab)


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


class TestHypervisor(HypervisorContract):
    pass
