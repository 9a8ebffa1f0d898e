"""How long the first packet of a flow takes through a switch that was just brought over, beside one that has long run.

``python -m tests.bench.bench_first_packet [packets]`` as root, with the stack built. The switch knows a flow for each
packet, its datapath none: each packet is a miss that the tables answer. Two real slots without DPDK, from one of their
netdevs to another. Right after replication and proof one sender takes both by turns, one packet through the old slot (the
control run), the next through the standby: whatever else the machine does meets both. Each packet is sent once more, when
its flow is known. Several times, with new switches each time: the standby's own first packets are among the slowest, and
a switch has only one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from tests.support.slots import SlotFactory, carry_out, context_of, vsctl
from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind

BRIDGE = "br-int"
PACKETS = 300
ROUNDS = 5
_ETH_P_ALL = 3
_CLONE_NEWNET = 0x40000000
_PAUSE_S = 0.002
_LATEST_S = 1.0


@dataclass(frozen=True)
class Figures:
    """Microseconds from a packet's leaving to its arrival: packets of all rounds together."""

    packets: int
    control_median_us: float
    control_p99_us: float
    moved_median_us: float
    moved_p99_us: float
    known_median_us: float  # through the old slot, when the flow is known
    moved_earliest_us: float  # the very first that the standby ever forwarded, median of the rounds

    @property
    def ratio(self) -> float:
        """The 99th percentile after the move, in units of the control run's median."""
        return self.moved_p99_us / self.control_median_us


@dataclass(frozen=True)
class Times:
    """One round's: first packets through the old slot and the standby, and the old slot's again, microseconds in their order."""

    control: list[float]
    moved: list[float]
    control_known: list[float]


class Way:
    """From p1 to p2 of one network namespace."""

    def __init__(self, netns: str) -> None:
        with Path(f"/run/netns/{netns}").open("rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {netns}")
        self._sender, self._receiver = (
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) for _ in range(2)
        )
        self._sender.bind(("p1", 0))
        self._receiver.bind(("p2", _ETH_P_ALL))
        self._receiver.settimeout(_LATEST_S)

    def take(self, frame: bytes) -> float:
        """Microseconds that one packet takes."""
        sent = time.monotonic_ns()
        self._sender.send(frame)
        while self._receiver.recv(2048)[: len(frame)] != frame:
            pass
        return (time.monotonic_ns() - sent) / 1000


def probe(control: str, moved: str, packets: int) -> Times:
    """One packet to each address through both namespaces, by turns, each of them twice."""
    ways = [Way(control), Way(moved)]
    took: list[list[list[float]]] = [[[], []], [[], []]]  # by way, and first or again
    gc.disable()
    for number in range(packets):
        frame = _frame(number)
        for turn in (number, number + 1):
            for again in (0, 1):
                took[turn % 2][again].append(ways[turn % 2].take(frame))
                time.sleep(_PAUSE_S)
    return Times(took[0][0], took[1][0], took[0][1])


def _frame(number: int) -> bytes:
    """An empty UDP packet to 10.0.0.0 + number (RFC 791, RFC 768), without checksums."""
    ip = bytes.fromhex("4500001c0000000040110000c0000201") + (0x0A000000 + number).to_bytes(4, "big")
    return bytes.fromhex("020000000002" + "020000000001" + "0800") + ip + bytes.fromhex("0400040000080000")


def measure(packets: int = PACKETS) -> Figures:
    """The packets of several rounds."""
    rounds = [_round(packets) for _ in range(ROUNDS)]
    control, moved, known = (
        [us for times in rounds for us in getattr(times, which)] for which in ("control", "moved", "control_known")
    )
    earliest = statistics.median(times.moved[0] for times in rounds)
    return Figures(len(moved), *_quantiles(control), *_quantiles(moved), _quantiles(known)[0], round(earliest, 1))


def _round(packets: int) -> Times:
    """The replication, and then the packets."""
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
            context = context_of(folder, *(replace(s, uplink=BRIDGE) for s in (a, b)))
            carry_out(context, StepKind.REPLICATE)
            carry_out(context, StepKind.PROVE)
            return _through(a, b, packets)


def _address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _through(control: Slot, moved: Slot, packets: int) -> Times:
    """The packets' times. Switches and sender get a CPU when they want one, as on cores of their own: else it is others' load."""
    for slot in (control, moved):
        for thread in Path(f"/proc/{SlotProcesses().status(slot).vswitchd_pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))
    argv = ["chrt", "-r", "1", sys.executable, "-m", "tests.bench.bench_first_packet", "probe"]
    told = gate.run([*argv, str(control.netns), str(moved.netns), str(packets)], timeout_s=120).stdout
    return Times(**json.loads(told))


def _quantiles(times: list[float]) -> tuple[float, float]:
    return round(statistics.median(times), 1), round(statistics.quantiles(times, n=100)[98], 1)


def main() -> int:
    """Measure, and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if sys.argv[1:2] == ["probe"]:
        print(json.dumps(asdict(probe(sys.argv[2], sys.argv[3], int(sys.argv[4])))))
        return 0
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else PACKETS)
    print(json.dumps(asdict(figures)))
    print(
        f"first packets, {figures.packets} each: control median {figures.control_median_us:.0f} us, 99th percentile "
        f"{figures.control_p99_us:.0f}; after the move {figures.moved_median_us:.0f} and {figures.moved_p99_us:.0f} us, "
        f"{figures.ratio:.1f} times the control's median; of a known flow {figures.known_median_us:.0f} us; the standby's "
        f"earliest {figures.moved_earliest_us:.0f} us",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
