"""Rings moved to and fro between two live switches under traffic: many hand-overs in little time, by QEMU's own clock.

    build/venv/bin/python -m tests.bench.bench_rings [--moves 30] [--queues 2] [--pages 2m] [--ovs-prefix DIR]

An upgrade with --keep-old leaves both switches connected to every VM; then QEMU is told to switch again and again.
Steering does not follow, so that it says nothing of packets: for those there is bench_moves. It judges nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import get_args

import structlog

from upgrader.adapters import gate
from upgrader.adapters.libvirt_qmp import LibvirtQmp
from upgrader.core.model import SwitchResult, VmInterface, VmPort
from upgrader.lab.spec import DEFAULT_OVS_PREFIX, LabSpec, Pages
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab

LONGEST_S = 180.0
BETWEEN_S = 0.03
STEPS = ("blackout_ns", "quiesce_ns", "index_ns", "activate_ns", "notify_ns")
OVER_US = 1500


def hand_overs(lab: LabSpec, moves: int) -> Iterator[SwitchResult]:
    """Move the rings of every VM so often, one VM after the other."""
    qmp = LibvirtQmp(lab.libvirt_uri)
    ports = [_port(interface) for interface in qmp.vm_interfaces()]
    for _ in range(moves):
        for port in ports:
            now = qmp.ownership(port)
            if now is None:
                raise RuntimeError(f"{port.domain} is gone")
            yield qmp.switch(port, now.owner, now.generation)
            time.sleep(BETWEEN_S)


def _port(interface: VmInterface) -> VmPort:
    return VmPort(
        domain=interface.domain,
        domain_uuid=interface.domain_uuid,
        mac=interface.mac,
        socket=interface.socket,
        netdev=interface.netdev,
        chardev=interface.chardev,
        interface="",
        ofport=0,
        vni=None,
        ownership=interface.ownership,
    )


def show(results: Sequence[SwitchResult]) -> None:
    print(f"{len(results)} hand-overs, us            median        p90        p99        max")
    for step in STEPS:
        times = [getattr(r, step) / 1000 for r in results]
        cuts = quantiles(times, n=100, method="inclusive")
        print(f"  {step.removesuffix('_ns'):<24}", *(f"{t:10.0f}" for t in (cuts[49], cuts[89], cuts[98], max(times))))
    over = sum(r.blackout_ns > OVER_US * 1000 for r in results) / len(results)
    print(f"  blackouts above {OVER_US / 1000:g} ms: {over:.0%}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=30, help="of every VM")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--pages", choices=get_args(Pages), default="4k")
    parser.add_argument("--ovs-prefix", type=Path, default=DEFAULT_OVS_PREFIX)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lab = Lab(LabSpec("rings", 4, options.queues, options.pages, options.ovs_prefix.absolute()))
    lab.down()
    try:
        lab.up()
        with lab_session(lab.spec, rate_pps=1000) as session:
            command = [sys.executable, "-m", "upgrader.cli.app", "--config", str(lab.spec.config_path)]
            gate.run([*command, "--host", "localhost", "--keep-old", "--yes", "--json"], timeout_s=LONGEST_S)
            session.start(LONGEST_S)
            results = list(hand_overs(lab.spec, options.moves))
            session.finish(stop=True)
    finally:
        lab.down()
    show(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
