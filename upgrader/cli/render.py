"""How plans, runs, reports and errors look to a person. Titles come from the host: they are escaped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from upgrader.core.errors import UpgradeError
from upgrader.core.findings import Finding, Severity
from upgrader.core.in_step import STALE
from upgrader.core.journal import Event, EventKind, Heading, Recorded, RunView
from upgrader.core.lifecycle import RunState, StepState, VmState
from upgrader.core.model import SLOTS, HostFacts
from upgrader.core.plan import Plan, PlanKind
from upgrader.core.report import Ending, RunReport, detail, purpose, vm_moves

_COLOUR = {Severity.BLOCKING: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_STATE_COLOUR = {
    RunState.DONE: "green",
    RunState.RUNNING: "cyan",
    RunState.PAUSED: "yellow",
    RunState.HALTED: "yellow",
    RunState.UNDOING: "yellow",
    RunState.RESTORED: "yellow",
    RunState.OPERATOR_NEEDED: "red",
    RunState.SUPERSEDED: "dim",
}
_MANY = 30  # VMs beyond which a line for each of them helps nobody: --json has them all
_SHOWN = 8  # of many
_HAND_OVER = 80  # columns that a hand-over's parts need beside its blackout


def show_event(console: Console, heading: Heading, event: Event) -> None:
    """One line for what a step came to; intents and states are shown elsewhere."""
    if event.step is None:
        return
    number, title = event.step + 1, escape(heading.steps[event.step].title)
    took = event.data.get("took_s")
    took_s = f"{took:6.2f} s" if isinstance(took, float) else " " * 8
    what = (
        f": {escape(str(event.data.get('code')))}: {escape(str(event.data.get('what')))}"
        if "code" in event.data
        else ""
    )
    match event.kind:
        case EventKind.OUTCOME:
            shown = detail(event.data)
            line = f"[green]done[/]    {took_s}  {title}" + (f"  [dim]{escape(shown)}[/]" if shown else "")
            if STALE in event.data:
                _say(console, f"[yellow]an old copy[/]: {escape(str(event.data[STALE]))}")
        case EventKind.FAILED:
            line = f"[red]failed[/]            {title}{what}"
        case EventKind.UNDONE:
            line = f"[yellow]undone[/]  {took_s}  {title}"
        case EventKind.UNDO_FAILED:
            line = f"[red]not undone[/]        {title}{what}"
        case _:
            return
    # what went well has one line, cut where a terminal ends; what failed is said in full
    cut = console.is_terminal and event.kind in (EventKind.OUTCOME, EventKind.UNDONE)
    console.print(f"{number:>4} {line}", soft_wrap=not console.is_terminal, no_wrap=cut, overflow="ellipsis")


def worth_a_line(heading: Heading) -> Callable[[Event], bool]:
    """Which events of a run are shown: all, but of many VMs only every tenth part, and whatever went wrong."""
    places: dict[str, list[int]] = {}
    for place, line in enumerate(heading.steps):
        if line.vm is not None:
            places.setdefault(line.kind, []).append(place)
    shown: set[int] = set()
    for many in places.values():
        stride = max(1, len(many) // 10) if len(many) > _MANY else 1
        shown.update((many[0], many[-1], *many[stride - 1 :: stride]))

    def worth(event: Event) -> bool:
        if event.step is None or heading.steps[event.step].vm is None:
            return True
        went_wrong = event.kind in (EventKind.FAILED, EventKind.UNDO_FAILED)
        return went_wrong or event.step in shown or any(m.over_budget for m in vm_moves(event.data))

    return worth


def show_error(console: Console, error: UpgradeError) -> None:
    """The three things every error says."""
    _say(console, f"[red]error[/] {escape(error.code)}: {escape(error.what)}")
    _say(console, f"  state: {escape(error.state)}")
    _say(console, f"  next:  {escape(error.next)}", whole=True)


def show_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    for f in findings:
        colour = _COLOUR[f.severity]
        _say(console, f"[{colour}]{f.severity:>8}[/] {f.code}: {escape(f.what)}")
        _say(console, f"         next: {escape(f.remedy)}", whole=True)


def show_verdict(console: Console, findings: tuple[Finding, ...]) -> None:
    """Whether they forbid a run, in one line."""
    n = Counter(f.severity for f in findings)
    if n[Severity.BLOCKING]:
        _say(console, f"[red]{n[Severity.BLOCKING]} of {len(findings)} findings forbid an upgrade[/]")
    elif findings:
        _say(console, f"nothing forbids an upgrade; to know of: {len(findings)}")
    else:
        _say(console, "nothing stands against an upgrade")


def show_owners(console: Console, facts: HostFacts) -> None:
    """Who serves whom, by slot."""
    for name in (*SLOTS, None):
        labels = [p.label for p in facts.ports if facts.serving(p) == name]
        if labels:
            where = f"slot {name} serves" if name else "no slot serves"
            _say(console, f"{where} {_some(labels)}")


def show_plan(console: Console, plan: Plan) -> None:
    versions = f"{plan.from_version or 'none'} -> {plan.to_version or 'none'}"
    _say(
        console,
        f"plan {plan.id} for {escape(plan.host)}: {purpose(plan.kind, plan.source, plan.target)}, OVS {versions}, "
        f"{_count(len(plan.ports), 'VM port')}",
    )
    _say(console, f"strategy {plan.strategy}; it can lose: {plan.loses}")
    _say(console, _policy(plan))
    number = 1
    for kind, group in groupby(plan.steps, key=lambda step: step.kind):
        steps = list(group)
        shown = steps if len(steps) <= _MANY else steps[: _SHOWN - 1]
        for n, step in enumerate(shown, number):
            _say(console, f"{n:>4} {kind:<15} {escape(step.title)}")
        if hidden := len(steps) - len(shown):
            _say(console, f"   … {kind:<15} and {hidden} more of these, up to step {number + len(steps) - 1}")
        number += len(steps)


def _policy(plan: Plan) -> str:
    """What becomes of the run when something fails, and of the other switch afterwards."""
    p = plan.policy
    if plan.kind is PlanKind.ARM:
        return "on a failure everything is undone"
    if plan.kind is PlanKind.TAKEOVER:
        return f"the switch of slot {plan.source} is killed where it lives: there is no way back"
    budget = f"a hand-over above {p.blackout_budget_us / 1000:g} ms stops the run; " if plan.ports else ""
    old = "standby" if plan.kind is PlanKind.DISARM else "old switch"
    return f"{budget}on a failure: {p.on_failure}; afterwards the {old} {'stands by' if p.keep_old else 'is ended'}"


def show_report(console: Console, report: RunReport) -> None:
    """Per VM what its hand-over took; then the outcome in one line, or what failed and what to do."""
    if report.moves:
        worst = sorted(report.moves, key=lambda m: m.blackout_us, reverse=True)
        many = len(report.moves) > _MANY
        parts = ("quiesce", "index", "activate", "notify", "command") if console.width >= _HAND_OVER else ()
        table = _table("VM", "blackout", *parts, "gen.", "")
        for column in table.columns[1:-1]:
            column.justify = "right"
        for m in worst[:_SHOWN] if many else report.moves:
            note = ", ".join(("over budget",) * m.over_budget + ("way back",) * m.undone)
            times = (m.blackout_us, *(getattr(m, f"{part}_us") for part in parts))
            table.add_row(escape(m.vm), *(f"{v:.0f}" for v in times), str(m.generation), note)
        which = f", the {_SHOWN} longest of {len(report.moves)}" if many else ""
        _say(console, f"{escape(report.host)}: hand-overs, microseconds{which}")
        console.print(table)
        _say(
            console,
            f"blackout: median {worst[len(worst) // 2].blackout_us / 1000:.2f} ms, "
            f"longest {worst[0].blackout_us / 1000:.2f} ms ({escape(worst[0].vm)})",
        )
    _say(
        console,
        f"[{_STATE_COLOUR[report.outcome]}]{report.outcome}[/]: run {report.run_id}, {_came_to(report)}, "
        f"OVS {report.from_version or 'none'} -> {report.to_version or 'none'}, "
        f"{report.took_s:.1f} s",
    )
    _show_next(console, report)


def _came_to(report: RunReport) -> str:
    if report.purpose == PlanKind.UPGRADE:
        return f"{_count(report.moved, 'VM port')} moved {report.from_slot} -> {report.to_slot}"
    return purpose(report.purpose, report.from_slot, report.to_slot)


def show_status(
    console: Console,
    view: RunView | None,
    facts: Recorded | None,
    end: Ending | None,
    coordinator: int | None,
    typed: Callable[[str], str] = str,
) -> None:
    """The latest run by its journal: state, the three facts, VMs, the step in hand, and what to type next.

    `typed`: a command of ours as this person has to type it.
    """
    if view is None or facts is None or end is None:
        _say(console, "no run is recorded on this host")
        _say(console, f"  next:  {escape(typed('upgrade --host localhost --dry-run'))}", whole=True)
        return
    head = view.heading
    active = view.state in (RunState.RUNNING, RunState.UNDOING)
    who = "" if not active else f" (coordinator: pid {coordinator})" if coordinator else " (its coordinator is gone)"
    _say(
        console,
        f"run {head.run_id} on {escape(head.host)}: [{_STATE_COLOUR[view.state]}]{view.state}[/]{who}, "
        f"{purpose(head.kind, head.source, head.target)}, "
        f"OVS {head.from_version or 'none'} -> {head.to_version or 'none'}, begun {_ago(head.started_at_ns)}"
        + ("" if active else f", took {end.took_s:.1f} s"),
    )
    where = Counter(slot for slot in facts.rings.values())
    rings = ", ".join(f"{where[s]} at slot {s}" for s in SLOTS if where[s]) + (
        f", {where[None]} in between" if where[None] else ""
    )
    # a takeover has no step for each VM: QEMU brings them, too
    told = "" if view.heading.kind == PlanKind.TAKEOVER else f"rings: {rings or 'no VM'}; "
    _say(console, f"{told}steering: {'+'.join(facts.steering)}; control plane: slot {facts.control}")
    _say(console, f"steps: {_steps(view, active=active and coordinator is not None)}")
    _show_vms(console, view)
    if active and coordinator is None:
        _say(console, "  state: every VM is served by the switch that owns its rings")
        on_or_back = typed("upgrade resume   (on), or: upgrade rollback   (back)")
        _say(console, f"  next:  {escape(on_or_back)}", whole=True)
        return
    _show_next(console, replace(end, next=typed(end.next)) if end.next else end)


def _steps(view: RunView, *, active: bool) -> str:
    done = sum(1 for s in view.steps if s.state is StepState.DONE)
    if view.state is RunState.RESTORED:
        return "all that was done is undone"
    text = f"{done} of {len(view.steps)} done"
    if view.open_step is None:
        return text
    title = escape(view.heading.steps[view.open_step].title)
    return text + (f"; in hand: {title}" if active else f"; begun and not ended: {title}")


def _show_vms(console: Console, view: RunView) -> None:
    source, target = view.heading.source, view.heading.target
    words = {
        VmState.AT_SOURCE: f"slot {source}",
        VmState.STANDBY: f"slot {source}, {target} connected and parked",
        VmState.MOVING: f"{source} -> {target}, under way",
        VmState.AT_TARGET: f"slot {target}",
        VmState.MOVING_BACK: f"{target} -> {source}, under way",
        VmState.GONE: "has ended",
    }
    vms = view.vms()
    if len(vms) > _MANY:
        counted = Counter(vms.values())
        for state, text in words.items():
            if counted[state]:
                _say(console, f"{counted[state]:>6} VM ports: {text}")
        return
    if vms:
        table = _table("VM", "served by")
        for label, state in vms.items():
            table.add_row(escape(label), words[state])
        console.print(table)


def _show_next(console: Console, end: Ending | RunReport) -> None:
    for word, text in (("why:  ", end.error), ("state:", end.state), ("next: ", end.next)):
        if text:
            _say(console, f"  {word} {escape(text)}", whole=word == "next: ")


def show_history(console: Console, runs: tuple[tuple[Heading, RunState, int], ...]) -> None:
    if not runs:
        _say(console, "no run is recorded on this host")
        return
    table = _table("run", "begun", "what", "slots", "OVS", "VM ports", "state")
    for head, state, _ in runs:
        moves = sum(1 for s in head.steps if s.kind == "move-vm")
        begun = datetime.fromtimestamp(head.started_at_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        versions = f"{head.from_version or 'none'} -> {head.to_version or 'none'}"
        table.add_row(
            str(head.run_id), begun, head.kind, f"{head.source} -> {head.target}", versions, str(moves),
            f"[{_STATE_COLOUR[state]}]{state}[/]",
        )  # fmt: skip
    console.print(table)


def _say(console: Console, text: str, *, whole: bool = False) -> None:
    """A line. On a terminal prose is broken between words; a command (`whole`) is left as it is typed."""
    console.print(text, soft_wrap=whole or not console.is_terminal)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _some(labels: Sequence[str]) -> str:
    """All of a few; of many the first ones and how many more."""
    shown = ", ".join(escape(x) for x in (labels if len(labels) <= _MANY else labels[:_SHOWN]))
    return shown if len(labels) <= _MANY else f"{len(labels)} VM ports: {shown} and {len(labels) - _SHOWN} more"


def _ago(at_ns: int) -> str:
    seconds = max(0.0, time.time() - at_ns / 1e9)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
