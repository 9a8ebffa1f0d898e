"""The contract of steering, held by every adapter: on the real kernel (tc u32), on a modelled X710 (its driver's answers,
not the hardware) and on the simulated host; then real packets."""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fake_nic import LOCATION, FakeNic
from tests.support.steer_bench import Nic, software, veth_nic
from tests.support.steering_rigs import ADAPTERS, CAUGHT, Rig, flower, require_flower
from upgrader.adapters import gate
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.adapters.tc_u32 import TcU32
from upgrader.core import i40e
from upgrader.core.errors import HostError
from upgrader.core.model import SLOTS, SlotName, VmPort
from upgrader.core.nfc import Flow, RxRule, rule, to_vf
from upgrader.core.steering import choose
from upgrader.core.tc import Answers, Underlay
from upgrader.ports import Steering
from upgrader.sim.facts import vm_port
from upgrader.sim.host import SimSteering, make

pytestmark = pytest.mark.integration


@pytest.fixture
def nic() -> Iterator[Nic]:
    with veth_nic() as made:
        yield made


@pytest.fixture(params=("simulated", *ADAPTERS))
def steering(request: pytest.FixtureRequest, tmp_path: Path) -> Steering:
    if request.param == "simulated":
        return SimSteering(make(tmp_path)[0])
    return Rig(request.param, tmp_path, request.getfixturevalue("nic")).steering()


def table(steering: Steering) -> dict[tuple[int | None, str | None], set[SlotName]]:
    """All rules, and the same one by one."""
    found = {(r.vni, r.mac): set(r.targets) for r in steering.rules()}
    for port in (vm_port(i) for i in range(3)):
        assert one(steering, port) == found.get((port.vni, port.mac))
    return found


def one(steering: Steering, port: VmPort) -> set[SlotName] | None:
    """Who gets a VM's traffic by the rule that is its alone."""
    rule = steering.rule(port)
    return None if rule is None else set(rule.targets)


def expected(
    steering: Steering, rest: set[SlotName], single: dict[VmPort, set[SlotName]], whole: SlotName
) -> dict[tuple[int | None, str | None], set[SlotName]]:
    """The rules there must be: as given by a NIC with single rules, else the whole port to one slot."""
    if not steering.capabilities().per_vm:
        return {(None, None): rest if steering.capabilities().dual_delivery else {whole}}
    return {(None, None): rest, **{(p.vni, p.mac): slots for p, slots in single.items()}}


def test_contract_a_window_opens_moves_and_closes(steering: Steering) -> None:
    ports = [vm_port(i) for i in range(3)]
    steering.steady("a")
    assert table(steering) == {(None, None): {"a"}}
    steering.open_window([(p, "a") for p in ports])
    at_a: dict[VmPort, set[SlotName]] = {p: {"a"} for p in ports}
    assert table(steering) == expected(steering, {"a", "b"}, at_a, "a")
    if steering.capabilities().dual_delivery:
        steering.move_vm(ports[1], ("b", "a"))
        assert table(steering) == expected(steering, {"a", "b"}, {**at_a, ports[1]: {"a", "b"}}, "a")
    steering.move_vm(ports[1], ("b",))
    assert table(steering) == expected(steering, {"a", "b"}, {**at_a, ports[1]: {"b"}}, "a")
    steering.move_vm(ports[0], ("b",))  # two of three: the whole port turns, where it can only turn as a whole
    assert table(steering) == expected(steering, {"a", "b"}, {**at_a, ports[0]: {"b"}, ports[1]: {"b"}}, "b")
    steering.close_window("b")
    assert table(steering) == {(None, None): {"b"}}


def test_contract_every_verb_may_be_said_twice(steering: Steering) -> None:
    port = vm_port(0)
    for _ in range(2):
        steering.prepare("b")
    for _ in range(2):
        steering.steady("b")
        steering.open_window([(port, "b")])
        steering.move_vm(port, ("a",))
    assert table(steering) == expected(steering, {"a", "b"}, {port: {"a"}}, "a")
    for _ in range(2):
        steering.close_window("a")
    assert table(steering) == {(None, None): {"a"}}


