"""The `upgrade` command. Data on stdout, progress and logs on stderr; exit codes are those of `core.errors.Exit`."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TextIO, cast

import structlog
import typer
import typer.exceptions

from upgrader.core.errors import BlockedError, Exit, UpgradeError, UsageError
from upgrader.core.model import SlotName
from upgrader.terminal import Stderr, consoles

app = typer.Typer(no_args_is_help=False, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_TYPERS_CTRL_C = 130
_LOCAL = ("localhost", "127.0.0.1", "::1")


@app.callback(invoke_without_command=True)
def upgrade(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", help="The host to upgrade: localhost, or this machine's name.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration (default: $OVS_UPGRADE_CONFIG, /etc/ovs-upgrade/config.toml)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show findings and plan, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the run.")] = False,
    restore: Annotated[
        str | None,
        typer.Option(
            "--restore",
            metavar="a|b",
            help="After a run that was cut off: bring every VM to this slot, retire the other.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan or report as JSON on stdout.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every command that is run.")] = False,
) -> None:
    """Replace the OVS-DPDK of a host under its running VMs, one VM at a time."""
    _logging(verbose)
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
    raise typer.Exit(_upgrade(_local(host), config, dry_run=dry_run, yes=yes, restore=slot, as_json=as_json))


def _upgrade(
    host: str, config: Path | None, *, dry_run: bool, yes: bool, restore: SlotName | None, as_json: bool
) -> int:
    # late: --help and errors about arguments need neither libvirt nor pyroute2, which take half a second to import
    from upgrader import wiring  # noqa: PLC0415
    from upgrader.cli import render  # noqa: PLC0415
    from upgrader.cli.interrupt import interrupts  # noqa: PLC0415
    from upgrader.config import config_path, load  # noqa: PLC0415
    from upgrader.core import plan as planning  # noqa: PLC0415
    from upgrader.core.report import plan_json  # noqa: PLC0415
    from upgrader.engine.facts import gather  # noqa: PLC0415
    from upgrader.engine.lock import host_lock  # noqa: PLC0415
    from upgrader.engine.run import Run  # noqa: PLC0415

    out, err = consoles()
    _require_root()
    settings = load(config_path(config))
    real, slots = wiring.host(settings), wiring.slots(settings)

    def make_plan() -> planning.Plan:
        facts = gather(host, slots, real, vni_key=settings.host.vni_external_id, adapter=settings.nic.adapter)
        capabilities, accept = real.steering.capabilities(), settings.policy.accept
        if restore:
            made = planning.restore(facts, capabilities, restore, accept)
        else:
            made = planning.upgrade(facts, capabilities, accept)
        render.show_owners(err, facts)
        render.show_findings(err, made.findings)
        if made.blocking:
            if dry_run and as_json:
                sys.stdout.write(json.dumps(plan_json(made), indent=2) + "\n")
            codes = ", ".join(f.code for f in made.blocking)
            raise BlockedError(
                "BLOCKED",
                f"{len(made.blocking)} findings forbid the run: {codes}",
                state="nothing was changed",
                next="see `next` of each finding above",
            )
        return made

    if dry_run:
        plan = make_plan()
        if as_json:
            sys.stdout.write(json.dumps(plan_json(plan), indent=2) + "\n")
        else:
            render.show_plan(out, plan)
        return Exit.DONE
    with host_lock(settings.host.lock):
        plan = make_plan()
        render.show_plan(err, plan)
        if not yes:
            _ask(plan.source, plan.target)
            if make_plan().id != plan.id:
                raise BlockedError(
                    "PLAN_STALE",
                    "the host is not as it was when the plan was shown",
                    state="nothing was changed",
                    next=f"upgrade --host {host} --dry-run",
                )
        with interrupts() as interrupted:
            recorder = render.ConsoleRecorder(err)
            report = Run(plan, real, slots, recorder, settings.policy.blackout_budget_us, interrupted).execute()
    report = replace(report, next=_with_config(report.next or "", config) or None)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=2) + "\n")
    render.show_report(err if as_json else out, report)
    if report.outcome == "restored" and interrupted():
        return Exit.STOPPED
    return {"done": Exit.DONE, "restored": Exit.RESTORED, "operator-needed": Exit.OPERATOR}[report.outcome]


def _ask(source: str, target: str) -> None:
    """Ask on a terminal; without one the answer has to be on the command line."""
    if not sys.stdin.isatty():
        raise UsageError(
            "NOT_CONFIRMED",
            "there is no terminal to ask on",
            state="nothing was changed",
            next="the same command with --yes",
        )
    if not typer.confirm(f"Move every VM from slot {source} to slot {target}?", err=True):
        raise UsageError("NOT_CONFIRMED", "not confirmed", state="nothing was changed", next="the same command again")


def _local(host: str) -> str:
    names = {*_LOCAL, socket.gethostname(), socket.getfqdn()}
    if host not in names:
        raise UsageError(
            "HOST_UNKNOWN",
            f"{host} is not this machine (which is {socket.gethostname()}), and other hosts are not reached from here yet",
            state="nothing was changed",
            next=f"on {host}: upgrade --host localhost",
        )
    return socket.gethostname() if host in _LOCAL else host


def _require_root() -> None:
    if os.geteuid() != 0:
        raise UsageError(
            "NOT_ROOT",
            "starting switches, steering and QEMU's monitor need root",
            state="nothing was changed",
            next="the same command with sudo",
        )


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


def _mount_lab() -> None:
    from upgrader.cli.nic import nic_app  # noqa: PLC0415
    from upgrader.lab.commands import lab_app  # noqa: PLC0415

    app.add_typer(lab_app)
    app.add_typer(nic_app)


def main() -> None:
    """Entry point: whatever goes wrong ends with three lines and an exit code."""
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    try:
        _mount_lab()
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
            state="nothing was changed: this was before a run began",
            next="the same command with --verbose, and tell the authors what it prints",
        )
        code = _refuse(arguments, unexpected)
    if code == _TYPERS_CTRL_C:
        sys.stderr.write("interrupted before anything was changed\n")
        code = Exit.STOPPED
    return code


def _with_config(command: str, given: object) -> str:
    """What to type next has to read the same configuration."""
    return command.replace("upgrade --host", f"upgrade --config {given} --host") if given else command


def _refuse(arguments: list[str], error: UpgradeError) -> int:
    """Show an error, on stdout as JSON where that was asked for, and return its exit code."""
    from upgrader.cli import render  # noqa: PLC0415
    from upgrader.core.report import error_json  # noqa: PLC0415

    if "--config" in arguments[:-1]:
        error.next = _with_config(error.next, arguments[arguments.index("--config") + 1])
    render.show_error(consoles()[1], error)
    if "--json" in arguments:
        sys.stdout.write(json.dumps(error_json(error), indent=2) + "\n")
    return error.exit_code


if __name__ == "__main__":
    main()
