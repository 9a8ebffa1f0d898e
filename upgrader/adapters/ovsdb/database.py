"""Reads the databases of slots, makes one follow another, and hands control over; through their unix sockets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import structlog

from upgrader.adapters import gate
from upgrader.adapters.ovsdb import base, idl
from upgrader.adapters.ovsdb.session import Session, Sessions
from upgrader.core import control, merge, replica
from upgrader.core.control import Control
from upgrader.core.database_file import database_file
from upgrader.core.errors import CommandError, HostError
from upgrader.core.model import PortBinding, Slot, SwitchFacts
from upgrader.core.proof import Difference
from upgrader.core.replica import ROOT, Copied, Edit, Tables
from upgrader.core.versions import Ovs, can

log = structlog.get_logger(__name__)

_APPLIED_S = 60.0
_MANAGERS = "db:Open_vSwitch,Open_vSwitch,manager_options"


class Ovsdb:
    """Reads and writes the databases of slots."""

    def __init__(self) -> None:
        self._sessions = Sessions()

    def read(self, slot: Slot) -> SwitchFacts:
        return idl.read(slot)

    def bridges(self, slot: Slot) -> tuple[str, ...]:
        with self._sessions.session(slot) as opened:
            return _names(opened.tables)

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
        idl.wait_for_ports(slot, interfaces, timeout_s)

    def unready(self, slot: Slot, expected_up: Sequence[str]) -> tuple[str, ...]:
        return idl.unready(slot, expected_up)

    def sync(self, source: Slot, target: Slot, bindings: Sequence[PortBinding], *, applied: bool = True) -> Copied:
        with self._sessions.session(source) as old, self._sessions.session(target) as new:
            return _sync(old, new, bindings, applied=applied)

    def image(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> Path | None:
        server = gate.run([str(target.prefix / "sbin/ovsdb-server"), "--version"]).stdout
        if can(Ovs.ROW_UUIDS, server) is not False:
            return None
        schema = json.loads((target.prefix / "share/openvswitch/vswitch.ovsschema").read_text())
        columns = {table: frozenset(described["columns"]) for table, described in schema["tables"].items()}
        with self._sessions.session(source) as old:
            standby = replica.standby(old.tables, {}, target, bindings)
            rows, _ = replica.fit(control.parked(old.tables, standby), columns)
            content = database_file(schema, rows, max(1, _next_cfg(old.tables)))
        base.forget(target)
        target.rundir.mkdir(parents=True, exist_ok=True)
        path = target.db_file.with_suffix(".image")
        path.write_bytes(content)
        return path

    def differences(self, source: Slot, target: Slot, bindings: Sequence[PortBinding]) -> tuple[Difference, ...]:
        # a proof goes by the databases themselves, not by what earlier rounds have kept of them
        with closing(Session(source)) as old, closing(Session(target)) as new:
            wanted, _ = _wanted(old, new, bindings)
            return (*replica.differences(wanted, replica.configuration(new.tables)), *_numbers(old, new))

    def in_control(self, slot: Slot) -> bool:
        with self._sessions.session(slot) as opened:
            return control.in_control(opened.tables)

    def control(self, slot: Slot) -> Control:
        with self._sessions.session(slot) as opened:
            return control.control(opened.tables)

    def release_control(self, slot: Slot) -> None:
        with self._sessions.session(slot) as opened:
            if control.in_control(opened.tables):
                before = replica.configuration(opened.tables)
                edits = _change(opened, control.released(opened.tables, slot), applied=True)
                base.keep(slot, merge.after(before, edits))

    def assume_control(self, slot: Slot) -> None:
        with self._sessions.session(slot) as opened:
            if not control.is_parked(opened.tables):
                return
            if control.control(opened.tables).managers:
                _serve_managers(slot)
            _change(opened, control.assumed(opened.tables), applied=True)
            base.forget(slot)


def _wanted(old: Session, new: Session, bindings: Sequence[PortBinding]) -> tuple[Tables, tuple[str, ...]]:
    """What the follower's database has to hold, and what of the source's it cannot."""
    standby = replica.standby(old.tables, new.tables, new.slot, bindings)
    return replica.fit(control.parked(old.tables, standby), new.schema)


def _sync(old: Session, new: Session, bindings: Sequence[PortBinding], *, applied: bool) -> Copied:
    if not old.tables.get(ROOT):
        raise HostError(
            "DATABASE_EMPTY",
            f"the database of slot {old.slot.name} holds no configuration",
            state=f"slot {new.slot.name} was not changed",
            next=f"ovs-vsctl --db=unix:{old.slot.db_socket} show",
        )
    agreed = base.recall(new.slot) if control.in_control(old.tables) else None
    if not new.tables.get(ROOT):
        base.forget(new.slot)
        agreed = None
    elif agreed is not None:
        _carry_back(old, new, agreed)
    wanted, lost = _wanted(old, new, bindings)
    before = replica.configuration(new.tables)
    floor = max(_next_cfg(old.tables), _next_cfg(new.tables) + 1)
    edits = _change(new, wanted, applied=applied, number=floor)
    if agreed is not None:
        base.keep(new.slot, merge.after(before, edits))
    waiting = tuple(
        sorted(str(replica.one(old.tables[replica.PORT][u], "name")) for u in replica.unsettled(old.tables))
    )
    told = tuple(f"{e.op} {e.table} {e.name}" for e in edits)
    if told:
        log.debug("database followed", slot=new.slot.name, changes=told)
    return Copied(changes=told, lost=lost, waiting=waiting, bridges=_names(wanted))


def _names(tables: Tables) -> tuple[str, ...]:
    """Bridges that the switch has: a row may outlast its bridge, where another one refers to it (Flow_Sample_Collector_Set)."""
    root = replica.root(tables)
    there = root[1].get("bridges", ()) if root else ()
    return tuple(sorted(str(replica.one(r, "name")) for u, r in tables.get(replica.BRIDGE, {}).items() if u in there))


def _carry_back(leader: Session, follower: Session, agreed: Tables) -> None:
    """Take over what clients wrote into the follower's database since it was last made what the leader's is.

    When control has moved, clients that found the old database by its socket are still there.
    """
    ours = replica.configuration(leader.tables)
    late = merge.merge(agreed, replica.configuration(follower.tables), ours)
    fitted, _ = replica.fit(late, leader.schema)
    if edits := replica.edits(fitted, ours):
        log.info("written into the old database", slot=follower.slot.name, changes=[f"{e.op} {e.name}" for e in edits])
        _change(leader, fitted, applied=False)
        leader.await_edits(edits)


def _change(opened: Session, wanted: Tables, *, applied: bool, number: int | None = None) -> tuple[Edit, ...]:
    """Bring a database to `wanted` in one transaction; with `applied`, wait until the switch has taken it.

    `number` is the `next_cfg` it gets: not below the other side's, so that a client that waits for a number there is
    not disappointed when it goes on here.
    """
    edits = replica.edits(wanted, replica.configuration(opened.tables))
    if not edits:
        return ()
    number = number or _next_cfg(opened.tables) + 1
    asked: dict[str, object] = {"op": "update", "table": ROOT, "where": [], "row": {"next_cfg": number}}
    opened.transact(edits, more=[asked])
    if applied:
        opened.wait_applied(number, _APPLIED_S)
    return edits


def _next_cfg(tables: Tables) -> int:
    return max((int(n) for r in replica.rows(tables, ROOT) for n in r.get("next_cfg", ())), default=0)


def _numbers(old: Session, new: Session) -> tuple[Difference, ...]:
    """Ports whose OpenFlow number is another: what was asked for is not always what a switch gives."""
    numbers = [
        {str(replica.one(r, "name")): str(replica.one(r, "ofport")) for r in replica.rows(s.tables, replica.INTERFACE)}
        for s in (old, new)
    ]
    return tuple(
        Difference("port number", "database", name, numbers[0].get(name), numbers[1].get(name))
        for name in sorted(numbers[0].keys() & numbers[1].keys())
        if numbers[0][name] != numbers[1][name]
    )


def _serve_managers(slot: Slot) -> None:
    """Have the slot's ovsdb-server connect to the managers in its database (ovsdb-server(1)); said twice, it is one."""
    argv = [str(slot.prefix / "bin/ovs-appctl"), "--timeout=10", "-t", str(slot.ovsdb_ctl)]
    try:
        if _MANAGERS not in gate.run([*argv, "ovsdb-server/list-remotes"]).stdout.split():
            gate.run([*argv, "ovsdb-server/add-remote", _MANAGERS])
    except CommandError as error:
        raise HostError(
            "MANAGERS_NOT_SERVED",
            f"the database of slot {slot.name} cannot be told to connect to its managers: {error.reason}",
            state=f"control was not given to slot {slot.name}",
            next=error.command,
        ) from error
