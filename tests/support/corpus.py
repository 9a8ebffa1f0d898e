"""Switches made up by hypothesis: bridges, ports, tunnels, groups of every type, meters, TLV fields, learn actions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.support.slots import ofctl, vsctl
from upgrader.adapters import gate
from upgrader.core import openflow
from upgrader.core.model import Slot

LARGEST = (50_000, 50)  # flows and ports that a host is promised to be replicated with


@dataclass(frozen=True)
class BridgeCorpus:
    """One bridge, in the words of ovs-vsctl and ovs-ofctl."""

    name: str
    options: tuple[str, ...]
    ports: tuple[tuple[str, ...], ...]
    tlvs: tuple[str, ...]
    meters: tuple[str, ...]
    groups: tuple[str, ...]
    flows: tuple[str, ...]


@st.composite
def _bridge(draw: st.DrawFn, number: int, bridges: int) -> BridgeCorpus:
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
    numbers = st.sampled_from([int(next(w for w in p if "request" in w).partition("=")[2]) for p in ports])
    tlvs = draw(st.sets(st.integers(0, 3), max_size=3))
    meters = draw(st.dictionaries(st.integers(1, 9), st.integers(1, 9999), max_size=3))
    groups = _groups(draw, numbers)
    flows: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 25))):
        match = draw(_matches(tlvs))
        flows[match] = draw(_actions(numbers, [openflow.group_id(g) for g in groups], list(meters), tlvs))
    attributes = st.sampled_from(
        ["", "cookie=0x7,", "importance=9,", "send_flow_rem,", "idle_timeout=300,", "hard_timeout=900,"]
    )
    return BridgeCorpus(
        name=name,
        options=("datapath_type=netdev", draw(st.sampled_from(["fail_mode=secure", "fail_mode=standalone"])),
                 f"other_config:mac-aging-time={draw(st.integers(15, 900))}"),
        ports=tuple(ports),
        tlvs=tuple(f"{{class=0xffff,type={t},len=4}}->tun_metadata{t}" for t in sorted(tlvs)),
        meters=tuple(f"meter={m},kbps,bands=type=drop,rate={r},type=drop,rate={r + 1}" for m, r in meters.items()),
        groups=groups,
        flows=tuple(f"{draw(attributes)}{m},actions={a}" for m, a in flows.items()),
    )  # fmt: skip


_port_settings = st.lists(
    st.sampled_from(["external_ids:iface-id=x", "mtu_request=1400", "ingress_policing_rate=1000", "other_config:k=v"]),
    unique=True,
    max_size=2,
)


def _groups(draw: st.DrawFn, ports: st.SearchStrategy[int]) -> tuple[str, ...]:
    found: list[str] = []
    for number in range(1, draw(st.integers(0, 5)) + 1):
        kind = draw(st.sampled_from(["all", "select", "select,selection_method=hash", "indirect", "ff"]))
        buckets = []
        for _ in range(1 if kind == "indirect" else draw(st.integers(1, 3))):
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


def _actions(
    ports: st.SearchStrategy[int], groups: list[int], meters: list[int], tlvs: set[int]
) -> st.SearchStrategy[str]:
    last = [
        st.just("drop"),
        st.just("NORMAL"),
        ports.map("output:{}".format),
        st.just("resubmit(,20)"),
        st.just(
            "learn(table=30,idle_timeout=60,hard_timeout=90,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],output:NXM_OF_IN_PORT[])"
        ),
        st.just("mod_vlan_vid:7,output:1"),
        *[st.just(f"group:{g}") for g in groups],
        *[st.just(f"meter:{m},output:1") for m in meters],
        *[st.just(f"set_field:{t + 1:#x}->tun_metadata{t},output:40") for t in tlvs],
    ]
    return st.one_of(last)


@st.composite
def corpora(draw: st.DrawFn) -> tuple[BridgeCorpus, ...]:
    """A switch of one to three bridges, joined by patch ports."""
    number = draw(st.integers(1, 3))
    return tuple(draw(_bridge(n, number)) for n in range(number))


def apply(slot: Slot, corpus: tuple[BridgeCorpus, ...]) -> None:
    """Make a switch that; what it was before is gone."""
    vsctl(slot, *sum((["--", "del-br", b] for b in vsctl(slot, "list-br").split()), ["--no-wait", "init"]))
    vsctl(slot, "--no-wait", "init")
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


@dataclass(frozen=True)
class Mutation:
    """One change to one thing of a switch: what to run, and what must be named as different."""

    command: tuple[str, ...]
    kind: str
    named: str


def mutations(corpus: tuple[BridgeCorpus, ...]) -> list[Mutation]:
    """Every single thing of a switch removed or changed, one at a time."""
    found: list[Mutation] = []
    for bridge in corpus:
        br = bridge.name
        for name, *_ in bridge.ports:
            found.append(Mutation(("vsctl", "set", "Interface", name, "options:mutated=yes"), "interface", name))
            found.append(Mutation(("vsctl", "del-port", name), "port", name))
        found.append(Mutation(("vsctl", "set", "Bridge", br, "other_config:mutated=yes"), "bridge", br))
        for flow in bridge.flows:
            match = re.sub(r"^(cookie|importance|send_flow_rem|idle_timeout|hard_timeout)(=\w+)?,", "", flow).partition(
                ",actions="
            )[0]
            of_it = match.split(",")[1]  # its priority: a switch may print a field in another base
            found.append(Mutation(("ofctl", "--strict", "del-flows", br, match), "flow", of_it))
            found.append(Mutation(("ofctl", "add-flow", br, f"{match},cookie=0xabc,actions=in_port"), "flow", of_it))
        for group in bridge.groups:
            number = openflow.group_id(group)
            found.append(Mutation(("ofctl", "del-groups", br, f"group_id={number}"), "group", f"group_id={number}"))
            changed = f"group_id={number},type=all,bucket=output:6,bucket=output:6,bucket=output:6,bucket=output:5"
            found.append(Mutation(("ofctl", "mod-group", br, changed), "bucket", f"group_id={number} bucket 3"))
        for meter in bridge.meters:
            name = meter.partition(",")[0]
            found.append(Mutation(("ofctl", "del-meter", br, name), "meter", name))
            changed = f"{name},kbps,bands=type=drop,rate=31337"
            found.append(Mutation(("ofctl", "mod-meter", br, changed), "band", f"{name} band 0"))
    return found


def mutate(slot: Slot, mutation: Mutation) -> None:
    """Carry a mutation out."""
    program, *arguments = mutation.command
    (vsctl if program == "vsctl" else ofctl)(slot, *arguments)
