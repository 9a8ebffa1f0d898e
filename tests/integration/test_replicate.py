"""The OVSDB and OpenFlow adapters against real switches: what is copied is equal, what differs is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.slots import Pair, SlotFactory, ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ofctl.programs import appctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core import learned, teaching
from upgrader.core.errors import HostError
from upgrader.core.learned import QUERIER, Group
from upgrader.core.model import ORIGIN_KEY, PortBinding, Slot
from upgrader.core.proof import Difference

pytestmark = pytest.mark.integration
Start = Callable[[str], Slot]

FLOWS = """\
table=0,priority=100,in_port=1,tun_id=0x64 actions=set_field:0x65->tun_id,goto_table:1
table=0,priority=50,arp actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],in_port
table=1,cookie=0x77,priority=10,dl_dst=52:54:00:00:00:01 actions=group:5
table=1,priority=9,idle_timeout=300,hard_timeout=600,ip,nw_dst=10.0.0.0/8 actions=meter:3,output:2
table=1,priority=8,importance=7,send_flow_rem,udp,tun_metadata0=0x1234 actions=learn(table=2,idle_timeout=60,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[]),output:1
table=2,priority=0 actions=drop
table=3,priority=5,udp,tp_dst=4789 actions=group:8
"""
NEIGHBOUR = ("10.9.0.2", "02:00:00:00:00:02")


def fill(slot: Slot) -> None:
    """A bridge with ports, flows, groups of every type, meters and a TLV map; a route and a neighbour."""
    bridge_with_ports(slot)
    ofctl(slot, "add-tlv-map", "br-int", "{class=0xffff,type=0x80,len=4}->tun_metadata0")
    ofctl(slot, "add-meter", "br-int", "meter=3,pktps,burst,stats,band=type=drop,rate=1000,burst_size=100")
    ofctl(
        slot,
        "add-meter",
        "br-int",
        "meter=4,kbps,bands=type=drop,rate=5000,type=drop,rate=9000",
    )
    for group in (
        "group_id=5,type=select,selection_method=hash,bucket=weight:3,output:1,bucket=weight:0,output:2",
        "group_id=6,type=ff,bucket=watch_port:1,output:1,bucket=watch_port:2,output:2",
        "group_id=7,type=indirect,bucket=output:1",
        "group_id=8,type=all,bucket=group:7,bucket=output:2",
        "group_id=9,type=all",
    ):
        ofctl(slot, "add-group", "br-int", group)
    for flow in FLOWS.splitlines():
        ofctl(slot, "add-flow", "br-int", flow)
    gate.run(["ip", "link", "set", "br-int", "up"], netns=slot.netns)
    gate.run(["ip", "address", "add", "10.9.0.1/24", "dev", "br-int"], netns=slot.netns)
    SlotProcesses().appctl(slot, "tnl/neigh/set", "br-int", *NEIGHBOUR)
    SlotProcesses().appctl(slot, "ovs/route/add", "192.0.2.0/24", "br-int", "10.9.0.2")


def bridge_with_ports(slot: Slot) -> None:
    vsctl(slot, "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev", "fail_mode=secure")
    for number in (1, 2):
        interface = f"p{number}"
        vsctl(
            slot,
            "add-port",
            "br-int",
            interface,
            "--",
            "set",
            "interface",
            interface,
            "type=internal",
            f"ofport_request={number}",
        )


def follow(a: Slot, b: Slot, *, hold: bool = True) -> None:
    """One round of all of it, as the step replicate makes it."""
    Ovsdb().sync(a, b, ())
    HostResources().copy_addresses(a, b, ["br-int"])
    Ofctl().sync(a, b, "br-int", hold=hold)
    Ofctl().sync_learned(a, b, ["br-int"])


def differences(a: Slot, b: Slot) -> list[Difference]:
    openflow = Ofctl()
    return [
        *Ovsdb().differences(a, b, ()),
        *openflow.differences(a, b, "br-int", hold=True),
        *openflow.learned_differences(a, b, ["br-int"]),
    ]


@pytest.fixture(scope="module", name="pair")
def pair_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Made once; a test that changes the standby leaves it to the next test's first round to mend."""
    with SlotFactory(tmp_path_factory.mktemp("pair")) as factory:
        a = factory.start("a")
        fill(a)
        yield Pair(a, factory.start_standby("b", a))


