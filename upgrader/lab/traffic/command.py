"""`upgrade lab traffic`: what every VM feels for a while, or the generator's own proof. The lab's sub-app mounts it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from upgrader.core.errors import HostError, UsageError
from upgrader.lab import documents
from upgrader.lab.traffic import selftest
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.connect import lab_named, lab_session
from upgrader.lab.traffic.render import checks_table, flows_table, warnings
from upgrader.lab.traffic.session import TrafficRun, TrafficSession
from upgrader.terminal import consoles, print_json


def traffic(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="How long to measure.")] = 10,
    rate: Annotated[int, typer.Option(min=1, max=20_000, help="Packets per second, VM and direction.")] = 1000,
    size: Annotated[int, typer.Option(min=32, max=1400, help="UDP payload in bytes.")] = 64,
    direction: Annotated[
        list[Direction] | None, typer.Option("--direction", help="Only this one; may be repeated (default: all).")
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Measure as long before, with nothing happening, to compare with.")
    ] = True,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Without a lab: does the generator report known losses as known?")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="Name of the lab.")] = "lab",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON on stdout.")] = False,
) -> None:
    """Send packets to, from and between the lab's VMs and show what each of them lost and for how long."""
    out, err = consoles()
    if self_test:
        _self_test(out, err, as_json=as_json)
        return
    lab = lab_named(name)
    directions = tuple(direction or Direction)
    if lab.vms == 1 and directions == (Direction.VM_TO_VM,):
        raise UsageError(
            "TRAFFIC_ONE_VM",
            "one VM has no other to send to",
            state="nothing was changed",
            next=f"upgrade lab traffic --name {name} --direction from_fabric",
        )
    with lab_session(lab, rate_pps=rate, payload_bytes=size, directions=directions) as session:
        before: TrafficRun | None = None
        if control:
            err.print(f"control run, {seconds:g} s: leave the lab alone")
            before = session.control(seconds)
        err.print(f"measuring, {seconds:g} s: do now what is to be measured")
        run = _measure(session, seconds)
    if as_json:
        print_json(documents.traffic_document(run, before))
    else:
        out.print(flows_table(run.figures(control=before)))
    for warning in warnings(run):
        err.print(f"[yellow]warning[/] {warning}", soft_wrap=True)


def _measure(session: TrafficSession, seconds: float) -> TrafficRun:
    session.start(seconds)
    try:
        return session.finish()
    except KeyboardInterrupt:
        return session.finish(stop=True)  # what there is so far is still a measurement


def _self_test(out: Console, err: Console, *, as_json: bool) -> None:
    err.print("in two network namespaces of its own, about 20 s")
    with selftest.bench() as bench:
        done = tuple(selftest.checks(bench))
    if as_json:
        print_json(documents.self_test_document(done))
    else:
        out.print(checks_table(done))
    failed = [check.name for check in done if not check.passed]
    if failed:
        raise HostError(
            "TRAFFIC_SELF_TEST",
            f"the generator did not report what was known: {', '.join(failed)}",
            state="its figures cannot be trusted on this machine; nothing was changed",
            next="upgrade lab traffic --self-test --json",
        )
