"""The `upgrade` command. Data on stdout, progress and logs on stderr; exit codes are those of `core.errors.Exit`."""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
import typer.exceptions

from upgrader import __version__
from upgrader.cli import verbs
from upgrader.cli.completion import SHELLS, knows_the_shells, show_completion
from upgrader.cli.options import Globals, Json, KeepOld, OnFailure, Yes, hoisted, logs_of, options_of
from upgrader.cli.reading import config_app
from upgrader.core.errors import Exit, UpgradeError, UsageError
from upgrader.core.model import SlotName
from upgrader.terminal import consoles, print_json

app = typer.Typer(no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_TYPERS_CTRL_C = 130
_LOCAL = ("localhost", "127.0.0.1", "::1")


@app.callback(invoke_without_command=True)
def upgrade(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="The host: localhost, or another one, reached by ssh.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", hidden=True)] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Configuration (default: $OVS_UPGRADE_CONFIG, /etc/ovs-upgrade/config.toml).",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show findings and plan, change nothing.")] = False,
    yes: Yes = False,
    restore: Annotated[
        str | None,
        typer.Option(
            "--restore",
            metavar="a|b",
            help="Where the journal does not help: bring every VM to this slot, end the other.",
            autocompletion=lambda: ["a", "b"],
        ),
    ] = None,
    keep_old: KeepOld = None,
    on_failure: OnFailure = None,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every command that is run.")] = False,
    completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            metavar="|".join(SHELLS),
            help="Print this shell's completion of the command, for its start-up file.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version of this command.")] = False,
) -> None:
    """Replace the OVS-DPDK of a host under its running VMs, one VM at a time.

    Without a verb and with --host: check, plan, ask, run, report. --host, --config and --verbose may also stand behind
    a verb; with --host the verb is carried out there, by ssh.
    """
    if completion is not None:
        show_completion(completion)
    if version:
        typer.echo(f"upgrade {__version__}")
        raise typer.Exit
    context.obj = Globals(config, host, remote=here, verbose=verbose)
    if host is not None and not here and not _is_local(host):
        from upgrader.cli.remote import run_there  # noqa: PLC0415

        raise typer.Exit(run_there(host, _ARGUMENTS))
    if context.invoked_subcommand is not None:
        _require_no_option_of_the_short_way(context)
        if context.invoked_subcommand in ("lab", "nic"):
            logs_of(context.obj)
        return
    if host is None:
        raise UsageError(
            "NO_HOST",
            "no host was named",
            state="nothing was changed",
            next="upgrade --host localhost   (or: upgrade --help, upgrade lab up)",
        )
    if restore not in (None, "a", "b"):
        raise UsageError(
            "NO_SUCH_SLOT",
            f"--restore takes a or b, not {restore}",
            state="nothing was changed",
            next=f"upgrade --host {host} --dry-run   (it names the slot that serves each VM)",
        )
    slot: SlotName | None = "a" if restore == "a" else "b" if restore == "b" else None
    raise typer.Exit(
        verbs.upgrade(
            context.obj,
            dry_run=dry_run,
            yes=yes,
            restore=slot,
            keep_old=keep_old,
            on_failure=on_failure,
            as_json=as_json,
        )
    )


verbs.add_to(app)


def _is_local(host: str) -> bool:
    return host in {*_LOCAL, socket.gethostname(), socket.getfqdn()}


def _require_no_option_of_the_short_way(context: typer.Context) -> None:
    """`upgrade --dry-run run FILE` would run: what stands before a verb and is not meant for it is refused."""
    given = context.get_parameter_source
    stray = [
        param.opts[0]
        for param in context.command.params
        if param.name not in _BEFORE_A_VERB and getattr(given(str(param.name)), "name", "DEFAULT") != "DEFAULT"
    ]
    if stray:
        verb = context.invoked_subcommand
        raise UsageError(
            "OPTION_BEFORE_VERB",
            f"{', '.join(stray)} stands before the verb `{verb}`: it belongs to the command without a verb",
            state="nothing was changed",
            next=f"upgrade {verb} --help   (what it takes is written behind it)",
        )


_BEFORE_A_VERB = ("host", "here", "config", "verbose", "completion", "version")
_ARGUMENTS: list[str] = []  # of this process, for the host they are meant for


def whole() -> typer.Typer:
    """The command with all there is of it."""
    _mount(lab=True, nic=True)
    return app


def _mount(*, lab: bool, nic: bool) -> None:
    """Commands that take a fifth of a second to import: only for who uses them, or completes a line with them."""
    app.registered_groups = [g for g in app.registered_groups if g.typer_instance is config_app]
    if lab:
        from upgrader.lab.commands import lab_app  # noqa: PLC0415

        app.add_typer(lab_app)
    else:
        app.add_typer(_named_only, name="lab", help="A host in a box: real OVS-DPDK and guests on this machine.")
    if nic:
        from upgrader.cli.nic import nic_app  # noqa: PLC0415

        app.add_typer(nic_app)
    else:
        app.add_typer(_named_only, name="nic", help="What this NIC can do for an upgrade, and which rules are ours.")


_named_only = typer.Typer()


@_named_only.callback()
def _() -> None:
    """Stands in `upgrade --help` for a group's own commands."""


def main() -> None:
    """Entry point: whatever goes wrong ends with three lines and an exit code."""
    gc.set_threshold(100_000)  # thousands of events are read at once, and a command is soon over
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    arguments = hoisted(arguments)
    _ARGUMENTS[:] = arguments
    try:
        completes = any(name.endswith("_COMPLETE") for name in os.environ)
        if completes:
            knows_the_shells()
        _mount(lab=completes or "lab" in arguments, nic=completes or "nic" in arguments)
        code = int(app(args=arguments, standalone_mode=False, prog_name="upgrade") or Exit.DONE)
    except typer.Abort:  # no answer at the prompt
        code = _TYPERS_CTRL_C
    except typer.exceptions.TyperException as error:
        where = getattr(error, "ctx", None)
        said = UsageError(
            "BAD_COMMAND_LINE",
            error.format_message(),
            state="nothing was changed",
            next=f"{where.command_path if where else 'upgrade'} --help",
        )
        code = _refuse(arguments, said)
    except UpgradeError as error:
        code = _refuse(arguments, error)
    except Exception as error:  # noqa: BLE001 - an operator at 3 a.m. gets words, and --verbose gets the trace
        if "--verbose" in arguments or "-v" in arguments:
            traceback.print_exc()
        unexpected = UpgradeError(
            "UNEXPECTED",
            f"{type(error).__name__}: {error}",
            state="this command changed nothing by itself; `upgrade status` tells of a run",
            next="the same command with --verbose, and tell the authors what it prints",
        )
        code = _refuse(arguments, unexpected)
    if code == _TYPERS_CTRL_C:
        sys.stderr.write("interrupted before anything was changed\n")
        code = Exit.STOPPED
    return code


def _refuse(arguments: list[str], error: UpgradeError) -> int:
    """Show an error, on stdout as JSON where that was asked for, and return its exit code."""
    from upgrader.cli import render  # noqa: PLC0415
    from upgrader.cli.documents import error_document  # noqa: PLC0415

    error.next = options_of(arguments).command(error.next)
    render.show_error(consoles()[1], error)
    if "--json" in arguments:
        print_json(error_document(error))
    return error.exit_code


if __name__ == "__main__":
    main()