def test_a_standby_is_equal_and_copying_again_changes_nothing(pair: Pair) -> None:
    follow(pair.a, pair.b)
    assert differences(pair.a, pair.b) == []
    assert Ovsdb().sync(pair.a, pair.b, ()).changes == ()
    assert Ofctl().sync(pair.a, pair.b, "br-int", hold=True) == {}
    assert not any(Ofctl().sync_learned(pair.a, pair.b, ["br-int"]).values())


def of(*command: str) -> Callable[[Slot], object]:
    return lambda slot: ofctl(slot, *command)


def vs(*command: str) -> Callable[[Slot], object]:
    return lambda slot: vsctl(slot, *command)


def app(*command: str) -> Callable[[Slot], object]:
    return lambda slot: SlotProcesses().appctl(slot, *command)


@pytest.mark.parametrize(
    ("mutate", "kind", "named"),
    [
        (of("del-flows", "br-int", "table=1,cookie=0x77/-1"), "flow", "dl_dst=52:54:00:00:00:01"),
        (of("add-flow", "br-int", "table=4,priority=1 actions=drop"), "flow", "table=4"),
        (of("mod-flows", "br-int", "table=1,dl_dst=52:54:00:00:00:01,actions=group:6"), "flow", "dl_dst"),
        (of("add-flow", "br-int", "table=2,cookie=1,priority=0 actions=drop"), "flow", "table=2"),
        (
            of("add-flow", "br-int", "table=1,priority=9,ip,nw_dst=10.0.0.0/8 actions=meter:3,output:2"),
            "flow",
            "nw_dst=10.0.0.0/8",
        ),
        (
            of(
                "mod-group",
                "br-int",
                "group_id=5,type=select,selection_method=hash,bucket=weight:2,output:1,bucket=output:2",
            ),
            "bucket",
            "group_id=5 bucket 0",
        ),
        (of("mod-group", "br-int", "group_id=7,type=indirect,bucket=output:2"), "bucket", "group_id=7 bucket 0"),
        (of("mod-group", "br-int", "group_id=9,type=select"), "group", "group_id=9"),
        (of("del-groups", "br-int", "group_id=6"), "group", "group_id=6"),
        (
            of("mod-meter", "br-int", "meter=3,pktps,burst,stats,band=type=drop,rate=999,burst_size=100"),
            "band",
            "meter=3 band 0",
        ),
        (of("mod-meter", "br-int", "meter=4,kbps,band=type=drop,rate=5000"), "band", "meter=4 band 1"),
        (of("del-meter", "br-int", "meter=4"), "meter", "meter=4"),
        (
            of("add-tlv-map", "br-int", "{class=0xffff,type=0x81,len=4}->tun_metadata1"),
            "tlv",
            "tun_metadata1",
        ),
        (vs("set", "Interface", "p1", "options:x=y"), "interface", "p1"),
        (vs("set", "Port", "p2", "tag=7"), "port", "p2"),
        (vs("set", "Bridge", "br-int", "other_config:mac-aging-time=77"), "bridge", "br-int"),
        (vs("set", "Open_vSwitch", ".", "other_config:max-idle=9"), "open_vswitch", "Open_vSwitch"),
        (vs("del-port", "p1"), "interface", "p1"),
        (vs("add-port", "br-int", "p9", "--", "set", "Interface", "p9", "type=internal"), "port", "p9"),
        (vs("set", "Interface", "p1", "ofport_request=33"), "port number", "p1"),
        (app("tnl/neigh/set", "br-int", NEIGHBOUR[0], "02:00:00:00:00:99"), "neighbour", NEIGHBOUR[0]),
        (app("tnl/neigh/flush"), "neighbour", NEIGHBOUR[0]),
        (app("ovs/route/del", "192.0.2.0/24"), "route", "192.0.2.0/24"),
        (app("ovs/route/add", "198.51.100.0/24", "br-int", "10.9.0.7"), "route", "198.51.100.0/24"),
    ],
)
def test_any_change_to_the_standby_is_found_and_named(
    pair: Pair, mutate: Callable[[Slot], object], kind: str, named: str
) -> None:
    follow(pair.a, pair.b)
    mutate(pair.b)
    found = differences(pair.a, pair.b)
    assert any(d.kind == kind and named in d.what for d in found), "\n".join(map(str, found)) or "no difference"
    follow(pair.a, pair.b)
    assert differences(pair.a, pair.b) == []