def test_contract_a_failover_takes_everything_along(steering: Steering) -> None:
    ports = [vm_port(i) for i in range(3)]
    steering.steady("a")
    for _ in range(2):
        steering.failover("b")
        assert table(steering) == {(None, None): {"b"}}
    for _ in range(2):
        steering.fence("a")
        assert table(steering) == {(None, None): {"b"}}
    steering.prepare("a")
    steering.open_window([(p, "b") for p in ports])
    if steering.capabilities().dual_delivery:
        steering.move_vm(ports[0], ("a", "b"))
    steering.move_vm(ports[1], ("a",))
    for _ in range(2):
        steering.failover("a")
        assert all(r.targets == ("a",) for r in steering.rules())
    steering.close_window("a")
    assert table(steering) == {(None, None): {"a"}}


def test_contract_another_process_goes_on_where_one_died(steering: Steering, request: pytest.FixtureRequest) -> None:
    """Between any two rules: whoever comes next reads what there is, and brings it to either end."""
    ports = [vm_port(i) for i in range(3)]
    heir = copy.copy(steering)  # same NIC, nothing remembered: what was armed or counted died with the process
    for forgotten in ("_armed", "_served"):
        if hasattr(heir, forgotten):
            setattr(heir, forgotten, {})
    steering.steady("a")
    steering.open_window([(p, "a") for p in ports])
    steering.move_vm(ports[0], ("b",))
    heir.open_window([(ports[0], "b"), (ports[1], "a"), (ports[2], "a")])
    heir.move_vm(ports[1], ("b",))
    heir.close_window("b")
    assert table(heir) == {(None, None): {"b"}}
    steering.open_window([(p, "b") for p in ports])
    heir.close_window("a")
    assert table(heir) == {(None, None): {"a"}}


def test_contract_one_rule_is_read_as_it_is_now(steering: Steering) -> None:
    ports = [vm_port(i) for i in range(3)]
    steering.steady("a")
    assert one(steering, ports[0]) is None
    steering.open_window([(p, "a") for p in ports])
    per_vm, dual = steering.capabilities().per_vm, steering.capabilities().dual_delivery
    turns: tuple[tuple[SlotName, ...], ...] = (("a", "b"), ("b",), ("a",)) if dual else (("b",), ("a",))
    for slots in turns:
        steering.move_vm(ports[1], slots)
        assert [one(steering, p) for p in ports] == ([{"a"}, set(slots), {"a"}] if per_vm else [None] * 3)
    steering.failover("b")
    assert set().union(*table(steering).values()) == {"b"}
    steering.close_window("b")
    assert [one(steering, p) for p in ports] == [None] * 3


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_contract_slots_see_what_neighbours_answer_or_are_told(adapter: str, nic: Nic, tmp_path: Path) -> None:
    """The kernel of the PF asks and is answered; each switch has to know the next hops of its tunnels, whoever lives."""
    steering = Rig(adapter, tmp_path, nic).steering()
    gate.run(["ip", "-n", nic.netns, "addr", "add", "10.9.0.1/24", "dev", "pf0"])
    for slot in SLOTS:
        steering.prepare(slot)
    steering.steady("a")
    copied = steering.capabilities().copies_answers
    assert copied is (adapter not in ("x710-in-tree", "x710-out-of-tree"))
    assert arrivals(nic, arp(2)) == (set(SLOTS) if copied else set())
    assert steering.neighbours() == ({} if copied else {"10.9.0.2": "02:09:00:00:00:02"})
    if copied:
        assert arrivals(nic, neighbour_message(136)) == set(SLOTS)
    assert steering.facts().foreign == ()


def test_one_rule_that_somebody_took_away_or_changed_is_seen(nic: Nic) -> None:
    steering = software(nic)
    ports = [vm_port(i) for i in range(3)]
    steering.open_window([(p, "a") for p in ports])
    other = software(nic)  # another process
    other.move_vm(ports[1], ("b",))
    assert [one(steering, p) for p in ports] == [{"a"}, {"b"}, {"a"}]
    gate.run(["tc", "filter", "del", "dev", "pf0", "ingress"], netns=nic.netns)
    assert [one(steering, p) for p in ports] == [None] * 3


