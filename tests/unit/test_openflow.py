"""OpenFlow state as text: what differs is named, what a bundle does ends equal; against a model of a bridge."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrader.core import openflow
from upgrader.core.openflow import BridgeState
from upgrader.core.proof import Difference, compare, persisting, tell

METERS = """\
OFPST_METER_CONFIG reply (OF1.5) (xid=0x2):
meter=4 kbps bands=
type=drop rate=5000
type=drop rate=9000

meter=3 pktps burst stats bands=
type=drop rate=1000 burst_size=100
"""
TLVS = """\
 mapping table:
  class  type  length  match field
 ------  ----  ------  --------------
 0xffff  0x80       4  tun_metadata0
"""


def test_what_a_dump_prints_becomes_what_the_command_takes() -> None:
    assert openflow.meters(METERS) == (
        "meter=4,kbps,bands=type=drop,rate=5000,type=drop,rate=9000",
        "meter=3,pktps,burst,stats,bands=type=drop,rate=1000,burst_size=100",
    )
    assert openflow.tlv_map(TLVS) == ("{class=0xffff,type=0x80,len=4}->tun_metadata0",)


@pytest.mark.parametrize(
    ("flow", "identity"),
    [
        ("cookie=0x77, table=1, priority=10,dl_dst=52:54:00:00:00:01 actions=group:5", "dl_dst=52:54:00:00:00:01,priority=10,table=1"),
        ("table=9, idle_timeout=5, send_flow_rem no_packet_counts importance=7, actions=drop", "table=9"),
        ("priority=0 actions=learn(table=2,priority=4,idle_timeout=60)", "priority=0"),
        ("actions=drop", ""),
        ("table=3, ip,nw_src=10.0.0.0/8 actions=NORMAL", "ip,nw_src=10.0.0.0/8,table=3"),
        ("table=0, priority=2,arp actions=drop", "arp,priority=2"),
    ],
)  # fmt: skip
def test_identity_is_table_priority_and_match(flow: str, identity: str) -> None:
    assert openflow.identity(flow) == identity


def test_timeouts_are_held_in_the_flow_and_not_in_what_it_learns() -> None:
    flow = "idle_timeout=5, hard_timeout=6, priority=1 actions=learn(idle_timeout=60,hard_timeout=7)"
    assert openflow.held([flow, "priority=2 actions=drop"]) == (
        "idle_timeout=65535, hard_timeout=65535, priority=1 actions=learn(idle_timeout=60,hard_timeout=7)",
        "priority=2 actions=drop",
    )
    assert openflow.released(openflow.held([flow])) == (
        "flow add idle_timeout=60, hard_timeout=60, priority=1 actions=learn(idle_timeout=60,hard_timeout=7)",
    )


def test_groups_come_after_those_they_refer_to() -> None:
    groups = [
        "group_id=1,type=all,bucket=actions=group:2,bucket=actions=group:3",
        "group_id=2,type=all,bucket=actions=group:3",
        "group_id=3,type=all",
    ]
    assert [openflow.group_id(g) for g in openflow.in_order(groups)] == [3, 2, 1]
    assert [openflow.group_id(g) for g in openflow.in_order(reversed(groups))] == [3, 2, 1]
    circle = ["group_id=1,bucket=actions=group:2", "group_id=2,bucket=actions=group:1", "group_id=4"]
    assert openflow.group_id(openflow.in_order(circle)[0]) == 4
    assert set(openflow.in_order(circle)) == set(circle)
    with pytest.raises(ValueError, match="not a group"):
        openflow.group_id("priority=1")


def test_ports_that_openflow_has_set_are_told_but_for_those_that_are_down() -> None:
    dump = (
        "OFPST_PORT_DESC reply (OF1.5) (xid=0x3):\n"
        " 1(p1): addr:3a:1d:5e:00:00:01\n     config:     PORT_DOWN NO_FWD\n     state:      LINK_DOWN\n"
        " 2(p2): addr:3a:1d:5e:00:00:02\n     config:     PORT_DOWN\n     state:      LINK_DOWN\n"
        " 3(p3): addr:3a:1d:5e:00:00:03\n     config:     0\n     state:      LIVE\n"
        " LOCAL(br-int): addr:3a:1d:5e:00:00:04\n     config:     NO_RECV NO_PACKET_IN\n     state:      LIVE\n"
    )
    assert openflow.port_settings(dump) == ("port 1 NO_FWD", "port LOCAL NO_RECV NO_PACKET_IN")


matches = st.builds(
    lambda t, p, m: f"table={t}, priority={p},{m}" if t else f"priority={p},{m}",
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["ip", "arp", "ip,nw_dst=10.0.0.0/8", "in_port=1", "tun_metadata0=0x5"]),
)
actions = st.sampled_from(
    ["drop", "output:1", "group:1", "meter:3,output:2", "NORMAL", "learn(table=1,idle_timeout=9)"]
)
attributes = st.sampled_from(["", "cookie=0x1, ", "cookie=0x2, ", "idle_timeout=9, ", "hard_timeout=8, "])
flows = st.dictionaries(matches, st.tuples(attributes, actions), max_size=12).map(
    lambda d: tuple(f"{a}{m} actions={x}" for m, (a, x) in d.items())
)
buckets = st.lists(
    st.builds(
        lambda w, a: f"{w}actions={a}",
        st.sampled_from(["", "weight:0,", "weight:2,"]),
        st.sampled_from(["output:1", "output:2"]),
    ),
    max_size=3,
)
groups = st.dictionaries(
    st.integers(1, 4), st.tuples(st.sampled_from(["all", "select", "indirect", "ff"]), buckets), max_size=4
).map(lambda d: tuple(",bucket=".join([f"group_id={n},type={t}", *b]) for n, (t, b) in d.items()))
meters = st.dictionaries(st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=2), max_size=3).map(
    lambda d: tuple(f"meter={n},kbps,bands=" + ",".join(f"type=drop,rate={r}" for r in b) for n, b in d.items())
)
tlvs = st.dictionaries(st.integers(0, 2), st.integers(0, 9), max_size=2).map(
    lambda d: tuple(f"{{class=0xffff,type={t},len=4}}->tun_metadata{n}" for n, t in d.items())
)


def _possible(state: BridgeState) -> BridgeState:
    """A switch has no flow whose group it does not have."""
    has = any(openflow.group_id(g) == 1 for g in state.groups)
    return replace(state, flows=tuple(f for f in state.flows if has or "group:1" not in f))


states = st.builds(BridgeState, flows, groups, meters, tlvs).map(_possible)


def _anywhere(flow: str) -> str:
    return ",".join(p for p in openflow.identity(flow).split(",") if not p.startswith("table="))


def run_bundle(state: BridgeState, lines: tuple[str, ...]) -> BridgeState:
    """What a switch makes of a bundle: flows by table, priority and match; groups by number, deletion takes flows along.

    A deletion that names no table goes for all of them (ovs-ofctl(8)).
    """
    table = {openflow.identity(f): f for f in state.flows}
    numbered = {openflow.group_id(g): g for g in state.groups}
    for line in lines:
        what, verb, rest = line.split(" ", 2)
        if what == "group":
            number = openflow.group_id(rest)
            assert (verb == "add") == (number not in numbered), f"a switch refuses: {line}"
            if verb == "delete":
                del numbered[number]
                table = {i: f for i, f in table.items() if not re.search(rf"\bgroup:{number}\b", f)}
            else:
                numbered[number] = rest
        elif verb == "add":
            table[openflow.identity(rest)] = rest
        else:
            assert "actions" not in rest
            of_match = _anywhere(rest)
            of_table = openflow.identity(rest) if "table=" in rest else None
            gone = [i for i in table if _anywhere(i) == of_match and of_table in (None, i)]
            assert gone, f"nothing to delete: {line}"
            for i in gone:
                del table[i]
    return replace(state, flows=tuple(table.values()), groups=tuple(numbered.values()))


@settings(deadline=None)
@given(old=states, new=states)
def test_a_bundle_makes_flows_and_groups_equal(old: BridgeState, new: BridgeState) -> None:
    after = run_bundle(new, openflow.bundle(old, new))
    assert set(after.flows) == set(old.flows)
    assert set(after.groups) == set(old.groups)
    assert openflow.bundle(old, after) == ()
    assert {d.kind for d in openflow.differences("br", old, after)} <= {"meter", "band", "tlv"}


@settings(deadline=None)
@given(old=states, new=states)
def test_differences_are_empty_exactly_when_all_is_equal(old: BridgeState, new: BridgeState) -> None:
    found = openflow.differences("br", old, new)
    same = all(set(getattr(old, part)) == set(getattr(new, part)) for part in ("flows", "groups", "meters", "tlv_map"))
    assert (found == ()) == same
    assert openflow.differences("br", old, old) == ()
    assert all(d.old != d.new for d in found)


def _subject(line: str) -> str:
    """What an operator calls a flow, group, meter or TLV mapping."""
    if "->tun_metadata" in line and line.startswith("{"):
        return line.partition("->")[2]
    return line.partition(",")[0] if line.startswith(("group_id=", "meter=")) else openflow.identity(line)


@settings(deadline=None)
@given(data=st.data(), state=states)
def test_every_single_mutation_is_found_and_named(data: st.DataObject, state: BridgeState) -> None:
    """One line of the standby taken away or changed in one place."""
    part = data.draw(st.sampled_from(["flows", "groups", "meters", "tlv_map"]))
    lines = getattr(state, part)
    if not lines:
        return
    at = data.draw(st.integers(0, len(lines) - 1))
    if data.draw(st.booleans()):
        mutated = lines[:at] + lines[at + 1 :]
    else:
        numbers = list(re.finditer(r"\d+", lines[at]))
        number = data.draw(st.sampled_from(numbers)) if numbers else None
        if number is None:
            return
        changed = lines[at][: number.start()] + str(int(number[0]) + 7) + lines[at][number.end() :]
        mutated = (*lines[:at], changed, *lines[at + 1 :])
    found = openflow.differences("br", state, replace(state, **{part: mutated}))
    expected = {"flows": {"flow"}, "groups": {"group", "bucket"}, "meters": {"meter", "band"}, "tlv_map": {"tlv"}}
    assert {d.kind for d in found} <= expected[part]
    assert _subject(lines[at]) in {d.what.partition(" ")[0] for d in found}, "the one that it was"
    assert len(found) == 1 or part != "flows" or len({d.what for d in found}) == 2, "one flow, or one gone and one more"


def test_a_flow_of_table_0_is_deleted_there_alone() -> None:
    """A dump does not say table 0, and a deletion without a table is one in every table."""
    both = ("priority=2,ip actions=drop", "table=1, priority=2,ip actions=drop")
    assert openflow.bundle(BridgeState(both[1:]), BridgeState(both)) == ("flow delete_strict table=0,ip,priority=2",)
    assert openflow.bundle(BridgeState(both[:1]), BridgeState(both)) == ("flow delete_strict ip,priority=2,table=1",)
    assert openflow.bundle(BridgeState(), BridgeState(("actions=drop",))) == ("flow delete_strict table=0",)


def test_while_vms_move_a_flow_that_may_have_run_out_is_kept_with_its_group() -> None:
    kept, gone = "idle_timeout=65535, priority=1,ip actions=group:7", "priority=2,ip actions=drop"
    new = BridgeState((kept, gone), ("group_id=7,type=all", "group_id=8,type=all"))
    assert openflow.bundle(BridgeState(), new, moving=True) == (
        "flow delete_strict table=0,ip,priority=2",
        "group delete group_id=8",
    )
    assert "group delete group_id=7" in openflow.bundle(BridgeState(), new)


def test_flows_that_use_a_tunnel_field_are_found() -> None:
    flows_ = ("tun_metadata1=0x5 actions=drop", "actions=set_field:1->tun_metadata10", "ip actions=drop")
    assert openflow.using(flows_, ["{class=1,type=2,len=4}->tun_metadata1"]) == flows_[:1]
    assert openflow.using(flows_, ["{class=1,type=2,len=4}->tun_metadata10"]) == flows_[1:2]


def test_a_difference_prints_both_sides_and_a_long_list_is_cut() -> None:
    (found,) = compare("meter", "br-int", {"meter=3": "kbps"}, {})
    assert str(found) == "meter meter=3 (br-int)\n  active:  kbps\n  standby: has none"
    many = [Difference("flow", "br", f"f{n}", "a", "b") for n in range(100)]
    text = tell([*many, found])
    assert "meter=3" in text, "one of each kind is shown, however many there are of another"
    assert text.endswith("and 61 more")


def test_only_what_differs_the_same_way_twice_persists() -> None:
    first = [Difference("flow", "br", "f", "1", "0"), Difference("flow", "br", "g", "1", "0")]
    later = [Difference("flow", "br", "f", "2", "1"), Difference("flow", "br", "g", "1", "0")]
    assert persisting(first, later) == (later[1],)


def test_a_bundle_is_taken_apart_in_its_order_for_a_bridge_that_has_none() -> None:
    sets = ("group add group_id=1,type=all,bucket=drop", "flow add ip actions=group:1")
    lines = (*sets, "flow delete_strict arp", "group delete group_id=2")
    assert openflow.one_by_one(lines) == (
        ("add-groups", "add group_id=1,type=all,bucket=drop\n"),
        ("add-flows", "add ip actions=group:1\ndelete_strict arp\n"),
        ("add-groups", "delete group_id=2\n"),
    )
