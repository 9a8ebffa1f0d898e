"""The journal in SQLite: write-ahead log, every commit on the disk before it returns (synchronous FULL)."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upgrader.core.errors import JournalError, SupersededError
from upgrader.core.journal import Event, EventKind, Heading, PlannedLine, RunView, begin, fold, heading
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Plan

_BUSY_S = 10.0

# By user_version, each from the one before. A release only ever adds to the end.
_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE coordinator (one INTEGER PRIMARY KEY CHECK (one = 1), generation INTEGER NOT NULL);
    INSERT INTO coordinator VALUES (1, 0);
    CREATE TABLE run (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        heading TEXT NOT NULL,
        plan TEXT NOT NULL,
        state TEXT NOT NULL,
        changed_at_ns INTEGER NOT NULL
    );
    CREATE TABLE event (
        run_id INTEGER NOT NULL REFERENCES run (id),
        seq INTEGER NOT NULL,
        kind TEXT NOT NULL,
        at_ns INTEGER NOT NULL,
        step INTEGER,
        data TEXT NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) WITHOUT ROWID;
    """,
)


class SqliteJournal:
    """One file. Read by anybody; written by whoever claimed it last."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open it, and bring an older one up to date. Raises JournalError: unreadable, or from a newer release.

        Read-only, a file that is not there, or not filled yet, is an empty journal, and nothing is written.
        """
        self._path = path
        self._lock = threading.Lock()
        self._generation = 0
        self._db: sqlite3.Connection | None = None
        if read_only and not path.exists():
            return
        with self._errors():
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                path.touch(mode=0o600)
            mode = "ro" if read_only else "rw"
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            if read_only:
                if self._require_known(self._version()) == 0:  # made this moment, and nothing is in it yet
                    self.close()
            else:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def claim(self) -> int:
        """Raise the coordinator's generation and write under it from now on."""
        with self._transaction() as db:
            db.execute("UPDATE coordinator SET generation = generation + 1")
            self._generation = int(db.execute("SELECT generation FROM coordinator").fetchone()[0])
        return self._generation

    def require_claim(self) -> None:
        row = self._row("SELECT generation FROM coordinator")
        if row is None:
            raise self._error("it is closed")
        self._require(row)

    def begin(self, plan: Plan, at_ns: int) -> RunView:
        with self._transaction() as db:
            self._require_ours(db)
            cursor = db.execute(
                "INSERT INTO run (heading, plan, state, changed_at_ns) VALUES (?, ?, ?, ?)",
                (
                    json.dumps(asdict(heading(0, plan, at_ns, self._generation))),
                    plan_to_json(plan),
                    str(RunState.PAUSED),
                    at_ns,
                ),
            )
            run_id = int(cursor.lastrowid or 0)
        return begin(heading(run_id, plan, at_ns, self._generation))

    def append(self, run_id: int, event: Event) -> None:
        with self._transaction() as db:
            self._require_ours(db)
            db.execute(
                "INSERT INTO event SELECT ?, COALESCE(MAX(seq), 0) + 1, ?, ?, ?, ? FROM event WHERE run_id = ?",
                (run_id, str(event.kind), event.at_ns, event.step, json.dumps(event.data), run_id),
            )
            db.execute("UPDATE run SET changed_at_ns = ? WHERE id = ?", (event.at_ns, run_id))
            if event.kind is EventKind.STATE:
                db.execute("UPDATE run SET state = ? WHERE id = ?", (event.data["to"], run_id))

    def plan(self, run_id: int) -> Plan:
        row = self._row("SELECT plan FROM run WHERE id = ?", run_id)
        if row is None:
            raise self._error(f"there is no run {run_id}")
        return plan_from_json(row[0])

    def view(self, run_id: int) -> RunView | None:
        row = self._row("SELECT id, heading FROM run WHERE id = ?", run_id)
        return self._view(row) if row else None

    def latest(self) -> RunView | None:
        row = self._row("SELECT id, heading FROM run ORDER BY id DESC LIMIT 1")
        return self._view(row) if row else None

    def headings(self, limit: int, *, steps: bool = True) -> tuple[tuple[Heading, RunState, int], ...]:
        what = "heading" if steps else "json_set(heading, '$.steps', json('[]'))"
        rows = self._rows(f"SELECT id, {what}, state, changed_at_ns FROM run ORDER BY id DESC LIMIT ?", limit)  # noqa: S608
        return tuple((_read_heading(id_, text), RunState(state), at_ns) for id_, text, state, at_ns in rows)

    def tail(self, run_id: int, after: int) -> tuple[Event, ...]:
        """The run's events beyond the first `after`."""
        rows = self._rows(
            "SELECT kind, at_ns, step, data FROM event WHERE run_id = ? AND seq > ? ORDER BY seq", run_id, after
        )
        told = json.loads(f"[{','.join(row[3] for row in rows)}]")  # at once: thousands of them, each time one asks
        return tuple(
            Event(EventKind(kind), at_ns, step, data) for (kind, at_ns, step, _), data in zip(rows, told, strict=True)
        )

    def _view(self, row: tuple[int, str]) -> RunView:
        run_id, text = row
        try:
            return fold(_read_heading(run_id, text), self.tail(run_id, 0))
        except (ValueError, KeyError, IndexError) as error:
            raise self._error(f"run {run_id} does not add up: {error}") from error

    def _row(self, query: str, *values: object) -> Any:
        return next(iter(self._rows(query, *values)), None)

    def _rows(self, query: str, *values: object) -> list[Any]:
        if self._db is None:
            return []
        with self._lock, self._errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it on the disk, or nothing."""
        if self._db is None:
            raise self._error("it was opened to be read only")
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _require_ours(self, db: sqlite3.Connection) -> None:
        self._require(db.execute("SELECT generation FROM coordinator").fetchone())

    def _require(self, row: tuple[int]) -> None:
        theirs = int(row[0])
        if theirs != self._generation:
            raise SupersededError(self._generation, theirs)

    def _migrate(self) -> None:
        with self._transaction() as db:
            version = self._require_known(self._version())
            for number, script in enumerate(_MIGRATIONS[version:], version + 1):
                for statement in filter(str.strip, script.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {number}")

    def _version(self) -> int:
        if self._db is None:
            return 0
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _require_known(self, version: int) -> int:
        if version > len(_MIGRATIONS):
            raise self._error(f"it was written by a newer release (version {version}, known: {len(_MIGRATIONS)})")
        return version

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._error(str(error)) from error

    def _error(self, what: str) -> JournalError:
        return JournalError(
            "JOURNAL_FAILED",
            f"the journal {self._path}: {what}",
            state="nothing was done that it does not tell of; every VM is served by the switch that owns its rings",
            next=f"ls -l {self._path.parent}; df {self._path.parent}   then the same command again",
        )


def _read_heading(run_id: int, text: str) -> Heading:
    fields = json.loads(text)
    fields["steps"] = tuple(PlannedLine(**line) for line in fields["steps"])
    return Heading(**{**fields, "run_id": run_id})


def plan_to_json(plan: Plan) -> str:
    """The whole plan, to be read back by `plan_from_json`."""
    return str(_plans().dump_json(plan), encoding="utf-8")


def plan_from_json(text: str) -> Plan:
    """Raises ValueError where the text is no plan."""
    plan: Plan = _plans().validate_json(text)
    return plan


def _plans() -> Any:
    # late: who only reads how a run went needs no validator, which takes a tenth of a second to import
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(Plan)
