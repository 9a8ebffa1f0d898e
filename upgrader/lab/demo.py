"""The main job from end to end: a lab, traffic, upgrades there and back, a stock restart, and what each VM felt."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.table import Table

from upgrader.core.errors import Exit, UpgradeError
from upgrader.lab import stock
from upgrader.lab.exercise import Exercise
from upgrader.lab.figures import Felt, bystanders_line, limits, report_json
from upgrader.lab.interrupts import raise_once
from upgrader.lab.spec import BUILD_DIR, DEFAULT_OVS_PREFIX, LabSpec
from upgrader.lab.traffic.analysis import Direction, FlowFigures
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab
from upgrader.terminal import consoles


def demo(
    report: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = BUILD_DIR / "demo-report.json",
    vms: Annotated[int, typer.Option(help="Guests.")] = 4,
    queues: Annotated[int, typer.Option(help="Queue pairs of each guest.")] = 1,
    pages: Annotated[str, typer.Option(help="What guest memory stands on: 4k or 2m.")] = "4k",
    rate: Annotated[int, typer.Option(help="Packets per second, VM and direction.")] = 1000,
    trips: Annotated[int, typer.Option(min=1, help="How often a -> b -> a.")] = 1,
    control_s: Annotated[float, typer.Option(min=2, help="Length of the control run.")] = 10,
    name: Annotated[str, typer.Option(help="Name of the lab; it is taken down at the end.")] = "demo",
    strict: Annotated[bool, typer.Option(help="Exit non-zero when a limit does not hold.")] = True,
    ovs_prefix: Annotated[
        Path, typer.Option(help="Where the OVS-DPDK of both slots is installed.")
    ] = DEFAULT_OVS_PREFIX,
) -> None:
    """Upgrade a lab's host there and back under traffic, restart a stock switch, and show what each VM felt."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    out, err = consoles()
    raise_once(lambda: err.print("still taking the lab down"))
    spec = LabSpec(name, vms, queues, pages, ovs_prefix.absolute())  # type: ignore[arg-type]
    lab = Lab(spec, lambda text: err.print(f"lab: {text}"))
    prefix = stock.stock_prefix(BUILD_DIR / "stack")
    moves: list[Felt] = []
    disturbed: dict[str, str] = {}
    lab.down()
    try:
        lab.up()
        with lab_session(lab.spec, rate_pps=rate) as session:
            exercise = Exercise(lab.spec, session)
            err.print(f"control run, {control_s:g} s: {rate} packets/s per VM and direction, nothing else happens")
            control = exercise.control(control_s)
            for _ in range(2 * trips):
                err.print("under the same traffic: upgrade --host localhost")
                moved = exercise.upgrade(control)
                moves += moved.felt
                disturbed.update(moved.disturbed)
            err.print("under the same traffic: a restart of the distribution's OVS-DPDK")
            restart = exercise.stock_restart(control, prefix)
    finally:
        lab.down()
    judged = limits(moves, restart.felt, disturbed)
    options = {"vms": vms, "queues": queues, "pages": pages, "rate_pps": rate, "trips": trips, "control_s": control_s}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(report_json(options, moves, restart.felt, judged), indent=2) + "\n")
    out.print(table([*moves, *restart.felt]))
    if line := bystanders_line(moves):
        out.print(line, soft_wrap=True)
    for vm, what in restart.disturbed.items():
        out.print(f"the stock restart, {vm}: {what}", soft_wrap=True)
    for limit in judged:
        out.print(limit.line(), style=None if limit.holds else "red", soft_wrap=True)
    err.print(f"figures: {report}")
    if strict and not all(limit.holds for limit in judged):
        raise typer.Exit(1)


def table(felt: Sequence[Felt]) -> Table:
    """One row a VM and event: the blackout, then per direction the longest gap beside the control's, and losses."""
    shown = Table(
        title="gap: longest time between two packets, its network part (without what the sender was late), and the "
        "control run's gap; lost/twice/reordered: packets"
    )
    shown.add_column("event")
    shown.add_column("VM")
    shown.add_column("blackout ms", justify="right")
    for direction in Direction:
        shown.add_column(
            f"{direction.value.replace('_', ' ')}\ngap/network (control) ms, lost/twice/reordered", justify="right"
        )
    for f in felt:
        cells = [_cell(f.directions.get(d)) for d in Direction]
        shown.add_row(f.event, f.vm, f"{f.blackout_us / 1000:.2f}", *cells)
    return shown


def _cell(figures: FlowFigures | None) -> str:
    if figures is None:
        return "-"
    control = f" ({figures.control_gap_us / 1000:.0f})" if figures.control_gap_us is not None else ""
    gaps = f"{figures.gap_us / 1000:.1f}/{figures.network_gap_us / 1000:.1f}"
    return f"{gaps}{control}  {figures.lost}/{figures.duplicated}/{figures.reordered}"


def main() -> None:
    try:
        typer.run(demo)
    except UpgradeError as error:
        sys.stderr.write(f"error {error}\n  state: {error.state}\n  next:  {error.next}\n")
        sys.exit(int(error.exit_code))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the lab was taken down\n")
        sys.exit(int(Exit.STOPPED))


if __name__ == "__main__":
    main()
