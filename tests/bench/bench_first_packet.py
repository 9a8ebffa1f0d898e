"""How long the first packet of a flow takes through a switch that was just brought over, beside one that has long run.

``python -m tests.bench.bench_first_packet [packets]`` as root, with the stack built. The switch knows a flow for each
packet, its datapath none: each packet is a miss that the tables answer. Two real slots without DPDK, from one of their
netdevs to another; the packets of the control run go through the old slot, those of the other through the standby
right after it was replicated and proved. Three times, with new switches each time; each figure is the median of its three:
a single 99th percentile of a thousand packets is that of ten of them, and another process may have had the core.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import structlog

from tests.support.slots import SlotFactory, carry_out, context_of, vsctl
from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind

BRIDGE = "br-int"
PACKETS = 1000
ROUNDS = 3
_ETH_P_ALL = 3
_PAUSE_S = 0.002
_LATEST_S = 1.0


@dataclass(frozen=True)
class Figures:
    """Microseconds from a packet's leaving to its arrival."""

    packets: int
    control_median_us: float
    control_p99_us: float
    moved_median_us: float
    moved_p99_us: float

    @property
    def ratio(self) -> float:
        """The 99th percentile after the move, in units of the control run's median."""
        return self.moved_p99_us / self.control_median_us


def probe(packets: int) -> list[float]:
    """Send one packet to each address from p1, in this network namespace, and wait for it at p2; microseconds each."""
    sender, receiver = (socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) for _ in range(2))
    sender.bind(("p1", 0))
    receiver.bind(("p2", _ETH_P_ALL))
    receiver.settimeout(_LATEST_S)
    took = []
    for number in range(packets):
        frame = _frame(number)
        sent = time.monotonic_ns()
        sender.send(frame)
        while True:
            if receiver.recv(2048)[: len(frame)] == frame:
                took.append((time.monotonic_ns() - sent) / 1000)
                break
        time.sleep(_PAUSE_S)
    return took


def _frame(number: int) -> bytes:
    """An empty UDP packet to 10.0.0.0 + number (RFC 791, RFC 768), without checksums."""
    ip = bytes.fromhex("4500001c0000000040110000c0000201") + (0x0A000000 + number).to_bytes(4, "big")
    return bytes.fromhex("020000000002" + "020000000001" + "0800") + ip + bytes.fromhex("0400040000080000")


def measure(packets: int = PACKETS) -> Figures:
    """The medians of several rounds."""
    rounds = [astuple(_round(packets)) for _ in range(ROUNDS)]
    return Figures(packets, *(statistics.median(values) for values in list(zip(*rounds, strict=True))[1:]))


def _round(packets: int) -> Figures:
    """The control run, the replication, and the run after it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with SlotFactory(folder) as factory:
            a = factory.start("a")
            vsctl(a, "add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail_mode=secure")
            for port in (1, 2):
                request = f"ofport_request={port}"
                vsctl(a, "add-port", BRIDGE, f"p{port}", "--", "set", "interface", f"p{port}", "type=internal", request)
            flows = "\n".join(f"in_port=1,ip,nw_dst={_address(n)},actions=output:2" for n in range(packets))
            add = [str(a.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow15", "--bundle", "add-flows"]
            gate.run([*add, f"unix:{a.rundir}/{BRIDGE}.mgmt", "-"], stdin=flows + "\n")
            b = factory.start_standby("b", a)
            for slot in (a, b):
                for netdev in (BRIDGE, "p1", "p2"):
                    gate.run(["ip", "link", "set", netdev, "up"], netns=slot.netns)
            control = _through(a, packets)
            context = context_of(folder, *(replace(s, uplink=BRIDGE) for s in (a, b)))
            carry_out(context, StepKind.REPLICATE)
            carry_out(context, StepKind.PROVE)
            moved = _through(b, packets)
    return Figures(packets, *_quantiles(control), *_quantiles(moved))


def _address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _through(slot: Slot, packets: int) -> list[float]:
    """The packets' times. Switch and sender get a CPU when they want one, as on cores of their own: else it is others' load."""
    for thread in Path(f"/proc/{SlotProcesses().status(slot).vswitchd_pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))
    argv = ["chrt", "-r", "1", sys.executable, "-m", "tests.bench.bench_first_packet", "probe", str(packets)]
    times: list[float] = json.loads(gate.run(argv, netns=slot.netns, timeout_s=120).stdout)
    return times


def _quantiles(times: list[float]) -> tuple[float, float]:
    return round(statistics.median(times), 1), round(statistics.quantiles(times, n=100)[98], 1)


def main() -> int:
    """Measure, and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if sys.argv[1:2] == ["probe"]:
        print(json.dumps(probe(int(sys.argv[2]))))
        return 0
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else PACKETS)
    print(json.dumps(asdict(figures)))
    print(
        f"first packets, {figures.packets} each: control median {figures.control_median_us:.0f} us, 99th percentile "
        f"{figures.control_p99_us:.0f}; after the move {figures.moved_median_us:.0f} and {figures.moved_p99_us:.0f} us, "
        f"{figures.ratio:.1f} times the control's median",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
