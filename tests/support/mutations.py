"""Every single thing of a real switch changed or removed: how that is done, and what must be named as different then.

Made from what the switch itself holds, so that nothing of it is left out. Mutations of one kind concern different things:
they can be made one by one, or all at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tests.support.slots import ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ofctl.programs import appctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.core import learned, openflow
from upgrader.core.model import Bridge, Interface, Slot
from upgrader.core.proof import Difference

Named = tuple[str, str, str]  # kind, where and what of a difference


@dataclass(frozen=True)
class Mutation:
    """One change to one thing of a switch.

    named     what must be told of it
    commands  program and arguments each; of a bundle, which goes first: bridge and line
    along     kinds of things that it may take with it
    """

    named: tuple[Named, ...]
    commands: tuple[tuple[str, ...], ...]
    along: frozenset[str] = frozenset()


def mutate(slot: Slot, mutations: Iterable[Mutation]) -> None:
    """Carry them out: what goes into bundles or the database in one transaction each."""
    bundles: dict[str, list[str]] = {}
    rows: list[str] = []
    others: list[tuple[str, ...]] = []
    for program, *arguments in chain.from_iterable(m.commands for m in mutations):
        if program == "bundle":
            bundles.setdefault(arguments[0], []).append(arguments[1])
        elif program == "vsctl":
            rows += ["--", *arguments]
        else:
            others.append((program, *arguments))
    for bridge, lines in bundles.items():
        argv = [
            str(slot.prefix / "bin/ovs-ofctl"),
            "-O",
            "OpenFlow15",
            "bundle",
            f"unix:{slot.rundir}/{bridge}.mgmt",
            "-",
        ]
        gate.run(argv, stdin="".join(f"{line}\n" for line in lines))
    if rows:
        vsctl(slot, *rows[1:])
    for program, *arguments in others:
        (ofctl if program == "ofctl" else appctl)(slot, *arguments)


@dataclass
class _Heap:
    """Kinds of mutations that are made together; what they concern, of which kinds that is, and what they take along."""

    names: list[str] = field(default_factory=list)
    subjects: set[tuple[str, str]] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)
    along: set[str] = field(default_factory=set)

    def takes(self, other: _Heap) -> bool:
        """Whether neither disturbs the other."""
        return not (self.subjects & other.subjects or self.kinds & other.along or self.along & other.kinds)


def at_once(every: Mapping[str, list[Mutation]]) -> dict[str, list[Mutation]]:
    """The same, in as few heaps as can be of which no two concern the same thing, or what the other takes along."""
    heaps: list[_Heap] = []
    for how, made in every.items():
        # buckets and bands are of one thing: they are set together
        whole = {(where, re.split(" (?:bucket|band) ", what)[0]) for m in made for _, where, what in m.named}
        this = _Heap(
            [how],
            whole,
            {kind for m in made for kind, _, _ in m.named},
            {kind for m in made for kind in m.along},
        )
        heap = next((h for h in heaps if h.takes(this)), None)
        if heap is None:
            heaps.append(this)
            continue
        heap.names += this.names
        heap.subjects |= this.subjects
        heap.kinds |= this.kinds
        heap.along |= this.along
    return {", ".join(h.names): [m for how in h.names for m in every[how]] for h in heaps}


def untold(found: Iterable[Difference], mutations: Sequence[Mutation]) -> tuple[set[Named], list[Difference]]:
    """What of the mutations no difference names, and differences that are none of theirs or whose sides are alike."""
    expected = set(chain.from_iterable(m.named for m in mutations))
    along = frozenset(chain.from_iterable(m.along for m in mutations))
    named = {(d.kind, d.where, d.what): d for d in found}
    strange = [d for key, d in named.items() if (key not in expected and d.kind not in along) or d.old == d.new]
    return expected - named.keys(), strange


def mutations(slot: Slot) -> dict[str, list[Mutation]]:
    """Each thing of the switch in each way in which it can be another one, by what is done to it."""
    facts = Ovsdb().read(slot)
    found: dict[str, list[Mutation]] = {}
    every = (
        *chain.from_iterable(_of_bridge(slot, b.name) for b in facts.bridges),
        *_of_database(facts.interfaces, facts.bridges),
        *_of_tunnels(slot, [b.name for b in facts.bridges]),
    )
    for how, mutation in every:
        found.setdefault(how, []).append(mutation)
    return found


Some = Iterator[tuple[str, Mutation]]


def _of_bridge(slot: Slot, bridge: str) -> Some:
    state = openflow.BridgeState(
        Ofctl().flows(slot, bridge),
        Ofctl().groups(slot, bridge),
        openflow.meters(ofctl(slot, "dump-meters", bridge)),
        openflow.tlv_map(ofctl(slot, "dump-tlv-map", bridge)),
    )
    yield from _of_flows(bridge, state.flows)
    for group in state.groups:
        yield from _of_group(bridge, group)
    for meter in state.meters:
        yield from _of_meter(bridge, meter)
    for tlv in state.tlv_map:
        option, _, field = tlv.partition("->")
        named = (("tlv", bridge, field),)
        # a switch lets go of a mapping only once no flow uses it
        using = openflow.using(state.flows, [tlv])
        free = [("bundle", bridge, f"flow delete_strict {openflow.strictly(f)}") for f in using]
        gone = (*free, ("ofctl", "del-tlv-map", bridge, tlv))
        other = f"{option.replace('class=0xffff', 'class=0xfffe')}->{field}"
        yield "TLV removed", Mutation(named, gone, frozenset({"flow"}))
        yield "TLV changed", Mutation(named, (*gone, ("ofctl", "add-tlv-map", bridge, other)), frozenset({"flow"}))


def _of_flows(bridge: str, flows: Sequence[str]) -> Some:
    for number, flow in enumerate(flows):
        identity = openflow.identity(flow)
        named = (("flow", bridge, identity),)
        how, altered = _altered(flow, number % 4)
        yield f"flow: {how}", Mutation(named, (("bundle", bridge, f"flow add {altered}"),))
        yield "flow removed", Mutation(named, (("bundle", bridge, f"flow delete_strict {openflow.strictly(flow)}"),))
        if "_timeout=" in flow.partition("actions=")[0]:
            lasting = re.sub(r"(idle|hard)_timeout=\d+,? ?", "", flow.partition("actions=")[0])
            more = f"{lasting}actions={flow.partition('actions=')[2]}"
            yield "flow: time-out removed", Mutation(named, (("bundle", bridge, f"flow add {more}"),))
    surplus = "table=250, priority=7 actions=drop"
    yield (
        "flow added",
        Mutation((("flow", bridge, openflow.identity(surplus)),), (("bundle", bridge, f"flow add {surplus}"),)),
    )


def _altered(flow: str, turn: int) -> tuple[str, str]:
    head, _, actions = flow.partition("actions=")
    if turn == 0:
        return "other actions", f"{head}actions={'IN_PORT' if actions == 'drop' else 'drop'}"
    if turn == 1:
        plain = re.sub(r"cookie=\w+,? ?", "", head)
        return "other cookie", f"cookie=0xabcdef,{plain}actions={actions}"
    if turn == 2:
        plain = re.sub(r"importance=\d+,? ?", "", head)
        return "other importance", f"importance=77,{plain}actions={actions}"
    flag = "" if "send_flow_rem" in head else "send_flow_rem,"
    return "other flag", f"{flag}{head.replace('send_flow_rem', '')}actions={actions}"


def _of_group(bridge: str, group: str) -> Some:
    head, *buckets = group.split(",bucket=")
    number = openflow.group_id(group)
    kind = re.search(r"type=(\w+)", head)
    assert kind

    def set_to(*changed: str, of: str = head) -> tuple[tuple[str, ...], ...]:
        return (("bundle", bridge, ",bucket=".join([f"group modify {of}", *changed])),)

    for at, bucket in enumerate(buckets):
        named = (("bucket", bridge, f"group_id={number} bucket {at}"),)
        before, after = buckets[:at], buckets[at + 1 :]
        where = f"bucket {at}"
        other = f"{bucket.partition('actions=')[0]}actions=set_field:0x77->reg7,output:1"
        yield f"{where}: other actions", Mutation(named, set_to(*before, other, *after))
        if kind[1] == "select":
            other = "weight:77," + re.sub(r"weight:\d+,", "", bucket)
            yield f"{where}: other weight", Mutation(named, set_to(*before, other, *after))
        if kind[1] == "ff":
            port = 1 if "watch_port:40" in bucket else 40
            other = re.sub(r"watch_port:\w+", f"watch_port:{port}", bucket)
            yield f"{where}: other port watched", Mutation(named, set_to(*before, other, *after))
    if len(buckets) > 1:
        named = (("bucket", bridge, f"group_id={number} bucket {len(buckets) - 1}"),)
        yield "bucket removed", Mutation(named, set_to(*buckets[:-1]))
    named = (("group", bridge, f"group_id={number}"),)
    other = f"group_id={number},type={'select' if kind[1] == 'all' else 'all'}"
    plain = [re.sub(r"(weight|watch_port):\w+,", "", b) for b in buckets]  # which not every type has
    yield "group of another type", Mutation(named, set_to(*plain, of=other), frozenset({"bucket"}))
    gone = (("bundle", bridge, f"group delete group_id={number}"),)
    yield "group removed", Mutation(named, gone, frozenset({"bucket", "flow"}))


def _of_meter(bridge: str, meter: str) -> Some:
    name, _, _ = meter.partition(",")
    head, _, listed = meter.partition(",bands=")
    bands = [f"type={b.removeprefix('type=')}" for b in listed.split(",type=")]

    def set_to(*changed: str, of: str = head) -> tuple[tuple[str, ...], ...]:
        return (("ofctl", "mod-meter", bridge, f"{of},bands={','.join(changed)}"),)

    for at, band in enumerate(bands):
        named = (("band", bridge, f"{name} band {at}"),)
        other = re.sub(r"rate=\d+", "rate=31337", band)
        yield f"band {at}: other rate", Mutation(named, set_to(*bands[:at], other, *bands[at + 1 :]))
    if len(bands) > 1:
        named = (("band", bridge, f"{name} band {len(bands) - 1}"),)
        yield "band removed", Mutation(named, set_to(*bands[:-1]))
    named = (("meter", bridge, name),)
    other = head.replace("kbps", "pktps") if "kbps" in head else head.replace("pktps", "kbps")
    yield "meter of another unit", Mutation(named, set_to(*bands, of=other), frozenset({"band"}))
    gone = (("ofctl", "del-meter", bridge, name),)
    yield "meter removed", Mutation(named, gone, frozenset({"band", "flow"}))


def _of_database(interfaces: Sequence[Interface], bridges: Sequence[Bridge]) -> Some:
    names = {b.name for b in bridges}
    for at, interface in enumerate(interfaces):
        row = ("Interface", interface.name)
        named = (("interface", "database", interface.name),)
        number = frozenset({"port number"})  # which a port that is not to be had any more loses
        yield "option added", Mutation(named, (("vsctl", "set", *row, "options:mutated=yes"),), number)
        other = {"remote_ip": f"198.51.100.{at + 1}", "key": "4242", "peer": "nobody"}
        for key, _ in interface.options:
            made = (("vsctl", "set", *row, f"options:{key}={other[key]}"),)
            yield f"option {key} changed", Mutation(named, made, number)
        for key, _ in interface.external_ids:
            yield "external id changed", Mutation(named, (("vsctl", "set", *row, f"external_ids:{key}=mutated"),))
            yield "external id removed", Mutation(named, (("vsctl", "remove", *row, "external_ids", key),))
        if interface.name in names:
            continue
        of_port = (("port", "database", interface.name),)
        yield "port in a VLAN", Mutation(of_port, (("vsctl", "set", "Port", interface.name, "tag=7"),))
        gone = (("vsctl", "del-port", interface.name),)
        yield "port removed", Mutation((*named, *of_port), gone, frozenset({"bridge"}))
    for bridge in names:
        of_bridge = (("bridge", "database", bridge),)
        yield "bridge changed", Mutation(of_bridge, (("vsctl", "set", "Bridge", bridge, "other_config:x=y"),))
        more = (
            (
                "vsctl",
                "add-port",
                bridge,
                f"{bridge}-more",
                "--",
                "set",
                "Interface",
                f"{bridge}-more",
                "type=internal",
            ),
        )
        new = (("interface", "database", f"{bridge}-more"), ("port", "database", f"{bridge}-more"))
        yield "port added", Mutation(new, more, frozenset({"bridge"}))
    root = (("open_vswitch", "database", "Open_vSwitch"),)
    yield "switch changed", Mutation(root, (("vsctl", "set", "Open_vSwitch", ".", "other_config:max-idle=9"),))


def _of_tunnels(slot: Slot, bridges: Sequence[str]) -> Some:
    known = learned.neighbours(appctl(slot, "tnl/neigh/show"))
    set_to = {where: ("appctl", "tnl/neigh/set", *where, mac) for where, mac in known.items()}
    forget = ("appctl", "tnl/neigh/flush")  # no command forgets one of them
    for bridge, ip in known:
        anew = ("appctl", "tnl/neigh/set", bridge, ip, "02:00:00:00:99:99")
        yield "neighbour changed", Mutation((("neighbour", bridge, ip),), (anew,))
    if known:
        every = tuple(("neighbour", *where) for where in known)
        yield "neighbours removed", Mutation(every, (forget,))
        left = [command for where, command in set_to.items() if ("neighbour", *where) != every[-1]]
        yield "neighbour removed", Mutation(every[-1:], (forget, *left))
    for number, route in enumerate(learned.routes(appctl(slot, "ovs/route/show"), bridges)):
        if not route.user or not route.gateway:
            continue
        named = (("route", "tunnels", f"user {route.prefix}"),)
        gone = ("appctl", "ovs/route/del", route.prefix)
        other = f"{route.gateway.rpartition('.')[0]}.99"
        yield "route removed", Mutation(named, (gone,))
        changed = (gone, ("appctl", "ovs/route/add", route.prefix, route.netdev, other))
        yield "route changed", Mutation(named, changed)
        more = ("appctl", "ovs/route/add", f"203.0.113.{number}/32", route.netdev, other)
        yield "route added", Mutation((("route", "tunnels", f"user {more[2]}"),), (more,))
