"""One connection to an ovsdb-server, by python-ovs' JSON-RPC (RFC 7047): a monitor of all tables, and transactions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ovs.jsonrpc
import ovs.poller
import ovs.stream

from upgrader.core.errors import HostError
from upgrader.core.model import Slot
from upgrader.core.replica import Edit, Schema, Tables, decode, monitored

_DB = "Open_vSwitch"
_ANSWER_S = 10.0
LOST = "MONITOR_LOST"


class Session:
    """The tables of one slot's database as they were at the last `poll`, and the way to change them.

    tables   configuration, and the status that copies are made from
    schema   columns by table
    changed  time.monotonic() at which the last change came
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.tables: Tables = {}
        self.changed = time.monotonic()
        address = f"unix:{slot.db_socket}"
        error, stream = ovs.stream.Stream.open_block(ovs.stream.Stream.open(address), int(_ANSWER_S * 1000))
        if error:
            raise unreachable(slot, os.strerror(error))
        self._rpc = ovs.jsonrpc.Connection(stream)
        try:
            tables = self._ask("get_schema", [_DB])["tables"]
            self.schema: Schema = {t: frozenset(d["columns"]) for t, d in tables.items()}
            columns = {t: {"columns": sorted(c)} for t, c in monitored(self.schema).items()}
            self._apply(self._ask("monitor", [_DB, "tables", columns]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self._rpc.close()

    def catch_up(self) -> None:
        """Take in all that was committed before: ovsdb-server sends it ahead of the answer to a transaction (of nothing)."""
        self._ask("transact", [_DB])

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Take in what has come, waiting up to `timeout_s` for the first of it; whether anything has.

        Raises HostError when the connection is gone: changes may have been missed then.
        """
        deadline = time.monotonic() + timeout_s
        seen = False
        while message := self._receive(0.0 if seen else max(0.0, deadline - time.monotonic())):
            seen = self._notified(message) or seen
        return seen

    def transact(self, edits: Sequence[Edit], *, more: Sequence[dict[str, object]] = ()) -> None:
        """Make all of the edits, or none. Raises HostError in the database's words when it refuses."""
        operations = [*(e.to_json() for e in edits), *more]
        answers = self._ask("transact", [_DB, *operations])
        for number, answer in enumerate(answers):
            if answer and answer.get("error"):
                on = operations[number] if number < len(operations) else {"op": "commit"}
                raise HostError(
                    "DATABASE_REFUSED",
                    f"the database of slot {self.slot.name} refused a transaction: {answer['error']}: "
                    f"{answer.get('details', '')} (at {on['op']} {on.get('table', '')})",
                    state=f"slot {self.slot.name} keeps the configuration it had",
                    next=f"ovs-vsctl --db=unix:{self.slot.db_socket} show",
                )

    def await_edits(self, edits: Sequence[Edit]) -> None:
        """Take in our own edits: what the monitor tells of them may come after the answer."""
        deadline = time.monotonic() + _ANSWER_S
        while any(not self._has(e) for e in edits) and time.monotonic() < deadline:
            self.poll(0.05)

    def _has(self, edit: Edit) -> bool:
        row = self.tables.get(edit.table, {}).get(edit.uuid)
        if edit.op == "delete" or row is None:
            return (edit.op == "delete") == (row is None)
        return all(row.get(c) == v for c, v in edit.row.items())

    def wait_applied(self, number: int, timeout_s: float) -> None:
        """Return once the switch has taken the configuration with this `next_cfg` (ovs-vswitchd.conf.db(5))."""
        deadline = time.monotonic() + timeout_s
        while self._current() < number:
            self.poll(max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                raise HostError(
                    "CONFIGURATION_NOT_APPLIED",
                    f"the switch of slot {self.slot.name} has not taken its new configuration within {timeout_s:g} s",
                    state="its database holds it; no VM was moved for it",
                    next=f"tail {self.slot.rundir / 'ovs-vswitchd.log'}",
                )

    def _current(self) -> int:
        rows = self.tables.get(_DB, {})
        return max((int(n) for row in rows.values() for n in row.get("cur_cfg", ())), default=0)

    def _ask(self, method: str, parameters: list[Any]) -> Any:
        request = ovs.jsonrpc.Message.create_request(method, parameters)
        if error := self._rpc.send(request):
            raise _lost(self.slot, os.strerror(error))
        deadline = time.monotonic() + _ANSWER_S
        while True:
            message = self._receive(max(0.0, deadline - time.monotonic()))
            if message is None:
                if time.monotonic() > deadline:
                    raise unreachable(self.slot, f"no answer to {method} within {_ANSWER_S:g} s")
            elif message.type in (message.T_REPLY, message.T_ERROR) and message.id == request.id:
                if message.type == message.T_ERROR:
                    raise unreachable(self.slot, f"{method}: {message.error}")
                return message.result
            else:
                self._notified(message)

    def _receive(self, timeout_s: float) -> Any:
        """The next message, None when none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._rpc.run()
            error, message = self._rpc.recv()
            if not error:
                return message
            if error != _EAGAIN:
                raise _lost(self.slot, "end of file" if error == _EOF else os.strerror(error))
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            poller = ovs.poller.Poller()
            self._rpc.wait(poller)
            self._rpc.recv_wait(poller)
            poller.timer_wait(max(1, int(left * 1000)))
            poller.block()

    def _notified(self, message: Any) -> bool:
        if message.type == message.T_NOTIFY and message.method == "update":
            self._apply(message.params[1])
            return True
        if message.type == message.T_REQUEST and message.method == "echo":
            self._rpc.send(ovs.jsonrpc.Message.create_reply(message.params, message.id))
        return False

    def _apply(self, updates: dict[str, dict[str, dict[str, Any]]]) -> None:
        """Table updates of a monitor (RFC 7047, 4.1.6): a changed row comes whole."""
        for table, rows in updates.items():
            kept = self.tables.setdefault(table, {})
            for uuid, update in rows.items():
                if (new := update.get("new")) is None:
                    kept.pop(uuid, None)
                else:
                    kept[uuid] = {c: decode(v) for c, v in new.items()}
        self.changed = time.monotonic()


_EAGAIN = 11
_EOF = -1


class Sessions:
    """Sessions that stay open between uses: a look at a database in which nothing was changed costs one message.

    Each has one user at a time; a second one at the same time gets a session of its own.
    """

    def __init__(self) -> None:
        self._idle: dict[Path, Session] = {}

    @contextmanager
    def session(self, slot: Slot) -> Iterator[Session]:
        """A session that holds everything committed so far. Raises HostError."""
        opened = self._kept(slot) or Session(slot)
        try:
            yield opened
        except BaseException:
            opened.close()
            raise
        if self._idle.setdefault(slot.db_socket, opened) is not opened:
            opened.close()

    def _kept(self, slot: Slot) -> Session | None:
        kept = self._idle.pop(slot.db_socket, None)
        if kept is None:
            return None
        kept.slot = slot
        try:
            kept.catch_up()
        except HostError as error:
            kept.close()
            if error.code != LOST:
                raise
            return None
        return kept


def unreachable(slot: Slot, reason: str) -> HostError:
    """That the slot's database does not answer, and why."""
    return HostError(
        "DATABASE_UNREACHABLE",
        f"the database of slot {slot.name} at {slot.db_socket} does not answer: {reason}",
        state="nothing was changed",
        next=f"ovs-vsctl --db=unix:{slot.db_socket} show",
    )


def _lost(slot: Slot, reason: str) -> HostError:
    return HostError(
        LOST,
        f"the connection to the database of slot {slot.name} is gone: {reason}",
        state="what changed since is not known until it is read anew",
        next=f"ovs-vsctl --db=unix:{slot.db_socket} show",
    )
