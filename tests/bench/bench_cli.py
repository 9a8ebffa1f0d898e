"""How long an operator waits: medians of the command line beside their limits, and a plan of 1,000 simulated VMs.

    build/venv/bin/python -m tests.bench.bench_cli [--vms 1000] [--times 15] [--json]

It prints and judges nothing: on a busy machine the figures say how busy it is. The commands have their bytecode, as an
installed package does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import structlog

from tests.support.sim_daemon import config_text
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.journal import Event, EventKind
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Plan, Policy
from upgrader.engine.coordinator import Setup, make_plan
from upgrader.sim.host import make

UPGRADE = Path(sys.executable).with_name("upgrade")
_MOVE = {
    "mac": "52:54:00:00:00:00", "from_slot": "a", "to_slot": "b", "generation": 1, "blackout_us": 713.0,
    "quiesce_us": 300.0, "index_us": 3.0, "activate_us": 400.0, "notify_us": 10.0, "command_us": 900.0,
    "started_at_ns": 1, "ended_at_ns": 2, "over_budget": False,
}  # fmt: skip


def timed(what: Callable[[], object], times: int) -> float:
    """Median, seconds; the first time is thrown away."""
    took = []
    for _ in range(times + 1):
        started = time.perf_counter()
        what()
        took.append(time.perf_counter() - started)
    return median(took[1:])


def command(*words: str) -> Callable[[], object]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run([UPGRADE, *words], check=True, capture_output=True, env=env)


def fill(path: Path, plan: Plan) -> None:
    """The journal of a run all of whose steps are done, not yet at its end."""
    journal = SqliteJournal(path)
    journal.claim()
    run_id = journal.begin(plan, 1).heading.run_id
    journal.append(run_id, Event(EventKind.STATE, 2, None, {"to": str(RunState.RUNNING), "reason": ""}))
    for index, step in enumerate(plan.steps):
        move = {"move": {"vm": step.port.label, **_MOVE}} if step.kind == "move-vm" and step.port else {}
        journal.append(run_id, Event(EventKind.INTENT, 3, index))
        journal.append(run_id, Event(EventKind.OUTCOME, 4, index, {"took_s": 0.1, **move}))
    journal.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines = []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with TemporaryDirectory(prefix="bench-cli-") as name:
        directory = Path(name)
        config = directory / "config.toml"
        config.write_text(config_text(directory))
        _, host, slots = make(directory / "host", options.vms)
        setup = Setup("h1", host, slots, (), Policy(), "sim")
        planned = timed(lambda: make_plan(setup, None, setup.policy), options.times)
        fill(directory / "journal.db", make_plan(setup, None, setup.policy)[1])
        for what, took_s, limit_s in (
            ("upgrade --help", timed(command("--help"), options.times), 0.3),
            (f"upgrade status, {options.vms} VMs", timed(command("--config", str(config), "status"), options.times), 0.3),
            (f"plan of {options.vms} VMs", planned, 1.0),
            ("python3 -c pass, for scale", timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), options.times), None),
        ):  # fmt: skip
            lines.append({"what": what, "median_s": took_s, "limit_s": limit_s})
            if not options.json:
                print(f"{what:<32} {took_s:6.3f} s" + (f"   limit {limit_s:g} s" if limit_s else ""), flush=True)
    if options.json:
        print(json.dumps(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
