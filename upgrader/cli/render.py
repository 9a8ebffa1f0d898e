"""How plans, runs, reports and errors look to a person. Titles come from the host: they are escaped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from upgrader.core.errors import UpgradeError
from upgrader.core.findings import Finding, Severity
from upgrader.core.journal import Event, EventKind, Heading, Recorded, RunView
from upgrader.core.lifecycle import RunState, VmState
from upgrader.core.model import SLOTS, HostFacts
from upgrader.core.plan import Plan
from upgrader.core.report import RunReport, detail

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
_MANY = 30  # VMs beyond which a table of all of them helps nobody


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
        case EventKind.FAILED:
            line = f"[red]failed[/]            {title}{what}"
        case EventKind.UNDONE:
            line = f"[yellow]undone[/]  {took_s}  {title}"
        case EventKind.UNDO_FAILED:
            line = f"[red]not undone[/]        {title}{what}"
        case _:
            return
    console.print(f"{number:>3} {line}", soft_wrap=True)


def show_error(console: Console, error: UpgradeError) -> None:
    """The three things every error says."""
    console.print(f"[red]error[/] {escape(error.code)}: {escape(error.what)}", soft_wrap=True)
    console.print(f"  state: {escape(error.state)}", soft_wrap=True)
    console.print(f"  next:  {escape(error.next)}", soft_wrap=True)


def show_findings(console: Console, findings: tuple[Finding, ...]) -> None:
    for f in findings:
        colour = _COLOUR[f.severity]
        console.print(f"[{colour}]{f.severity:>8}[/] {f.code}: {escape(f.what)}", soft_wrap=True)
        console.print(f"         next: {escape(f.remedy)}", soft_wrap=True)


def show_owners(console: Console, facts: HostFacts) -> None:
    """Who serves whom, by slot."""
    for name in (*SLOTS, None):
        labels = [p.label for p in facts.ports if facts.serving(p) == name]
        if labels:
            where = f"slot {name} serves" if name else "no slot serves"
            console.print(f"{where} {', '.join(escape(x) for x in labels)}", soft_wrap=True)


def show_plan(console: Console, plan: Plan) -> None:
    versions = f"{plan.from_version or 'none'} -> {plan.to_version or 'none'}"
    console.print(
        f"plan {plan.id} for {escape(plan.host)}: slot {plan.source} -> {plan.target}, OVS {versions}, {len(plan.ports)} VM ports"
    )
    console.print(f"strategy {plan.strategy}; it can lose: {plan.loses}", soft_wrap=True)
    p = plan.policy
    console.print(
        f"a hand-over above {p.blackout_budget_us / 1000:g} ms stops the run; on a failure: {p.on_failure}; "
        f"afterwards the old switch {'stands by' if p.keep_old else 'is ended'}",
        soft_wrap=True,
    )
    for number, step in enumerate(plan.steps, 1):
        console.print(f"{number:>3} {step.kind:<15} {escape(step.title)}", soft_wrap=True)


def show_report(console: Console, report: RunReport) -> None:
    """Per VM what its hand-over took; then the outcome in one line, or what failed and what to do."""
    if report.moves:
        table = Table(title=f"{report.host}: slot {report.from_slot} -> {report.to_slot}, times in microseconds")
        for column in ("VM", "blackout", "quiesce", "index", "activate", "notify", "QMP command", "generation"):
            table.add_column(column, justify="left" if column == "VM" else "right")
        for m in report.moves:
            mark = (" (over budget)" if m.over_budget else "") + (" (way back)" if m.undone else "")
            table.add_row(
                escape(m.vm),
                f"{m.blackout_us:.0f}{mark}",
                *(f"{v:.0f}" for v in (m.quiesce_us, m.index_us, m.activate_us, m.notify_us, m.command_us)),
                str(m.generation),
            )
        console.print(table)
    console.print(
        f"[{_STATE_COLOUR[report.outcome]}]{report.outcome}[/]: run {report.run_id}, {report.moved} VM ports moved "
        f"{report.from_slot} -> {report.to_slot}, OVS {report.from_version or 'none'} -> {report.to_version or 'none'}, "
        f"{report.took_s:.1f} s"
    )
    _show_next(console, report)


def show_status(
    console: Console, view: RunView | None, facts: Recorded | None, report: RunReport | None, coordinator: int | None
) -> None:
    """The latest run by its journal: state, the three facts, VMs, the step in hand, and what to type next."""
    if view is None or facts is None or report is None:
        console.print("no run is recorded on this host")
        console.print("  next:  upgrade --host localhost --dry-run")
        return
    head = view.heading
    active = view.state in (RunState.RUNNING, RunState.UNDOING)
    lost = active and coordinator is None
    console.print(
        f"run {head.run_id} on {escape(head.host)}: [{_STATE_COLOUR[view.state]}]{view.state}[/]"
        f"{' (its coordinator is gone)' if lost else ''}, slot {head.source} -> {head.target}, "
        f"OVS {head.from_version or 'none'} -> {head.to_version or 'none'}, begun {_ago(head.started_at_ns)}"
    )
    where = Counter(slot for slot in facts.rings.values())
    rings = ", ".join(f"{where[s]} at slot {s}" for s in SLOTS if where[s]) + (
        f", {where[None]} in between" if where[None] else ""
    )
    console.print(f"rings: {rings or 'no VM'}; steering: {'+'.join(facts.steering)}; control plane: {facts.control}")
    done = sum(1 for s in view.steps if s.state == "done")
    now = view.open_step
    console.print(
        f"steps: {done} of {len(view.steps)} done"
        + (f"; in hand: {escape(head.steps[now].title)}" if now is not None else "")
    )
    _show_vms(console, view.vms())
    if lost:
        console.print("  state: every VM is served by the switch that owns its rings", soft_wrap=True)
        console.print("  next:  upgrade resume   (on), or: upgrade rollback   (back)", soft_wrap=True)
        return
    _show_next(console, report)


def _show_vms(console: Console, vms: Mapping[str, VmState]) -> None:
    if len(vms) > _MANY:
        counted = Counter(vms.values())
        console.print("VMs: " + ", ".join(f"{n} {state}" for state, n in counted.items()))
        return
    if vms:
        table = Table("VM", "where")
        for label, state in vms.items():
            table.add_row(escape(label), str(state))
        console.print(table)


def _show_next(console: Console, report: RunReport) -> None:
    for word, text in (("why:  ", report.error), ("state:", report.state), ("next: ", report.next)):
        if text:
            console.print(f"  {word} {escape(text)}", soft_wrap=True)


def show_history(console: Console, runs: tuple[tuple[Heading, RunState, int], ...]) -> None:
    if not runs:
        console.print("no run is recorded on this host")
        return
    table = Table("run", "begun", "slots", "OVS", "VM ports", "state")
    for head, state, _ in runs:
        moves = sum(1 for s in head.steps if s.kind == "move-vm")
        begun = datetime.fromtimestamp(head.started_at_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        versions = f"{head.from_version or 'none'} -> {head.to_version or 'none'}"
        table.add_row(
            str(head.run_id), begun, f"{head.source} -> {head.target}", versions, str(moves),
            f"[{_STATE_COLOUR[state]}]{state}[/]",
        )  # fmt: skip
    console.print(table)


def _ago(at_ns: int) -> str:
    seconds = max(0.0, time.time() - at_ns / 1e9)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
