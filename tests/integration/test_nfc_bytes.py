"""Our encoding of receive rules against the real `ethtool`: what it hands the kernel, and what it reads of ours.

This proves bytes, not steering: no NIC that would act on them is here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_nic import FakeNic, build_shim
from upgrader.adapters import gate
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.core import i40e, nfc
from upgrader.core.i40e import Flavour, Tunnel
from upgrader.core.nfc import Command, Flow, Match, RxRule, rule, to_vf

pytestmark = pytest.mark.integration


def ip(text: str) -> int:
    a, b, c, d = (int(n) for n in text.split("."))
    return a << 24 | b << 16 | c << 8 | d


MAC = 0x525400000005
V6 = 0x20010DB8000000000000000000000001
SHAPES: dict[str, RxRule] = {
    # the two rules that a run uses
    "flow-type udp4 dst-port 4789 vf 1 queue 0 loc 1000": i40e.whole_port(Flavour.IN_TREE, 4789, 1, 1000),
    "flow-type udp4 dst-port 4789 user-def 0x8000000000000000 vf 0 queue 65535 loc 1000": i40e.whole_port(
        Flavour.OUT_OF_TREE, 4789, 0, 1000
    ),
    # cloud filters
    "flow-type ether src 52:54:00:00:00:05 user-def 0x8000000000000064 vf 1 queue 65535 loc 39": i40e.inner_mac(
        "52:54:00:00:00:05", 100, 1, 39
    ),
    "flow-type ether dst 02:00:00:00:00:01 src 52:54:00:00:00:05 user-def 0x8000000000ffffff vf 1 queue 0 loc 38": rule(
        Flow.ETHER, to_vf(1, 0), 38, dst=0x020000000001, src=MAC, user_def=i40e.cloud(vni=0xFFFFFF)
    ),
    "flow-type ether dst ff:ff:ff:ff:ff:ff user-def 0x8000000001000000 vf 0 queue 3 loc 0": rule(
        Flow.ETHER, to_vf(0, 3), 0, dst=0xFFFFFFFFFFFF, user_def=i40e.cloud(tunnel=Tunnel.NVGRE)
    ),
    "flow-type ether src 52:54:00:00:00:05 vlan 4095 user-def 0x8000000002000001 vf 253 queue 0 loc 5": rule(
        Flow.ETHER, to_vf(253, 0), 5, src=MAC, vlan=4095, user_def=i40e.cloud(vni=1, tunnel=Tunnel.GENEVE)
    ),
    "flow-type ip4 dst-ip 192.0.2.1 user-def 0x8000000000000000 vf 1 queue 0 loc 40": rule(
        Flow.IP4, to_vf(1, 0), 40, dst_ip=ip("192.0.2.1"), user_def=i40e.cloud()
    ),
    "flow-type ip4 dst-ip 192.0.2.1 user-def 0xc000000000000000 vf 1 queue 0 loc 41": rule(
        Flow.IP4, to_vf(1, 0), 41, dst_ip=ip("192.0.2.1"), user_def=i40e.cloud(outer_ip=True)
    ),
    # n-tuple, by flow type
    "flow-type udp4 dst-ip 192.0.2.1 dst-port 4789 vf 0 queue 3 loc 6": rule(
        Flow.UDP4, to_vf(0, 3), 6, dst_ip=ip("192.0.2.1"), dst_port=4789
    ),
    "flow-type udp4 src-ip 0.0.0.0 src-port 65535 dst-port 1 action 5 loc 7": rule(
        Flow.UDP4, 5, 7, src_ip=0, src_port=65535, dst_port=1
    ),
    "flow-type tcp4 src-ip 255.255.255.255 dst-ip 10.0.0.1 src-port 1 dst-port 2 tos 255 action 0 loc 8": rule(
        Flow.TCP4, 0, 8, src_ip=ip("255.255.255.255"), dst_ip=ip("10.0.0.1"), src_port=1, dst_port=2, tos=255
    ),
    "flow-type sctp4 dst-port 36412 vf 2 queue 1 loc 9": rule(Flow.SCTP4, to_vf(2, 1), 9, dst_port=36412),
    "flow-type ip4 src-ip 10.1.2.3 l4proto 47 action 1 loc 10": rule(
        Flow.IP4, 1, 10, src_ip=ip("10.1.2.3"), l4proto=47
    ),
    "flow-type ip4 l4data 0x12b50000 action 1 loc 11": rule(Flow.IP4, 1, 11, l4data=0x12B50000),
    "flow-type udp6 dst-ip 2001:db8::1 dst-port 4789 vf 1 queue 0 loc 12": rule(
        Flow.UDP6, to_vf(1, 0), 12, dst_ip=V6, dst_port=4789
    ),
    "flow-type tcp6 src-ip 2001:db8::1 src-port 443 tclass 46 action 2 loc 13": rule(
        Flow.TCP6, 2, 13, src_ip=V6, src_port=443, tclass=46
    ),
    "flow-type sctp6 dst-port 9 action 2 loc 14": rule(Flow.SCTP6, 2, 14, dst_port=9),
    "flow-type ip6 dst-ip 2001:db8::1 l4proto 17 action 2 loc 15": rule(Flow.IP6, 2, 15, dst_ip=V6, l4proto=17),
    "flow-type esp4 dst-ip 10.0.0.1 spi 0xdeadbeef action 3 loc 16": rule(
        Flow.ESP4, 3, 16, dst_ip=ip("10.0.0.1"), spi=0xDEADBEEF
    ),
    "flow-type ah4 spi 1 action 3 loc 17": rule(Flow.AH4, 3, 17, spi=1),
    "flow-type ether proto 0x88cc action 0 loc 18": rule(Flow.ETHER, 0, 18, proto=0x88CC),
    # masks (ethtool's are turned round: its 0xff is our "do not compare")
    "flow-type udp4 dst-ip 10.2.0.0 m 0.0.255.255 dst-port 4789 action 1 loc 19": rule(
        Flow.UDP4, 1, 19, dst_ip=Match(ip("10.2.0.0"), 0xFFFF0000), dst_port=4789
    ),
    "flow-type udp4 dst-port 0x1200 m 0x00ff action 1 loc 20": rule(Flow.UDP4, 1, 20, dst_port=Match(0x1200, 0xFF00)),
    "flow-type ether dst 01:80:c2:00:00:00 m 00:00:00:00:00:0f action 0 loc 21": rule(
        Flow.ETHER, 0, 21, dst=Match(0x0180C2000000, 0xFFFFFFFFFFF0)
    ),
    "flow-type udp4 dst-port 4789 user-def 0x40064 m 0xffffffff00000000 vf 1 queue 0 loc 22": rule(
        Flow.UDP4, to_vf(1, 0), 22, dst_port=4789, user_def=Match(0x40064, 0xFFFFFFFF)
    ),
    "flow-type udp4 vlan 0x2064 m 0xf000 dst-port 4789 action 1 loc 23": rule(
        Flow.UDP4, 1, 23, vlan=Match(0x2064, 0x0FFF), dst_port=4789
    ),
    "flow-type tcp4 vlan-etype 0x8100 vlan 100 dst-port 22 action 1 loc 24": rule(
        Flow.TCP4, 1, 24, vlan_etype=0x8100, vlan=100, dst_port=22
    ),
    "flow-type tcp4 dst-mac 52:54:00:00:00:05 dst-port 22 action 1 loc 25": rule(
        Flow.TCP4, 1, 25, dst_mac=MAC, dst_port=22
    ),
    # where to
    "flow-type udp4 dst-port 53 action -1 loc 26": rule(Flow.UDP4, 2**64 - 1, 26, dst_port=53),
    "flow-type udp4 dst-port 53 action 0x20000ffff loc 2147483646": rule(
        Flow.UDP4, 0x20000FFFF, 2147483646, dst_port=53
    ),
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    """A namespace with a veth `nic`, which takes ethtool's ioctl and knows no rules."""
    name = f"t{os.getpid()}-nfc"
    gate.run(["ip", "netns", "add", name])
    try:
        gate.run(["ip", "-n", name, "link", "add", "nic", "type", "veth", "peer", "name", "far"])
        yield name
    finally:
        gate.run(["ip", "netns", "del", name])


