"""Switches made up by hypothesis: bridges, ports, tunnels, groups of every type, meters, TLV fields, learn actions.

Neighbours and routes of tunnels, too; and as many flows and ports as are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.support.slots import ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ofctl.programs import appctl
from upgrader.core import learned, openflow
from upgrader.core.model import Slot

LARGEST = (50_000, 50)  # flows and ports that a host is promised to be replicated with


@dataclass(frozen=True)
class BridgeCorpus:
    """One bridge, in the words of ovs-vsctl and ovs-ofctl; neighbours and routes in those of ovs-appctl."""

    name: str
    options: tuple[str, ...]
    ports: tuple[tuple[str, ...], ...]
    tlvs: tuple[str, ...]
    meters: tuple[str, ...]
    groups: tuple[str, ...]
    flows: tuple[str, ...]
    address: str
    neighbours: tuple[tuple[str, str], ...]
    routes: tuple[tuple[str, str], ...]


@st.composite
def _bridge(draw: st.DrawFn, number: int, bridges: int, flows_wanted: int, ports_wanted: int) -> BridgeCorpus:
    name = f"br{number}"
    ports = [
        (f"{name}-p{n}", "type=internal", f"ofport_request={n}", *draw(_port_settings))
        for n in range(1, draw(st.integers(1, 6)) + 1)
    ]
    kind, key = draw(st.sampled_from([("vxlan", "flow"), ("geneve", "flow"), ("vxlan", "77"), ("gre", "5")]))
    tunnel = (
        f"{name}-t0",
        f"type={kind}",
        f"options:key={key}",
        f"options:remote_ip=192.0.2.{number + 1}",
        "ofport_request=40",
    )
    ports.append(tunnel)
    for other in range(bridges):
        if other != number:
            peer = f"options:peer=patch{other}-{number}"
            ports.append((f"patch{number}-{other}", "type=patch", peer, f"ofport_request={50 + other}"))
    ports += [
        (f"{name}-q{n}", "type=internal", f"ofport_request={100 + n}") for n in range(max(0, ports_wanted - len(ports)))
    ]
    numbers = st.sampled_from([int(next(w for w in p if "request" in w).partition("=")[2]) for p in ports])
    least = 2 if flows_wanted else 0  # a large one has all that there is, and a small one may have nothing
    tlvs = draw(st.dictionaries(st.integers(0, 3), st.sampled_from([4, 8, 12]), min_size=least, max_size=3))
    meters = draw(st.dictionaries(st.integers(1, 9), _meter(least), min_size=least, max_size=3))
    groups = _groups(draw, numbers, every=bool(flows_wanted))
    flows: dict[str, str] = {}
    possible = _actions(numbers, [openflow.group_id(g) for g in groups], list(meters), set(tlvs))
    for _ in range(draw(st.integers(0, 25))):
        flows[draw(_matches(set(tlvs)))] = draw(st.one_of(possible))
    some = [draw(actions) for actions in possible] if flows_wanted else []
    more = (_one_of_many(n, some) for n in range(max(0, flows_wanted - len(flows))))
    subnet = f"10.{100 + number}.0"
    hosts = st.integers(2, 90)
    addresses = st.one_of(hosts.map(f"{subnet}.{{}}".format), hosts.map(f"fd0{number}::{{}}".format))
    neighbours = draw(st.sets(addresses, min_size=least, max_size=4))
    prefixes = st.integers(0, 99).map(f"172.{20 + number}.{{}}.0/24".format)
    routes = draw(st.dictionaries(prefixes, hosts, min_size=least, max_size=4))
    return BridgeCorpus(
        name=name,
        options=("datapath_type=netdev", draw(st.sampled_from(["fail_mode=secure", "fail_mode=standalone"])),
                 f"other_config:mac-aging-time={draw(st.integers(15, 900))}"),
        ports=tuple(ports),
        tlvs=tuple(f"{{class=0xffff,type={t},len={n}}}->tun_metadata{t}" for t, n in sorted(tlvs.items())),
        meters=tuple(f"meter={m},{how}" for m, how in meters.items()),
        groups=groups,
        flows=(*(f"{draw(st.sampled_from(_ATTRIBUTES))}{m},actions={a}" for m, a in flows.items()), *more),
        address=f"{subnet}.1/24",
        neighbours=tuple((ip, f"02:00:00:00:{number:02x}:{n:02x}") for n, ip in enumerate(sorted(neighbours))),
        routes=tuple((prefix, f"{subnet}.{host}") for prefix, host in sorted(routes.items())),
    )  # fmt: skip


_ATTRIBUTES = ("", "cookie=0x7,", "importance=9,", "send_flow_rem,", "idle_timeout=300,", "hard_timeout=900,")


def _one_of_many(number: int, actions: list[str]) -> str:
    """A flow that no other number has, behind the tables of those that are drawn."""
    source = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    match = f"table={40 + number % 8},priority={number % 10 + 10},ip,nw_src={source},nw_dst=172.16.{number % 7}.0/24"
    return f"{_ATTRIBUTES[number % len(_ATTRIBUTES)]}{match},actions={actions[number % len(actions)]}"


@st.composite
def _meter(draw: st.DrawFn, least: int) -> str:
    burst = draw(st.booleans())
    flags = [
        draw(st.sampled_from(["kbps", "pktps"])),
        *(["burst"] if burst else []),
        *draw(st.sampled_from([[], ["stats"]])),
    ]
    bands = [
        f"type=drop,rate={rate}" + (f",burst_size={rate + 7}" if burst else "")
        for rate in draw(st.lists(st.integers(1, 9999), min_size=max(1, least), max_size=3))
    ]
    return f"{','.join(flags)},bands={','.join(bands)}"


_port_settings = st.lists(
    st.sampled_from(["external_ids:iface-id=x", "mtu_request=1400", "ingress_policing_rate=1000", "other_config:k=v"]),
    unique=True,
    max_size=2,
)


_GROUPS = ("all", "select", "select,selection_method=hash", "indirect", "ff")


def _groups(draw: st.DrawFn, ports: st.SearchStrategy[int], *, every: bool) -> tuple[str, ...]:
    """Some groups, or some of every type."""
    found: list[str] = []
    for number in range(1, draw(st.integers(2 * len(_GROUPS) if every else 0, 12 if every else 5)) + 1):
        kind = _GROUPS[number % len(_GROUPS)] if every else draw(st.sampled_from(_GROUPS))
        buckets = []
        for _ in range(1 if kind == "indirect" else draw(st.integers(2 if every else 1, 3))):
            port = draw(ports)
            before = [openflow.group_id(g) for g in found]
            to = (
                f"group:{draw(st.sampled_from(before))}"
                if before and kind == "all" and draw(st.booleans())
                else f"output:{port}"
            )
            weight = f"weight:{draw(st.integers(0, 9))}," if kind.startswith("select") else ""
            buckets.append(f"bucket={weight}{f'watch_port:{port},' if kind == 'ff' else ''}actions={to}")
        found.append(",".join([f"group_id={number}", f"type={kind}", *buckets]))
    return tuple(found)


@st.composite
def _matches(draw: st.DrawFn, tlvs: set[int]) -> str:
    more = [f"udp,tun_metadata{t}={draw(st.integers(1, 99)):#x}" for t in tlvs]
    fields = draw(
        st.sampled_from(
            [
                "arp",
                f"ip,nw_dst=10.{draw(st.integers(0, 255))}.0.0/16",
                f"tcp,tp_dst={draw(st.integers(1, 65535))}",
                f"ipv6,ipv6_dst=2001:db8:{draw(st.integers(1, 9999))}::/48",
                f"in_port={draw(st.integers(1, 6))}",
                f"dl_vlan={draw(st.integers(1, 4000))}",
                f"tun_id={draw(st.integers(1, 99))}",
                f"reg{draw(st.integers(0, 7))}={draw(st.integers(1, 99))}",
                *more,
            ]
        )
    )
    return f"table={draw(st.integers(0, 9))},priority={draw(st.integers(1, 60000))},{fields}"


_LEARNS = (
    "learn(table=30,idle_timeout=60,hard_timeout=90,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[])",
    "learn(table=31,priority=7,cookie=0x5,send_flow_rem,NXM_OF_VLAN_TCI[0..11],load:NXM_OF_IN_PORT[]->NXM_NX_REG1[0..15])",
    "learn(table=32,limit=100,cookie=0x9,delete_learned,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0x1->NXM_NX_REG2[]),output:1",
)


def _actions(
    ports: st.SearchStrategy[int], groups: list[int], meters: list[int], tlvs: set[int]
) -> list[st.SearchStrategy[str]]:
    return [
        st.just("drop"),
        st.just("NORMAL"),
        ports.map("output:{}".format),
        st.just("resubmit(,20)"),
        *map(st.just, _LEARNS),
        st.just("mod_vlan_vid:7,output:1"),
        *[st.just(f"group:{g}") for g in groups],
        *[st.just(f"meter:{m},output:1") for m in meters],
        *[st.just(f"set_field:{t + 1:#x}->tun_metadata{t},output:40") for t in tlvs],
    ]


@st.composite
def corpora(draw: st.DrawFn, flows: int = 0, ports: int = 0) -> tuple[BridgeCorpus, ...]:
    """A switch of one to three bridges, joined by patch ports; the first has at least so many flows and ports.

    Where flows are asked for, it has groups of every type, meters and TLV fields as well, and flows that use each.
    """
    number = draw(st.integers(2 if flows else 1, 3))
    first = draw(_bridge(0, number, flows, ports))
    return (first, *(draw(_bridge(n, number, 0, 0)) for n in range(1, number)))


def apply(slot: Slot, corpus: tuple[BridgeCorpus, ...]) -> None:
    """Make a switch that; what it was before is gone."""
    netdevs = vsctl(slot, "list-br").split()
    for route in learned.routes(appctl(slot, "ovs/route/show"), netdevs):
        if route.user:
            appctl(slot, "ovs/route/del", route.prefix)
    appctl(slot, "tnl/neigh/flush")
    vsctl(slot, "--no-wait", "init", *(word for b in netdevs for word in ("--", "del-br", b)))
    vsctl(slot, "init")
    command: list[str] = []
    for bridge in corpus:
        command += ["--", "add-br", bridge.name, "--", "set", "Bridge", bridge.name, *bridge.options]
        for name, *settings in bridge.ports:
            command += ["--", "add-port", bridge.name, name, "--", "set", "Interface", name, *settings]
    vsctl(slot, *command[1:])
    for bridge in corpus:
        for tlv in bridge.tlvs:
            ofctl(slot, "add-tlv-map", bridge.name, tlv)
        for meter in bridge.meters:
            ofctl(slot, "add-meter", bridge.name, meter)
        lines = [*(f"group add {g}" for g in bridge.groups), *(f"flow add {f}" for f in bridge.flows)]
        if lines:
            argv = [str(slot.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow15", "bundle"]
            gate.run([*argv, f"unix:{slot.rundir}/{bridge.name}.mgmt", "-"], stdin="\n".join(lines) + "\n")
        gate.run(["ip", "link", "set", bridge.name, "up"], netns=slot.netns)
        gate.run(["ip", "address", "add", bridge.address, "dev", bridge.name], netns=slot.netns)
        for ip, mac in bridge.neighbours:
            appctl(slot, "tnl/neigh/set", bridge.name, ip, mac)
        for prefix, gateway in bridge.routes:
            appctl(slot, "ovs/route/add", prefix, bridge.name, gateway)
