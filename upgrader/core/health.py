"""Whether a switch that lives works: told from what it did, never from silence alone. Pure.

A PMD thread counts its cycles at the end of each turn of its loop (`dpif-netdev/pmd-stats-show`, ovs-vswitchd(8)). One that
had the CPU and came to no end of a turn is stuck; one that had no CPU is starved, which a takeover would not mend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from upgrader.core.model import RingOwnership

STOPPED_S = 0.5  # all of it stopped by a signal: nothing is forwarded meanwhile
PMD_RAN_S = 0.5  # of CPU time without an end of a turn; long ones (32 upcalls from each queue) take tens of ms
PMD_BLOCKED_S = 2.0  # in a system call that does not return
MAIN_S = 30.0  # no haste: forwarding goes on without the main thread
MAIN_SHARE = 0.05  # of a CPU; with less, while it wants one, it is starved


@dataclass(frozen=True, slots=True)
class Thread:
    """`ran_s`: CPU time so far; `state`: as in proc_pid_stat(5)."""

    ran_s: float
    state: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """One look at a switch at `at_s` (CLOCK_MONOTONIC).

    main     its main thread, which answers appctl
    pmds     its PMD threads by core
    answer   cycles of each PMD by core, as it was answered since the look before; None: no answer since
    """

    at_s: float
    main: Thread
    pmds: Mapping[int, Thread]
    answer: Mapping[int, int] | None


@dataclass(frozen=True, slots=True)
class _Since:
    """From when on, the CPU time then, and what was counted."""

    at_s: float
    ran_s: float
    cycles: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What is remembered from look to look. `hang`: what is wrong, empty while nothing is."""

    stopped: float | None = None
    main: _Since | None = None
    pmds: Mapping[int, _Since] = field(default_factory=dict)
    hang: str = ""

    def after(self, now: Pulse) -> Health:
        """With one more look."""
        return replace(
            self, stopped=self._stopped(now), main=self._main(now), pmds=self._pmds(now), hang=self._hang(now)
        )

    def _stopped(self, now: Pulse) -> float | None:
        if now.main.state not in ("T", "t"):
            return None
        return now.at_s if self.stopped is None else self.stopped

    def _main(self, now: Pulse) -> _Since:
        return _Since(now.at_s, now.main.ran_s) if self.main is None or now.answer is not None else self.main

    def _pmds(self, now: Pulse) -> Mapping[int, _Since]:
        """Since when each PMD's count stands still; without an answer nobody knows, and what was known is kept."""
        if now.answer is None:
            return {core: since for core, since in self.pmds.items() if core in now.pmds}
        found = {}
        for core, thread in now.pmds.items():
            before, cycles = self.pmds.get(core), now.answer.get(core, 0)
            still = before is not None and before.cycles == cycles and cycles > 0
            found[core] = before if before is not None and still else _Since(now.at_s, thread.ran_s, cycles)
        return found

    def _hang(self, now: Pulse) -> str:
        stopped = self._stopped(now)
        if stopped is not None:
            return "it is stopped by a signal" if now.at_s - stopped >= STOPPED_S else ""
        for core, since in self._pmds(now).items():
            if now.answer is None:
                break  # its count may have gone on
            ran, waited = now.pmds[core].ran_s - since.ran_s, now.at_s - since.at_s
            if ran >= PMD_RAN_S:
                return f"the PMD thread of core {core} runs and comes to no end of a turn"
            if now.pmds[core].state == "D" and waited >= PMD_BLOCKED_S:
                return f"the PMD thread of core {core} is in a system call that does not return"
        since_answer = self._main(now)
        silent, ran = now.at_s - since_answer.at_s, now.main.ran_s - since_answer.ran_s
        starved = now.main.state == "R" and ran < MAIN_SHARE * silent
        if silent >= MAIN_S and not starved:
            return "its main thread does not answer"
        return ""


def may_be_ended(pid: int, other: int, vms: Iterable[RingOwnership], *, spare: bool) -> bool:
    """Whether a switch that hangs may be killed: each VM it serves has process `other` standing by.

    One in doubt counts as well: QEMU waits for an answer of the one that hangs, and its death ends the doubt. `spare`:
    one that nobody waits for is left alone, since it may go on and be of use.
    """
    concerned = False
    for vm in vms:
        if vm.owner_pid == pid:
            concerned = True
            if vm.standby is None or vm.standby.pid != other or not (vm.standby.ready or vm.in_doubt):
                return False
        elif vm.in_doubt and vm.owner_pid == other:
            concerned = True
    return concerned or not spare
