"""A journal in memory; a write can be made to fail, before it is there or after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from upgrader.core.errors import JournalError, SupersededError
from upgrader.core.journal import Event, EventKind, Heading, RunView, begin, fold, heading
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Plan


class SimJournal:
    """What `SqliteJournal` keeps, as long as the process lives.

    fault     called with the number of the write, before it is done; may raise
    fault_after  the same, when it is done
    """

    def __init__(self) -> None:
        self._claims = [0]
        self._ours = 0
        self._runs: list[tuple[Heading, Plan, list[Event]]] = []
        self.writes = 0
        self.fault: Callable[[int], None] = lambda number: None
        self.fault_after: Callable[[int], None] = lambda number: None

    def beside(self) -> SimJournal:
        """The same journal as another coordinator opens it."""
        other = SimJournal()
        other._runs, other._claims = self._runs, self._claims
        return other

    @property
    def generation(self) -> int:
        """Of the coordinator that claimed it last."""
        return self._claims[-1]

    @generation.setter
    def generation(self, number: int) -> None:
        self._claims.append(number)

    def claim(self) -> int:
        self.generation += 1
        self._ours = self.generation
        return self.generation

    def require_claim(self) -> None:
        if self._ours != self.generation:
            raise SupersededError(self._ours, self.generation)

    def begin(self, plan: Plan, at_ns: int) -> RunView:
        self._write()
        head = heading(len(self._runs) + 1, plan, at_ns, self._ours)
        self._runs.append((head, plan, []))
        self.fault_after(self.writes)
        return begin(head)

    def append(self, run_id: int, event: Event) -> None:
        self._write()
        self._run(run_id)[2].append(event)
        self.fault_after(self.writes)

    def plan(self, run_id: int) -> Plan:
        return self._run(run_id)[1]

    def view(self, run_id: int) -> RunView | None:
        if not 0 < run_id <= len(self._runs):
            return None
        head, _, events = self._runs[run_id - 1]
        return fold(head, events)

    def latest(self) -> RunView | None:
        return self.view(len(self._runs))

    def headings(self, limit: int, *, steps: bool = True) -> tuple[tuple[Heading, RunState, int], ...]:
        found = []
        for head, _, events in reversed(self._runs[-limit:] if limit else []):
            states = [e.data["to"] for e in events if e.kind is EventKind.STATE]
            state = RunState(str(states[-1])) if states else RunState.PAUSED
            found.append(
                (head if steps else replace(head, steps=()), state, events[-1].at_ns if events else head.started_at_ns)
            )
        return tuple(found)

    def _write(self) -> None:
        self.writes += 1
        self.require_claim()
        self.fault(self.writes)

    def _run(self, run_id: int) -> tuple[Heading, Plan, list[Event]]:
        if not 0 < run_id <= len(self._runs):
            raise JournalError("JOURNAL_FAILED", f"there is no run {run_id}", state="simulated", next="nothing")
        return self._runs[run_id - 1]
