"""Both switches of a host know their tunnels' neighbours at first hand: what the fabric answers to the PF reaches each."""

from __future__ import annotations

import pytest

from tests.support.lab_host import LabHost
from tests.support.switch import eventually
from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core import learned
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.lab import spec as names
from upgrader.lab.up import Lab

pytestmark = pytest.mark.integration
IP = "10.9.0.7"
_ANSWER = """
import socket, sys
mac, ip, host_mac, host_ip = (bytes.fromhex(a) for a in sys.argv[1:])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
wire.send(host_mac + mac + bytes.fromhex("0806" "0001" "0800" "0604" "0002") + mac + ip + host_mac + host_ip + bytes(18))
"""


def answer(lab: Lab, mac: str) -> None:
    """An ARP reply (RFC 826) from the other end of the fabric: this address is at that MAC."""
    plain = [m.replace(":", "") for m in (mac, names.PF_MAC)]
    addresses = [bytes(map(int, a.split("."))).hex() for a in (IP, names.HOST_VTEP)]
    argv = ["/usr/bin/python3", "-c", _ANSWER, plain[0], addresses[0], plain[1], addresses[1]]
    gate.run(argv, netns=lab.spec.namespaces.remote)


def known(slot: Slot) -> str | None:
    shown = SlotProcesses().appctl(slot, "tnl/neigh/show")
    return learned.neighbours(shown).get((names.BR_PHY, IP))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lab", [{"tag": "n", "vms": 1}], indirect=True)
def test_a_neighbour_that_comes_or_changes_is_known_to_both_with_no_round_of_replication(lab: Lab) -> None:
    host = LabHost(lab)
    host.steps_until(StepKind.REPLICATE)
    slots = list(host.slots.values())
    assert [known(s) for s in slots] == [None, None]
    for mac in ("02:09:00:00:00:07", "02:09:00:00:07:07"):
        answer(lab, mac)
        eventually(lambda mac=mac: [known(s) for s in slots] == [mac, mac], f"both switches to know {mac}")  # type: ignore[misc]
