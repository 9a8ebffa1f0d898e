"""Watching a run by its journal: lines as steps end, and on a terminal a bar with the step in hand."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from upgrader.adapters.journal import SqliteJournal
from upgrader.cli.render import show_event, worth_a_line
from upgrader.core.errors import Exit, HostError
from upgrader.core.journal import RunView
from upgrader.core.lifecycle import RunState, StepState, VmState

_POLL_S = 0.1
_BAR, _WIDE_ENOUGH, _GAPS = 20, 90, 8  # columns: of the bar, of a terminal that has room for it, of what stays empty
_ACTIVE = (RunState.RUNNING, RunState.UNDOING)


def follow(
    journal: SqliteJournal,
    run_id: int,
    console: Console,
    *,
    seen: int = 0,
    alive: Callable[[], bool] = lambda: True,
    on_interrupt: Callable[[], None] | None = None,
) -> RunView:
    """Show a run until it neither runs nor goes back. `seen`: events there were before what is to be shown.

    With `on_interrupt` Ctrl-C calls that, once, and the run is followed to where it leads; else it ends the watching.
    Raises HostError when the coordinator dies in the middle.
    """
    view = journal.view(run_id)
    if view is None:
        raise HostError("NO_SUCH_RUN", f"there is no run {run_id}", state="nothing was changed", next="upgrade history")
    with _interrupts(on_interrupt) as interrupted, _Bar(console, view) as bar:
        shown = seen
        worth = worth_a_line(view.heading)
        while True:
            for event in filter(worth, view.events[shown:]):
                show_event(bar.console, view.heading, event)
            shown = max(shown, len(view.events))
            bar.show(view)
            if view.state not in _ACTIVE and len(view.events) > seen:
                return view
            if on_interrupt and interrupted():
                on_interrupt()
                on_interrupt = None
            gone = not alive()
            time.sleep(_POLL_S)
            for event in journal.tail(run_id, len(view.events)):
                view = view.apply(event)
            if gone and view.state in _ACTIVE and not journal.tail(run_id, len(view.events)):
                raise _died(run_id)


class _Bar:
    """On a terminal: how many VMs have moved, and the step in hand. Off one: nothing."""

    def __init__(self, console: Console, view: RunView) -> None:
        self.console = console
        self._progress: Progress | None = None
        if console.is_terminal:
            bar = (BarColumn(_BAR),) if console.width >= _WIDE_ENOUGH else ()
            steps = len(view.steps)
            figures = len(_moved(view, len(view.places))) + len(bar) * _BAR + len(f"{steps}/{steps}") + len("0:00:00")
            # the step in hand is cut, the figures stay whole; ^C as the terminal shows it must not begin a new line
            room = Column(no_wrap=True, overflow="ellipsis", max_width=max(1, console.width - figures - _GAPS))
            self._progress = Progress(
                TextColumn("[bold]{task.fields[moved]}[/]", table_column=_whole()), *bar,
                MofNCompleteColumn(table_column=_whole()), TimeElapsedColumn(table_column=_whole()),
                TextColumn("{task.description}", table_column=room), console=console, transient=True,
            )  # fmt: skip
            self._task = self._progress.add_task("", total=len(view.steps), moved="")

    def __enter__(self) -> _Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, view: RunView) -> None:
        if not self._progress:
            return
        there = sum(1 for state in view.vms().values() if state is VmState.AT_TARGET)
        now = view.open_step
        self._progress.update(
            self._task,
            completed=sum(1 for s in view.steps if s.state is StepState.DONE),
            moved=_moved(view, there),
            description=escape(view.heading.steps[now].title) if now is not None else str(view.state),
        )


def _moved(view: RunView, there: int) -> str:
    return f"{there} of {len(view.places)} VMs at slot {view.heading.target}"


def _whole() -> Column:
    return Column(no_wrap=True)


@contextmanager
def _interrupts(on_interrupt: Callable[[], None] | None) -> Iterator[Callable[[], bool]]:
    """While inside, Ctrl-C only leaves a mark, where somebody wants to know of it."""
    asked: list[int] = []
    if on_interrupt is None:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _died(run_id: int) -> HostError:
    error = HostError(
        "COORDINATOR_DIED",
        f"the coordinator ended in the middle of run {run_id}",
        state="every VM is served by the switch that owns its rings",
        next="upgrade resume   (on), or: upgrade rollback   (back)",
    )
    error.exit_code = Exit.OPERATOR
    return error
