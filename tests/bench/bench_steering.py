"""How long it takes to turn one VM's steering, and to turn everything of a host with many VMs.

    build/venv/bin/python -m tests.bench.bench_steering [--turns 10000] [--vms 100] [--failovers 200]

On veth pairs in a namespace of its own; needs root. It judges nothing. These machines are noisy: compare within one run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import structlog

from tests.support.steer_bench import software, veth_nic
from upgrader.core.model import SLOTS, SlotName, VmPort
from upgrader.sim.facts import vm_port

SIDES: tuple[SlotName, SlotName] = ("b", "a")


@dataclass(frozen=True)
class Times:
    """What so many calls took, microseconds."""

    calls: int
    median_us: float
    p99_us: float
    max_us: float

    def __str__(self) -> str:
        return f"median {self.median_us:8.1f} us, p99 {self.p99_us:8.1f} us, max {self.max_us:8.1f} us ({self.calls})"


def timed(call: Callable[[int], object], calls: int) -> Times:
    took = []
    for number in range(calls):
        before = time.perf_counter_ns()
        call(number)
        took.append((time.perf_counter_ns() - before) / 1000)
    return times(took)


def times(took_us: list[float]) -> Times:
    cuts = quantiles(took_us, n=100, method="inclusive")
    return Times(len(took_us), cuts[49], cuts[98], max(took_us))


def ports(count: int) -> list[VmPort]:
    return [vm_port(i, mac=f"52:54:00:00:{i >> 8:02x}:{i & 255:02x}") for i in range(count)]


def one_vm(turns: int) -> Times:
    """`move_vm` from one slot to the other: the ready message, sent and acknowledged."""
    (port,) = ports(1)
    with veth_nic("bench") as nic:
        steering = software(nic)
        steering.steady("a")
        steering.open_window([(port, "a")])
        return timed(lambda n: steering.move_vm(port, (SIDES[n % 2],)), turns)


def one_vm_by_replacing(turns: int) -> Times:
    """The baseline: the same, but the filters are read and the one is replaced, as for a change that was not prepared."""
    (port,) = ports(1)
    with veth_nic("bench") as nic:
        steering = software(nic)
        steering.steady("a")
        steering.open_window([(port, "a")])

        def unprepared(number: int) -> None:
            steering._armed.clear()
            steering.move_vm(port, (SIDES[number % 2],))

        return timed(unprepared, turns)


def whole_host(vms: int, failovers: int) -> Times:
    """`failover` in the middle of a window: a rule for each VM, the rest to both; all of it to one slot."""
    with veth_nic("bench") as nic:
        steering = software(nic)
        steering.steady("a")
        every = ports(vms)

        def opened(number: int) -> float:
            steering.open_window([(p, SLOTS[i % 2]) for i, p in enumerate(every)])
            before = time.perf_counter_ns()
            steering.failover(SIDES[number % 2])
            took_us = (time.perf_counter_ns() - before) / 1000
            if number == 0 and any(r.targets != (SIDES[0],) for r in steering.rules()):
                raise AssertionError("a failover left a rule behind")
            return took_us

        return times([opened(n) for n in range(failovers)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--vms", type=int, default=100)
    parser.add_argument("--failovers", type=int, default=200)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"one VM, prepared          {one_vm(options.turns)}", flush=True)
    print(f"one VM, by reading first  {one_vm_by_replacing(max(100, options.turns // 100))}", flush=True)
    print(f"{options.vms:4} VMs and the rest    {whole_host(options.vms, options.failovers)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