def test_contract_it_says_what_it_can_do(steering: Steering) -> None:
    c = steering.capabilities()
    assert c.capacity is None or c.capacity >= 1
    facts = steering.facts()
    assert facts.driver and facts.flavour
    assert set(steering.arrived()) == {"a", "b"}
    strategy = choose(c, 3)
    assert strategy.per_vm == c.per_vm
    assert strategy.name == f"{'per-vm' if c.per_vm else 'whole-port'}{'-dual' if c.dual_delivery else ''}"


@dataclass(frozen=True)
class Foreign:
    """A filter of somebody else on the PF: at any priority, ours too, for a port that is not the overlay's."""

    prio: int
    protocol: str
    dport: int
    to: str
    flower: bool

    def words(self) -> list[str]:
        add = ["filter", "add", "dev", "pf0", "ingress", "protocol", self.protocol, "prio", str(self.prio)]
        match = {
            ("ip", False): ["u32", "match", "ip", "dport", str(self.dport), "0xffff"],
            ("ipv6", False): ["u32", "match", "ip6", "dport", str(self.dport), "0xffff"],
        }.get((self.protocol, self.flower), ["flower", "ip_proto", "udp", "dst_port", str(self.dport)])
        return [*add, *match, "action", "mirred", "egress", "redirect", "dev", self.to]


FOREIGN = st.builds(
    Foreign,
    st.sampled_from((1, 10, 11, 20, 21, 49, 60)),
    st.sampled_from(("ip", "ipv6")),
    st.integers(1, 4788),
    st.sampled_from(("vf1r", "vf2r")),
    st.booleans(),
)
VERBS = st.lists(
    st.tuples(
        st.sampled_from(("steady", "anew", "open", "move", "both", "close", "failover", "fence", "prepare", "refuse")),
        st.sampled_from(("a", "b")),
    ),
    min_size=1,
    max_size=10,
)


def foreign_on(fake: FakeNic | None) -> list[tuple[RxRule, bool]]:
    """Rules on a modelled NIC that are not at our place, and whether it took them."""
    return [(p.rule, p.effective) for p in fake.programmed() if p.rule.location != LOCATION] if fake else []


