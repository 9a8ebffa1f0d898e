"""A daemon on a simulated host, as a process: what a command line can be tried at without switches or VMs.

    build/venv/bin/python -m tests.support.sim_daemon DIR [--vms N] [--pace S]

Writes DIR/config.toml and DIR/plan.json, then serves until SIGTERM. `upgrade --config DIR/config.toml run DIR/plan.json`
carries the plan out; each effect takes `pace` seconds. `check` and `plan` still look at the real host.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import structlog

from tests.support.operator import CONFIG
from upgrader.adapters.clock import SystemClock
from upgrader.adapters.journal import SqliteJournal, plan_to_json
from upgrader.core.plan import Policy
from upgrader.daemon.server import Server
from upgrader.engine.coordinator import Coordinator, Setup, make_plan
from upgrader.engine.lock import host_lock
from upgrader.sim.host import make

_FILES = ("journal.db", "upgraded.sock", "run.lock")


def config_text(directory: Path) -> str:
    """The simulated host's configuration, with what it writes in `directory`."""
    text = CONFIG
    for name in _FILES:
        text = text.replace(f'"{name}"', f'"{directory / name}"')
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vms", type=int, default=4)
    parser.add_argument("--pace", type=float, default=0.1)
    parser.add_argument("--soak", type=float, default=1.0)
    parser.add_argument("--fail", default="", help="an effect that fails, e.g. `switch vm2`")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    directory: Path = options.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.toml"
    config.write_text(config_text(directory))

    world, host, slots = make(directory / "host", options.vms)

    def pace(called: str, _: int) -> BaseException | None:
        time.sleep(options.pace)
        return RuntimeError("simulated") if called == options.fail else None

    world.fault = pace
    host = replace(host, clock=SystemClock())
    setup = Setup("h1", host, slots, (), Policy(canary_check_s=0.5, soak_s=options.soak), "sim")
    (directory / "plan.json").write_text(plan_to_json(make_plan(setup, None, setup.policy)[1]))

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with host_lock(directory / "run.lock"):
        coordinator = Coordinator(lambda: setup, SqliteJournal(directory / "journal.db"))
        coordinator.start()
        with Server(directory / "upgraded.sock", config, coordinator) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print("ready", flush=True)
            stop.wait()
            server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
