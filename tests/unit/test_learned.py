"""Neighbours, routes, learned addresses and traces as ovs-appctl prints them."""

from __future__ import annotations

from upgrader.core import learned
from upgrader.core.learned import Address, Route

NEIGHBOURS = """\
IP                                            MAC                 Bridge
==========================================================================
10.9.0.2                                      02:00:00:00:00:02   br-phy
fd00::2                                       02:00:00:00:00:03   br-phy
"""
ROUTES = """\
Route Table:
Cached: 10.9.0.0/24 dev br-phy SRC 10.9.0.1
Cached: 10.9.0.1/32 dev br-phy SRC 10.9.0.1 local
Cached: 192.168.1.0/24 dev eth0 SRC 192.168.1.7
Cached: fe80::/64 dev br-phy SRC fe80::1
User: 192.0.2.0/24 MARK 5 dev br-phy GW 10.9.0.2 SRC 10.9.0.1
"""
FDB = """\
 port  VLAN  MAC                Age
    1     0  52:54:00:00:00:01    3
LOCAL     7  52:54:00:00:00:02   12
    2     0  52:54:00:00:00:03  static
"""
MEGAFLOWS = """\
flow-dump from pmd on cpu core: 0
recirc_id(0),in_port(p1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no), packets:5, bytes:1, used:1.0s, actions:p2
flow-dump from pmd on cpu core: 1
recirc_id(0),in_port(p1),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no), packets:6, bytes:1, used:1.0s, actions:p2
recirc_id(0),in_port(p2),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01),eth_type(0x0806), packets:9, bytes:1, used:never, actions:drop
recirc_id(0x7),in_port(p2),packet_type(ns=0,id=0),eth_type(0x0806), packets:99, bytes:1, used:never, actions:drop
"""


def test_neighbours_lacking_or_changed_are_differences_and_more_of_them_are_not() -> None:
    known = learned.neighbours(NEIGHBOURS)
    assert known == {("br-phy", "10.9.0.2"): "02:00:00:00:00:02", ("br-phy", "fd00::2"): "02:00:00:00:00:03"}
    assert learned.neighbour_differences(known, {**known, ("br-phy", "10.9.0.9"): "02:00:00:00:00:09"}) == ()
    changed = {**known, ("br-phy", "fd00::2"): "02:00:00:00:00:99"}
    (found,) = learned.neighbour_differences(known, changed)
    assert (found.what, found.old, found.new) == ("fd00::2", "02:00:00:00:00:03", "02:00:00:00:00:99")
    assert [d.new for d in learned.neighbour_differences(known, {})] == [None, None]


def test_routes_over_the_switch_count() -> None:
    routes = learned.routes(ROUTES, ["br-phy"])
    assert [r.prefix for r in routes] == ["10.9.0.0/24", "10.9.0.1/32", "192.0.2.0/24"]
    assert routes[2] == Route(True, "192.0.2.0/24", "5", "br-phy", "GW 10.9.0.2 SRC 10.9.0.1")
    assert routes[2].gateway == "10.9.0.2"
    assert routes[0].gateway is None
    assert learned.route_differences(routes, routes) == ()
    (found,) = learned.route_differences(routes, routes[:2])
    assert (found.what, found.new) == ("user 192.0.2.0/24 mark 5", None)
    assert len(learned.route_differences(routes[:2], routes)) == 1, "one too much leads a tunnel elsewhere"


def test_learned_addresses_are_compared_by_vlan() -> None:
    known = learned.addresses(FDB)
    assert known == {Address(0, "52:54:00:00:00:01", "1"), Address(7, "52:54:00:00:00:02", "LOCAL")}
    assert learned.address_differences("br", known, known) == ()
    (found,) = learned.address_differences("br", known, {Address(0, "52:54:00:00:00:01", "9"), *list(known)[0:0]} | {
        a for a in known if a.vlan == 7})  # fmt: skip
    assert (found.old, found.new) == ("port 1", "port 9")


def test_a_teaching_frame_is_one_of_the_address_it_teaches() -> None:
    frame = learned.teaching_frame("52:54:00:00:00:01", None)
    assert (frame[:12], frame[12:24], frame[24:28], len(frame)) == ("0200000088b5", "525400000001", "88b5", 120)
    tagged = learned.teaching_frame("52:54:00:00:00:01", 7)
    assert (tagged[24:32], tagged[32:36], len(tagged)) == ("81000007", "88b5", 120)


def test_the_busiest_flows_are_traced_once_and_as_ethernet() -> None:
    found = learned.busiest(MEGAFLOWS, 9)
    assert [f.packets for f in found] == [11, 9]
    assert found[0].match == (
        "recirc_id(0),in_port(p1),packet_type(ns=0,id=0),eth(src=00:00:00:00:00:00,dst=00:00:00:00:00:00),"
        "eth_type(0x0800),ipv4(frag=no)"
    )
    assert learned.busiest(MEGAFLOWS, 1) == found[:1]


def test_an_outcome_leaves_out_numbers_of_the_process() -> None:
    assert learned.outcome("x\nDatapath actions: meter(3),recirc(0x2f),userspace(pid=44,controller)\n") == (
        "meter(*),recirc(0x*),userspace(pid=*,controller)"
    )
    assert learned.outcome("ovs-appctl: server returned an error") is None
