"""A hundred and more moves under traffic, medians and tails, beside stock restarts in the same run.

    build/venv/bin/python -m tests.bench.bench_moves [--trips 13] [--restarts 3] [--queues 2] [--pages 2m]

It judges nothing. These machines are noisy: compare within one run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from statistics import quantiles
from typing import get_args

import structlog

from upgrader.lab import stock
from upgrader.lab.exercise import Exercise
from upgrader.lab.figures import FABRIC, Felt
from upgrader.lab.spec import BUILD_DIR, LabSpec, Pages
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab


def tail(values: Sequence[float], scale: float = 1.0) -> str:
    """Median, 90th, 99th percentile and maximum."""
    if len(values) < 2:
        return f"{values[0] / scale:.2f} (one value)"
    cuts = quantiles(values, n=100, method="inclusive")
    return "  ".join(f"{v / scale:9.2f}" for v in (cuts[49], cuts[89], cuts[98], max(values)))


def show(name: str, felt: Sequence[Felt]) -> None:
    print(f"{name}: {len(felt)} VM events            median        p90        p99        max")
    print(f"  blackout, ms                        {tail([f.blackout_us for f in felt], 1000)}")
    print(f"  longest gap, fabric directions, ms  {tail([f.gap_us() for f in felt], 1000)}")
    print(f"  the same, network part, ms          {tail([f.network_gap_us() for f in felt], 1000)}")
    print(f"  longest beyond the control's, ms    {tail([f.beyond_control_us() for f in felt], 1000)}")
    if others := [b.gap_us for f in felt for b in f.bystanders]:
        print(f"  bystanders' longest gap, ms         {tail(others, 1000)}")
    for kind in ("lost", "duplicated", "reordered"):
        counts = [getattr(f.directions[d], kind) for f in felt for d in FABRIC]
        print(f"  {kind + ', packets':<34}  {tail(counts)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trips", type=int, default=13, help="a -> b -> a so often, each moves every VM twice")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--vms", type=int, default=4)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--pages", choices=get_args(Pages), default="4k")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    prefix = stock.stock_prefix(BUILD_DIR / "stack")
    lab = Lab(LabSpec("bench", options.vms, options.queues, options.pages))
    lab.down()
    try:
        lab.up()
        with lab_session(lab.spec, rate_pps=options.rate) as session:
            exercise = Exercise(lab.spec, session)
            control = exercise.control(20)
            moves = [f for _ in range(2 * options.trips) for f in exercise.upgrade(control).felt]
            restarts = [f for _ in range(options.restarts) for f in exercise.stock_restart(control, prefix).felt]
    finally:
        lab.down()
    show("move", moves)
    show("stock restart", restarts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
