"""`upgrade nic show | check | probe` as an operator types them, on a NIC of veth pairs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_nic import KERNEL, VFS, FakeNic, build_shim
from tests.support.steer_bench import Nic, WiredVfs, Wiring, build_generator, software, veth_nic
from upgrader.adapters import gate
from upgrader.adapters.ethtool import Ethtool
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.adapters.overlay_probe import OverlayProbe
from upgrader.adapters.pf_neighbours import PfNeighbours
from upgrader.core.errors import HostError
from upgrader.core.tc import Underlay
from upgrader.sim.facts import vm_port

pytestmark = pytest.mark.integration

SLOTS = """
[slots.a]
prefix = "/usr"
rundir = "/run/no-such-a"
vf = "vf1"
representor = "vf1r"
devargs = "net_af_packet0,iface=vf1"
pmd_cpu_mask = "0x1"
[slots.b]
prefix = "/usr"
rundir = "/run/no-such-b"
netns = "no-such-b"
vf = "vf2"
representor = "vf2r"
devargs = "net_af_packet0,iface=vf2"
pmd_cpu_mask = "0x2"
"""


@pytest.fixture
def nic() -> Iterator[Nic]:
    with veth_nic("cli") as made:
        yield made


def config(folder: Path, nic: Nic, extra: str = "") -> Path:
    path = folder / "config.toml"
    path.write_text(f'[nic]\npf = "pf0"\nnetns = "{nic.netns}"\n{extra}\n{SLOTS}')
    return path


def upgrade(path: Path, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    argv = [sys.executable, "-m", "upgrader.cli.app", "--config", str(path), *words]
    done = gate.run(argv, check=False, env=env)
    return done.returncode, done.stdout, done.stderr


def result(stdout: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(stdout)
    assert parsed["schema_version"] == 1
    return parsed


def test_show_and_check(nic: Nic, tmp_path: Path) -> None:
    path = config(tmp_path, nic)
    steering = software(nic)
    steering.steady("a")
    code, out, _ = upgrade(path, "nic", "show")
    assert code == 0
    assert "rule for all of the overlay points to slot a" in out
    assert "per-vm-dual" in out
    assert upgrade(path, "nic", "check")[0] == 0
    steering.open_window([(vm_port(1), "b")])
    shown = result(upgrade(path, "nic", "show", "--json")[1])
    assert [(r["vni"], r["mac"], r["targets"]) for r in shown["rules"]] == [
        (100, vm_port(1).mac, ["b"]),
        (None, None, ["a", "b"]),
    ]
    assert shown["nic"]["foreign"] == []
    nic.tc("filter", "add", "dev", "pf0", "parent", "ffff:", "protocol", "ip", "prio", "60", "u32", "match", "ip", "dport",
           "53", "0xffff", "action", "mirred", "egress", "redirect", "dev", "vf2r")  # fmt: skip
    (foreign,) = result(upgrade(path, "nic", "show", "--json")[1])["nic"]["foreign"]
    assert "priority 60" in foreign


def test_probe_says_who_gets_it_and_whether_it_was_seen(nic: Nic, tmp_path: Path) -> None:
    path = config(tmp_path, nic)
    port = vm_port(1)
    steering = software(nic)
    steering.steady("a")
    steering.open_window([(port, "b")])
    generator = build_generator(tmp_path)
    argv = [str(generator), "wire", "vf1", "vf2", "1000", "20", "100", port.mac]
    sender = gate.spawn(argv, netns=nic.netns, stdout_pipe=True)
    try:
        code, out, _ = upgrade(path, "nic", "probe", "--vni", "100", "--mac", port.mac.upper(), "--json")
    finally:
        sender.kill()
        sender.communicate()
    seen = result(out)
    assert code == 0
    assert seen["by_rules"] == ["b"]
    assert seen["arrived"]["a"] == 0
    assert seen["arrived"]["b"] > 0
    assert seen["verdict"] == "arrives as set"
    quiet = ("nic", "probe", "--vni", "100", "--mac", vm_port(2).mac, "--for", "0.2")
    code, out, _ = upgrade(path, *quiet, "--json")
    assert (code, result(out)["verdict"]) == (3, "nothing arrives at either")
    code, out, err = upgrade(path, *quiet)
    assert code == 3
    assert "slot a and slot b" in out
    assert "NOT_SEEN_TO_ARRIVE" in err


@contextmanager
def across_the_wire(nic: Nic) -> Iterator[list[str]]:
    """Addresses on the PF and on the wire's other end, which is a host of its own; words that run a command there."""
    far = f"{nic.netns}-far"
    gate.run(["ip", "netns", "add", far])
    try:
        gate.run(["ip", "-n", nic.netns, "link", "set", "wire", "netns", far])
        for netns, name, last in ((nic.netns, "pf0", 1), (far, "wire", 2)):
            gate.run(["ip", "-n", netns, "addr", "add", f"10.9.0.{last}/24", "dev", name])
            gate.run(["ip", "-n", netns, "link", "set", name, "up"])
        mac = json.loads(gate.run(["ip", "-n", nic.netns, "-json", "link", "show", "pf0"]).stdout)[0]["address"]
        gate.run(["ip", "-n", far, "neigh", "add", "10.9.0.1", "lladdr", mac, "dev", "wire"])
        yield ["ip", "netns", "exec", far]
    finally:
        gate.run(["ip", "netns", "del", far])


