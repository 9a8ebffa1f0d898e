"""A simulated host in a file, so that it outlives whoever looks at it or changes it, as a real one does.

Each call of a port is one transaction: it sees what other processes have done, and what it did is in the file when it
returns. The file is SQLite; a row is one value of one field of `World`, so that a call writes only what it changed.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from upgrader.core.errors import HostError, UsageError
from upgrader.core.model import SlotName
from upgrader.ports import Clock, Host
from upgrader.sim.host import make_host, make_programs, make_world
from upgrader.sim.world import World

_BUSY_S = 10.0
_FILE = "world.db"
_FORMAT = 3  # of the file: goes up with each field of `World` that an older one lacks
#: The first word of every call that can be made to fail; the rest says on which slot, VM or bridge.
CALLS = (
    "assume_control", "attach", "close_window", "copy", "copy_addresses", "drop", "drop_clients", "failover", "fence_vf",
    "give_fence", "kill", "listen", "log_vhost", "point_to", "prepare", "redirect", "release_control", "start_at_boot",
    "start_database", "start_switch", "steady", "steer", "stop", "switch", "sync", "sync_learned", "teach",
)  # fmt: skip


class StoredWorld:
    """One simulated host. `world` is what was read last; ask for it by `opened`."""

    def __init__(self, folder: Path, vms: int) -> None:
        """Open the host in `folder`, with `vms` VMs where there is none yet. Raises HostError."""
        self._lock = threading.RLock()
        self._path = folder / _FILE
        self._version = -1
        self._written: dict[str, Any] = {}
        self.world = make_world(vms)
        with self._errors():
            make_programs(folder / "ovs")
            self._db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")  # it has to survive a process, not a power cut
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS world"
                " (field TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (field, key)) WITHOUT ROWID"
            )
            made = self._db.execute("SELECT 1 FROM world LIMIT 1").fetchone()
            if made and self._db.execute("PRAGMA user_version").fetchone() != (_FORMAT,):
                raise ValueError("another release has made it")
            self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        with self.opened():
            pass  # a new host is in the file from here on

    @contextmanager
    def opened(self) -> Iterator[World]:
        """The host as it is now, to nobody else meanwhile; what is changed in it is in the file afterwards."""
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._read()
                yield self.world
            finally:  # also where the call failed: it may have had an effect before
                self._write()
                self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()

    def _read(self) -> None:
        version = int(self._db.execute("PRAGMA data_version").fetchone()[0])
        if version == self._version:
            return  # nobody else has written since
        self._version = version
        rows: dict[str, dict[str, str]] = {}
        for name, key, value in self._db.execute("SELECT field, key, value FROM world"):
            rows.setdefault(name, {})[key] = value
        if not rows:
            return
        for name, (keys, values) in _FIELDS.items():
            found = rows.get(name, {})
            if keys is not None:
                new = {keys.validate_json(k): values.validate_json(v) for k, v in found.items()}
            elif found:
                new = values.validate_json(found[""])
            else:
                continue
            setattr(self.world, name, new)
            self._written[name] = copy(new)

    def _write(self) -> None:
        for name, (keys, values) in _FIELDS.items():
            now, before = getattr(self.world, name), self._written.get(name)
            if keys is None:
                if now != before:
                    self._put(name, "", values.dump_json(now))
            else:
                before = before or {}
                for key, value in now.items():
                    if key not in before or before[key] is not value:
                        self._put(name, keys.dump_json(key).decode(), values.dump_json(value))
                for key in before.keys() - now.keys():
                    self._db.execute(
                        "DELETE FROM world WHERE field = ? AND key = ?", (name, keys.dump_json(key).decode())
                    )
            self._written[name] = copy(now)

    def _put(self, name: str, key: str, value: bytes) -> None:
        self._db.execute("REPLACE INTO world VALUES (?, ?, ?)", (name, key, value.decode()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise HostError(
                "SIMULATED_HOST_UNUSABLE",
                f"the simulated host {self._path}: {error}",
                state="as the last call left it",
                next=f"ls -l {self._path.parent}; to begin anew: rm -r {self._path.parent}",
            ) from error


def stored_host(
    stored: StoredWorld,
    clock: Clock,
    *,
    effect_s: float,
    fail_at: tuple[str, ...],
    dies_at: Mapping[SlotName, str],
    dual: bool,
    ready_timeout_s: float,
) -> Host:
    """Every port, onto the stored host. The clock is a real one: a person, and other processes, watch.

    effect_s  how long each call with an effect takes, seconds
    fail_at   calls that fail, each time: ``switch vm3``, ``copy br-int``, …
    dies_at   by slot, the call at which its switch dies
    """
    for name in (*fail_at, *dies_at.values()):
        if name.split(" ")[0] not in CALLS:
            raise UsageError(
                "CONFIG_INVALID",
                f"simulated: there is no call {name}",
                state="nothing was changed",
                next=f"name one that begins with {', '.join(CALLS)}, as `switch vm3`",
            )
    world = stored.world
    world.fault = _faults(world, fail_at, dies_at)
    world.dual = dual
    host = make_host(world)
    ports = {
        f.name: _Port(getattr(host, f.name), stored, effect_s)
        for f in dataclasses.fields(host)
        if f.name not in ("clock", "ready_timeout_s", "vni_key")
    }
    return dataclasses.replace(host, clock=clock, ready_timeout_s=ready_timeout_s, **cast("dict[str, Any]", ports))


def _faults(
    world: World, fail_at: tuple[str, ...], dies_at: Mapping[SlotName, str]
) -> Callable[[str, int], BaseException | None]:
    def fault(name: str, count: int) -> BaseException | None:
        for slot, at in dies_at.items():
            if at == name:
                world.die(slot)
        if name not in fail_at:
            return None
        return HostError(
            "SIMULATED_FAILURE",
            f"`{name}` was made to fail",
            state="that call changed nothing",
            next="take it out of simulated.fail_at, then: upgrade resume   (on), or: upgrade rollback   (back)",
        )

    return fault


class _Port:
    """One port of the host: each call a transaction on the file."""

    def __init__(self, port: object, stored: StoredWorld, effect_s: float) -> None:
        self._port = port
        self._stored = stored
        self._effect_s = effect_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        @wraps(method)
        def call(*args: Any, **keywords: Any) -> Any:
            before = len(self._stored.world.calls)
            try:
                with self._stored.opened():
                    return method(*args, **keywords)
            finally:
                time.sleep(self._effect_s * (len(self._stored.world.calls) - before))

        return call


def _adapters() -> dict[str, tuple[TypeAdapter[Any] | None, TypeAdapter[Any]]]:
    """How each field is written: a dict key by key, anything else as one value."""
    hints = get_type_hints(World)
    found: dict[str, tuple[TypeAdapter[Any] | None, TypeAdapter[Any]]] = {}
    for field in dataclasses.fields(World):
        if not field.metadata.get("kept", True):
            continue
        kind = hints[field.name]
        if get_origin(kind) is dict:
            key, value = get_args(kind)
            found[field.name] = TypeAdapter(key), TypeAdapter(value)
        else:
            found[field.name] = None, TypeAdapter(kind)
    return found


_FIELDS = _adapters()