def test_everything_a_controller_may_change_comes_over(pair: Pair) -> None:
    follow(pair.a, pair.b)
    before = differences(pair.a, pair.b)
    ofctl(pair.a, "del-flows", "br-int", "table=3")
    ofctl(pair.a, "del-groups", "br-int", "group_id=8")
    ofctl(pair.a, "add-group", "br-int", "group_id=10,type=all,bucket=group:9,bucket=group:7")
    ofctl(pair.a, "add-flow", "br-int", "table=3,priority=6,udp actions=group:10")
    ofctl(pair.a, "del-flows", "br-int", "table=1,udp")
    ofctl(pair.a, "del-tlv-map", "br-int")
    ofctl(pair.a, "add-tlv-map", "br-int", "{class=0xffff,type=0x81,len=8}->tun_metadata0")
    ofctl(pair.a, "add-flow", "br-int", "table=1,priority=8,udp,tun_metadata0=0x12345678 actions=drop")
    ofctl(pair.a, "del-meter", "br-int", "meter=4")
    assert before == []
    assert {d.kind for d in differences(pair.a, pair.b)} >= {"flow", "group", "bucket", "meter", "band", "tlv"}
    follow(pair.a, pair.b)
    assert differences(pair.a, pair.b) == []


def test_timeouts_are_held_on_the_standby_and_come_back(pair: Pair) -> None:
    ofctl(pair.a, "add-flow", "br-int", "table=7,idle_timeout=100,hard_timeout=200,priority=3 actions=drop")
    follow(pair.a, pair.b)
    (flow,) = [f for f in Ofctl().flows(pair.b, "br-int") if "table=7" in f]
    assert "idle_timeout=65535, hard_timeout=65535" in flow
    Ofctl().sync(pair.a, pair.b, "br-int", hold=False)
    (flow,) = [f for f in Ofctl().flows(pair.b, "br-int") if "table=7" in f]
    assert "idle_timeout=100, hard_timeout=200" in flow


def test_a_flow_that_ran_out_because_its_vm_has_moved_is_kept_until_it_runs_out_by_itself(pair: Pair) -> None:
    ofctl(pair.a, "add-flow", "br-int", "table=7,idle_timeout=100,priority=4 actions=group:7")
    follow(pair.a, pair.b)
    ofctl(pair.a, "del-flows", "br-int", "table=7")  # what a time-out does
    Ofctl().sync(pair.a, pair.b, "br-int", hold=False, moving=True)
    (flow,) = [f for f in Ofctl().flows(pair.b, "br-int") if "priority=4" in f]
    assert "idle_timeout=65535" in flow
    assert Ofctl().release_flows(pair.b, "br-int") == 1
    (flow,) = [f for f in Ofctl().flows(pair.b, "br-int") if "priority=4" in f]
    assert "idle_timeout=60" in flow
    follow(pair.a, pair.b)


def test_learned_addresses_come_over_without_a_frame_being_flooded(pair: Pair) -> None:
    vsctl(pair.a, "set", "Port", "p2", "tag=5")
    ofctl(pair.a, "add-flow", "br-int", "table=9 actions=NORMAL")
    for port, frame in (
        (1, "ffffffffffff" + "020000000aaa" + "88b5"),
        (1, "ffffffffffff" + "020000000bbb" + "81000007" + "88b5"),
        (2, "ffffffffffff" + "020000000ccc" + "88b5"),
    ):
        ofctl(pair.a, "packet-out", "br-int", f"in_port={port},packet={frame.ljust(120, '0')},actions=NORMAL")
    shown = SlotProcesses().appctl(pair.a, "fdb/show", "br-int")
    assert [m in shown for m in ("02:00:00:00:0a:aa", "02:00:00:00:0b:bb", "02:00:00:00:0c:cc")] == [True] * 3
    Ovsdb().sync(pair.a, pair.b, ())
    assert {d.what for d in Ofctl().learned_differences(pair.a, pair.b, ["br-int"])} >= {
        "02:00:00:00:0a:aa vlan 0",
        "02:00:00:00:0b:bb vlan 7",
        "02:00:00:00:0c:cc vlan 5",
    }
    before = _transmitted(pair.b)
    assert Ofctl().sync_learned(pair.a, pair.b, ["br-int"])["addresses"] >= 3
    assert Ofctl().learned_differences(pair.a, pair.b, ["br-int"]) == ()
    assert _transmitted(pair.b) == before
    SlotProcesses().appctl(pair.b, "fdb/flush", "br-int")
    assert "learned address" in {d.kind for d in Ofctl().learned_differences(pair.a, pair.b, ["br-int"])}
    vsctl(pair.a, "clear", "Port", "p2", "tag")


