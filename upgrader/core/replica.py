"""What a standby's database has to hold, from what the active's holds; pure.

Rows are matched by UUID: a standby's rows carry those of the rows they are copies of. Configuration columns only; what
a switch reports of itself stays its own. Values are those of RFC 7047: a set (a scalar is a set of one) is a frozenset,
a map is a dict, a reference to a row is a `Ref`.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upgrader.core.model import ORIGIN_KEY, PortBinding, Slot
from upgrader.core.proof import Difference


class Ref(str):
    """UUID of a row, as a value of a column."""

    __slots__ = ()


Atom = str | int | float | bool | Ref
Value = frozenset[Atom] | dict[Atom, Atom]
Row = dict[str, Value]
Tables = dict[str, dict[str, Row]]
Schema = Mapping[str, frozenset[str]]  # columns by table

ROOT, BRIDGE, PORT, INTERFACE = "Open_vSwitch", "Bridge", "Port", "Interface"
CONTROLLER, MANAGER = "Controller", "Manager"
# what a switch or its database says of itself (ovs-vswitchd.conf.db(5)), of those that say it in the database
_STATUS = {
    ROOT: """next_cfg cur_cfg statistics ovs_version db_version datapath_types iface_types dpdk_initialized
        dpdk_version""",
    BRIDGE: "datapath_id datapath_version status rstp_status",
    PORT: "status rstp_status rstp_statistics statistics bond_active_slave",
    INTERFACE: """ofport error mac_in_use ifindex bfd_status cfm_remote_mpids cfm_fault cfm_fault_status
        cfm_remote_opstate cfm_health cfm_flap_count lacp_current statistics status admin_state link_state link_resets
        link_speed duplex mtu""",
    "Mirror": "statistics",
    "Datapath": "capabilities",
    CONTROLLER: "is_connected role status",
    MANAGER: "is_connected status",
}
STATUS: Mapping[str, frozenset[str]] = {table: frozenset(columns.split()) for table, columns in _STATUS.items()}
# of those, what a copy is made from
READ: Mapping[str, frozenset[str]] = {
    ROOT: frozenset({"next_cfg", "cur_cfg"}),
    BRIDGE: frozenset({"datapath_id"}),
    INTERFACE: frozenset({"ofport", "mac_in_use"}),
    CONTROLLER: frozenset({"is_connected"}),
    MANAGER: frozenset({"is_connected"}),
}
# Open_vSwitch.external_ids key under which a slot keeps the control it was handed and does not exert yet, or says
# that it has handed its own over
CONTROL_KEY = "hot-upgrade-control"
VHOST = ("dpdkvhostuserclient", "dpdkvhostuser")
_SOCKET = "vhost-server-path"
_OFPORTS = range(1, 65280)  # what ofport_request takes; LOCAL is beyond
NOTHING: frozenset[Atom] = frozenset()


def decode(value: object) -> Value:
    """A column's value from JSON (RFC 7047, section 5.1)."""
    if isinstance(value, list) and value[0] == "map":
        return {_atom(k): _atom(v) for k, v in value[1]}
    if isinstance(value, list) and value[0] == "set":
        return frozenset(_atom(v) for v in value[1])
    return frozenset({_atom(value)})


def encode(value: Value) -> object:
    """A column's value as JSON (RFC 7047, section 5.1)."""
    if isinstance(value, dict):
        return ["map", [[_json(k), _json(v)] for k, v in sorted(value.items(), key=str)]]
    if len(value) == 1:
        return _json(next(iter(value)))
    return ["set", sorted((_json(v) for v in value), key=str)]


def _atom(value: object) -> Atom:
    if isinstance(value, list):
        return Ref(value[1])
    if isinstance(value, str | int | float):
        return value
    raise ValueError(f"not a value of OVSDB: {value!r}")


def _json(value: Atom) -> object:
    return ["uuid", str(value)] if isinstance(value, Ref) else value


def monitored(schema: Schema) -> dict[str, frozenset[str]]:
    """Columns to read, by table: the configuration, and the little of the status that a copy is made from."""
    return {t: (c - STATUS.get(t, frozenset())) | (c & READ.get(t, frozenset())) for t, c in schema.items()}


