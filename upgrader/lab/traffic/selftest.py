"""The generator proves itself: known losses, holes, duplicates and reorders over a veth pair come out as known.

Everything happens in two network namespaces of its own, which are gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from upgrader.adapters import gate
from upgrader.core.errors import HostError
from upgrader.lab.traffic.analysis import Direction, FlowFigures, FlowTrace
from upgrader.lab.traffic.build import build_agent
from upgrader.lab.traffic.protocol import Agent
from upgrader.lab.traffic.relay import Rules

RATE_PPS = 1000
AGENT_OPTIONS = ("--fifo", "1")  # why: see connect.py
SECONDS = 2.0
PORT, RELAY_PORT = 20_000, 20_001
FLOW = 1
SENDER_ADDRESS, RECEIVER_ADDRESS = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")  # RFC 2544's test network

DROPPED = frozenset({100, 101, 400, 700, 701, 702, 1000, 1500, *range(1600, 1620)})
HOLE = range(800, 1050)
TWICE = frozenset(range(200, 1800, 64))
HELD = dict.fromkeys(range(300, 1500, 100), 3)
MISDELIVERED_MS = 150


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was done on purpose and what was reported. `expected` is in words, for people."""

    name: str
    expected: str
    figures: FlowFigures
    passed: bool


@dataclass(frozen=True, slots=True)
class Bench:
    """Two namespaces, a veth pair between them, an agent in each."""

    sender_ns: str
    receiver_ns: str
    sender: Agent
    receiver: Agent
    receiver_pid: int

    def measure(
        self,
        relay: Relaying | None = None,
        *,
        receive_buffer_bytes: int | None = None,
        during: Callable[[], None] | None = None,
    ) -> FlowTrace:
        """Send for SECONDS, through a relay if there is one; call `during` half-way."""
        for agent in (self.sender, self.receiver):
            agent.clear()
        if self.sender.ping(RECEIVER_ADDRESS) is None:
            raise HostError(
                "TRAFFIC_NO_PATH",
                f"no answer from {RECEIVER_ADDRESS} over the self-test's own veth pair",
                state="the self-test's namespaces are being removed",
                next="upgrade lab traffic --self-test",
            )
        records, duration_ms = round(RATE_PPS * SECONDS * 3), round(SECONDS * 1000)
        self.receiver.receive_flow(
            FLOW, PORT, records=records, duration_ms=60_000, receive_buffer_bytes=receive_buffer_bytes
        )
        port = RELAY_PORT if relay else PORT
        self.sender.send_flow(FLOW, RECEIVER_ADDRESS, port, rate_pps=RATE_PPS, duration_ms=duration_ms)
        with relay.running(self.receiver_ns) if relay else contextlib.nullcontext():
            self.sender.go(in_ms=50)
            until = time.monotonic() + SECONDS + 0.05
            if during:
                time.sleep(SECONDS / 2)
                during()
            time.sleep(max(0.0, until - time.monotonic()) + 0.3)
            self.receiver.stop()
        return FlowTrace(
            "receiver",
            "sender",
            Direction.FROM_FABRIC,
            self.sender.sender_record(FLOW),
            self.receiver.receiver_record(FLOW),
        )

    def stop_receiver(self) -> None:
        """Stop the receiving process for 200 ms, so that its socket buffer overflows."""
        os.kill(self.receiver_pid, signal.SIGSTOP)
        try:
            time.sleep(0.2)
        finally:
            os.kill(self.receiver_pid, signal.SIGCONT)