def test_probe_has_another_host_send(nic: Nic, tmp_path: Path) -> None:
    port = vm_port(1)
    steering = software(nic)
    steering.steady("a")
    steering.open_window([(port, "b")])
    with across_the_wire(nic) as command:
        path = config(tmp_path, nic, f"probe_from = {json.dumps(command)}")
        ask = ("nic", "probe", "--vni", "100", "--mac", port.mac, "--json")
        code, out, err = upgrade(path, *ask)
        assert code == 0, err
        assert result(out)["verdict"] == "arrives as set"
        assert result(out)["arrived"]["a"] == 0
        steering.move_vm(port, ("a",))
        assert result(upgrade(path, *ask)[1])["by_rules"] == ["a"]
        path = config(tmp_path, nic, 'probe_from = ["false"]')
        code, _, err = upgrade(path, *ask)
        assert (code, "PROBE_FAILED" in err, "state: steering was not changed" in err) == (1, True, True)
        gate.run(["ip", "-n", nic.netns, "addr", "flush", "dev", "pf0"])
        assert "pf0 has no address" in upgrade(path, *ask)[2]


def test_a_turned_rule_is_verified_by_what_another_host_sends(tmp_path: Path) -> None:
    """On a NIC on which nothing else flows: real packets, real counters, a modelled X710's rule."""
    fake = FakeNic(tmp_path / "nic", build_shim(tmp_path), out_of_tree=True)
    with veth_nic("probe", wired=True) as nic, across_the_wire(nic) as command:
        Wiring(nic, fake)
        probe = OverlayProbe(command, "pf0", nic.netns, 4789, Underlay.IPV4)
        device = EthtoolDevice("pf0", None, fake.ioctl)
        known = PfNeighbours("pf0", nic.netns)
        steering = Ethtool(device, WiredVfs(fake, nic), known, VFS, 4789, 100, probe=probe, kernel_release=KERNEL)
        steering.steady("a")
        before = steering.arrived()
        steering.steady("b")
        assert steering.arrived()["b"] >= before["b"] + 50
        fake.set(drop_next=1)
        with pytest.raises(HostError, match="by the VFs' counters nothing arrives"):
            steering.steady("a")
        assert fake.target(4789) == VFS["b"]


def test_a_modelled_x710_by_its_own_rules(nic: Nic, tmp_path: Path) -> None:
    """The whole path but for hardware: our command, its real ioctl, and the shim for a driver."""
    path = config(tmp_path, nic, 'adapter = "ethtool"\nvfs = { a = 0, b = 1 }')
    shim = build_shim(tmp_path)
    intel = FakeNic(tmp_path / "intel", shim, out_of_tree=True)
    code, out, _ = upgrade(path, "nic", "show", env=dict(intel.environment()))
    assert code == 0
    assert "i40e 2.28.16 (i40e from Intel, out of tree)" in out
    assert "8.30 0x8000b8d3" in out
    assert "whole-port" in out
    assert upgrade(path, "nic", "check", env=dict(intel.environment()))[0] == 0
    in_tree = FakeNic(tmp_path / "in-tree", shim, out_of_tree=False)
    code, _, err = upgrade(path, "nic", "check", env=dict(in_tree.environment()))
    assert code == 3
    assert "STEERING_UNPROVEN" in err


def test_bad_input_is_refused_in_three_lines(nic: Nic, tmp_path: Path) -> None:
    path = config(tmp_path, nic)
    code, _, err = upgrade(path, "nic", "probe", "--vni", "1", "--mac", "nonsense")
    assert (code, "NOT_A_MAC" in err, "state: nothing was changed" in err) == (2, True, True)
    assert upgrade(path, "nic", "probe", "--vni", "16777216", "--mac", vm_port(1).mac)[0] == 2
    code, _, err = upgrade(config(tmp_path, nic, 'adapter = "ethtool"\nvfs = { a = 0, b = 1 }'), "nic", "show")
    assert code == 1
    assert "no receive rules" in err  # a veth is no X710
    assert "next:" in err
