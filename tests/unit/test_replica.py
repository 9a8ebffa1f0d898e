"""A standby's database: made from any source's, equal afterwards, and every change of it found."""

from __future__ import annotations

import copy
import json
import uuid as uuids
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrader.core import control, replica
from upgrader.core.model import ORIGIN_KEY, PortBinding
from upgrader.core.replica import BRIDGE, CONTROLLER, INTERFACE, PORT, ROOT, Ref, Row, Tables, Value
from upgrader.sim.facts import slot

B = slot("b")
A = slot("a")


def uid(number: int) -> str:
    return str(uuids.UUID(int=number << 96 | number))


def made(ports: int = 2, *, controllers: int = 0, **other: str) -> Tables:
    """A switch of one bridge and some vhost ports, as its database tells of it."""
    interfaces: dict[str, Row] = {uid(9): _interface("br0", "internal", 65534)}
    rows: dict[str, Row] = {uid(19): _port("br0", uid(9))}
    for n in range(ports):
        interfaces[uid(100 + n)] = _interface(f"vhu{n}", "dpdkvhostuserclient", 10 + n)
        rows[uid(200 + n)] = _port(f"vhu{n}", uid(100 + n))
    targets = {uid(50 + n): {"target": frozenset({f"tcp:192.0.2.{n}:6653"})} for n in range(controllers)}
    bridge: Row = {
        "name": frozenset({"br0"}),
        "ports": frozenset(Ref(u) for u in rows),
        "controller": frozenset(Ref(u) for u in targets),
        "fail_mode": frozenset({"standalone"}),
        "other_config": {},
        "mcast_snooping_enable": frozenset({False}),
        "datapath_id": frozenset({"0000525400000001"}),
    }
    return {
        ROOT: {
            uid(1): {
                "bridges": frozenset({Ref(uid(2))}),
                "manager_options": frozenset(),
                "other_config": {"dpdk-init": "true", "pmd-cpu-mask": "0x1", **other},
                "external_ids": {"system-id": "h1", "rundir": "/run/slot-a"},
                "next_cfg": frozenset({7}),
            }
        },
        BRIDGE: {uid(2): bridge},
        PORT: rows,
        INTERFACE: interfaces,
        CONTROLLER: {u: dict(r) for u, r in targets.items()},
        "Manager": {},
    }


def _port(name: str, interface: str) -> Row:
    return {"name": frozenset({name}), "interfaces": frozenset({Ref(interface)}), "tag": frozenset()}


def _interface(name: str, kind: str, number: int) -> Row:
    options: Value = {"vhost-server-path": f"/run/{name}.sock"} if "vhost" in kind else {}
    return {
        "name": frozenset({name}),
        "type": frozenset({kind}),
        "options": options,
        "external_ids": {},
        "ofport": frozenset({number}),
        "ofport_request": frozenset(),
        "mac": frozenset(),
        "mac_in_use": frozenset({"52:54:00:00:00:01"}),
    }


def settled(source: Tables, target: Tables, bindings: tuple[PortBinding, ...] = ()) -> Tables:
    """What the target holds after two rounds; what its switch says of itself is not there."""
    for _ in range(2):
        wanted = control.parked(source, replica.standby(source, target, B, bindings))
        target = apply(target, wanted)
    return target


def apply(tables: Tables, wanted: Tables) -> Tables:
    """What a database is after the edits."""
    result = copy.deepcopy(tables)
    for edit in replica.edits(wanted, replica.configuration(tables)):
        rows = result.setdefault(edit.table, {})
        if edit.op == "delete":
            del rows[edit.uuid]
        else:
            rows[edit.uuid] = {**rows.get(edit.uuid, {}), **edit.row}
    return result


def only(tables: Tables, table: str, name: str) -> Row:
    return next(r for r in tables[table].values() if replica.one(r, "name") == name)


def test_a_standby_is_silent_and_stands_on_its_own() -> None:
    source = made(controllers=2)
    target = settled(source, {})
    bridge, vhu0 = only(target, BRIDGE, "br0"), only(target, INTERFACE, "vhu0")
    (stand_in,) = target[CONTROLLER].values()
    assert stand_in["target"] == {"unix:/run/slot-b/br0.standby"}
    assert bridge["fail_mode"] == {"secure"}
    assert bridge["other_config"] == {"datapath-id": "0000525400000001", "hwaddr": "52:54:00:00:00:01"}
    assert vhu0["options"] == {"vhost-server-path": "/run/slot-b/vhost/vhu0"}
    assert vhu0["external_ids"] == {ORIGIN_KEY: "/run/vhu0.sock"}
    assert vhu0["ofport_request"] == {10}
    ((_, row),) = target[ROOT].items()
    assert row["other_config"]["pmd-cpu-mask"] == "0x2"  # type: ignore[index,call-overload]
    assert row["external_ids"]["rundir"] == "/run/slot-b"  # type: ignore[index,call-overload]
    assert source == made(controllers=2), "the source's tables are not touched"


