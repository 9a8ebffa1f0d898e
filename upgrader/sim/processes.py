"""The daemons of slots in memory: which run, which are stopped, what is seen of their deaths."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from upgrader.core.health import Pulse, Thread
from upgrader.core.model import (
    Slot,
    SlotName,
    SlotStatus,
)
from upgrader.sim.openflow import forget
from upgrader.sim.world import Hang, World, refused


class SimProcesses:
    def __init__(self, world: World) -> None:
        self._w = world

    def status(self, slot: Slot) -> SlotStatus:
        return SlotStatus(self._w.pids[slot.name], self._w.database_pids[slot.name])

    def running_version(self, slot: Slot) -> str | None:
        return "3.1.0" if self._w.pids[slot.name] else None

    def installed_version(self, slot: Slot) -> str | None:
        return "3.1.0"

    def dpdk_version(self, slot: Slot) -> str | None:
        return "22.11.11"

    def start_database(self, slot: Slot, image: Path | None = None) -> int:
        self._w.call(f"start_database {slot.name}")
        if self._w.database_pids[slot.name] is not None:
            raise refused(f"an ovsdb-server already runs in slot {slot.name}", "SLOT_BUSY")
        if slot.db_file in self._w.removed:
            self._w.removed.discard(slot.db_file)
            self._w.databases.pop(slot.name, None)
        pid = self._w.database_pids[slot.name] = self._w.spawn()
        return pid

    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
        self._w.call(f"start_switch {slot.name}")
        if database := self._w.databases.get(slot.name):
            self._w.databases[slot.name] = replace(database, taken=True)
            for bridge in database.switch.bridges:
                self._w.addresses.setdefault((slot.name, bridge.name), ())
        forget(self._w, slot.name)
        pid = self._w.pids[slot.name] = self._w.spawn()
        return pid

    def polled_queues(self, slot: Slot) -> dict[str, int]:
        self._w.require_running(slot)
        return {i.name: 1 for i in self._w.switch.interfaces}

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        self._w.call(f"log_vhost {slot.name} {on}")
        self._w.require_running(slot)

    def stop(self, slot: Slot) -> None:
        self._w.call(f"stop {slot.name}")
        serves = [d for d, owner in self._w.owners().items() if owner == slot.name]
        if serves:
            self._w.trouble.append(f"slot {slot.name} was stopped while it served {serves}")
        self._w.die(slot.name)
        self._w.database_pids[slot.name] = None

    def kill_switch(self, slot: Slot) -> None:
        self._w.call(f"kill {slot.name}")
        self._w.die(slot.name)

    def watch(self, slot: Slot) -> SimDeathWatch | None:
        if self._w.pids[slot.name] is None or not self._w.watchable:
            return None
        readable, end = os.pipe()
        self._w.watchers.setdefault(slot.name, []).append(end)
        return SimDeathWatch(readable)

    def probe(self, slot: Slot) -> SimProbe | None:
        runs = self._w.pids[slot.name] is not None
        return SimProbe(self._w, slot.name) if self._w.watchable and runs else None

    def fence(self, slot: Slot, pids: Collection[int] = ()) -> frozenset[int]:
        self._w.call(f"fence {slot.name}")
        own = self._w.pids[slot.name]
        if own is not None:
            self._w.die(slot.name)
        return frozenset(p for p in {*pids, own} if p is not None and self._w.slot_of(p) is None)

    def start_at_boot(self, slot: Slot) -> None:
        self._w.call(f"start_at_boot {slot.name}")


class SimDeathWatch:
    """A pipe whose other end is closed by `World.die`."""

    early = True

    def __init__(self, readable: int) -> None:
        self._readable = readable

    def fileno(self) -> int:
        return self._readable

    def died(self) -> bool:
        return os.read(self._readable, 1) == b""

    def close(self) -> None:
        os.close(self._readable)


class SimProbe:
    def __init__(self, world: World, name: SlotName) -> None:
        self._w = world
        self._name = name

    def pulse(self) -> Pulse | None:
        """One of a switch that does nothing, or hangs as the world says. Time goes on, in the simulated host as outside."""
        if self._w.pids[self._name] is None:
            return None
        at_s = time.monotonic() + self._w.now
        idle = Thread(0.0, "S")
        match self._w.hung.get(self._name):
            case Hang.STOPPED:
                return Pulse(at_s, Thread(0.0, "T"), {}, None)
            case Hang.PMD:
                return Pulse(at_s, idle, {0: Thread(at_s, "R")}, {0: 1})
            case Hang.MAIN:
                return Pulse(at_s, idle, {}, None)
        return Pulse(at_s, idle, {}, {})

    def close(self) -> None: ...
