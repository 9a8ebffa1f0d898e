"""The verbs of `upgrade`, and the short way. A plan is made here; what changes the host is done by the daemon."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upgrader.cli import here, runs
from upgrader.cli.options import Globals, Json, KeepOld, OnFailure, Yes, logs_of, of
from upgrader.core.errors import Exit, UsageError
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName
from upgrader.terminal import consoles, print_json

if TYPE_CHECKING:
    from upgrader.core.model import HostFacts
    from upgrader.core.plan import Plan

# What follows is imported late: --help, and `status`, need neither libvirt nor pyroute2, which take half a second.
# ruff: noqa: PLC0415

_QUESTION = "Move every VM from slot {source} to slot {target}?"


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
    here.require_root(options)
    if not dry_run:
        here.require_free(options)
    facts, plan = _plan(options, restore, keep_old, on_failure)
    if dry_run:
        runs.show(facts, plan, as_json=as_json)
        return Exit.DONE
    return runs.begin(options, facts, plan, _QUESTION, yes=yes, as_json=as_json)


def check(context: typer.Context, as_json: Json = False) -> None:
    """Findings: what stands against an upgrade of this host, and what to do about it. Changes nothing."""
    from upgrader.cli import documents, render

    here.require_root(of(context))
    facts, plan = _plan(of(context))
    out, err = consoles()
    if as_json:
        print_json(documents.findings_document(plan.findings, blocked=bool(plan.blocking)))
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

    here.require_root(of(context))
    facts, made = _plan(of(context), None, keep_old, on_failure)
    runs.show(facts, made, as_json=as_json)
    if file is not None:
        _write(file, plan_to_json(made) + "\n")
        err = consoles()[1]
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

    here.require_root(of(context))
    here.require_free(of(context))
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
        runs.confirm(_QUESTION.format(source=made.source, target=made.target))
    raise typer.Exit(runs.carry_out(of(context), made, as_json=as_json))


def pause(context: typer.Context, as_json: Json = False) -> None:
    """Stop the run after the step in hand; `upgrade resume` goes on."""
    raise typer.Exit(runs.ask(of(context), "pause", {RunState.PAUSED}, as_json=as_json))


def abort(
    context: typer.Context,
    stay: Annotated[bool, typer.Option("--stay/--back", help="Leave every VM where it is, or take it back.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the run after the step in hand, and take it back (or, with --stay, leave it half-way)."""
    wanted = RunState.HALTED if stay else RunState.RESTORED
    raise typer.Exit(runs.ask(of(context), "stay" if stay else "back", {wanted}, as_json=as_json))


def resume(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """Go on with a run that was paused, has stopped, or whose coordinator died."""
    raise typer.Exit(runs.again(of(context), "resume", "Go on with the run?", yes=yes, as_json=as_json))


def rollback(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """Take the latest run back: also one that is done, as long as its old switch is kept."""
    raise typer.Exit(runs.again(of(context), "rollback", "Take the run back?", yes=yes, as_json=as_json))


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

    setup = wiring.setup(here.settings_of(options))
    return make_plan(setup, restore, with_policy(setup.policy, on_failure=chosen, keep_old=keep_old))


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