def recorded(path: Path, command: Command) -> list[bytes]:
    """The structs of that command, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    structs = [bytes.fromhex(line.split()[1]) for line in lines]
    return [s for s in structs if s[0] == command]


def comparable(rxnfc: bytes) -> bytes:
    """What of a struct means something in an insert: the flow at 4, `data` and what is behind the rule do not."""
    return rxnfc[:4] + rxnfc[16:184]


def test_there_are_shapes_enough() -> None:
    assert len(SHAPES) >= 20
    assert len(set(SHAPES.values())) == len(SHAPES)


@pytest.mark.parametrize("words", SHAPES)
def test_ethtool_hands_the_kernel_our_bytes(words: str, shim: Path, netns: str, tmp_path: Path) -> None:
    record = tmp_path / "record"
    env = {"LD_PRELOAD": str(shim), "NIC_RECORD": str(record)}
    gate.run(["ethtool", "-N", "nic", *words.split()], netns=netns, env=env, check=False)
    (theirs,) = recorded(record, Command.INSERT)
    ours = nfc.request(Command.INSERT, rule=SHAPES[words])
    assert comparable(ours).hex() == comparable(theirs).hex()


@pytest.mark.parametrize("words", SHAPES)
def test_a_rule_is_what_its_bytes_say(words: str) -> None:
    shape = SHAPES[words]
    again = nfc.decode_spec(nfc.encode_spec(shape))
    # a field that is 0 and not compared leaves no trace
    assert again == shape


def test_ethtool_reads_back_what_we_install(shim: Path, netns: str, tmp_path: Path) -> None:
    nic = FakeNic(tmp_path / "nic", shim, out_of_tree=True)
    device = EthtoolDevice("nic", netns, nic.ioctl)
    device.insert(i40e.whole_port(Flavour.OUT_OF_TREE, 4789, 1, 1000))
    device.insert(rule(Flow.TCP4, to_vf(0, 2), 7, dst_ip=ip("192.0.2.7"), dst_port=22))
    shown = gate.run(["ethtool", "-n", "nic"], netns=netns, env=nic.environment()).stdout
    assert "Total 2 rules" in shown
    listed = {int(f.split()[0]): f for f in shown.split("Filter: ")[1:]}
    first, second = listed[7], listed[1000]
    assert "Rule Type: TCP over IPv4" in first
    assert re.search(r"Dest IP addr: 192\.0\.2\.7 mask: 0\.0\.0\.0", first)
    assert "Dest port: 22 mask: 0x0" in first
    assert "Action: Direct to VF 0 queue 2" in first
    assert "Rule Type: UDP over IPv4" in second
    assert "Dest port: 4789" in second
    assert "User-defined: 0x8000000000000000" in second
    assert "Action: Direct to VF 1 queue 65535" in second


def test_we_read_back_what_ethtool_installs(shim: Path, netns: str, tmp_path: Path) -> None:
    nic = FakeNic(tmp_path / "nic", shim, out_of_tree=False)
    device = EthtoolDevice("nic", netns, nic.ioctl)
    for words in ("flow-type udp4 dst-port 53 vf 1 queue 0 loc 3", "flow-type tcp6 dst-port 22 action 1 loc 4"):
        gate.run(["ethtool", "-N", "nic", *words.split()], netns=netns, env=nic.environment())
    assert nic.count("inserts") == 2
    size, rules = device.table()
    assert size == 512
    assert set(rules) == {rule(Flow.UDP4, to_vf(1, 0), 3, dst_port=53), rule(Flow.TCP6, 1, 4, dst_port=22)}
    gate.run(["ethtool", "-N", "nic", "delete", "3"], netns=netns, env=nic.environment())
    assert device.rule(3) is None


def test_the_drivers_name_as_ethtool_prints_it(shim: Path, netns: str, tmp_path: Path) -> None:
    nic = FakeNic(tmp_path / "nic", shim, out_of_tree=True)
    driver = EthtoolDevice("nic", netns, nic.ioctl).driver()
    shown = gate.run(["ethtool", "-i", "nic"], netns=netns, env=nic.environment()).stdout
    lines = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert (driver.name, driver.version, driver.firmware, driver.bus) == (
        lines["driver"],
        lines["version"],
        lines["firmware-version"],
        lines["bus-info"],
    )


def test_a_real_netdev_without_rules_says_so(netns: str) -> None:
    device = EthtoolDevice("nic", netns)
    assert device.driver().name == "veth"
    with pytest.raises(OSError):
        device.insert(SHAPES["flow-type udp4 dst-port 4789 vf 1 queue 0 loc 1000"])
    with pytest.raises(OSError):
        EthtoolDevice("none", netns).driver()
