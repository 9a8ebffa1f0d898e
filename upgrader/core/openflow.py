"""OpenFlow state in the words of ovs-ofctl(8), taken apart, compared and turned into a bundle; pure.

Both sides are dumped by one program, so equal things are equal lines; only lines that are not are taken apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from upgrader.core.proof import Difference, compare

_TIMEOUT = re.compile(r"\b(idle|hard)_timeout=\d+")
_HELD_S = 65535  # the longest time-out there is, 18 hours
_LEFT_IDLE_S = 60
# what a flow has besides its table, priority and match
_ATTRIBUTE = re.compile(
    r"(cookie=|idle_timeout=|hard_timeout=|importance=|send_flow_rem$|check_overlap$|reset_counts$|no_packet_counts$"
    r"|no_byte_counts$)"
)
_GROUP_IN_BUCKET = re.compile(r"\bgroup:(\d+)")
_GROUP_ID = re.compile(r"group_id=(\d+)")
_BUCKET = re.compile(r",bucket=")
_PORT_CONFIG = re.compile(r"^ *(\w+)\(.*\): addr:.*\n +config: +([A-Z_ ]+)$", re.M)
_TLV = re.compile(r"^\s*(0x[0-9a-f]+)\s+(0x[0-9a-f]+|\d+)\s+(\d+)\s+(tun_metadata\d+)\s*$", re.M)


@dataclass(frozen=True, slots=True)
class BridgeState:
    """What controllers have put into one bridge: lines of ovs-ofctl, each in the form that it also takes.

    flows    without statistics, with port numbers
    groups   `dump-groups` lines
    meters   in add-meter's form, the bands on the same line
    tlv_map  in add-tlv-map's form
    """

    flows: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    meters: tuple[str, ...] = ()
    tlv_map: tuple[str, ...] = ()


def body(dump: str) -> tuple[str, ...]:
    """A dump without the line that names the reply (``NXST_FLOW reply (xid=0x4):``)."""
    return tuple(
        s for line in dump.splitlines() if (s := line.strip()) and " reply " not in s and not s.startswith("OFPST")
    )


def meters(dump: str) -> tuple[str, ...]:
    """Meters in the form add-meter takes: a dump prints the bands of a meter on lines of their own."""
    joined: list[str] = []
    for line in body(dump):
        if line.startswith("meter="):
            joined.append(line)
        elif joined:
            joined[-1] += ("" if joined[-1].endswith("=") else ",") + line
    return tuple(m.replace(" ", ",") for m in joined)  # a dump puts blanks where add-meter wants commas


def numbered(meters_: Iterable[str]) -> dict[str, str]:
    """Meters by the words that name them, ``meter=3``."""
    return {m.partition(",")[0]: m for m in meters_}


def tlv_map(dump: str) -> tuple[str, ...]:
    """TLV mappings in the form add-tlv-map takes: ``{class=0xffff,type=0,len=4}->tun_metadata0``."""
    return tuple(f"{{class={c},type={t},len={n}}}->{f}" for c, t, n, f in _TLV.findall(dump))


def port_settings(dump: str) -> tuple[str, ...]:
    """Ports of a `dump-ports-desc` that do not take, send or ask for what others do: ``port 3 NO_FWD``.

    Whether one is up is its netdev's, not OpenFlow's alone.
    """
    found = ((port, [w for w in words.split() if w != "PORT_DOWN"]) for port, words in _PORT_CONFIG.findall(dump))
    return tuple(f"port {port} {' '.join(words)}" for port, words in found if words)


def held(flows: Iterable[str]) -> tuple[str, ...]:
    """The flows with their time-outs as long as can be, as the side that sees no traffic has them.

    There they would run out. Still there, they say which flows may go by themselves.
    """
    return tuple(_timed(f, _HELD_S) if "_timeout=" in f else f for f in flows)


def _timed(flow: str, seconds: int) -> str:
    head, mark, actions = flow.partition("actions=")  # a learn action has time-outs of its own
    return _TIMEOUT.sub(rf"\1_timeout={seconds}", head) + mark + actions


def identity(flow: str) -> str:
    """Table, priority and match of a flow; no two flows of a bridge have the same. A dump does not say table 0."""
    return _split(flow)[0]


def strictly(flow: str) -> str:
    """The same as delete_strict takes it: without a table it would delete the flows of that match in every table."""
    named = identity(flow)
    return named if re.search(r"\btable=", named) else f"table=0,{named}".rstrip(",")


def _split(flow: str) -> tuple[str, str]:
    head, _, actions = flow.partition("actions=")
    of_flow: list[str] = []
    of_match: list[str] = []
    for part in re.split(r"[, ]+", head.strip(" ,")):
        (of_flow if _ATTRIBUTE.match(part) else of_match).append(part)
    attributes = ",".join(sorted(a for a in of_flow if a))
    return ",".join(sorted(m for m in of_match if m and m != "table=0")), f"{attributes} actions={actions}".strip()


def group_id(group: str) -> int:
    """Number of a group. Raises ValueError when the line is not a group."""
    found = _GROUP_ID.search(group)
    if found is None:
        raise ValueError(f"not a group: {group}")
    return int(found[1])


def in_order(groups: Iterable[str]) -> tuple[str, ...]:
    """Groups so that one comes after those its buckets refer to; those in a circle, which no switch takes, at the end."""
    left = {group_id(g): g for g in groups}
    needs = {n: {int(m) for m in _GROUP_IN_BUCKET.findall(g)} & left.keys() - {n} for n, g in left.items()}
    ordered: list[str] = []
    while ready := sorted(n for n in left if not needs[n] & left.keys()):
        ordered += [left.pop(n) for n in ready]
    return (*ordered, *left.values())


def bundle(old: BridgeState, new: BridgeState, *, moving: bool = False) -> tuple[str, ...]:
    """Lines for `ovs-ofctl bundle` that turn the flows and groups of `new` into those of `old`; empty when they are.

    Groups come before the flows that use them and go after them. All of it is one transaction of the switch: no
    packet meets half of it. While VMs are `moving`, a flow with an idle time-out that `old` has no more may have run
    out there because its traffic is with `new` now: it is kept, to run out by itself.
    """
    wanted, have = {group_id(g): g for g in old.groups}, {group_id(g): g for g in new.groups}
    to_set = in_order(g for n, g in wanted.items() if have.get(n) != g)
    lines = [f"group {'modify' if group_id(g) in have else 'add'} {g}" for g in to_set]
    missing, surplus = _apart(old.flows, new.flows)
    lines += [f"flow add {f}" for f in missing]
    if surplus:
        replaced = {identity(f) for f in missing}
        gone = [f for f in surplus if identity(f) not in replaced]
        kept = [f for f in gone if moving and "idle_timeout=" in f.partition("actions=")[0]]
        still = set(kept)
        lines += [f"flow delete_strict {strictly(f)}" for f in gone if f not in still]
    lines += [f"group delete group_id={n}" for n in have if n not in wanted and not _used(n, kept if surplus else ())]
    return tuple(lines)


def one_by_one(lines: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The lines of a bundle as files for `add-groups` and `add-flows`: command and content, in the bundle's order."""
    return tuple(
        (f"add-{kind}s", "".join(f"{line.partition(' ')[2]}\n" for line in part))
        for kind, part in groupby(lines, key=lambda line: line.partition(" ")[0])
    )


