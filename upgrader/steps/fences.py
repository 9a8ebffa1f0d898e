"""The fences of an armed host: by these its QEMUs are told, past libvirt, that the active runs no more.

A command to each of them takes four threads of libvirtd and a file on the disk; on a machine whose CPUs are shared that is
most of a takeover. To write to a descriptor that was given beforehand takes some microseconds.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from upgrader.core.errors import HostError
from upgrader.core.model import VmPort
from upgrader.ports import Fence
from upgrader.steps.base import Context

log = structlog.get_logger(__name__)


class Fences:
    """Those that this process gave, by VM. When it ends they say nothing any more, and the next one gives its own."""

    def __init__(self) -> None:
        self._given: dict[str, Fence] = {}
        self._refused: dict[str, str] = {}

    def renew(self, context: Context) -> None:
        """One for each VM that the active serves and the standby stands by on, where QEMU does not wait for ours already.

        Raises HostError where libvirt does not answer. A VM without one is brought over by command.
        """
        active, standby = context.pid(context.source), context.pid(context.target)
        wanted = set()
        for port in context.plan.all_ports:
            now, fence = context.host.hypervisor.ownership(port), self._given.get(port.label)
            if now is None or now.fence is None:
                continue
            pair = now.owner_pid, now.standby.pid if now.standby else None
            if fence is not None and fence.name == now.fence and fence.pid == active:
                wanted.add(port.label)
            elif active and standby and pair == (active, standby) and (new := self._give(context, port, active)):
                if fence is not None:
                    fence.close()
                self._given[port.label] = new
                wanted.add(port.label)
        for label in self._given.keys() - wanted:
            self._given.pop(label).close()

    def _give(self, context: Context, port: VmPort, pid: int) -> Fence | None:
        try:
            fence = context.host.hypervisor.give_fence(port, pid)
        except HostError as error:
            if self._refused.get(port.label) != str(error):
                log.warning("a fence is refused: a takeover goes by command there", vm=port.label, error=str(error))
            self._refused[port.label] = str(error)
            return None
        self._refused.pop(port.label, None)
        return fence

    def say(self, harmless: Collection[int]) -> frozenset[str]:
        """Tell all QEMUs whose owner is proved to be fenced; returns their VMs. They act when they get a CPU."""
        told = {label: fence for label, fence in self._given.items() if fence.pid in harmless}
        for fence in told.values():
            fence.say()
        return frozenset(told)

    def close(self) -> None:
        for fence in self._given.values():
            fence.close()
        self._given = {}
