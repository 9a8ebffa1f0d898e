"""`upgrade arm`, `disarm` and `takeover`, and what `status` says of a host's protection."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from upgrader.cli import here, runs
from upgrader.cli.options import Globals, Json, Yes, of
from upgrader.core.errors import BlockedError, Exit
from upgrader.terminal import consoles

if TYPE_CHECKING:
    from upgrader.adapters.journal import SqliteJournal
    from upgrader.config import Config
    from upgrader.core.model import HostFacts
    from upgrader.core.plan import Plan, PlanKind
    from upgrader.core.takeover import Standing

# What follows is imported late, as in `verbs`, which mounts these.
# ruff: noqa: PLC0415

_ARMED_S = 20.0
_ANSWER_S = 3.0
_POLL_S = 0.2
_COLOUR = {"armed": "green", "disarmed": "dim", "arming": "cyan"}


def arm(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """Keep a second switch ready in the other slot: replicated, proved, connected to every VM. No VM is moved."""
    from upgrader.core.plan import PlanKind

    options = of(context)
    here.require_free(options)
    settings = here.settings_of(options)
    if settings.takeover.policy == "off":
        raise BlockedError(
            "TAKEOVER_OFF",
            'takeover.policy is "off": no standby would be kept',
            state="nothing was changed",
            next='set takeover.policy to "manual" or "automatic" in the configuration, then: upgrade arm',
        )
    code = _run(options, PlanKind.ARM, "Start a standby in slot {target}?", yes=yes, as_json=as_json)
    if code == Exit.DONE:
        _await_armed(settings)
    raise typer.Exit(code)


def disarm(context: typer.Context, yes: Yes = False, as_json: Json = False) -> None:
    """End the standby; the host has one switch from then on. No VM is moved."""
    from upgrader.core.plan import PlanKind

    here.require_free(of(context))
    question = "End the standby in slot {source}?"
    raise typer.Exit(_run(of(context), PlanKind.DISARM, question, yes=yes, as_json=as_json))


def takeover(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, change nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Bring every VM to the standby at once, from an active that is dead or hangs: if it lives, it is killed first."""
    from upgrader.core.plan import PlanKind

    options = of(context)
    if dry_run:
        runs.show(*_plan(options, PlanKind.TAKEOVER), as_json=as_json)
        raise typer.Exit(Exit.DONE)
    question = "Kill the switch of slot {source}, if it lives, and serve every VM by slot {target}?"
    raise typer.Exit(_run(options, PlanKind.TAKEOVER, question, yes=yes, as_json=as_json))


def standing(settings: Config, journal: SqliteJournal) -> Standing:
    """What the daemon says of the host's protection; where none runs, what the journal does."""
    from upgrader.core.errors import UpgradeError
    from upgrader.core.takeover import Protection, Standing, history
    from upgrader.daemon.client import connect

    why = "no daemon runs: QEMU brings the rings over if the active dies, and nobody turns steering or starts a standby"
    then = "systemctl start ovs-upgraded   (or: upgrade arm)"
    try:
        client = connect(settings.host.socket)
        if client is not None:
            with client:
                return _read(client.call("protection", within_s=_ANSWER_S))
    except UpgradeError as error:  # it is about to end, or too old to know: as if there were none
        if error.code == "DAEMON_HANGS":
            why, then = error.what, error.next
    past = history(journal.headings(200, steps=False), time.time_ns())
    if past.state is Protection.DISARMED:
        return Standing(past.state, next="upgrade arm", stale="nobody keeps it so: the host is not armed")
    state = Protection.STALE if past.state is Protection.ARMED else past.state
    return Standing(state, why, then, stale="no daemon runs to keep it so")


def _read(told: dict[str, Any]) -> Standing:
    from upgrader.core.takeover import Protection, Standing

    return Standing(**{**told, "state": Protection(told["state"])})


def show(console: Console, told: Standing) -> None:
    """One line, and what to type where it is no good."""
    where = f", slot {told.standby} stands by on {told.vms} VM ports" if told.standby else ""
    policy = f", policy {told.policy}" if told.policy else ""
    why = f": {escape(told.reason)}" if told.reason else ""
    colour = _COLOUR.get(told.state, "yellow")
    console.print(f"protection: [{colour}]{told.state}[/]{where}{policy}{why}", soft_wrap=True)
    if told.reason and told.next:
        console.print(f"  next:  {escape(told.next)}", soft_wrap=True)


def _plan(options: Globals, kind: PlanKind) -> tuple[HostFacts, Plan]:
    from upgrader import wiring
    from upgrader.core.arming import with_staleness
    from upgrader.core.plan import PlanKind
    from upgrader.engine.coordinator import make_plan

    here.require_root(options)
    settings, journal = here.journal_of(options)
    setup = wiring.setup(settings)
    facts, made = make_plan(setup, None, setup.policy, kind)
    if kind is PlanKind.TAKEOVER:
        made = with_staleness(made, standing(settings, journal).stale)
    return facts, made


def _run(options: Globals, kind: PlanKind, question: str, *, yes: bool, as_json: bool) -> int:
    return runs.begin(options, *_plan(options, kind), question, yes=yes, as_json=as_json)


def _await_armed(settings: Config) -> None:
    """The daemon looks at the host once more before it says that it is armed."""
    from upgrader.daemon.client import connect

    deadline = time.monotonic() + _ARMED_S
    told = None
    while (told is None or told.state != "armed") and time.monotonic() < deadline:
        client = connect(settings.host.socket)
        if client is None:
            break
        with client:
            told = _read(client.call("protection"))
        time.sleep(_POLL_S)
    if told:
        show(consoles()[1], told)