def _used(group: int, flows: Iterable[str]) -> bool:
    return any(re.search(rf"\bgroup:{group}\b", f) for f in flows)


def released(flows: Iterable[str]) -> tuple[str, ...]:
    """Lines for `ovs-ofctl bundle` that let flows which are still held run out, as they have no time-out to go back to."""
    held_ones = (f for f in flows if f"idle_timeout={_HELD_S}" in f.partition("actions=")[0])
    return tuple(f"flow add {_timed(f, _LEFT_IDLE_S)}" for f in held_ones)


def _apart(old: Collection[str], new: Collection[str]) -> tuple[list[str], list[str]]:
    """Lines that only the one has, and lines that only the other has."""
    theirs, ours = set(old), set(new)
    return [f for f in old if f not in ours], [f for f in new if f not in theirs]


def differences(bridge: str, old: BridgeState, new: BridgeState) -> tuple[Difference, ...]:
    """What of a bridge's OpenFlow state differs, each flow, group, bucket, meter, band and TLV by itself."""
    missing, surplus = _apart(old.flows, new.flows)
    return (
        *compare("flow", bridge, dict(map(_split, missing)), dict(map(_split, surplus))),
        *(d for kind in ("group", "bucket") for d in compare(kind, bridge, _groups(old)[kind], _groups(new)[kind])),
        *(d for kind in ("meter", "band") for d in compare(kind, bridge, _meters(old)[kind], _meters(new)[kind])),
        *compare("tlv", bridge, _tlvs(old.tlv_map), _tlvs(new.tlv_map)),
    )


def _groups(state: BridgeState) -> Mapping[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"group": {}, "bucket": {}}
    for group in state.groups:
        head, *buckets = _BUCKET.split(group)
        name, _, kind = head.partition(",")
        found["group"][name] = kind or head
        found["bucket"] |= {f"{name} bucket {n}": b for n, b in enumerate(buckets)}
    return found


def _meters(state: BridgeState) -> Mapping[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {"meter": {}, "band": {}}
    for meter in state.meters:
        head, _, listed = meter.partition(",bands=")
        bands = listed.split(",type=")
        name, _, flags = head.partition(",")
        found["meter"][name] = flags
        found["band"] |= {f"{name} band {n}": b.removeprefix("type=") for n, b in enumerate(bands)}
    return found


def _tlvs(tlv_map: Iterable[str]) -> dict[str, str]:
    return {field: option for option, _, field in (t.partition("->") for t in tlv_map)}


def stale_tlvs(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Mappings of `new` that `old` does not have. A switch lets go of one only once no flow uses its field."""
    return tuple(t for t in new if t not in set(old))


def using(flows: Iterable[str], tlvs: Iterable[str]) -> tuple[str, ...]:
    """Flows that match on or write the tunnel metadata field of one of these mappings."""
    fields = [re.compile(re.escape(t.partition("->")[2]) + r"\b") for t in tlvs]
    return tuple(f for f in flows if any(field.search(f) for field in fields))


def summary(lines: Iterable[str]) -> dict[str, int]:
    """How many lines of a bundle do what: ``{"flow add": 3}``."""
    return dict(Counter(" ".join(line.split(" ", 2)[:2]) for line in lines))
