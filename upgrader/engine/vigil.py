"""Beside a run: a switch that lives and does not work is made a dead one, as soon as its VMs have another to go to.

What a death means is in core/decisions.py, and QEMU brings the rings over by itself. A step that waits for the one that
hangs is freed by its death. Until its VMs have another switch nothing is done: a hang may pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field

import structlog

from upgrader.core.errors import UpgradeError
from upgrader.core.health import Health, may_be_ended
from upgrader.core.model import Slot, SlotName, other_slot
from upgrader.ports import Host, Probe

log = structlog.get_logger(__name__)

_PULSE_S = 0.1
_END_S = 5.0  # a look may take: it asks every QEMU


@dataclass(slots=True)
class _Watched:
    """One process that is a slot's switch now."""

    pid: int
    probe: Probe
    health: Health = field(default_factory=Health)
    told: str = ""


class Vigil:
    """`look` is one look at both switches. `acts`: whether it may kill; else it only says what it sees."""

    def __init__(self, host: Host, slots: Mapping[SlotName, Slot], target: SlotName, *, acts: bool) -> None:
        self._host = host
        self._slots = slots
        self._target = target
        self._acts = acts
        self._watched: dict[SlotName, _Watched] = {}

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Look ten times a second in a thread of its own, while inside."""
        end = threading.Event()
        told = copy_context()  # its lines are about the same run
        thread = threading.Thread(target=told.run, args=(self._keep, end), name="vigil", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(_END_S)

    def _keep(self, end: threading.Event) -> None:
        while not end.wait(_PULSE_S):
            try:
                self.look()
            except UpgradeError as error:
                log.warning("cannot look after the switches", error=str(error))
            except Exception:
                log.exception("the vigil failed by a fault of ours")
        self.close()

    def look(self) -> SlotName | None:
        """Returns the slot whose switch was killed. Raises HostError when that cannot be fenced, or QEMU not be asked."""
        for name in self._slots:
            self._pulse(name)
        for name, watched in self._watched.items():
            hang = watched.health.hang
            if hang and self._may_end(name, watched):
                log.warning("a switch hangs and is killed: its VMs have another one", slot=name, why=hang)
                self._host.processes.fence(self._slots[name], {watched.pid})
                return name
            if hang != watched.told:
                watched.told = hang
                log.warning("a switch hangs" if hang else "it goes on", slot=name, why=hang)
        return None

    def close(self) -> None:
        for watched in self._watched.values():
            watched.probe.close()
        self._watched = {}

    def _pulse(self, name: SlotName) -> None:
        pid = self._host.processes.status(self._slots[name]).vswitchd_pid
        watched = self._watched.get(name)
        if watched and watched.pid != pid:
            watched.probe.close()
            del self._watched[name]
            watched = None
        if watched is None and pid is not None and (probe := self._host.processes.probe(self._slots[name])):
            watched = self._watched[name] = _Watched(pid, probe)
        if watched and (pulse := watched.probe.pulse()):
            watched.health = watched.health.after(pulse)

    def _may_end(self, name: SlotName, watched: _Watched) -> bool:
        other = self._watched.get(other_slot(name))
        if not self._acts or other is None or other.health.hang:
            return False
        served = [vm.ownership for vm in self._host.hypervisor.vm_interfaces() if vm.ownership]
        return may_be_ended(watched.pid, other.pid, served, spare=name != self._target)
