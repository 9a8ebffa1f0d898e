"""The verbs that only read: how a run is or was, by its journal, and the configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from upgrader.cli import here, runs
from upgrader.cli.options import Json, of
from upgrader.core.errors import UsageError
from upgrader.core.lifecycle import RunState
from upgrader.terminal import consoles, print_json

# What follows is imported late, as in `verbs`, which mounts these.
# ruff: noqa: PLC0415


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run that is carried out has ended.")] = False,
    as_json: Json = False,
) -> None:
    """The latest run, by its journal: how far it is, who serves whom, what to type next."""
    from upgrader.cli import protection, render
    from upgrader.core.journal import recorded
    from upgrader.core.plan import PlanKind
    from upgrader.core.report import ending
    from upgrader.engine.lock import holder

    settings, journal = here.journal_of(of(context))
    view = journal.latest()
    out, err = consoles()
    if watch and view is not None:
        from upgrader.cli.follow import follow

        view = follow(journal, view.heading.run_id, err, alive=lambda: holder(settings.host.lock) is not None)
    pid = holder(settings.host.lock)
    if as_json:
        from upgrader.cli import documents

        print_json(documents.status_document(view, pid, protection.standing(settings, journal)))
        return
    end = ending(view) if view else None
    if view and end and view.heading.kind == PlanKind.ARM and view.state is RunState.DONE:
        end = replace(end, state=None, next=None)  # that was then: how well the host is protected is told of below
    render.show_status(out, view, recorded(view) if view else None, end, pid, of(context).command)
    protection.show(out, protection.standing(settings, journal))


def history(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="How many runs, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """The runs of this host."""
    headings = here.journal_of(of(context))[1].headings(limit)
    if as_json:
        from upgrader.cli import documents

        print_json(documents.history_document(headings))
    else:
        from upgrader.cli import render

        render.show_history(consoles()[0], headings)


def report(
    context: typer.Context,
    run_id: Annotated[int | None, typer.Argument(metavar="[RUN]", help="Its number (default: the latest).")] = None,
    as_json: Json = False,
) -> None:
    """What a run came to, and what each VM's hand-over took."""
    from upgrader.cli import documents, render
    from upgrader.core.report import report as report_of

    journal = here.journal_of(of(context))[1]
    view = journal.latest() if run_id is None else journal.view(run_id)
    if view is None:
        raise UsageError(
            "NO_SUCH_RUN",
            "no run is recorded on this host" if run_id is None else f"there is no run {run_id}",
            state="nothing was changed",
            next="upgrade history",
        )
    told = runs.for_the_person(of(context), report_of(view))
    if as_json:
        print_json(documents.run_document(told))
    else:
        render.show_report(consoles()[0], told)


config_app = typer.Typer(name="config", help="The configuration as it is read.", no_args_is_help=True)


@config_app.command("show")
def config_show(context: typer.Context) -> None:
    """Every key with the value that counts, defaults too, as JSON."""
    from upgrader.cli import documents

    print_json(documents.config_document(here.settings_of(of(context))))


@config_app.command("validate")
def config_validate(context: typer.Context) -> None:
    """Whether the configuration can be used; what is wrong with it, by file and key."""
    from upgrader.config import files

    here.settings_of(of(context))
    names = " + ".join(str(path) for path in files(here.config_path(of(context))))
    consoles()[0].print(f"{names}: valid", soft_wrap=True, markup=False)
