"""The `upgrade` command. Data on stdout, progress and logs on stderr; exit codes are those of `core.errors.Exit`."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, TextIO, cast

import structlog
import typer
import typer.exceptions

from upgrader.cli import verbs
from upgrader.cli.options import Globals, Json, KeepOld, OnFailure, Yes
from upgrader.core.errors import Exit, UpgradeError, UsageError
from upgrader.core.model import SlotName
from upgrader.terminal import Stderr, consoles

app = typer.Typer(no_args_is_help=False, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_TYPERS_CTRL_C = 130
_LOCAL = ("localhost", "127.0.0.1", "::1")


@app.callback(invoke_without_command=True)
def upgrade(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", help="The host: localhost, or another one, reached by ssh.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration (default: $OVS_UPGRADE_CONFIG, /etc/ovs-upgrade/config.toml)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show findings and plan, change nothing.")] = False,
    yes: Yes = False,
    restore: Annotated[
        str | None,
        typer.Option(
            "--restore",
            metavar="a|b",
            help="Where the journal does not help: bring every VM to this slot, end the other.",
        ),
    ] = None,
    keep_old: KeepOld = None,
    on_failure: OnFailure = None,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every command that is run.")] = False,
) -> None:
    """Replace the OVS-DPDK of a host under its running VMs, one VM at a time.

    Without a verb and with --host: check, plan, ask, run, report.
    """
    _logging(verbose)
    context.obj = Globals(config, host)
    if host is not None and not _is_local(host):
        from upgrader.cli.remote import run_there  # noqa: PLC0415

        raise typer.Exit(run_there(host, _ARGUMENTS))
    if context.invoked_subcommand is not None:
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


def _logging(verbose: bool) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Stderr())),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if sys.stderr.isatty() or not os.environ.get("JOURNAL_STREAM")
            else structlog.processors.JSONRenderer(),
        ],
    )


_ARGUMENTS: list[str] = []  # of this process, for the host they are meant for


def _mount(arguments: list[str]) -> None:
    """Commands that take a fifth of a second to import: only for who uses them, or completes a line with them."""
    app.registered_groups = [g for g in app.registered_groups if g.typer_instance is verbs.config_app]
    completes = any(name.endswith("_COMPLETE") for name in os.environ)
    if completes or "lab" in arguments:
        from upgrader.lab.commands import lab_app  # noqa: PLC0415

        app.add_typer(lab_app)
    else:
        app.add_typer(_named_only, name="lab", help="A host in a box: real OVS-DPDK and guests on this machine.")
    if completes or "nic" in arguments:
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
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    _ARGUMENTS[:] = arguments
    try:
        _mount(arguments)
        code = int(app(args=arguments, standalone_mode=False) or Exit.DONE)
    except typer.Abort:  # no answer at the prompt
        code = _TYPERS_CTRL_C
    except typer.exceptions.TyperException as error:
        sys.stderr.write(f"error {error.format_message()}\n  state: nothing was changed\n  next:  upgrade --help\n")
        code = Exit.USAGE
    except UpgradeError as error:
        code = _refuse(arguments, error)
    except Exception as error:  # noqa: BLE001 - an operator at 3 a.m. gets words, and --verbose gets the trace
        structlog.get_logger(__name__).debug("unexpected", exc_info=True)
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
    from upgrader.core.report import error_json  # noqa: PLC0415

    if "--config" in arguments[:-1]:
        # what to type next has to read the same configuration
        error.next = Globals(Path(arguments[arguments.index("--config") + 1])).command(error.next)
    render.show_error(consoles()[1], error)
    if "--json" in arguments:
        sys.stdout.write(json.dumps(error_json(error), indent=2) + "\n")
    return error.exit_code


if __name__ == "__main__":
    main()