def test_a_bridge_that_nobody_leads_gets_its_fail_mode_once_it_is_there() -> None:
    source = made()
    first = replica.standby(source, {}, B, ())
    assert only(first, BRIDGE, "br0")["fail_mode"] == {"secure"}
    assert only(replica.standby(source, first, B, ()), BRIDGE, "br0")["fail_mode"] == {"standalone"}


def test_bindings_are_kept_when_they_are_not_said_again() -> None:
    binding = PortBinding("vhu1", 11, Path("/run/x"), Path("/run/vhu1.sock"), "c", fresh=True)
    target = settled(made(), {}, (binding,))
    assert only(target, INTERFACE, "vhu1")["options"] == {"vhost-server-path": "/run/x"}
    assert replica.edits(control.parked(made(), replica.standby(made(), target, B, ())), target) == ()
    moved = replace(binding, socket=Path("/run/y"))
    assert [
        e.name for e in replica.edits(control.parked(made(), replica.standby(made(), target, B, (moved,))), target)
    ] == ["vhu1"]


def test_a_port_without_a_number_waits() -> None:
    source = made()
    only(source, INTERFACE, "vhu1")["ofport"] = frozenset()
    target = settled(source, {})
    assert {replica.one(r, "name") for r in target[PORT].values()} == {"br0", "vhu0"}
    assert len(only(target, BRIDGE, "br0")["ports"]) == 2
    only(source, INTERFACE, "vhu1")["ofport"] = frozenset({11})
    assert "vhu1" in {replica.one(r, "name") for r in settled(source, target)[PORT].values()}


def test_a_switch_without_dpdk_stays_without() -> None:
    source = made()
    source[ROOT][uid(1)]["other_config"] = {}
    assert settled(source, {})[ROOT][uid(1)]["other_config"] == {}


@pytest.mark.parametrize(
    "wire", [5, "x", True, 1.5, ["uuid", uid(3)], ["set", []], ["set", ["a", "b"]], ["map", [["k", "v"]]]]
)
def test_values_survive_the_wire(wire: object) -> None:
    value = replica.decode(wire)
    assert replica.decode(json.loads(json.dumps(replica.encode(value)))) == value


def test_fitting_another_schema_names_what_is_lost() -> None:
    source = made()
    only(source, BRIDGE, "br0")["flow_tables"] = frozenset({Ref(uid(77))})
    source["Flow_Table"] = {uid(77): {"name": frozenset({"t"})}}
    only(source, PORT, "vhu0")["cvlans"] = frozenset({5})
    only(source, PORT, "vhu0")["protected"] = frozenset({False})
    older = {
        t: frozenset(c for r in rows.values() for c in r) - {"cvlans", "protected", "flow_tables"}
        for t, rows in source.items()
        if t != "Flow_Table"
    }
    fitted, lost = replica.fit(source, older)
    assert lost == ("Bridge.flow_tables", "Flow_Table", "Port.cvlans")
    assert "Flow_Table" not in fitted
    assert "cvlans" not in only(fitted, PORT, "vhu0")
    newer = {t: c | {"a_column_of_tomorrow"} for t, c in older.items()} | {"Table_of_tomorrow": frozenset({"x"})}
    assert replica.fit(fitted, newer) == (fitted, ())


names = st.sampled_from(["vhu0", "vhu1", "vhu2"])


@st.composite
def changed(draw: st.DrawFn, tables: Tables) -> Tables:
    """The tables after one change that somebody could make to a configuration."""
    result = copy.deepcopy(tables)
    of_a_port = ["option", "tag", "external", "delete"] if len(result[PORT]) > 1 else []
    kind = draw(st.sampled_from([*of_a_port, "bridge", "add", "root"]))
    if kind == "delete":
        ports = [u for u, r in result[PORT].items() if replica.one(r, "name") != "br0"]
        gone = draw(st.sampled_from(ports))
        for interface in result[PORT].pop(gone)["interfaces"]:
            del result[INTERFACE][str(interface)]
        bridge = only(result, BRIDGE, "br0")
        bridge["ports"] = frozenset(p for p in bridge["ports"] if p != gone)
    elif kind == "add":
        n = draw(st.integers(1000, 1009))
        result[INTERFACE][uid(n)] = _interface(f"x{n}", "internal", n)
        result[PORT][uid(2 * n)] = _port(f"x{n}", uid(n))
        bridge = only(result, BRIDGE, "br0")
        bridge["ports"] = frozenset({*bridge["ports"], Ref(uid(2 * n))})
    elif kind == "bridge":
        only(result, BRIDGE, "br0")["mcast_snooping_enable"] = frozenset({True})
    elif kind == "root":
        row = result[ROOT][uid(1)]
        row["other_config"] = {**replica.words(row, "other_config"), "max-idle": str(draw(st.integers(1, 9)))}
    else:
        table = PORT if kind == "tag" else INTERFACE
        row = draw(st.sampled_from([r for r in result[table].values() if replica.one(r, "name") != "br0"]))
        if kind == "tag":
            row["tag"] = frozenset({draw(st.integers(1, 4000))})
        else:
            column = "options" if kind == "option" else "external_ids"
            row[column] = {**replica.words(row, column), "n": str(draw(st.integers()))}
    return result


