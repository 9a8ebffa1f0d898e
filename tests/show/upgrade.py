"""Everything the first live upgrade must show, run for real: a line an item with figure and limit, non-zero if one fails.

make show-upgrade                    # all of it; with the cold runs well over an hour
make show-upgrade PARTS="moves kill" # some of it
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upgrader.adapters import gate

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "show"
DEMO_LIMIT_S = 15 * 60
TEST_LIMIT_S = 40 * 60
UPGRADE_TESTS = "tests/integration/test_upgrade.py"


@dataclass(frozen=True)
class Item:
    what: str
    figure: str
    limit: str
    holds: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what}: {self.figure} (limit {self.limit})"


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
            for limit in json.loads(report.read_text())["limits"]:
                yield Item(f"{label}: {limit['what']}", limit["measured"], limit["limit"], limit["holds"])


def kill() -> Iterator[Item]:
    """The active switch killed with a standby attached, and the other ways a run can be cut."""
    yield from tested("-k", "not Refused and not back and not not_up and not dry_run")


def refused() -> Iterator[Item]:
    """Bad input."""
    yield from tested("-k", "Refused or not_up or dry_run")


def tested(*selection: str) -> Iterator[Item]:
    """One item for each test of the upgrade suite."""
    report = OUT / "tests.xml"
    report.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "pytest", "-q", UPGRADE_TESTS, f"--junitxml={report}", *selection]
    done = gate.run(argv, cwd=ROOT, timeout_s=1800, check=False)
    if not report.exists():
        yield Item(" ".join(selection), done.stdout[-500:], "tests run", False)
        return
    for case in ET.parse(report).iter("testcase"):
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        bad = [c for c in case if c.tag in ("failure", "error", "skipped")]
        yield Item(
            name, "as it must be" if not bad else f"{bad[0].tag}: {bad[0].get('message', '')[:200]}", "holds", not bad
        )


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
        yield Item("build/demo-report.json", "written" if report.exists() else "missing", "written", report.exists())
        yield nothing_left("make demo", before)


def test() -> Iterator[Item]:
    """`make test` from a fresh clone, twice in a row."""
    with fresh_clone() as clone:
        before = left_on_machine()
        for turn in ("cold", "again"):
            started = time.monotonic()
            done = gate.run(["make", "test"], cwd=clone, timeout_s=2 * TEST_LIMIT_S, check=False, show_stderr=True)
            took_s = time.monotonic() - started
            tail = done.stdout.strip().splitlines()[-1:]
            yield Item(f"make test, {turn}", "; ".join(tail), "exit code 0", done.returncode == 0)
            yield Item(f"make test, {turn}, time", f"{took_s:.0f} s", f"{TEST_LIMIT_S} s", took_s <= TEST_LIMIT_S)
            yield nothing_left(f"make test, {turn}", before)


@contextmanager
def fresh_clone() -> Iterator[Path]:
    """What is committed, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="show-") as folder:
        clone = Path(folder) / "clone"
        gate.run(["git", "clone", "-q", str(ROOT), str(clone)], timeout_s=120)
        yield clone


def left_on_machine() -> dict[str, frozenset[str]]:
    """What a run could leave: processes, namespaces, netdevs, lab folders, hugepages."""
    programs = ("ovs-vswitchd", "ovsdb-server", "qemu-system", "libvirtd", "virtlogd", "pktflow", "dnsmasq")
    processes = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith(programs):
                processes.add(f"{comm.parent.name} {comm.read_text().strip()}")
        except OSError:
            continue
    return {
        "processes": frozenset(processes),
        "namespaces": frozenset(gate.run(["ip", "netns", "list"]).stdout.split()),
        "netdevs": frozenset(p.name for p in Path("/sys/class/net").iterdir()),
        "folders": frozenset(str(p) for r in ("/run/ovs-upgrade-lab", "/run/dpdk") for p in Path(r).glob("*")),
        "hugepages": frozenset([Path("/proc/sys/vm/nr_hugepages").read_text().strip()]),
    }


def nothing_left(what: str, before: dict[str, frozenset[str]]) -> Item:
    more = {k: sorted(v - before[k]) for k, v in left_on_machine().items() if v - before[k]}
    return Item(f"{what} leaves", json.dumps(more) if more else "nothing", "nothing", not more)


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "moves": moves,
    "kill": kill,
    "refused": refused,
    "demo": demo,
    "test": test,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to show (default: everything)")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := [p for p in chosen if p not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    items = []
    for part in chosen:
        for item in PARTS[part]():
            items.append(item)
            print(item, flush=True)
    failed = [i for i in items if not i.holds]
    print(f"{len(items) - len(failed)} of {len(items)} hold", flush=True)
    return 1 if failed or not items else 0


if __name__ == "__main__":
    sys.exit(main())
