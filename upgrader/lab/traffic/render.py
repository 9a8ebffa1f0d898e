"""Figures for people: tables, warnings."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from rich.table import Table

from upgrader.lab.traffic.analysis import FlowFigures
from upgrader.lab.traffic.selftest import Check
from upgrader.lab.traffic.session import TrafficRun

_CAPTION = (
    "times in ms · gap: between two arrivals; network: without what the sender was late; control: longest gap of the "
    "control run · interruption by loss and by time as in RFC 6201"
)


def _ms(us: int | None) -> str:
    return "-" if us is None else f"{us / 1000:.1f}"


def flows_table(figures: Sequence[FlowFigures], title: str | None = None) -> Table:
    """One row per VM and direction, times in ms."""
    table = Table(title=title, caption=_CAPTION)
    table.add_column("VM", no_wrap=True)
    table.add_column("direction", no_wrap=True)
    columns = (
        "sent",
        "lost",
        "twice",
        "reordered",
        "gap",
        "network",
        "control",
        "by loss",
        "by time",
        "late sends",
        "own drops",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for f in figures:
        way = f"{f.direction} {f.peer}" if f.peer != "fabric" else str(f.direction)
        times = (
            _ms(f.gap_us),
            _ms(f.network_gap_us),
            _ms(f.control_gap_us),
            _ms(f.loss_time_us),
            _ms(f.timestamp_time_us),
        )
        lost = f"[red]{f.lost}[/]" if f.lost else "0"
        counts = (str(f.sent), lost, str(f.duplicated), str(f.reordered))
        table.add_row(f.vm, way, *counts, *times, str(f.late_sends), str(f.own_drops))
    return table


def warnings(run: TrafficRun) -> list[str]:
    """What the generator has to say against its own figures, and what a guest's interface went through."""
    figures = run.figures()
    said = []
    late = [f for f in figures if f.late_sends]
    if late:
        worst = max(late, key=lambda f: f.worst_late_us)
        said.append(
            f"the generator itself was late: {sum(f.late_sends for f in late)} of {sum(f.sent for f in figures)} packets "
            f"by more than 1 ms, at worst {_ms(worst.worst_late_us)} ms ({worst.vm} {worst.direction}); `network` "
            "leaves that out of `gap`"
        )
    for trace, f in zip(run.traces, figures, strict=True):
        flow = f"{f.vm} {f.direction}"
        if f.own_drops:
            said.append(f"{flow}: {f.own_drops} of the {f.lost} lost packets were lost by the receiver itself")
        if f.unsent:
            reason = errno.errorcode.get(trace.sender.last_errno, str(trace.sender.last_errno))
            said.append(
                f"{flow}: {f.unsent} packets were refused by the sender's kernel ({reason}): neither sent nor lost"
            )
    if run.strangers:
        said.append(f"{run.strangers} packets arrived where they did not belong")
    if run.clock_steps:
        said.append("a receiver's clock was set during the run: its gaps are not to be trusted")
    for vm, (before, after) in run.links.items():
        if after.carrier_changes != before.carrier_changes:
            said.append(f"{vm}: its link changed {after.carrier_changes - before.carrier_changes} times")
        if after.ifindex != before.ifindex or after.rx_packets < before.rx_packets:
            said.append(f"{vm}: its network device was set up anew")
        if after.uptime_ns < before.uptime_ns:
            said.append(f"{vm}: it was restarted")
    return said


def checks_table(checks: Sequence[Check]) -> Table:
    """The self-test's outcome."""
    table = Table("check", "done on purpose", "lost", "twice", "reordered", "gap ms", "own drops", "")
    for check in checks:
        f = check.figures
        verdict = "[green]ok[/]" if check.passed else "[red]wrong[/]"
        counts = (str(f.lost), str(f.duplicated), str(f.reordered), _ms(f.gap_us), str(f.own_drops))
        table.add_row(check.name, check.expected, *counts, verdict)
    return table
