"""Everything the first live upgrade must show, run for real: a line an item with figure and limit, non-zero if one fails.

make show-upgrade                    # all of it; with the cold runs well over an hour
make show-upgrade PARTS="moves kill" # some of it

Nothing else may build or run labs on the machine meanwhile: it would be counted as left behind, and be felt by the VMs.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.show.items import OUT, ROOT, Item, show, tested
from tests.show.machine import left_on_machine
from tests.support import numa_guest
from upgrader.adapters import gate
from upgrader.lab.figures import SCHEMA_VERSION
from upgrader.lab.traffic.analysis import Direction

DEMO_LIMIT_S = 15 * 60
TEST_LIMIT_S = 40 * 60
UPGRADE_TESTS = "tests/integration/test_upgrade.py"
KILLED = (
    "test_when_the_active_is_killed_qemu_alone_brings_the_rings_over",
    "test_a_standby_that_dies_in_the_middle_is_a_run_undone",
    "test_after_an_upgrade_switch_and_vm_may_restart",
)
REFUSED = ("TestRefused", "test_the_lab_is_not_up", "test_a_dry_run_changes_nothing")

# What the issue promises of build/demo-report.json.
OF_EVENT = ("event", "vm", "blackout_us", "directions")
OF_DIRECTION = (
    *("gap_us", "network_gap_us", "control_gap_us", "sent", "unsent", "lost", "duplicated", "reordered"),
    *("loss_time_us", "timestamp_time_us"),
)


def moves() -> Iterator[Item]:
    """Both page sizes, one and two queue pairs: what each VM felt, beside a stock restart in the same run."""
    for pages in ("4k", "2m"):
        for queues in (1, 2):
            report = OUT / f"demo-{pages}-{queues}.json"
            report.unlink(missing_ok=True)
            argv = [sys.executable, "-m", "upgrader.lab.demo", "--no-strict", "--report", str(report)]
            shape = ["--pages", pages, "--queues", str(queues), "--trips", "2"]
            done = gate.run([*argv, *shape], timeout_s=900, check=False, show_stderr=True)
            label = f"{pages} pages, {queues} queue pair{'s' if queues > 1 else ''}"
            if done.returncode != 0:
                yield Item(label, f"the demonstration exited with {done.returncode}", "0", False)
                continue
            sys.stderr.write(done.stdout)
            figures = json.loads(report.read_text())
            wrong = lacking(figures, trips=2)
            yield Item(f"{label}: report", f"lacks {', '.join(wrong[:8])}" if wrong else "whole", "whole", not wrong)
            for limit in figures["limits"]:
                yield Item(f"{label}: {limit['what']}", limit["measured"], limit["limit"], limit["holds"])


def kill() -> Iterator[Item]:
    """The active switch killed with a standby attached, and the other ways a run can be cut."""
    yield from tested(UPGRADE_TESTS, *KILLED)


def refused() -> Iterator[Item]:
    """Bad input."""
    yield from tested(UPGRADE_TESTS, *REFUSED)


def qtests() -> Iterator[Item]:
    """QEMU's own vhost-user tests and the series' own, on the patched build."""
    argv = [sys.executable, "-m", "upgrader.lab.stack", "qemu", "--check"]
    done = gate.run(argv, cwd=ROOT, timeout_s=1800, check=False, show_stderr=True)
    yield Item(
        "QEMU's vhost-user qtests and the series' own, exit code", str(done.returncode), "0", done.returncode == 0
    )


def numa() -> Iterator[Item]:
    """The region for parked rings on the NUMA node of the guest's, in a guest that has two nodes."""
    yield from numa_guest.items()


def lacking(report: Mapping[str, Any], vms: int = 4, trips: int = 1) -> list[str]:
    """What a demonstration's report lacks of what was promised; empty when it is whole."""
    wrong = [] if report.get("schema_version") == SCHEMA_VERSION else ["schema_version"]
    for kind, wanted in (("moves", 2 * trips * vms), ("stock_restart", vms)):
        entries = report.get(kind, [])
        if len(entries) != wanted:
            wrong.append(f"{kind}: {len(entries)} entries, {wanted} expected")
        for number, entry in enumerate(entries):
            at = f"{kind}[{number}]"
            wrong += [f"{at}.{key}" for key in OF_EVENT if entry.get(key) is None]
            directions = entry.get("directions") or {}
            for direction in Direction:
                figures = directions.get(direction.value, {})
                wrong += [f"{at}.{direction}.{key}" for key in OF_DIRECTION if figures.get(key) is None]
    return wrong


def demo() -> Iterator[Item]:
    """`make demo` from a fresh clone, nothing built."""
    with fresh_clone() as clone:
        before = left_on_machine()
        started = time.monotonic()
        done = gate.run(["make", "demo"], cwd=clone, timeout_s=2 * DEMO_LIMIT_S, check=False, show_stderr=True)
        took_s = time.monotonic() - started
        sys.stderr.write(done.stdout)
        yield Item("make demo from a fresh clone, exit code", str(done.returncode), "0", done.returncode == 0)
        yield Item("make demo from a fresh clone, time", f"{took_s:.0f} s", f"{DEMO_LIMIT_S} s", took_s <= DEMO_LIMIT_S)
        report = clone / "build/demo-report.json"
        wrong = lacking(json.loads(report.read_text())) if report.exists() else ["the file"]
        figure = f"lacks {', '.join(wrong[:8])}" if wrong else "whole"
        yield Item("build/demo-report.json", figure, "every promised field", not wrong)
        yield nothing_left("make demo", before)


def test() -> Iterator[Item]:
    """`make test` from a fresh clone, twice in a row."""
    with fresh_clone() as clone:
        before = left_on_machine()
        for turn in ("cold", "again"):
            started = time.monotonic()
            done = gate.run(["make", "test"], cwd=clone, timeout_s=2 * TEST_LIMIT_S, check=False, show_stderr=True)
            took_s = time.monotonic() - started
            sys.stderr.write(done.stdout)
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
            tail = done.stdout.strip().splitlines()[-1:]
            yield Item(f"make test, {turn}", "; ".join((*failed, *tail)), "exit code 0", done.returncode == 0)
            yield Item(f"make test, {turn}, time", f"{took_s:.0f} s", f"{TEST_LIMIT_S} s", took_s <= TEST_LIMIT_S)
            yield nothing_left(f"make test, {turn}", before)


@contextmanager
def fresh_clone() -> Iterator[Path]:
    """What is committed, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        Path(folder).chmod(0o755)  # a test runs the command as nobody
        clone = Path(folder) / "clone"
        gate.run(["git", "clone", "-q", str(ROOT), str(clone)], timeout_s=120)
        yield clone


def nothing_left(what: str, before: dict[str, frozenset[str]]) -> Item:
    more = {k: sorted(v - before[k]) for k, v in left_on_machine().items() if v - before[k]}
    return Item(f"{what} leaves", json.dumps(more) if more else "nothing", "nothing", not more)


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "moves": moves,
    "kill": kill,
    "refused": refused,
    "qtests": qtests,
    "numa": numa,
    "demo": demo,
    "test": test,
}


if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
