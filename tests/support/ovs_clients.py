"""Programs that use the switch without being told which: found by the well-known names, before, while and after they change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ovs.db.idl
import ovs.poller

from tests.support.slots import PREFIX
from upgrader.adapters import gate
from upgrader.core.errors import CommandError


@dataclass
class Tools:
    """ovs-vsctl, ovs-ofctl and ovs-appctl as a person types them: OVS_RUNDIR says where names are, nothing says whose."""

    rundir: Path

    @property
    def env(self) -> dict[str, str]:
        return {"OVS_RUNDIR": str(self.rundir)}

    def run(self, program: str, *arguments: str) -> str:
        return gate.run([str(PREFIX / "bin" / program), "--timeout=10", *arguments], env=self.env).stdout

    def slot_by_database(self) -> str:
        return self.run("ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:slot").strip().strip('"')

    def slot_by_openflow(self) -> str:
        return _marked(self.run("ovs-ofctl", "-O", "OpenFlow14", "dump-flows", "br-int"))

    def slot_by_appctl(self) -> str:
        return _marked(self.run("ovs-appctl", "bridge/dump-flows", "br-int"))

    def slots(self) -> set[str]:
        """The slots that the three reach."""
        return {self.slot_by_database(), self.slot_by_openflow(), self.slot_by_appctl()}


MARK = {"a": "priority=1010", "b": "priority=1020"}  # of one flow


def _marked(flows: str) -> str:
    return "".join(slot for slot, mark in MARK.items() if mark in flows)


@dataclass
class Hammer:
    """Uses every tool again and again in a thread; `failed` keeps what went wrong, `seen` the slots in their order."""

    tools: Tools
    rounds: int = 0
    failed: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Hammer:
        for look in (self.tools.slot_by_database, self.tools.slot_by_openflow, self.tools.slot_by_appctl):
            thread = threading.Thread(target=self._work, args=(look,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _work(self, look: Callable[[], str]) -> None:
        while not self._end.is_set():
            try:
                slot = look()
                if not self.seen or self.seen[-1] != slot:
                    self.seen.append(slot)
                self.rounds += 1
            except CommandError as error:
                self.failed.append(f"{time.monotonic():.3f} {error}")


class IdlClient:
    """A long-lived OVSDB client, as an agent has one: connected once, and left to python-ovs from then on."""

    def __init__(self, rundir: Path) -> None:
        helper = ovs.db.idl.SchemaHelper(location=str(PREFIX / "share/openvswitch/vswitch.ovsschema"))
        helper.register_table("Open_vSwitch")
        self._idl: Any = ovs.db.idl.Idl(f"unix:{rundir / 'db.sock'}", helper)

    def slot(self) -> str | None:
        """What the row it holds now says."""
        for row in self._idl.tables["Open_vSwitch"].rows.values():
            return str(row.external_ids.get("slot"))
        return None

    def comes_to(self, slot: str, timeout_s: float = 10.0) -> bool:
        """Whether within that time it holds that slot's row."""
        deadline = time.monotonic() + timeout_s
        while self.slot() != slot:
            if time.monotonic() > deadline:
                return False
            self.work(0.05)
        return True

    def work(self, seconds: float) -> None:
        """Run the client's loop for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._idl.run()
            poller = ovs.poller.Poller()
            self._idl.wait(poller)
            poller.timer_wait(max(1, int((deadline - time.monotonic()) * 1000)))
            poller.block()

    def write(self, key: str, value: str) -> None:
        txn = ovs.db.idl.Transaction(self._idl)
        row = next(iter(self._idl.tables["Open_vSwitch"].rows.values()))
        row.setkey("external_ids", key, value)
        assert txn.commit_block() in (txn.SUCCESS, txn.UNCHANGED)

    def close(self) -> None:
        self._idl.close()