def test_multicast_groups_and_queriers_come_over_without_a_report_being_sent(pair: Pair) -> None:
    known = {
        Group(0, "239.1.1.1", "1"),
        Group(5, "239.1.1.2", "2"),
        Group(0, "ff0e::1234", "1"),
        Group(7, QUERIER, "1"),
    }
    vsctl(pair.a, "set", "Port", "p2", "tag=5", "--", "set", "Bridge", "br-int", "mcast_snooping_enable=true")
    try:
        Ovsdb().sync(pair.a, pair.b, ())
        for group in known:
            frame = teaching.frame(group, group.vlan if group.vlan and group.port == "1" else None)
            appctl(pair.a, "ofproto/trace-packet-out", "br-int", f"in_port={group.port}", frame, "NORMAL")
        assert learned.groups(appctl(pair.a, "mdb/show", "br-int")) >= known
        missing = Ofctl().learned_differences(pair.a, pair.b, ["br-int"])
        assert {d.what for d in missing if d.kind == "multicast group"} >= {f"{g.group} vlan {g.vlan}" for g in known}
        before = _transmitted(pair.b)
        assert Ofctl().sync_learned(pair.a, pair.b, ["br-int"])["multicast"] >= len(known)
        assert learned.groups(appctl(pair.b, "mdb/show", "br-int")) >= known
        assert Ofctl().learned_differences(pair.a, pair.b, ["br-int"]) == ()
        assert _transmitted(pair.b) == before
    finally:
        vsctl(pair.a, "clear", "Port", "p2", "tag", "--", "set", "Bridge", "br-int", "mcast_snooping_enable=false")


def _transmitted(slot: Slot) -> list[str]:
    return [vsctl(slot, "get", "Interface", p, "statistics:tx_packets") for p in ("p1", "p2")]


def test_live_flows_are_traced_in_both(pair: Pair) -> None:
    for slot in (pair.a, pair.b):
        gate.run(["ip", "link", "set", "p1", "up"], netns=slot.netns)
    ofctl(pair.a, "add-flow", "br-int", "priority=200,icmp6 actions=output:2")
    ofctl(pair.a, "add-flow", "br-int", "priority=200,icmp actions=output:2")
    gate.run(["ip", "address", "add", "10.8.0.1/24", "dev", "p1"], netns=pair.a.netns)
    gate.run(["ip", "neigh", "add", "10.8.0.2", "lladdr", "02:00:00:00:08:02", "dev", "p1"], netns=pair.a.netns)
    gate.run(["ping", "-c", "3", "-i", "0.2", "-W", "1", "10.8.0.2"], netns=pair.a.netns, check=False)
    follow(pair.a, pair.b)
    traced, otherwise = Ofctl().traces(pair.a, pair.b, 10)
    assert traced >= 1
    assert otherwise == ()
    ofctl(pair.b, "add-flow", "br-int", "priority=200,icmp actions=output:1,output:LOCAL")
    gate.run(["ping", "-c", "3", "-i", "0.2", "-W", "1", "10.8.0.2"], netns=pair.a.netns, check=False)
    (found, *_) = Ofctl().traces(pair.a, pair.b, 10)[1]
    assert (found.kind, found.old) == ("trace", "p2")
    assert "br-int" in str(found.new)
    follow(pair.a, pair.b)


