"""What an operator sees: plans, live progress and reports. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from upgrader.core.errors import UpgradeError
from upgrader.core.findings import Finding, Severity
from upgrader.core.model import SLOTS, HostFacts
from upgrader.core.plan import Plan
from upgrader.core.report import RunReport, vm_move

_COLOUR = {Severity.BLOCKING: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


class ConsoleRecorder:
    """Tells a terminal, or a log without a terminal, how a run goes: one line a step."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def intent(self, number: int, total: int, title: str) -> None:
        if self._console.is_terminal:
            self._console.print(f"[dim]{number:>3}/{total}[/] {escape(title)} …", end="\r", soft_wrap=True)

    def outcome(self, number: int, title: str, took_s: float, data: Mapping[str, object]) -> None:
        move = vm_move(data)
        shown = f"blackout {move.blackout_us / 1000:.2f} ms" if move else ", ".join(f"{k} {v}" for k, v in data.items())
        detail = f"  [dim]{escape(shown)}[/]" if shown else ""
        self._console.print(f"{number:>3} [green]done[/]    {took_s:6.2f} s  {escape(title)}{detail}", soft_wrap=True)

    def failed(self, number: int, title: str, error: Exception) -> None:
        self._console.print(
            f"{number:>3} [red]failed[/]            {escape(title)}: {escape(str(error))}", soft_wrap=True
        )

    def undone(self, number: int, title: str, error: Exception | None) -> None:
        word, why = ("[red]not undone[/]", f": {escape(str(error))}") if error else ("[yellow]undone[/]", "")
        self._console.print(f"{number:>3} {word}            {escape(title)}{why}", soft_wrap=True)


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
    for number, step in enumerate(plan.steps, 1):
        console.print(f"{number:>3} {step.kind:<15} {escape(step.title)}", soft_wrap=True)


def show_report(console: Console, report: RunReport) -> None:
    """Per VM what its hand-over took; then the outcome in one line, or what failed and what to do."""
    if report.moves:
        table = Table(title=f"{report.host}: slot {report.from_slot} -> {report.to_slot}, times in microseconds")
        for column in (
            "VM",
            "blackout",
            "quiesce",
            "index",
            "activate",
            "notify",
            "QMP command",
            "generation",
        ):
            table.add_column(column, justify="left" if column == "VM" else "right")
        for m in report.moves:
            mark = (" (over budget)" if m.over_budget else "") + (" (way back)" if m.undone else "")
            table.add_row(
                m.vm,
                f"{m.blackout_us:.0f}{mark}",
                *(f"{v:.0f}" for v in (m.quiesce_us, m.index_us, m.activate_us, m.notify_us, m.command_us)),
                str(m.generation),
            )
        console.print(table)
    colour = {"done": "green", "restored": "yellow", "operator-needed": "red"}[report.outcome]
    console.print(
        f"[{colour}]{report.outcome}[/]: {report.moved} VM ports moved {report.from_slot} -> {report.to_slot}, "
        f"OVS {report.from_version or 'none'} -> {report.to_version or 'none'}, {report.took_s:.1f} s"
    )
    if report.error:
        console.print(f"  error: {escape(report.error)}", soft_wrap=True)
        console.print(f"  state: {escape(report.state or '')}", soft_wrap=True)
        console.print(f"  next:  {escape(report.next or '')}", soft_wrap=True)