class Relaying:
    """A relay process for one measurement, and afterwards what it says it forwarded."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._forwarded: dict[int, tuple[int, int]] = {}  # sequence number: ns before and after its (last) sending

    @contextlib.contextmanager
    def running(self, netns: str) -> Iterator[None]:
        """Run it in a network namespace."""
        argv = [sys.executable, "-m", "upgrader.lab.traffic.relay", str(RELAY_PORT), str(PORT), self._rules.to_json()]
        process = gate.spawn(argv, netns=netns, cwd=Path(__file__).parents[3], stdin_pipe=True, stdout_pipe=True)
        assert process.stdin
        assert process.stdout
        try:
            if process.stdout.readline() != b"ready\n":
                raise HostError(
                    "RELAY_DEAD",
                    f"the self-test's relay did not start (exit code {process.wait(5)})",
                    state="the self-test's namespaces are being removed",
                    next=gate.paste(argv),
                )
            yield
        finally:
            process.stdin.close()
            log = process.stdout.read()
            process.stdout.close()
            process.wait(5)
        self._forwarded = {sequence: (before, after) for sequence, before, after in json.loads(log)}

    def distance_us(self, first: int, last: int) -> tuple[float, float]:
        """How far apart in time two packets left it, at least and at most."""
        a, b = self._forwarded[first], self._forwarded[last]
        return (b[0] - a[1]) / 1000, (b[1] - a[0]) / 1000


@contextlib.contextmanager
def bench(agent_options: tuple[str, ...] = AGENT_OPTIONS) -> Iterator[Bench]:
    """Build a bench and take it down again, whatever happens."""
    program = str(build_agent())
    sender_ns, receiver_ns = (f"pktflow-{os.getpid()}-{side}" for side in ("tx", "rx"))
    with contextlib.ExitStack() as stack:
        for netns in (sender_ns, receiver_ns):
            stack.callback(gate.run, ["ip", "netns", "del", netns], check=False)
            gate.run(["ip", "netns", "add", netns])
            gate.run(["ip", "-n", netns, "link", "set", "lo", "up"])
        gate.run(
            [
                "ip",
                "-n",
                sender_ns,
                "link",
                "add",
                "veth-tx",
                "type",
                "veth",
                "peer",
                "name",
                "veth-rx",
                "netns",
                receiver_ns,
            ]
        )
        for netns, link, address in (
            (sender_ns, "veth-tx", SENDER_ADDRESS),
            (receiver_ns, "veth-rx", RECEIVER_ADDRESS),
        ):
            gate.run(["ip", "-n", netns, "addr", "add", f"{address}/24", "dev", link])
            gate.run(["ip", "-n", netns, "link", "set", link, "up"])
        agents = []
        for name, netns in (("sender", sender_ns), ("receiver", receiver_ns)):
            agents.append(Agent.spawn(name, [program, "--serve", "-", *agent_options], netns=netns))
            stack.callback(agents[-1].close)
        yield Bench(sender_ns, receiver_ns, agents[0], agents[1], int(agents[1].hello()["pid"]))


def _misdeliver(on: Bench) -> tuple[FlowTrace, int, int]:
    """Give the receiver a wrong MAC address for a while; the trace, and the hole's true length in us as a range.

    Not by taking a link down: Linux may announce the new carrier up to a second late (net/core/link_watch.c).
    """
    times: list[int] = []

    def wrong_then_right() -> None:
        for mac in ("02:00:00:00:00:99", on.receiver.link("veth-rx").mac):
            neighbour = [str(RECEIVER_ADDRESS), "lladdr", mac, "dev", "veth-tx", "nud", "permanent"]
            times.append(time.monotonic_ns())
            gate.run(["ip", "-n", on.sender_ns, "neigh", "replace", *neighbour])
            times.append(time.monotonic_ns())
            if len(times) == 2:
                time.sleep(MISDELIVERED_MS / 1000)

    trace = on.measure(during=wrong_then_right)
    return trace, (times[2] - times[1]) // 1000, (times[3] - times[0]) // 1000


def checks(on: Bench) -> Iterator[Check]:
    """Run every check, one by one. Times are held against what is known of that very run, never against a usual one."""
    trace = on.measure()
    yield _check("undisturbed", "nothing lost, doubled, reordered", trace, trace.figures().undisturbed)

    trace = on.measure(Relaying(Rules()))
    yield _check("undisturbed, relayed", "nothing lost, doubled, reordered", trace, trace.figures().undisturbed)

    trace = on.measure(Relaying(Rules(drop=DROPPED)))
    f = trace.figures()
    exact = trace.lost_sequences == tuple(sorted(DROPPED)) and not (f.duplicated or f.reordered)
    yield _check("loss", f"exactly {len(DROPPED)} known packets lost", trace, exact)

    relay = Relaying(Rules(drop=frozenset(HOLE)))
    trace = on.measure(relay)
    f = trace.figures()
    low_us, high_us = relay.distance_us(HOLE.start - 1, HOLE.stop)
    near = all(low_us - 1 <= value <= high_us + 1 for value in (f.gap_us, f.timestamp_time_us))
    exact = f.lost == len(HOLE) and f.loss_time_us == len(HOLE) * 1_000_000 // RATE_PPS
    yield _check("hole", f"{len(HOLE)} lost, {low_us / 1000:.2f} to {high_us / 1000:.2f} ms", trace, near and exact)

    trace = on.measure(Relaying(Rules(twice=TWICE)))
    f = trace.figures()
    exact = (f.duplicated, f.lost, f.reordered) == (len(TWICE), 0, 0)
    yield _check("duplicates", f"exactly {len(TWICE)} twice", trace, exact)

    trace = on.measure(Relaying(Rules(hold=HELD)))
    f = trace.figures()
    exact = (f.reordered, f.lost, f.duplicated) == (len(HELD), 0, 0)
    yield _check("reorders", f"exactly {len(HELD)} overtaken", trace, exact)

    trace, low, high = _misdeliver(on)
    f, lost = trace.figures(), trace.lost_sequences
    high += 2 * (1_000_000 // RATE_PPS + max(trace.late_us, f.worst_late_us))  # the last one before, the first after
    in_one_piece = bool(lost) and lost == tuple(range(lost[0], lost[-1] + 1))
    expected = f"one hole of {low / 1000:.0f} to {high / 1000:.0f} ms"
    yield _check("misdelivery", expected, trace, in_one_piece and low <= f.gap_us == f.timestamp_time_us <= high)

    trace = on.measure(receive_buffer_bytes=4096, during=on.stop_receiver)
    f = trace.figures()
    yield _check("own drops", "every loss owned up to as the receiver's", trace, 0 < f.own_drops == f.lost)


def _check(name: str, expected: str, trace: FlowTrace, passed: bool) -> Check:
    return Check(name, expected, trace.figures(), passed)
