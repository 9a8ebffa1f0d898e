"""The verbs of `upgrade`, and the short way. A plan is made here; what changes the host is done by the daemon."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upgrader.cli.options import Globals, Json, KeepOld, OnFailure, Yes, logs_of, of
from upgrader.core.errors import BlockedError, Exit, UsageError
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName
from upgrader.terminal import consoles

if TYPE_CHECKING:
    from upgrader.adapters.journal import SqliteJournal
    from upgrader.config import Config
    from upgrader.core.journal import RunView
    from upgrader.core.model import HostFacts
    from upgrader.core.plan import Plan
    from upgrader.core.report import RunReport
    from upgrader.daemon.client import Client

# What follows is imported late: --help, and `status`, need neither libvirt nor pyroute2, which take half a second.
# ruff: noqa: PLC0415


def upgrade(
    options: Globals,
    *,
    dry_run: bool,
    yes: bool,
    restore: SlotName | None,
    keep_old: bool | None,
    on_failure: str | None,
    as_json: bool,
) -> int:
    """Check, plan, ask, run, report: what `upgrade --host` does. Returns the exit code."""
    from upgrader.cli import documents, render

    out, err = consoles()
    _require_root(options)
    if not dry_run:
        _require_free(options)
    facts, plan = _plan(options, restore, keep_old, on_failure)
    render.show_owners(err, facts)
    render.show_findings(err, plan.findings)
    if dry_run:
        if as_json:
            documents.show(documents.plan_document(plan))
        elif not plan.blocking:
            render.show_plan(out, plan)
        _require_unblocked(plan)
        return Exit.DONE
    _require_unblocked(plan)
    render.show_plan(err, plan)
    if not yes:
        _ask(f"Move every VM from slot {plan.source} to slot {plan.target}?")
    return _carry_out(options, plan, as_json=as_json)


def check(context: typer.Context, as_json: Json = False) -> None:
    """Findings: what stands against an upgrade of this host, and what to do about it. Changes nothing."""
    from upgrader.cli import documents, render

    _require_root(of(context))
    facts, plan = _plan(of(context))
    out, err = consoles()
    if as_json:
        documents.show(documents.findings_document(plan.findings, blocked=bool(plan.blocking)))
    else:
        render.show_owners(out, facts)
        render.show_findings(out, plan.findings)
        render.show_verdict(err, plan.findings)
    raise typer.Exit(Exit.BLOCKED if plan.blocking else Exit.DONE)


def plan(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option("--out", help="Write the plan to this file, for `upgrade run`.")] = None,
    detailed: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 10 where the plan has something to do.")
    ] = False,
    keep_old: KeepOld = None,
    on_failure: OnFailure = None,
    as_json: Json = False,
) -> None:
    """What a run would do, step by step. Changes nothing."""
    from upgrader.adapters.journal import plan_to_json
    from upgrader.cli import documents, render

    _require_root(of(context))
    out, err = consoles()
    facts, made = _plan(of(context), None, keep_old, on_failure)
    render.show_owners(err, facts)
    render.show_findings(err, made.findings)
    if as_json:
        documents.show(documents.plan_document(made))
    elif not made.blocking:
        render.show_plan(out, made)
    _require_unblocked(made)
    if file is not None:
        _write(file, plan_to_json(made) + "\n")
        err.print(f"next: {of(context).command(f'upgrade run {shlex.quote(str(file))}')}", soft_wrap=True, markup=False)
    raise typer.Exit(Exit.CHANGES if detailed and made.steps else Exit.DONE)


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan that `upgrade plan --out` wrote.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Carry a plan out, if the host is still as it was when the plan was made."""
    from upgrader.adapters.journal import plan_from_json
    from upgrader.cli import render

    _require_root(of(context))
    _require_free(of(context))
    try:
        made = plan_from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no plan of this release"
        raise UsageError(
            "PLAN_UNREADABLE",
            f"{file} cannot be carried out: {why}",
            state="nothing was changed",
            next=f"upgrade plan --out {shlex.quote(str(file))}",
        ) from error
    render.show_plan(consoles()[1], made)
    if not yes:
        _ask(f"Move every VM from slot {made.source} to slot {made.target}?")
    raise typer.Exit(_carry_out(of(context), made, as_json=as_json))


def pause(context: typer.Context, as_json: Json = False) -> None:
    """Stop the run after the step in hand; `upgrade resume` goes on."""
    raise typer.Exit(_request(of(context), "pause", {RunState.PAUSED}, as_json=as_json))