def test_a_port_made_anew_under_its_name_is_told_from_the_one_before() -> None:
    source = made()
    target = settled(source, {})
    told = set()
    for number in (300, 301):  # a controller at work: the same name, another row each time
        only(source, BRIDGE, "br0")["ports"] = frozenset({Ref(uid(19)), Ref(uid(200)), Ref(uid(number))})
        source[PORT] = {u: r for u, r in source[PORT].items() if replica.one(r, "name") != "vhu1"}
        source[PORT][uid(number)] = _port("vhu1", uid(101))
        wanted = control.parked(source, replica.standby(source, target, B, ()))
        told |= {d for d in replica.differences(wanted, target) if d.kind == "bridge"}
    assert len(told) == 2


@settings(deadline=None)
@given(data=st.data())
def test_following_ends_equal_and_then_changes_nothing(data: st.DataObject) -> None:
    source = made(data.draw(st.integers(1, 4)), controllers=data.draw(st.integers(0, 2)))
    target = settled(source, {})
    for _ in range(data.draw(st.integers(0, 3))):
        source = data.draw(changed(source))
        target = settled(source, target)
    wanted = control.parked(source, replica.standby(source, target, B, ()))
    assert replica.edits(wanted, target) == ()
    assert replica.differences(wanted, target) == ()


@settings(deadline=None)
@given(data=st.data())
def test_any_change_of_the_standby_is_found_and_told_with_both_sides(data: st.DataObject) -> None:
    source = made(3)
    target = settled(source, {})
    mutated = data.draw(changed(target))
    found = replica.differences(control.parked(source, replica.standby(source, mutated, B, ())), mutated)
    assert found
    assert all(d.old != d.new for d in found)
    assert settled(source, mutated) == target, "the next round mends it"


# --- control


def handed_over() -> tuple[Tables, Tables]:
    """A source that leads a bridge by two controllers, and its standby."""
    source = made(controllers=2)
    return source, settled(source, {})


def test_control_goes_over_and_back_and_is_with_one_side_at_most() -> None:
    source, target = handed_over()
    led = replica.configuration(source)
    assert (control.in_control(source), control.in_control(target)) == (True, False)
    assert control.control(target).controllers == control.control(source).controllers
    released = control.released(source, A)
    assert not control.in_control(released)
    assert control.control(released).controllers == (("br0", ("unix:/run/slot-a/br0.standby",)),)
    assumed = control.assumed(target)
    assert control.in_control(assumed)
    assert only(assumed, BRIDGE, "br0")["fail_mode"] == {"standalone"}
    assert control.control(assumed).controllers == control.control(source).controllers
    back = control.parked(assumed, released)
    assert control.is_parked(back)
    assert replica.configuration(control.assumed(back)) == led


def test_control_that_was_cut_off_half_way_is_carried_back() -> None:
    """The source has let go and the target has not taken up: what the target keeps is all there is."""
    source, target = handed_over()
    released = control.released(source, A)
    returned = control.parked(target, released)
    assert control.control(returned).controllers == control.control(source).controllers
    assert replica.configuration(control.assumed(returned)) == replica.configuration(source)


def test_a_bridge_never_loses_its_last_controller_nor_gets_its_first() -> None:
    """OVS deletes all flows of a bridge at either."""
    source, target = handed_over()
    for tables in (source, target, control.released(source, A), control.assumed(target)):
        targets = only(tables, BRIDGE, "br0")["controller"]
        assert any(replica.primary(tables[CONTROLLER][str(t)]) for t in targets)


def test_what_only_listens_does_not_lead() -> None:
    assert not replica.primary({"target": frozenset({"ptcp:6653"})})
    assert not replica.primary({"target": frozenset({"tcp:192.0.2.1"}), "type": frozenset({"service"})})
    assert replica.primary({"target": frozenset({"ssl:192.0.2.1"}), "type": frozenset()})