def configuration(tables: Tables) -> Tables:
    """The same rows without what a switch says of itself."""
    return {t: {u: _without(r, STATUS.get(t, frozenset())) for u, r in rows.items()} for t, rows in tables.items()}


def _without(row: Row, columns: frozenset[str]) -> Row:
    return {c: v for c, v in row.items() if c not in columns}


def one(row: Row, column: str) -> Atom | None:
    """A column's only value, None where it is empty or is not there."""
    value = row.get(column, NOTHING)
    return next(iter(value)) if len(value) == 1 else None


def words(row: Row, column: str) -> dict[Atom, Atom]:
    """A copy of a column that is a map, empty where it is not there."""
    value = row.get(column, NOTHING)
    return dict(value) if isinstance(value, dict) else {}


def root(tables: Tables) -> tuple[str, Row] | None:
    """The one row of the table Open_vSwitch, with its UUID."""
    return next(iter(tables.get(ROOT, {}).items()), None)


def unsettled(tables: Tables) -> frozenset[str]:
    """Ports that the switch has not numbered yet: a copy would take numbers of its own."""
    interfaces = tables.get(INTERFACE, {})
    bridges = {one(row, "name") for row in tables.get(BRIDGE, {}).values()}
    waiting = {
        u
        for u, row in interfaces.items()
        if not row.get("ofport") and not row.get("ofport_request") and one(row, "name") not in bridges
    }
    return frozenset(u for u, row in tables.get(PORT, {}).items() if waiting & set(row.get("interfaces", NOTHING)))


def dpdk_options(slot: Slot) -> dict[Atom, Atom]:
    """Open_vSwitch.other_config of the slot's own."""
    return {
        "dpdk-init": "true",
        "dpdk-extra": slot.dpdk_extra,
        "dpdk-socket-mem": slot.socket_mem_mib,
        "dpdk-socket-limit": slot.socket_mem_mib,
        "pmd-cpu-mask": slot.pmd_cpu_mask,
    }


def standby(source: Tables, target: Tables, slot: Slot, bindings: Sequence[PortBinding]) -> Tables:
    """Configuration of `slot` as a standby of the switch whose tables are `source`; `target` is what it holds now.

    The slot keeps its VF, DPDK options, cores and sockets. Every port asks for the number it has in the source, every
    bridge for the source's datapath id and MAC, which follow from the ports otherwise. Managers are left out, and
    controllers too (see `quiet`). Ports without a number yet are left out until they have one.
    """
    wanted = configuration(source)
    waiting = unsettled(source)
    for uuid in waiting:
        for interface in wanted[PORT].pop(uuid).get("interfaces", NOTHING):
            wanted[INTERFACE].pop(str(interface), None)
    own = root(target)
    own_ids = words(own[1], "external_ids") if own else {}
    for row in wanted.get(ROOT, {}).values():
        if words(row, "other_config").get("dpdk-init", "false") != "false":
            row["other_config"] = {**words(row, "other_config"), **dpdk_options(slot)}
        ids = words(row, "external_ids")
        if "rundir" in ids:
            ids["rundir"] = own_ids.get("rundir", str(slot.rundir))
        if own:  # a new standby begins with the note of a source that has one: neither is in control
            ids.pop(CONTROL_KEY, None)
        row["external_ids"] = {**ids, **{k: v for k, v in own_ids.items() if k == CONTROL_KEY}}
    macs = {one(r, "name"): one(r, "mac_in_use") for r in source.get(INTERFACE, {}).values()}
    for uuid, row in wanted.get(BRIDGE, {}).items():
        row["ports"] = frozenset(row.get("ports", NOTHING)) - waiting
        identity = {"datapath-id": one(source[BRIDGE][uuid], "datapath_id"), "hwaddr": macs.get(one(row, "name"))}
        known: dict[Atom, Atom] = {k: v for k, v in identity.items() if v}
        row["other_config"] = {**known, **words(row, "other_config")}
    _own_interfaces(wanted, source, target, slot, bindings)
    return quiet(wanted, slot, target.get(BRIDGE, {}))


