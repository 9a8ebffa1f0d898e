"""Neighbours, routes, learned addresses and traces as ovs-appctl prints them."""

from __future__ import annotations

from upgrader.core import learned, teaching
from upgrader.core.learned import Address, Group, Route

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
MDB = """\
 port  VLAN  GROUP                Age
    1     0  239.1.1.1            12
    3     7  ff02::1234            0
    2     0  239.1.1.1             3
    2     0  querier               3
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


def test_a_neighbour_is_reached_by_the_longest_route_without_a_gateway() -> None:
    found = {
        ip: learned.reached_by(ROUTES + "Cached: 0.0.0.0/0 dev eth0 GW 192.168.1.1 SRC 192.168.1.7\n", ip)
        for ip in ("10.9.0.2", "192.168.1.1", "192.0.2.9", "198.51.100.1", "fe80::9", "fd00::2")
    }
    assert found == {
        "10.9.0.2": "br-phy",
        "192.168.1.1": "eth0",
        "192.0.2.9": None,  # only marked packets go that way
        "198.51.100.1": None,  # behind a gateway
        "fe80::9": "br-phy",
        "fd00::2": None,
    }
    nearer = ROUTES + "Cached: 10.9.0.128/25 dev br-far SRC 10.9.0.130\n"
    assert [learned.reached_by(nearer, f"10.9.0.{last}") for last in (2, 200)] == ["br-phy", "br-far"]


def test_a_mark_that_one_switch_never_makes_is_no_difference() -> None:
    marked = learned.routes("Cached: 10.9.0.1/32 dev br-phy SRC 10.9.0.1 local\n", ["br-phy"])
    bare = learned.routes("Cached: 10.9.0.1/32 dev br-phy SRC 10.9.0.1\n", ["br-phy"])
    other = learned.routes("Cached: 10.9.0.1/32 dev br-phy SRC 10.9.0.9\n", ["br-phy"])
    assert learned.route_differences(*learned.as_both_tell(bare, marked)) == ()
    assert learned.route_differences(*learned.as_both_tell(marked, bare)) == ()
    assert len(learned.route_differences(*learned.as_both_tell(other, marked))) == 1
    assert learned.as_both_tell(marked, marked) == (marked, marked)


def test_learned_addresses_are_compared_by_vlan() -> None:
    known = learned.addresses(FDB)
    assert known == {Address(0, "52:54:00:00:00:01", "1"), Address(7, "52:54:00:00:00:02", "LOCAL")}
    assert learned.address_differences("br", known, known) == ()
    (found,) = learned.address_differences("br", known, {Address(0, "52:54:00:00:00:01", "9"), *list(known)[0:0]} | {
        a for a in known if a.vlan == 7})  # fmt: skip
    assert (found.old, found.new) == ("port 1", "port 9")


def test_groups_are_compared_and_not_those_on_a_port_that_gets_every_group() -> None:
    known = learned.groups(MDB)
    assert known == {Group(0, "239.1.1.1", "1"), Group(7, "ff02::1234", "3"), Group(0, "querier", "2")}
    assert learned.group_differences("br", known, {*known, Group(0, "239.9.9.9", "1")}) == ()
    (found,) = learned.group_differences("br", known, known - {Group(7, "ff02::1234", "3")})
    assert (found.kind, found.what, found.old, found.new) == ("multicast group", "ff02::1234 vlan 7", "port 3", None)


def test_an_address_is_taught_by_a_frame_that_goes_nowhere() -> None:
    frame = teaching.frame(Address(0, "52:54:00:00:00:01", "1"), None)
    assert (frame[:12], frame[12:24], frame[24:28], len(frame)) == ("525400000001", "525400000001", "88b5", 120)
    tagged = teaching.frame(Address(7, "52:54:00:00:00:01", "1"), 7)
    assert (tagged[24:32], tagged[32:36], len(tagged)) == ("81000007", "88b5", 120)


def test_a_group_is_taught_by_a_report_and_a_querier_by_a_query_after_the_groups() -> None:
    report = bytes.fromhex(teaching.frame(Group(0, "239.129.1.2", "1"), None))
    assert report[:6].hex() == "01005e010102", "23 bits of the group (RFC 1112)"
    assert report[6] & 1, "a source that nobody learns"
    ip, igmp = report[14:38], report[38:46]
    assert (ip[0], ip[8], ip[9], igmp[0], igmp[4:]) == (0x46, 1, 2, 0x16, bytes([239, 129, 1, 2]))
    assert (_sum(ip), _sum(igmp)) == (0xFFFF, 0xFFFF)
    query = bytes.fromhex(teaching.frame(Group(5, "querier", "1"), 5))
    assert (query[12:16].hex(), query[34:38], query[42]) == ("81000005", bytes([224, 0, 0, 1]), 0x11)
    mld = bytes.fromhex(teaching.frame(Group(0, "ff02::1234", "1"), None))
    assert (mld[:6].hex(), mld[54]) == ("333300001234", 131)
    length = int.from_bytes(mld[18:20], "big")
    assert _sum(mld[22:54] + mld[18:20] + bytes([0, 58]) + mld[54 : 54 + length]) == 0xFFFF
    several = [Group(0, "querier", "1"), Group(0, "239.1.1.1", "2")]
    assert sorted(several, key=teaching.turn) == several[::-1]


def _sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


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
