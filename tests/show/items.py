"""What the show targets share: an item with figure and limit, tests as items, and the command line that picks parts."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from upgrader.adapters import gate

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "show"


@dataclass(frozen=True)
class Item:
    """One thing that is to be shown: its figure, the limit it is held to, and whether it holds."""

    what: str
    figure: str
    limit: str
    holds: bool

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what}: {self.figure} (limit {self.limit})"


def tested(file: str, *names: str, timeout_s: float = 1800, env: Mapping[str, str] | None = None) -> Iterator[Item]:
    """One item for each of these tests of a file (all of them where none is named), and one for their run as a whole."""
    report = OUT / "tests.xml"
    report.unlink(missing_ok=True)
    nodes = [f"{file}::{n}" for n in names] or [file]
    argv = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *nodes]
    done = gate.run(argv, cwd=ROOT, timeout_s=timeout_s, check=False, env=env)
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    for case in cases:
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        bad = [c for c in case if c.tag in ("failure", "error", "skipped")]
        told = "".join(f", {p.get('name')} {p.get('value')}" for p in case.iter("property"))  # pytest's record_property
        figure = (
            f"{bad[0].tag}: {bad[0].get('message', '')[:200]}"
            if bad
            else f"passed in {float(case.get('time', 0)):.1f} s{told}"
        )
        yield Item(name, figure, "passes", not bad)
    whole = done.returncode == 0 and len(cases) >= max(1, len(names))
    tail = "" if whole else f": {(done.stdout + done.stderr)[-500:]}"
    figure = f"exit code {done.returncode}, {len(cases)} run{tail}"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = f"tests {names[0]}{more}" if names else f"tests {file}"
    yield Item(what, figure, f"exit code 0, {max(1, len(names))} or more run", whole)


def told(items: Iterable[Item]) -> Iterator[Item]:
    """The same, each printed as it comes."""
    for item in items:
        print(item, flush=True)
        yield item


def check(items: Iterable[Item]) -> int:
    """Print them; 1 where one does not hold, or there is none."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    held = [item.holds for item in told(items)]
    return 0 if held and all(held) else 1


def show(about: str | None, parts: Mapping[str, Callable[[], Iterator[Item]]]) -> int:
    """Run the parts that the command line names, or all, print an item a line; 1 where one does not hold."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to show (default: everything)")
    chosen = parser.parse_args().parts or list(parts)
    if unknown := [p for p in chosen if p not in parts]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    items = [item for part in chosen for item in told(parts[part]())]
    failed = [i for i in items if not i.holds]
    print(f"{len(items) - len(failed)} of {len(items)} hold", flush=True)
    return 1 if failed or not items else 0
