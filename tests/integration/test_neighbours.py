"""Both switches of a host know their tunnels' neighbours at first hand: what the fabric answers to the PF reaches each."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_nic import FakeNic, build_shim, x710
from tests.support.lab_host import LabHost
from tests.support.switch import eventually
from upgrader.adapters import gate
from upgrader.adapters.pf_neighbours import PfNeighbours
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core import learned
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.core.tc import Answers
from upgrader.lab import spec as names
from upgrader.lab.up import Lab
from upgrader.steps.replication import tell_neighbours

pytestmark = pytest.mark.integration
IP = "10.9.0.7"
_ANSWER = """
import socket, sys
mac, ip, host_mac, host_ip = (bytes.fromhex(a) for a in sys.argv[1:])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
wire.send(host_mac + mac + bytes.fromhex("0806" "0001" "0800" "0604" "0002") + mac + ip + host_mac + host_ip + bytes(18))
"""


def answer(lab: Lab, mac: str, ip: str = IP) -> None:
    """An ARP reply (RFC 826) from the other end of the fabric: this address is at that MAC."""
    plain = [m.replace(":", "") for m in (mac, names.PF_MAC)]
    addresses = [bytes(map(int, a.split("."))).hex() for a in (ip, names.HOST_VTEP)]
    argv = ["/usr/bin/python3", "-c", _ANSWER, plain[0], addresses[0], plain[1], addresses[1]]
    gate.run(argv, netns=lab.spec.namespaces.remote)


def known(slot: Slot, ip: str = IP) -> str | None:
    shown = SlotProcesses().appctl(slot, "tnl/neigh/show")
    return learned.neighbours(shown).get((names.BR_PHY, ip))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lab", [{"tag": "n", "vms": 1}], indirect=True)
def test_a_neighbour_that_comes_or_changes_is_known_to_both_with_no_round_of_replication(lab: Lab) -> None:
    _, slots = both_run(lab)
    assert [known(s) for s in slots] == [None, None]
    for mac in ("02:09:00:00:00:07", "02:09:00:00:07:07"):
        answer(lab, mac)
        eventually(lambda mac=mac: [known(s) for s in slots] == [mac, mac], f"both switches to know {mac}")  # type: ignore[misc]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lab", [{"tag": "n", "vms": 1}], indirect=True)
def test_where_no_vf_sees_answers_both_are_told_what_the_pfs_kernel_knows(lab: Lab, tmp_path: Path) -> None:
    """An X710 without a catch port: its rules are a model's, the kernel's table and both switches are real."""
    host, slots = both_run(lab)
    netns = lab.spec.namespaces.host
    for kind in Answers:
        gate.run(["tc", "filter", "del", "dev", names.PF, "ingress", "prio", str(kind.prio)], netns=netns)
    nic = FakeNic(tmp_path / "nic", build_shim(tmp_path), out_of_tree=True)
    steering = x710(nic, known=PfNeighbours(names.PF, netns))
    steering.prepare("a")
    made = replace(host.host, steering=steering)
    try:
        for mac in ("02:09:00:00:00:08", "02:09:00:00:08:08"):
            before = [known(s, "10.9.0.8") for s in slots]
            answer(lab, mac, "10.9.0.8")
            eventually(lambda mac=mac: steering.neighbours().get("10.9.0.8") == mac, f"the kernel to know {mac}")  # type: ignore[misc]
            assert [known(s, "10.9.0.8") for s in slots] == before, "no VF was given a copy"
            tell_neighbours(made, slots)
            assert [known(s, "10.9.0.8") for s in slots] == [mac, mac]
            time.sleep(1.2)  # of two answers within a second the kernel believes the first: neigh/default/locktime
    finally:
        host.host.steering.prepare("a")  # the copies, for whoever has this lab next


def both_run(lab: Lab) -> tuple[LabHost, list[Slot]]:
    """The host of that lab, its standby started and made what the active is."""
    host = LabHost(lab)
    if host.pid("b") is None:
        host.steps_until(StepKind.REPLICATE)
    return host, list(host.slots.values())