def quiet(tables: Tables, slot: Slot, there: Mapping[str, Row]) -> Tables:
    """The same configuration with nobody in control of it.

    OVS deletes every flow of a bridge when its first controller comes or its last one goes, and when fail_mode changes
    while there is none (ofproto/connmgr.c). So a bridge that has controllers gets one in their place that nobody
    answers, and drops what no flow matches; when control comes, one takes the place of the other. A bridge without
    starts the same way, and gets its real fail_mode, which stays, once it is `there`: before its flows are.
    """
    silent: dict[str, Row] = {}
    for uuid, row in tables.get(BRIDGE, {}).items():
        led = any(primary(tables.get(CONTROLLER, {}).get(str(c), {})) for c in row.get("controller", NOTHING))
        row["controller"] = NOTHING
        if led:
            stand_in = str(uuids.uuid5(uuids.UUID(uuid), CONTROL_KEY))
            silent[stand_in] = {
                "target": frozenset({f"unix:{slot.rundir}/{one(row, 'name')}.standby"}),
                "connection_mode": frozenset({"out-of-band"}),
                "max_backoff": frozenset({3_600_000}),  # ms
                "inactivity_probe": frozenset({0}),
            }
            row["controller"] = frozenset({Ref(stand_in)})
        if led or uuid not in there:
            row["fail_mode"] = frozenset({"secure"})
    for row in tables.get(ROOT, {}).values():
        row["manager_options"] = NOTHING
    return {**tables, CONTROLLER: silent, MANAGER: {}}


def primary(controller: Row) -> bool:
    """Whether a row of Controller is one the switch is led by, rather than one it offers a service to."""
    kind = one(controller, "type")
    return kind == "primary" if kind else not str(one(controller, "target")).startswith("p")


def _own_interfaces(
    wanted: Tables, source: Tables, target: Tables, slot: Slot, bindings: Sequence[PortBinding]
) -> None:
    """Port numbers as in the source; VF and sockets the slot's own."""
    bridges = {one(r, "name") for r in wanted.get(BRIDGE, {}).values()}
    by_name = {b.interface: b for b in bindings}
    here = {one(r, "name"): r for r in target.get(INTERFACE, {}).values()}
    for uuid, row in wanted.get(INTERFACE, {}).items():
        before, name = source[INTERFACE][uuid], str(one(row, "name"))
        number = one(before, "ofport")
        if isinstance(number, int) and number in _OFPORTS:
            row["ofport_request"] = frozenset({number})
        if name == slot.uplink:
            row["options"] = {**words(row, "options"), "dpdk-devargs": slot.devargs}
        if one(row, "type") in VHOST:
            _own_socket(row, here.get(name), by_name.get(name), slot, name)
        elif one(row, "type") == "internal" and name not in bridges and not row.get("mac"):
            row["mac"] = before.get("mac_in_use", NOTHING)  # a switch makes one up otherwise


def _own_socket(row: Row, here: Row | None, binding: PortBinding | None, slot: Slot, name: str) -> None:
    """Where the standby's copy of a vhost port connects: as planned, else as it does now, else nowhere yet."""
    options, ids = words(row, "options"), words(row, "external_ids")
    path: Atom
    origin: Atom
    known = ids.pop(ORIGIN_KEY, None) or options.get(_SOCKET)
    if binding:
        path, origin = str(binding.socket), str(binding.origin)
    elif here and _SOCKET in words(here, "options"):
        path, origin = words(here, "options")[_SOCKET], words(here, "external_ids").get(ORIGIN_KEY, "")
    else:
        path, origin = str(slot.vhost_dir / name), known or ""
    row["options"] = {**options, _SOCKET: path}
    row["external_ids"] = {**ids, **({ORIGIN_KEY: origin} if origin else {})}


def fit(tables: Tables, schema: Schema) -> tuple[Tables, tuple[str, ...]]:
    """The rows as a database of another schema can hold them, and what of them it cannot: ``Bridge.flow_tables``.

    A column that only the other schema has is not mentioned: a new row gets its default there, and an old row keeps
    what it has. A reference to a row of a table that is not there goes with its column.
    """
    lost: set[str] = set()
    fitted: Tables = {}
    gone: set[str] = set()
    for table, rows in tables.items():
        if table not in schema:
            lost |= {table} if rows else set()
            gone |= set(rows)
            continue
        fitted[table] = {}
        for uuid, row in rows.items():
            lost |= {f"{table}.{c}" for c, v in row.items() if c not in schema[table] and _meant(v)}
            fitted[table][uuid] = {c: v for c, v in row.items() if c in schema[table]}
    if gone:
        for rows in fitted.values():
            for row in rows.values():
                row.update({c: _less(v, gone) for c, v in row.items()})
    return fitted, tuple(sorted(lost))