def abort(
    context: typer.Context,
    stay: Annotated[bool, typer.Option("--stay/--back", help="Leave every VM where it is, or take it back.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the run after the step in hand, and take it back (or, with --stay, leave it half-way)."""
    wanted = RunState.HALTED if stay else RunState.RESTORED
    raise typer.Exit(_request(of(context), "stay" if stay else "back", {wanted}, as_json=as_json))


def resume(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """Go on with a run that was paused, has stopped, or whose coordinator died."""
    raise typer.Exit(_again(of(context), "resume", "Go on with the run?", yes=yes, as_json=as_json))


def rollback(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """Take the latest run back: also one that is done, as long as its old switch is kept."""
    raise typer.Exit(_again(of(context), "rollback", "Take the run back?", yes=yes, as_json=as_json))


def add_to(app: typer.Typer) -> None:
    """Mount the verbs in the order in which a person meets them."""
    from upgrader.cli.protection import arm, disarm, takeover
    from upgrader.cli.reading import config_app, history, report, status

    for verb in (check, plan, run, status, pause, resume, abort, rollback, arm, disarm, takeover, history, report):
        app.command()(verb)
    app.add_typer(config_app)


def _plan(
    options: Globals, restore: SlotName | None = None, keep_old: bool | None = None, on_failure: str | None = None
) -> tuple[HostFacts, Plan]:
    """Made here, not by the daemon: it only reads."""
    from upgrader.core.plan import ON_FAILURE

    chosen = next((word for word in ON_FAILURE if word == on_failure), None)
    if on_failure is not None and chosen is None:
        raise UsageError(
            "NO_SUCH_POLICY",
            f"--on-failure takes {', '.join(ON_FAILURE)}, not {on_failure}",
            state="nothing was changed",
            next="upgrade plan --help",
        )
    logs_of(options)
    from upgrader import wiring
    from upgrader.engine.coordinator import make_plan, with_policy

    setup = wiring.setup(_settings(options))
    return make_plan(setup, restore, with_policy(setup.policy, on_failure=chosen, keep_old=keep_old))


def _require_unblocked(made: Plan) -> None:
    if made.blocking:
        raise BlockedError(
            "BLOCKED",
            f"{len(made.blocking)} findings forbid the run: {', '.join(f.code for f in made.blocking)}",
            state="nothing was changed",
            next="what each finding above says, then the same command again",
        )


def _carry_out(options: Globals, made: Plan, *, as_json: bool) -> int:
    from upgrader.adapters.journal import plan_to_json

    with _daemon(options) as client:
        started = client.call("run", plan=plan_to_json(made), config=str(_path(options)))
        return _follow(options, client, started, as_json=as_json, on_failure=made.policy.on_failure)


def _again(options: Globals, method: str, question: str, *, yes: bool, as_json: bool) -> int:
    """Resume, or roll back."""
    _require_root(options)
    if not yes and sys.stdin.isatty():
        _ask(question)
    with _daemon(options) as client:
        started = client.call(method)
        return _follow(options, client, started, as_json=as_json, back=method == "rollback")


def _request(options: Globals, request: str, wanted: set[RunState], *, as_json: bool) -> int:
    """Ask the run that runs to stop, and wait until it has. Returns 0 where it stopped as it was asked to."""
    from upgrader.cli import documents
    from upgrader.cli.follow import follow
    from upgrader.cli.render import show_report
    from upgrader.core.report import report as report_of
    from upgrader.daemon.client import connect

    _require_root(options)
    settings, journal = _journal(options)
    client = connect(settings.host.socket)
    if client is None:
        raise UsageError("NO_RUN", "no run is being carried out", state="nothing was changed", next="upgrade status")
    with client:
        started = client.call("ask", request=request)
        out, err = consoles()
        view = follow(journal, started["run_id"], err, seen=started["events"], alive=client.alive)
    told = _for_the_person(options, report_of(view))
    if as_json:
        documents.show(documents.run_document(told))
    show_report(err if as_json else out, told)
    return Exit.DONE if view.state in wanted else _exit_code(view)


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
    _, journal = _journal(options)

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
    told = _for_the_person(options, report_of(view))
    if as_json:
        documents.show(documents.run_document(told))
    render.show_report(err if as_json else out, told)
    if back and view.state is RunState.RESTORED:
        return Exit.DONE
    return _exit_code(view)


def _exit_code(view: RunView) -> int:
    asked = view.reason == "ASKED"
    if view.state is RunState.DONE:
        return Exit.OPERATOR if view.reason else Exit.DONE
    if view.state is RunState.RESTORED:
        return Exit.STOPPED if asked else Exit.RESTORED
    if view.state in (RunState.PAUSED, RunState.HALTED) and asked:
        return Exit.STOPPED
    return Exit.OPERATOR


def _daemon(options: Globals) -> Client:
    from upgrader.daemon.client import ensure

    return ensure(_settings(options).host.socket, _path(options))


def _journal(options: Globals) -> tuple[Config, SqliteJournal]:
    from upgrader.adapters.journal import SqliteJournal

    settings = _settings(options)
    return settings, SqliteJournal(settings.host.journal, read_only=True)


def _settings(options: Globals) -> Config:
    from upgrader.config import load

    return load(_path(options))


def _path(options: Globals) -> Path:
    from upgrader.config import config_path

    return config_path(options.config).absolute()


def _for_the_person(options: Globals, told: RunReport) -> RunReport:
    """What to type next, as it is typed where that person is."""
    from dataclasses import replace

    return replace(told, next=options.command(told.next)) if told.next else told


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "FILE_UNWRITABLE",
            f"{file}: {error.strerror}",
            state="nothing was changed",
            next="the same with another --out",
        ) from error


def _ask(question: str) -> None:
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


def _require_root(options: Globals) -> None:
    """A simulated host is anybody's."""
    if os.geteuid() != 0 and not _is_simulated(options):
        raise UsageError(
            "NOT_ROOT",
            "starting switches, steering and QEMU's monitor need root",
            state="nothing was changed",
            next="the same command with sudo",
        )


def _require_free(options: Globals) -> None:
    """While a run moves VMs the host looks half-way: what counts is that one is under way, not what a plan finds."""
    from upgrader.core.errors import LockedError
    from upgrader.daemon.client import connect

    client = connect(_settings(options).host.socket)
    if client is None:
        return
    with client:
        if client.call("ping")["busy"]:
            raise LockedError(
                "RUN_BUSY",
                "a run is being carried out",
                state="this command changed nothing",
                next="upgrade status --watch",
            )


def _is_simulated(options: Globals) -> bool:
    try:
        return _settings(options).simulated is not None
    except UsageError:
        return False