@pytest.mark.parametrize("adapter", [a for a in ADAPTERS if a.startswith("tc_") or a in CAUGHT])
@pytest.mark.parametrize("qdisc", ["ingress", "clsact"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(foreign=st.lists(FOREIGN, max_size=5), verbs=VERBS)
def test_filters_of_others_are_never_touched(
    nic: Nic, adapter: str, qdisc: str, foreign: list[Foreign], verbs: list[tuple[str, SlotName]], tmp_path: Path
) -> None:
    """Whatever is done, whatever is refused on the way: the filters that were there before are there, as they were.

    And with them an X710's rules, where one has a catch on its PF.
    """
    for kind in ("ingress", "clsact"):
        gate.run(["tc", "qdisc", "del", "dev", "pf0", kind], netns=nic.netns, check=False)
    nic.tc("qdisc", "add", "dev", "pf0", qdisc)
    for f in foreign:  # two protocols at one priority are refused, and flower where the kernel has none
        gate.run(["tc", *f.words()], netns=nic.netns, check=False)
    before = filters(nic)
    rig = Rig(adapter, tmp_path, nic)
    if rig.fake:
        device = EthtoolDevice("pf0", None, rig.fake.ioctl)
        device.insert(rule(Flow.TCP4, 1, 7, dst_port=22))
        device.insert(rule(Flow.IP4, to_vf(0, 0), 200, dst_ip=1, user_def=i40e.cloud()))
    held = foreign_on(rig.fake)
    assert len(held) == (2 if rig.fake else 0)
    steering, ports = rig.steering(), [vm_port(i) for i in range(2)]
    for verb, slot in verbs:
        try:
            match verb:
                case "steady" | "anew":
                    steering.steady(slot, anew=verb == "anew")
                case "open":
                    steering.open_window([(p, slot) for p in ports])
                case "move":
                    steering.move_vm(ports[0], (slot,))
                case "both" if steering.capabilities().dual_delivery:
                    steering.move_vm(ports[0], ("a", "b"))
                case "close":
                    steering.close_window(slot)
                case "failover":
                    steering.failover(slot)
                case "fence":
                    steering.fence(slot)
                case "prepare":
                    steering.prepare(slot)
                case "refuse":
                    if rig.fake:
                        rig.fake.set(refuse_next=1)
        except HostError:
            continue
    assert foreign_on(rig.fake) == held
    left = [f for f in filters(nic) if not is_copy_of_answers(f)]
    assert [f for f in before if f not in left] == []
    assert len(left) <= len(before) + 1 + len(ports)


def filters(nic: Nic) -> list[str]:
    """Every filter on the PF with its actions, as tc shows it, headings of a priority and hash tables left out.

    Where it hangs, which the kernel says or not by who added the last one, is left out as well.
    """
    shown = nic.tc("filter", "show", "dev", "pf0", "ingress")
    parts = re.split(
        r"^(?=filter )", re.sub(r"(?<=^filter )parent \S+ ", "", shown, flags=re.MULTILINE), flags=re.MULTILINE
    )
    return [f for f in parts if "action order" in f]


def is_copy_of_answers(shown: str) -> bool:
    """One of the two filters that copy what neighbours answer, at places that nobody else has in these tests."""
    return any(f" pref {kind.prio} " in shown.partition("\n")[0] for kind in Answers)


def test_rules_of_others_are_seen_as_such(nic: Nic) -> None:
    steering = software(nic)
    nic.tc("qdisc", "add", "dev", "pf0", "ingress")
    for prio, dport in ((100, 53), (10, 80)):  # one at another priority, one at ours that matches something else
        nic.tc(*Foreign(prio, "ip", dport, "vf2r", flower=False).words())
    steering.steady("a")
    steering.open_window([(vm_port(0), "a")])
    steering.close_window("b")
    assert table(steering) == {(None, None): {"b"}}
    assert sorted(f.rpartition(" ")[2] for f in steering.facts().foreign) == ["10", "100"]


def test_a_missing_netdev_or_namespace_is_said(nic: Nic) -> None:
    with pytest.raises(HostError, match="no netdev vf9"):
        TcU32("pf0", nic.netns, {"a": "vf1r", "b": "vf9"}, 4789).steady("a")
    with pytest.raises(HostError, match="no network namespace"):
        TcU32("pf0", "no-such-netns", {"a": "vf1r", "b": "vf2r"}, 4789).rules()
    assert not Path("/run/netns/no-such-netns").exists()  # looking must not create it


def frame(vni: int, mac: str, *, dport: int = 4789, ihl: int = 5, fragment: int = 0, proto: int = 17) -> bytes:
    """An Ethernet frame with IPv4, UDP, VXLAN and an inner Ethernet header."""
    inner = bytes.fromhex(mac.replace(":", "")) + bytes(6) + b"\x08\x00" + bytes(46)
    vxlan = struct.pack(">II", 0x08000000, vni << 8) + inner
    udp = struct.pack(">HHHH", 49152, dport, 8 + len(vxlan), 0) + vxlan
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | ihl,
        0,
        ihl * 4 + len(udp),
        1,
        fragment,
        64,
        proto,
        0,
        bytes([10, 9, 0, 2]),
        bytes([10, 9, 0, 1]),
    )
    return b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + ip + bytes(ihl * 4 - 20) + udp


def frame6(vni: int, mac: str, *, dport: int = 4789, next_header: int = 17) -> bytes:
    """The same in IPv6; behind another next header the UDP header stands where it would be found without."""
    udp = frame(vni, mac, dport=dport)[34:]
    ip = struct.pack(">IHBB", 0x60000000, len(udp), next_header, 64) + bytes(15) + b"\2" + bytes(15) + b"\1"
    return b"\xff" * 6 + b"\x02" * 6 + b"\x86\xdd" + ip + udp


def arrivals(nic: Nic, sent: bytes) -> set[SlotName]:
    """Send one frame on the wire and say at which VFs it came out."""
    script = (
        "import socket,sys\n"
        "sinks={}\n"
        "for slot,name in (('a','vf1'),('b','vf2')):\n"
        " s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.ntohs(3)); s.bind((name,0)); s.settimeout(0.3); sinks[slot]=s\n"
        "frame=bytes.fromhex(sys.argv[1])\n"
        "w=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); w.bind(('wire',0)); w.send(frame)\n"
        "for slot,s in sinks.items():\n"
        " try:\n"
        "  while s.recv(2048)!=frame: pass\n"
        "  print(slot)\n"
        " except TimeoutError: pass\n"
    )
    out = gate.run(["/usr/bin/python3", "-c", script, sent.hex()], netns=nic.netns).stdout
    return {s for s in ("a", "b") if s in out.split()}  # type: ignore[misc]


def test_packets_arrive_where_the_rules_say(nic: Nic) -> None:
    steering = software(nic)
    moved, stays = vm_port(1), vm_port(2)
    steering.steady("a")
    steering.open_window([(moved, "a"), (stays, "a")])
    assert arrivals(nic, frame(100, moved.mac)) == {"a"}
    steering.move_vm(moved, ("b", "a"))
    assert arrivals(nic, frame(100, moved.mac)) == {"a", "b"}
    steering.move_vm(moved, ("b",))
    assert arrivals(nic, frame(100, moved.mac)) == {"b"}
    assert arrivals(nic, frame(100, stays.mac)) == {"a"}
    assert arrivals(nic, frame(101, moved.mac)) == {"a", "b"}  # the same MAC in another tenant's network
    assert arrivals(nic, frame(100, "ff:ff:ff:ff:ff:ff")) == {"a", "b"}  # for moved and unmoved VMs alike
    assert arrivals(nic, frame(100, moved.mac, dport=53)) == set()  # not overlay: the kernel's
    assert arrivals(nic, frame(100, moved.mac, proto=6)) == set()
    assert arrivals(nic, frame(100, moved.mac, fragment=185)) == set()  # no UDP header in a later fragment
    steering.close_window("b")
    assert arrivals(nic, frame(100, stays.mac)) == {"b"}


def arp(operation: int) -> bytes:
    """An ARP packet (RFC 826) of 10.9.0.2 to everybody: 1 asks, 2 answers."""
    mac = bytes.fromhex("020900000002")
    body = (
        struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + mac + bytes([10, 9, 0, 2]) + bytes(6) + bytes([10, 9, 0, 1])
    )
    return b"\xff" * 6 + mac + b"\x08\x06" + body + bytes(18)


def neighbour_message(kind: int) -> bytes:
    """ICMPv6 (RFC 4861) without a checksum that is right: 135 asks, 136 answers."""
    ip = struct.pack(">IHBB", 0x60000000, 32, 58, 255) + bytes(15) + b"\2" + bytes(15) + b"\1"
    return b"\xff" * 6 + b"\x02" * 6 + b"\x86\xdd" + ip + bytes([kind]) + bytes(31)


def test_both_slots_and_the_kernel_get_what_neighbours_answer_wherever_the_overlay_goes(nic: Nic) -> None:
    steering = software(nic)
    gate.run(["ip", "-n", nic.netns, "addr", "add", "10.9.0.1/24", "dev", "pf0"])
    gate.run(["sysctl", "-q", "-w", "net.ipv4.conf.pf0.arp_accept=1"], netns=nic.netns)
    assert arrivals(nic, arp(2)) == set()
    known = ["ip", "-n", nic.netns, "neigh", "show", "10.9.0.2"]
    assert "02:09:00:00:00:02" in gate.run(known).stdout
    for turn in (steering.prepare, steering.steady, steering.failover, steering.close_window):
        turn("b")
        gate.run(["ip", "-n", nic.netns, "neigh", "flush", "all"])
        assert arrivals(nic, arp(2)) == {"a", "b"}
        assert "02:09:00:00:00:02" in gate.run(known).stdout, "the kernel, too"
        assert arrivals(nic, neighbour_message(136)) == {"a", "b"}
        assert arrivals(nic, arp(1)) == set(), "who asks the PF is answered by the kernel alone"
        assert arrivals(nic, neighbour_message(135)) == set()
    assert len([f for f in filters(nic) if is_copy_of_answers(f)]) == len(Answers)
    assert steering.facts().foreign == ()


def test_answers_go_to_a_vf_that_was_made_anew_once_it_is_prepared(nic: Nic) -> None:
    steering = software(nic)
    steering.steady("a")
    gate.run(["ip", "-n", nic.netns, "link", "del", "vf2r"])
    gate.run(["ip", "-n", nic.netns, "link", "add", "vf2r", "type", "veth", "peer", "name", "vf2"])
    for name in ("vf2r", "vf2"):
        gate.run(["ip", "-n", nic.netns, "link", "set", name, "up"])
    steering.prepare("b")
    assert arrivals(nic, arp(2)) == {"a", "b"}


def test_packets_in_ipv6_arrive_where_the_rules_say(nic: Nic) -> None:
    steering = software(nic, Underlay.IPV6)
    moved, stays = vm_port(1), vm_port(2)
    steering.steady("a")
    assert arrivals(nic, frame6(100, stays.mac)) == {"a"}
    steering.open_window([(moved, "a"), (stays, "a")])
    steering.move_vm(moved, ("b",))
    assert arrivals(nic, frame6(100, moved.mac)) == {"b"}
    assert arrivals(nic, frame6(100, stays.mac)) == {"a"}
    assert arrivals(nic, frame6(101, moved.mac)) == {"a", "b"}
    assert arrivals(nic, frame6(100, moved.mac, dport=53)) == set()
    assert arrivals(nic, frame6(100, moved.mac, next_header=44)) == set()  # a fragment
    assert arrivals(nic, frame(100, moved.mac)) == set()  # the other family is not ours here
    steering.close_window("b")
    assert arrivals(nic, frame6(100, stays.mac)) == {"b"}


def test_the_two_families_do_not_meet(nic: Nic) -> None:
    """Whoever changes nic.underlay finds no place taken by the rule of before, and sees it as one not of his."""
    four, six = software(nic), software(nic, Underlay.IPV6)
    four.steady("a")
    six.steady("b")
    assert (table(four), table(six)) == ({(None, None): {"a"}}, {(None, None): {"b"}})
    assert len(six.facts().foreign) == 1
    six.open_window([(vm_port(0), "b")])
    six.close_window("a")
    assert (table(four), table(six)) == ({(None, None): {"a"}}, {(None, None): {"a"}})


def test_packets_in_ipv6_arrive_where_a_flower_rule_says(nic: Nic) -> None:
    require_flower(nic)
    steering = flower(nic, mirror=False, underlay=Underlay.IPV6)
    steering.steady("a")
    assert arrivals(nic, frame6(100, vm_port(1).mac)) == {"a"}
    steering.failover("b")
    assert arrivals(nic, frame6(100, vm_port(1).mac)) == {"b"}
    assert arrivals(nic, frame6(100, vm_port(1).mac, dport=53)) == set()
    assert arrivals(nic, frame(100, vm_port(1).mac)) == set()


@pytest.mark.parametrize("mirror", [False, True], ids=["tc_flower", "tc_flower-mirror"])
def test_packets_arrive_where_a_flower_rule_says(nic: Nic, mirror: bool) -> None:
    require_flower(nic)
    steering = flower(nic, mirror=mirror)
    moved, stays = vm_port(1), vm_port(2)
    steering.steady("a")
    assert arrivals(nic, frame(100, moved.mac)) == {"a"}
    steering.open_window([(moved, "a"), (stays, "a")])
    assert arrivals(nic, frame(100, moved.mac)) == ({"a", "b"} if mirror else {"a"})
    steering.move_vm(moved, ("b",))
    steering.move_vm(stays, ("b",))
    assert arrivals(nic, frame(100, stays.mac)) == ({"a", "b"} if mirror else {"b"})
    steering.close_window("b")
    assert arrivals(nic, frame(100, "ff:ff:ff:ff:ff:ff")) == {"b"}
    assert arrivals(nic, frame(100, moved.mac, dport=53)) == set()
    assert arrivals(nic, frame(100, moved.mac, proto=6)) == set()


def test_a_foreign_filter_in_the_place_of_a_flower_rule_stays(nic: Nic) -> None:
    require_flower(nic)
    steering = flower(nic, mirror=True)
    nic.tc("qdisc", "add", "dev", "pf0", "ingress")
    nic.tc("filter", "add", "dev", "pf0", "parent", "ffff:", "protocol", "ip", "prio", "20", "handle", "1", "flower",
           "ip_proto", "udp", "dst_port", "53", "action", "mirred", "egress", "redirect", "dev", "vf2r")  # fmt: skip
    before = nic.tc("filter", "show", "dev", "pf0", "ingress")
    for act in (steering.steady, steering.close_window, steering.failover):
        with pytest.raises(HostError, match="somebody else"):
            act("a")
    assert nic.tc("filter", "show", "dev", "pf0", "ingress") == before