def _meant(value: Value) -> bool:
    """Whether somebody has set it: empty, false, 0 and the empty string are what a column has by itself."""
    return bool(value) if isinstance(value, dict) else any(value)


def _less(value: Value, gone: set[str]) -> Value:
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if not (isinstance(v, Ref) and v in gone)}
    return frozenset(v for v in value if not (isinstance(v, Ref) and v in gone))


@dataclass(frozen=True, slots=True)
class Copied:
    """What one round of following a database did.

    changes  what was changed, as ``insert Port vhu3``
    lost     what the other schema has no place for, as ``Bridge.flow_tables``
    waiting  ports that are left out until the source's switch has numbered them
    bridges  names of those that both have now
    """

    changes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """One row to insert, update or delete. `name` is what an operator calls it, `row` holds the columns to set."""

    op: str
    table: str
    uuid: str
    name: str
    row: Row

    def to_json(self) -> dict[str, object]:
        """As an operation of `transact` (RFC 7047, section 5.2; `uuid` in an insert: ovsdb-server(7))."""
        columns = {c: encode(v) for c, v in self.row.items()}
        if self.op == "insert":
            return {"op": "insert", "table": self.table, "uuid": self.uuid, "row": columns}
        where = [["_uuid", "==", ["uuid", self.uuid]]]
        if self.op == "delete":
            return {"op": "delete", "table": self.table, "where": where}
        return {"op": "update", "table": self.table, "where": where, "row": columns}


def edits(wanted: Tables, actual: Tables) -> tuple[Edit, ...]:
    """What turns the configuration in `actual` into `wanted`, as one transaction; empty when it is that already."""
    found: list[Edit] = []
    for table in {**wanted, **actual}:
        to, now = wanted.get(table, {}), actual.get(table, {})
        for uuid, row in to.items():
            if uuid not in now:
                found.append(Edit("insert", table, uuid, _name(table, uuid, row), row))
            elif changed := {c: v for c, v in row.items() if now[uuid].get(c, NOTHING) != v}:
                found.append(Edit("update", table, uuid, _name(table, uuid, row), changed))
        found += [
            Edit("delete", table, uuid, _name(table, uuid, row), {}) for uuid, row in now.items() if uuid not in to
        ]
    return tuple(found)


def differences(wanted: Tables, actual: Tables) -> tuple[Difference, ...]:
    """The same as `edits`, told by the names of things; `old` is what the standby should have."""
    found = []
    for edit in edits(wanted, actual):
        to, now = wanted.get(edit.table, {}).get(edit.uuid), actual.get(edit.table, {}).get(edit.uuid)
        columns = edit.row if edit.op == "update" else (to or now or {})
        old = _tell({c: to[c] for c in columns}, wanted) if to is not None else None
        new = _tell({c: now[c] for c in columns}, actual) if now is not None else None
        found.append(Difference(edit.table.lower(), "database", edit.name, old, new))
    return tuple(sorted(found, key=str))


def _name(table: str, uuid: str, row: Row) -> str:
    name = one(row, "name") or one(row, "target") or one(row, "id")
    return table if table == ROOT else str(name if name is not None else uuid)


def _tell(row: Row, tables: Tables) -> str:
    names = {u: _name(t, u, r) for t, rows in tables.items() for u, r in rows.items()}

    def text(value: Atom) -> str:
        # a row that was made anew has the name of the one before, and is another one
        return f"{names.get(value, '?')}/{value[:8]}" if isinstance(value, Ref) else str(value)

    parts = []
    for column, value in sorted(row.items()):
        if isinstance(value, dict):
            parts += [f"{column}:{k}={text(v)}" for k, v in sorted(value.items(), key=str)]
        elif value:
            parts.append(f"{column}={','.join(sorted(map(text, value)))}")
    return " ".join(parts) or "nothing"


def rows(tables: Tables, table: str) -> tuple[Row, ...]:
    """The rows of a table, without their UUIDs."""
    return tuple(tables.get(table, {}).values())
