"""Everything the coordinator must show, run for real: a line an item with figure and limit, non-zero if one fails.

make show-coordinator                    # all of it, about three quarters of an hour
make show-coordinator PARTS="kills cost" # some of it
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.show.items import ROOT, Item, show, tested
from tests.show.machine import left_on_machine
from tests.support.killing import coordinator_pid, latest, running_upgrade, settled, verb, wait_until
from tests.support.lab_host import LabHost, upgrade
from tests.support.labs import lab_spec
from upgrader.adapters import gate
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.lifecycle import UNFINISHED
from upgrader.core.model import other_slot
from upgrader.lab.up import Lab

SIMULATED = (
    "tests/unit/test_coordinator.py",
    "tests/unit/test_claimed.py",
    "tests/unit/test_churn.py",
)
HISTORIES = "tests/unit/test_state_machine.py"
LAB = "tests/integration/test_coordinator.py"
DAEMON = (
    "tests/unit/test_daemon.py",
    "tests/unit/test_daemon_logs.py",
    "tests/unit/test_watchdog.py",
    "tests/unit/test_units.py",
    "tests/integration/test_systemd.py",
)

INTENT, OUTCOME = EventKind.INTENT, EventKind.OUTCOME
# Points of a run of four VMs at which its coordinator is killed, each once before `resume` and once before `rollback`
POINTS = (
    (INTENT, "start-standby", 0),
    (OUTCOME, "start-standby", 0),
    (INTENT, "replicate", 0),
    (OUTCOME, "replicate", 0),
    (INTENT, "prove", 0),
    (INTENT, "attach-standby", 0),
    (OUTCOME, "attach-standby", 2),
    (INTENT, "open-window", 0),
    (OUTCOME, "open-window", 0),
    (INTENT, "move-vm", 0),
    (OUTCOME, "move-vm", 1),
    (INTENT, "move-vm", 3),
    (INTENT, "catch-up", 0),
    (OUTCOME, "close-window", 0),
    (INTENT, "move-control", 0),
    (INTENT, "promote", 0),
    (OUTCOME, "promote", 0),
    (INTENT, "soak", 0),
    (INTENT, "retire", 0),
)


@contextmanager
def lab() -> Iterator[Lab]:
    """Four VMs; it is left as it was found."""
    it = Lab(lab_spec("show"), say=lambda text: print(text, file=sys.stderr))
    it.up()
    try:
        yield it
    finally:
        it.down()


def kills() -> Iterator[Item]:
    """SIGKILL of the real coordinator on the real stack, then each of the two ways out."""
    before = left_on_machine()
    with lab() as it:
        host = LabHost(it)
        for way in ("resume", "rollback"):
            for kind, step, nth in POINTS:
                yield _killed(it, host, kind, step, nth, way)
    more = {k: sorted(v - before[k]) for k, v in left_on_machine().items() if v - before[k]}
    yield Item("left on the machine", json.dumps(more) if more else "nothing", "nothing", not more)


def _killed(it: Lab, host: LabHost, kind: EventKind, step: str, nth: int, way: str) -> Item:
    source = host.active()
    with running_upgrade(it) as run:
        run.wait_for(kind, step, nth)
        run.kill_coordinator()
        run.process.wait(60)
    view = latest(host)
    state = view.state if view else None
    pids = {host.pid("a"), host.pid("b")} - {None}
    unserved = [p.label for p in host.facts().ports if not p.ownership or p.ownership.owner_pid not in pids]
    what = f"killed after the {kind} of {step} {nth}, then {way}"
    if state not in UNFINISHED:  # the run ended before the signal came: nothing to take up
        wrong = settled(host, other_slot(source))
        return Item(what, f"it had ended; {'; '.join(wrong) or 'settled'}", "settled", not wrong)
    done = verb(it, way, "--yes", "--json")
    report = json.loads(done.stdout) if done.stdout else {}
    outcome = report.get("outcome")
    too_late = way == "rollback" and report.get("reason") == "ROLLBACK_TOO_LATE"
    end = source if way == "rollback" and not too_late else other_slot(source)
    wrong = settled(host, end) + [f"no switch serves {vm} in between" for vm in unserved]
    allowed = {"done"} if way == "resume" or too_late else {"restored"}
    holds = outcome in allowed and not wrong
    figure = f"{outcome}, {'; '.join(wrong) or 'settled'}" + ("" if holds else f"; {done.stderr[-400:]}")
    return Item(what, figure, "a finished or a restored host, every VM connected, nothing left", holds)


def simulated() -> Iterator[Item]:
    """All points, and histories that were never tried before, on the simulated host."""
    for file in SIMULATED:
        yield from tested(file)
    yield from tested(HISTORIES, env={"STATE_MACHINE_EXAMPLES": "1500"})


def commands() -> Iterator[Item]:
    """Two runs at once, a command killed, pause, abort, stale plans: on the real stack."""
    names = (
        "test_a_command_that_is_killed_leaves_the_run_going",
        "test_a_second_run_beside_one_is_refused",
        "test_pause_resume_and_abort",
        "test_a_kept_switch_is_a_way_back",
        "test_a_vm_that_is_restarted_beside_a_kept_switch_is_with_the_new_one_and_can_go_back",
        "test_reading_needs_no_coordinator",
    )
    yield from tested(LAB, *names)


def churn() -> Iterator[Item]:
    """VMs that reboot, stop, start, gain or lose a port, or migrate while a run is half-way: on the real stack."""
    yield from tested("tests/integration/test_churn.py")


def contracts() -> Iterator[Item]:
    """The simulated host and the real adapters, held to the same suites."""
    yield from tested("tests/contract/test_host.py")
    yield from tested("tests/integration/test_contracts.py")


def daemon() -> Iterator[Item]:
    """Socket, log, watchdog and units, these under a real systemd."""
    for file in DAEMON:
        yield from tested(file)


def command_line() -> Iterator[Item]:
    """What each verb prints, on a terminal and off it, and its JSON against the published schemas; over ssh."""
    for file in (
        "tests/unit/test_cli_golden.py",
        "tests/unit/test_cli_published.py",
        "tests/integration/test_remote.py",
    ):
        yield from tested(file)


def cost() -> Iterator[Item]:
    """A rollback of four VMs after the promotion costs them no more than the way there: in QEMU's own measure of each move.

    Three times from either slot, so that neither switch's age tells the two ways apart.
    """
    there, back = [], []
    with lab() as it:
        host = LabHost(it)
        for round_ in range(6):
            if round_ == 3:
                yield _exits("an upgrade to the other slot", upgrade(it.config_path, "--yes"))
            source = host.active()
            done = upgrade(it.config_path, "--yes", "--keep-old", "--json")
            yield _exits("upgrade --keep-old", done)
            promoted = host.host.well_known.current()
            yield Item(
                "promoted before the rollback", f"slot {promoted}", f"slot {other_slot(source)}", promoted != source
            )
            again = verb(it, "rollback", "--yes", "--json")
            yield _exits("rollback after the end", again)
            moves = json.loads(again.stdout)["moves"]
            there += [m["blackout_us"] for m in moves if not m["undone"]]
            back += [m["blackout_us"] for m in moves if m["undone"]]
            wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)
    forward, way_back = statistics.median(there), statistics.median(back)
    quartile = statistics.quantiles(there, n=4)[2]
    yield Item(
        f"blackout of a rollback after the end, median of {len(back)}",
        f"{way_back:.0f} us, {max(back):.0f} at most; the way there {forward:.0f} us, {max(there):.0f} at most",
        "1.5 times the way there, or 1.5 ms",
        way_back <= max(1.5 * forward, 1500) and len(back) == len(there) == 24,
    )
    yield Item(
        "that median beside the spread of the way there",
        f"{way_back:.0f} us",
        f"{quartile:.0f} us, which a quarter of the moves there took longer than",
        way_back <= quartile,
    )


def _exits(what: str, done: gate.Completed) -> Item:
    said = "" if done.returncode == Exit.DONE else f": {done.stderr[-400:]}"
    return Item(what, f"exit code {done.returncode}{said}", "0", done.returncode == Exit.DONE)


def bench() -> Iterator[Item]:
    """1,000 simulated VMs: plan, status, help."""
    done = gate.run(
        [sys.executable, "-m", "tests.bench.bench_cli", "--json"],
        cwd=ROOT,
        timeout_s=600,
        check=False,
        show_stderr=True,
    )
    if done.returncode != 0:
        yield Item("tests.bench.bench_cli", f"exit code {done.returncode}", "0", False)
        return
    for line in json.loads(done.stdout):
        if line["limit_s"] is None:  # for scale only
            continue
        yield Item(
            line["what"],
            f"median {line['median_s']:.3f} s",
            f"{line['limit_s']:g} s",
            line["median_s"] <= line["limit_s"],
        )


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "simulated": simulated,
    "commands": commands,
    "churn": churn,
    "contracts": contracts,
    "daemon": daemon,
    "cli": command_line,
    "cost": cost,
    "bench": bench,
    "kills": kills,
}


if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
