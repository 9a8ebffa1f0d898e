"""The OVSDB and OpenFlow adapters against real switches: what is copied is equal, what differs is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.slots import SlotFactory, ofctl, vsctl
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.errors import HostError
from upgrader.core.model import ORIGIN_KEY, PortBinding, Slot

pytestmark = pytest.mark.integration
Start = Callable[[str], Slot]

FLOWS = """\
table=0,priority=100,in_port=1,tun_id=0x64 actions=set_field:0x65->tun_id,goto_table:1
table=0,priority=50,arp actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],in_port
table=1,cookie=0x77,priority=10,dl_dst=52:54:00:00:00:01 actions=group:5
table=1,priority=9,idle_timeout=300,hard_timeout=600,ip,nw_dst=10.0.0.0/8 actions=meter:3,output:2
table=1,priority=8,udp,tun_metadata0=0x1234 actions=learn(table=2,idle_timeout=60,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[]),output:1
table=2,priority=0 actions=drop
"""


def fill(slot: Slot) -> None:
    """A bridge with ports, flows, groups, meters and a TLV map."""
    bridge_with_ports(slot)
    ofctl(slot, "add-tlv-map", "br-int", "{class=0xffff,type=0x80,len=4}->tun_metadata0")
    ofctl(slot, "add-meter", "br-int", "meter=3,pktps,burst,stats,band=type=drop,rate=1000,burst_size=100")
    ofctl(slot, "add-meter", "br-int", "meter=4,kbps,band=type=drop,rate=5000")
    ofctl(
        slot,
        "add-group",
        "br-int",
        "group_id=5,type=select,selection_method=hash,bucket=weight:3,output:1,bucket=weight:1,output:2",
    )
    ofctl(slot, "add-group", "br-int", "group_id=6,type=ff,bucket=watch_port:1,output:1,bucket=watch_port:2,output:2")
    ofctl(slot, "add-group", "br-int", "group_id=7,type=indirect,bucket=output:1")
    for flow in FLOWS.splitlines():
        ofctl(slot, "add-flow", "br-int", flow)


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


def test_a_copy_is_equal_and_copying_again_changes_nothing(make_slot: Start) -> None:
    a, b = make_slot("a"), make_slot("b")
    fill(a)
    bridge_with_ports(b)
    openflow = Ofctl()
    before = openflow.difference(a, b, "br-int")
    for part in ("priority=100", "group_id=6", "meter=3", "tun_metadata0"):
        assert f"-{part}" in before or part in before, part
    assert openflow.copy(a, b, "br-int") == len(openflow.flows(a, "br-int")) == 6
    assert openflow.difference(a, b, "br-int") == ""
    openflow.copy(a, b, "br-int")
    assert openflow.difference(a, b, "br-int") == ""


@pytest.mark.parametrize(
    ("mutation", "named"),
    [
        (("del-flows", "br-int", "table=1,cookie=0x77/-1"), "cookie=0x77"),
        (("add-flow", "br-int", "table=3,priority=1 actions=drop"), "table=3"),
        (("mod-flows", "br-int", "table=1,dl_dst=52:54:00:00:00:01,actions=group:6"), "group:6"),
        (("mod-group", "br-int", "group_id=7,type=indirect,bucket=output:2"), "group_id=7"),
        (("del-groups", "br-int", "group_id=6"), "group_id=6"),
        (("mod-meter", "br-int", "meter=3,pktps,burst,stats,band=type=drop,rate=999,burst_size=100"), "rate=999"),
        (("del-meter", "br-int", "meter=4"), "meter=4"),
    ],
)
def test_any_change_to_the_copy_is_found_and_named(make_slot: Start, mutation: tuple[str, ...], named: str) -> None:
    a, b = make_slot("a"), make_slot("b")
    fill(a)
    bridge_with_ports(b)
    Ofctl().copy(a, b, "br-int")
    ofctl(b, *mutation)
    assert named in Ofctl().difference(a, b, "br-int")


def test_a_database_copy_becomes_the_slots_own(tmp_path: Path) -> None:
    with SlotFactory(tmp_path) as factory:
        a = factory.start("a")
        vsctl(a, "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev")
        vsctl(a, "set-controller", "br-int", "tcp:127.0.0.1:6653", "--", "set-manager", "ptcp:16640:127.0.0.1")
        vsctl(a, "add-port", "br-int", "vhu0", "--", "set", "interface", "vhu0", "type=dpdkvhostuserclient",
              "options:vhost-server-path=/run/vm0.sock", "external_ids:vni=100")  # fmt: skip
        vsctl(a, "add-port", "br-int", "p1", "--", "set", "interface", "p1", "type=internal", "ofport_request=7")
        uuid = vsctl(a, "get", "bridge", "br-int", "_uuid")
        b = factory.make("b")
        b.rundir.mkdir()
        image = b.rundir / "copy"
        database = Ovsdb()
        database.backup(a, image)
        SlotProcesses().start_database(b, image)
        own = b.vhost_dir / "vhu0"
        database.rehome(b, [PortBinding("vhu0", 1, own, Path("/run/vm0.sock"), "hotup-b-hostnet0", fresh=True)])
        facts = database.read(b)
        assert vsctl(b, "get", "bridge", "br-int", "_uuid") == uuid
        assert facts.managers == ()
        (bridge,) = facts.bridges
        assert (bridge.controllers, bridge.fail_mode) == ((), "secure")
        vhu0 = next(i for i in facts.interfaces if i.name == "vhu0")
        assert vhu0.option("vhost-server-path") == str(own)
        assert vhu0.external_id(ORIGIN_KEY) == "/run/vm0.sock"
        assert vhu0.link_state is None
        assert vsctl(b, "get", "interface", "p1", "ofport_request").strip() == "7"
        assert vsctl(b, "get", "Open_vSwitch", ".", "other_config:pmd-cpu-mask").strip().strip('"') == b.pmd_cpu_mask
        # the source keeps everything
        assert database.read(a).managers == ("ptcp:16640:127.0.0.1",)


def test_waiting_for_a_port_that_never_comes_names_it(make_slot: Start) -> None:
    a = make_slot("a")
    bridge_with_ports(a)
    with pytest.raises(HostError) as raised:
        Ovsdb().wait_for_ports(a, ["p9"], timeout_s=0.2)
    assert raised.value.code == "PORTS_NOT_READY"
    assert "p9 (no such interface)" in raised.value.what


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    with SlotFactory(tmp_path) as factory:
        slot = factory.make("a")
        with pytest.raises(HostError) as raised:
            Ovsdb().read(slot)
    assert raised.value.code == "DATABASE_UNREACHABLE"


def test_neighbours_of_tunnels_are_copied(make_slot: Start) -> None:
    a, b = make_slot("a"), make_slot("b")
    for slot in (a, b):
        bridge_with_ports(slot)
    SlotProcesses().appctl(a, "tnl/neigh/set", "br-int", "10.9.0.2", "02:00:00:00:00:02")
    assert Ofctl().copy_neighbours(a, b) == 1
    assert "02:00:00:00:00:02" in SlotProcesses().appctl(b, "tnl/neigh/show")
