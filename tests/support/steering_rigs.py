"""Every steering adapter on a NIC of its kind, as often as asked for: each comes new, and remembers nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_nic import FakeNic, FakeVfs, build_shim, x710
from tests.support.steer_bench import Nic, software
from upgrader.adapters import gate
from upgrader.adapters.pf_neighbours import PfNeighbours
from upgrader.adapters.tc_flower import TcFlower
from upgrader.core.model import SlotName
from upgrader.core.tc import Underlay
from upgrader.ports import Steering

ADAPTERS = (
    "tc_u32",
    "tc_u32-ipv6",
    "x710-in-tree",
    "x710-out-of-tree",
    "x710-with-catch",
    "x710-with-detour",
    "tc_flower",
    "tc_flower-mirror",
    "tc_flower-ipv6",
)
CAUGHT = ("x710-with-catch", "x710-with-detour")  # by tc on the PF


class Rig:
    """The NIC that adapter steers: filters of `nic`, or an X710 in `folder` with its catch there; the model is not hardware.

    Skips the test where the kernel has no flower (tests/support/nic_guest.py runs it in a guest whose kernel has), unless
    no rule is to be `asked` of it: then a switchdev NIC is meant.
    """

    def __init__(self, adapter: str, folder: Path, nic: Nic, *, asked: bool = True) -> None:
        self.adapter = adapter
        self.nic = nic
        self.fake: FakeNic | None = None
        self._hardware = not asked
        if adapter.startswith("x710"):
            self.fake = FakeNic(folder / "nic", build_shim(folder), out_of_tree=adapter != "x710-in-tree")
            self._vfs = FakeVfs(self.fake)
        elif adapter.startswith("tc_flower") and asked:
            require_flower(nic)

    def steering(self) -> Steering:
        underlay = Underlay.IPV6 if self.adapter.endswith("ipv6") else Underlay.IPV4
        if self.fake:
            catch = software(self.nic) if self.adapter in CAUGHT else None
            known = PfNeighbours("pf0", self.nic.netns)
            return x710(self.fake, self._vfs, catch=catch, detour=self.adapter == "x710-with-detour", known=known)
        if self.adapter.startswith("tc_flower"):
            return flower(self.nic, mirror="mirror" in self.adapter, underlay=underlay, hardware=self._hardware)
        return software(self.nic, underlay)


def require_flower(nic: Nic) -> None:
    """Skip the test on a kernel without it."""
    gate.run(["tc", "qdisc", "replace", "dev", "vf1", "ingress"], netns=nic.netns, check=False)
    tried = ["tc", "filter", "replace", "dev", "vf1", "parent", "ffff:", "prio", "9", "handle", "1", "protocol", "ip", "flower",
             "ip_proto", "udp", "classid", "1:1"]  # fmt: skip
    if gate.run(tried, netns=nic.netns, check=False).returncode != 0:
        pytest.skip("this kernel has no flower")


def flower(nic: Nic, *, mirror: bool, underlay: Underlay = Underlay.IPV4, hardware: bool = False) -> TcFlower:
    """In software, or as a NIC would be asked, which nobody here can be."""
    named: dict[SlotName, str] = {"a": "vf1r", "b": "vf2r"}
    return TcFlower("pf0", nic.netns, named, 4789, hardware=hardware, mirror=mirror, underlay=underlay)
