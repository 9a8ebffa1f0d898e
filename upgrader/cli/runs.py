"""A run that the daemon carries out: confirmed, begun, watched to its end, and reported."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from upgrader.cli import here
from upgrader.cli.options import Globals
from upgrader.core.errors import Exit, UsageError
from upgrader.core.findings import forbidden
from upgrader.core.lifecycle import RunState
from upgrader.terminal import consoles, print_json

if TYPE_CHECKING:
    from upgrader.core.journal import RunView
    from upgrader.core.model import HostFacts
    from upgrader.core.plan import Plan
    from upgrader.core.report import RunReport
    from upgrader.daemon.client import Client

# What follows is imported late, as in `verbs`.
# ruff: noqa: PLC0415


def require_unblocked(made: Plan) -> None:
    if made.blocking:
        raise forbidden(made.blocking)


def show(facts: HostFacts, made: Plan, *, as_json: bool) -> None:
    """Who serves whom, findings and plan, of which nothing is carried out. Raises BlockedError where findings forbid it."""
    from upgrader.cli import documents, render

    out, err = consoles()
    render.show_owners(err, facts)
    render.show_findings(err, made.findings)
    if as_json:
        print_json(documents.plan_document(made))
    elif not made.blocking:
        render.show_plan(out, made)
    require_unblocked(made)


def begin(options: Globals, facts: HostFacts, made: Plan, question: str, *, yes: bool, as_json: bool) -> int:
    """Show a plan, ask, and carry it out. Returns the exit code."""
    from upgrader.cli import render

    err = consoles()[1]
    render.show_owners(err, facts)
    render.show_findings(err, made.findings)
    require_unblocked(made)
    render.show_plan(err, made)
    if not yes:
        confirm(question.format(source=made.source, target=made.target))
    return carry_out(options, made, as_json=as_json)


def confirm(question: str) -> None:
    """Ask on a terminal; without one the answer has to be on the command line."""
    if not sys.stdin.isatty():
        raise UsageError(
            "NOT_CONFIRMED",
            "there is no terminal to ask on",
            state="nothing was changed",
            next="the same command with --yes",
        )
    if not typer.confirm(question, err=True):
        raise UsageError("NOT_CONFIRMED", "not confirmed", state="nothing was changed", next="the same command again")


def carry_out(options: Globals, made: Plan, *, as_json: bool) -> int:
    from upgrader.adapters.journal import plan_to_json

    with here.daemon(options) as client:
        started = client.call("run", plan=plan_to_json(made), config=str(here.config_path(options)))
        return _follow(options, client, started, as_json=as_json, on_failure=made.policy.on_failure)


def again(options: Globals, method: str, question: str, *, yes: bool, as_json: bool) -> int:
    """Resume, or roll back."""
    here.require_root(options)
    if not yes and sys.stdin.isatty():
        confirm(question)
    with here.daemon(options) as client:
        started = client.call(method)
        return _follow(options, client, started, as_json=as_json, back=method == "rollback")


def ask(options: Globals, request: str, wanted: set[RunState], *, as_json: bool) -> int:
    """Ask the run that runs to stop, and wait until it has. Returns 0 where it stopped as it was asked to."""
    from upgrader.cli import documents
    from upgrader.cli.follow import follow
    from upgrader.cli.render import show_report
    from upgrader.core.report import report as report_of
    from upgrader.daemon.client import connect

    here.require_root(options)
    settings, journal = here.journal_of(options)
    client = connect(settings.host.socket)
    if client is None:
        raise UsageError("NO_RUN", "no run is being carried out", state="nothing was changed", next="upgrade status")
    with client:
        started = client.call("ask", request=request)
        out, err = consoles()
        view = follow(journal, started["run_id"], err, seen=started["events"], alive=client.alive)
    told = for_the_person(options, report_of(view))
    if as_json:
        print_json(documents.run_document(told))
    show_report(err if as_json else out, told)
    return Exit.DONE if view.state in wanted else exit_code(view)


def _follow(
    options: Globals,
    client: Client,
    started: dict[str, Any],
    *,
    as_json: bool,
    on_failure: str = "",
    back: bool = False,
) -> int:
    """Watch the run to its end, report it, and return the exit code."""
    from upgrader.cli import documents, render
    from upgrader.cli.follow import follow
    from upgrader.core.report import report as report_of

    out, err = consoles()
    _, journal = here.journal_of(options)

    def interrupted() -> None:
        client.call("ask", request="back")
        err.print("\nstopping after the step in hand; what was done is undone then")

    seen = started["events"]
    while True:
        view = follow(
            journal, started["run_id"], err, seen=seen, alive=client.alive, on_interrupt=None if back else interrupted
        )
        answer = "leave"
        if view.state is RunState.HALTED and on_failure == "ask" and sys.stdin.isatty():
            render.show_report(err, report_of(view))
            answer = typer.prompt("resume, rollback, or leave it as it is?", default="leave", err=True)
        if answer not in ("resume", "rollback"):
            break
        seen = client.call(answer)["events"]
    told = for_the_person(options, report_of(view))
    if as_json:
        print_json(documents.run_document(told))
    render.show_report(err if as_json else out, told)
    if back and view.state is RunState.RESTORED:
        return Exit.DONE
    return exit_code(view)


def exit_code(view: RunView) -> int:
    """Of a command whose run is in this state."""
    asked = view.reason == "ASKED"
    if view.state is RunState.DONE:
        return Exit.OPERATOR if view.reason else Exit.DONE
    if view.state is RunState.RESTORED:
        return Exit.STOPPED if asked else Exit.RESTORED
    if view.state in (RunState.PAUSED, RunState.HALTED) and asked:
        return Exit.STOPPED
    return Exit.OPERATOR


def for_the_person(options: Globals, told: RunReport) -> RunReport:
    """What to type next, as it is typed where that person is."""
    from dataclasses import replace

    return replace(told, next=options.command(told.next)) if told.next else told