def test_a_bridge_keeps_to_its_openflow_version(pair: Pair) -> None:
    vsctl(pair.a, "add-br", "br13", "--", "set", "Bridge", "br13", "datapath_type=netdev", "fail_mode=secure",
          "protocols=OpenFlow13")  # fmt: skip
    ofctl13 = [str(pair.a.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow13"]
    mgmt = f"unix:{pair.a.rundir}/br13.mgmt"
    gate.run([*ofctl13, "add-group", mgmt, "group_id=1,type=all,bucket=output:1"])
    gate.run([*ofctl13, "add-flow", mgmt, "priority=3 actions=group:1"])
    Ovsdb().sync(pair.a, pair.b, ())
    Ofctl().sync(pair.a, pair.b, "br13", hold=True)
    assert vsctl(pair.b, "get", "Bridge", "br13", "protocols") == vsctl(pair.a, "get", "Bridge", "br13", "protocols")
    assert "priority=3 actions=group:1" in Ofctl().flows(pair.b, "br13")
    assert Ofctl().differences(pair.a, pair.b, "br13", hold=True) == ()
    vsctl(pair.a, "del-br", "br13")
    assert "delete Bridge br13" in Ovsdb().sync(pair.a, pair.b, ()).changes


def test_identity_of_a_bridge_is_the_same_in_both(pair: Pair) -> None:
    """Whatever its ports are: a controller knows it by its datapath id, a remote VTEP by its MAC."""
    follow(pair.a, pair.b)
    for table, record, column in (
        ("Bridge", "br-int", "datapath_id"),
        ("Bridge", "br-int", "_uuid"),
        ("Interface", "br-int", "mac_in_use"),
        ("Interface", "p1", "mac_in_use"),
        ("Interface", "p1", "ofport"),
    ):
        assert vsctl(pair.b, "get", table, record, column) == vsctl(pair.a, "get", table, record, column), column


def test_a_database_copy_becomes_the_slots_own(tmp_path: Path) -> None:
    with SlotFactory(tmp_path) as factory:
        a = factory.make("a")
        SlotProcesses().start_database(a)  # no switch: DPDK is not there to be initialised
        vsctl(a, "--no-wait", "init", "--", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true")
        vsctl(a, "--no-wait", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev")
        vsctl(a, "--no-wait", "set-controller", "br-int", "tcp:127.0.0.1:6653", "--", "set-manager", "ptcp:1:127.0.0.1")
        vsctl(a, "--no-wait", "add-port", "br-int", "vhu0", "--", "set", "interface", "vhu0", "type=dpdkvhostuserclient",
              "options:vhost-server-path=/run/vm0.sock", "external_ids:vni=100", "ofport=4")  # fmt: skip
        vsctl(a, "--no-wait", "add-port", "br-int", "p1", "--", "set", "interface", "p1", "type=internal", "ofport=7")
        vsctl(a, "--no-wait", "add-port", "br-int", "new", "--", "set", "interface", "new", "type=internal")
        b = factory.make("b")
        SlotProcesses().start_database(b)
        database = Ovsdb()
        own = b.vhost_dir / "vhu0"
        binding = PortBinding("vhu0", 1, own, Path("/run/vm0.sock"), "hotup-b-hostnet0", fresh=True)
        copied = database.sync(a, b, [binding], applied=False)
        assert copied.waiting == ("new",)
        facts = database.read(b)
        assert vsctl(b, "get", "bridge", "br-int", "_uuid") == vsctl(a, "get", "bridge", "br-int", "_uuid")
        assert facts.managers == ()
        (bridge,) = facts.bridges
        assert (bridge.controllers, bridge.fail_mode) == ((f"unix:{b.rundir}/br-int.standby",), "secure")
        vhu0 = next(i for i in facts.interfaces if i.name == "vhu0")
        assert vhu0.option("vhost-server-path") == str(own)
        assert vhu0.external_id(ORIGIN_KEY) == "/run/vm0.sock"
        assert vhu0.link_state is None
        assert vhu0.ofport is None
        assert vsctl(b, "get", "interface", "p1", "ofport_request").strip() == "7"
        assert vsctl(b, "get", "Open_vSwitch", ".", "other_config:pmd-cpu-mask").strip().strip('"') == b.pmd_cpu_mask
        # the source keeps everything, and nothing differs from then on, whichever bindings are said again
        assert database.read(a).managers == ("ptcp:1:127.0.0.1",)
        assert database.sync(a, b, (), applied=False).changes == ()
        other = replace(binding, socket=b.vhost_dir / "other")
        assert database.sync(a, b, [other], applied=False).changes == ("update Interface vhu0",)


def test_waiting_for_a_port_that_never_comes_names_it(make_slot: Start) -> None:
    a = make_slot("a")
    bridge_with_ports(a)
    with pytest.raises(HostError) as raised:
        Ovsdb().wait_for_ports(a, ["p9"], timeout_s=0.2)
    assert raised.value.code == "PORTS_NOT_READY"
    assert "p9 (no such interface)" in raised.value.what
    assert Ovsdb().unready(a, ["p1", "p9"]) == ("p9: the slot has no such interface", "p1: link down")


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    with SlotFactory(tmp_path) as factory:
        slot = factory.make("a")
        with pytest.raises(HostError) as raised:
            Ovsdb().read(slot)
        assert raised.value.code == "DATABASE_UNREACHABLE"
        with pytest.raises(HostError) as raised:
            Ovsdb().in_control(slot)
        assert raised.value.code == "DATABASE_UNREACHABLE"
