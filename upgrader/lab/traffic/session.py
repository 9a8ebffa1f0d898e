"""One measurement: every VM, every direction, at once; events marked in it; figures out of it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from upgrader.core.errors import HostError
from upgrader.lab.traffic.analysis import (
    ClockMap,
    ClockSample,
    Direction,
    FlowFigures,
    FlowTrace,
    Window,
    with_control,
)
from upgrader.lab.traffic.protocol import Agent, AgentError, LinkState

# One UDP port per direction and VM: a wrong delivery shows up as a stranger and not in a flow's figures.
PORTS = {Direction.FROM_FABRIC: 20_000, Direction.TO_FABRIC: 21_000, Direction.VM_TO_VM: 22_000}
CLOCK_PROBES = 8
START_IN_MS = 100
GRACE_S = 1.0  # after the last packet fell due, for those still on their way

# What belongs to an event besides the time it took: packets already on their way when it began, and what
# comes after it (a neighbour learned anew, a queue that empties).
LEAD_MS = 50
SETTLE_MS = 250


@dataclass(frozen=True, slots=True)
class Node:
    """A place where an agent runs.

    interface   what `link` looks at, None for none
    same_clock  the agent runs on this kernel: its CLOCK_MONOTONIC is ours
    """

    name: str
    address: IPv4Address
    agent: Agent
    interface: str | None = None
    same_clock: bool = False


@dataclass(frozen=True, slots=True)
class _Flow:
    number: int
    vm: Node  # accounted to
    direction: Direction
    sender: Node
    receiver: Node
    port: int

    @property
    def peer(self) -> Node:
        return self.receiver if self.sender is self.vm else self.sender


@dataclass(frozen=True, slots=True)
class TrafficRun:
    """A finished measurement.

    links          per VM the interface before and after, where one was named
    clock_error_us the largest error of an estimated clock: it blurs windows, not losses and not gaps
    strangers      packets at our ports that were none of ours
    clock_steps    how often a receiver's clock was set meanwhile: gaps across that are wrong
    """

    seconds: float
    traces: tuple[FlowTrace, ...]
    windows: tuple[Window, ...]
    links: Mapping[str, tuple[LinkState, LinkState]]
    clock_error_us: int
    strangers: int
    clock_steps: int

    def figures(
        self,
        window: Window | None = None,
        *,
        control: TrafficRun | None = None,
        lead_ms: int = LEAD_MS,
        settle_ms: int = SETTLE_MS,
    ) -> tuple[FlowFigures, ...]:
        """Per VM and direction: of the whole run, or around a window (widened by `lead_ms` and `settle_ms`).

        With a control run, its longest gap stands beside each.
        """
        wide = window.widened(lead_ms, settle_ms) if window else None
        mine = tuple(trace.figures(wide) for trace in self.traces)
        return with_control(mine, control.figures()) if control else mine

    def window(self, label: str) -> Window:
        """The marked window of that name; KeyError if there is none."""
        for window in self.windows:
            if window.label == label:
                return window
        raise KeyError(label)


class TrafficSession:
    """Drives the flows between a fabric and its VMs.

        session.start(60)
        with session.window("move vm0"):
            ...
        run = session.finish(stop=True)

    Agents are the caller's: the session does not close them. Errors are AgentError or HostError; a session
    that failed can be started again.
    """

    def __init__(
        self,
        fabric: Node,
        vms: Sequence[Node],
        *,
        rate_pps: int = 1000,
        payload_bytes: int = 64,
        directions: Sequence[Direction] = tuple(Direction),
    ) -> None:
        self.fabric, self.vms = fabric, tuple(vms)
        self.rate_pps, self.payload_bytes = rate_pps, payload_bytes
        self.flows = tuple(self._plan(directions))
        self._windows: list[Window] = []
        self._clocks: dict[str, list[ClockSample]] = {}
        self._links: dict[str, LinkState] = {}
        self._until_ns = 0
        self._seconds = 0.0
        self._running = False

    def _plan(self, directions: Sequence[Direction]) -> Iterator[_Flow]:
        # Random per run: a packet of an earlier run that is still on its way is a stranger to this one.
        base = (secrets.randbelow((1 << 22) - 1) + 1) << 10
        for direction in directions:
            for index, vm in enumerate(self.vms):
                number = base + len(Direction) * index + list(Direction).index(direction)
                port = PORTS[direction] + index
                if direction is Direction.FROM_FABRIC:
                    yield _Flow(number, vm, direction, self.fabric, vm, port)
                elif direction is Direction.TO_FABRIC:
                    yield _Flow(number, vm, direction, vm, self.fabric, port)
                elif len(self.vms) > 1:
                    yield _Flow(number, vm, direction, vm, self.vms[(index + 1) % len(self.vms)], port)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The fabric, then the VMs."""
        return (self.fabric, *self.vms)

    def unreachable(self) -> list[tuple[str, str]]:
        """Try every path with ICMP echoes; the (sender, receiver) pairs that do not answer.

        It also fills the neighbour tables, whose queues would otherwise swallow a flow's first packets.
        """
        pairs = {(f.sender.name, f.receiver.name): f for f in self.flows}
        return [
            pair
            for pair, flow in pairs.items()
            if not any(flow.sender.agent.ping(flow.receiver.address) is not None for _ in range(3))
        ]

    def start(self, seconds: float) -> None:
        """Start every flow, for `seconds` at most.

        Raises HostError when a path does not work before the measurement, with nothing started.
        """
        dead = self.unreachable()
        if dead:
            raise HostError(
                "TRAFFIC_NO_PATH",
                "no answer from " + ", ".join(f"{b} to {a}" for a, b in dead),
                state="no traffic was started",
                next="upgrade lab status",
            )
        self._windows.clear()
        self._clocks.clear()
        self._seconds = seconds
        duration_ms = round(seconds * 1000)
        for node in self.nodes:
            node.agent.clear()
            if node.interface:
                self._links[node.name] = node.agent.link(node.interface)
        for flow in self.flows:
            flow.receiver.agent.receive_flow(
                flow.number,
                flow.port,
                records=round(self.rate_pps * seconds * 1.25) + 1000,
                duration_ms=duration_ms + 30_000,
            )
        for flow in self.flows:
            flow.sender.agent.send_flow(
                flow.number,
                flow.receiver.address,
                flow.port,
                rate_pps=self.rate_pps,
                duration_ms=duration_ms,
                payload_bytes=self.payload_bytes,
            )
        self._sample_clocks()
        self._running = True
        for node in self.nodes:
            node.agent.go(in_ms=START_IN_MS)
        self._until_ns = time.monotonic_ns() + (duration_ms + START_IN_MS) * 1_000_000

    def _sample_clocks(self) -> None:
        for node in self.nodes:
            if not node.same_clock:
                probes = [node.agent.clock() for _ in range(CLOCK_PROBES)]
                self._clocks.setdefault(node.name, []).append(min(probes, key=lambda probe: probe.error_ns))

    @contextlib.contextmanager
    def window(self, label: str) -> Iterator[None]:
        """Mark what happens inside as an event, also when it fails."""
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.add_window(label, start_ns, time.monotonic_ns())

    def add_window(self, label: str, start_ns: int, end_ns: int) -> None:
        """Mark an event by its times (time.monotonic_ns)."""
        self._windows.append(Window(label, start_ns, end_ns))

    @property
    def remaining_s(self) -> float:
        """How long the flows still run."""
        return max(0.0, (self._until_ns - time.monotonic_ns()) / 1e9)

    def finish(self, *, stop: bool = False) -> TrafficRun:
        """Wait for the flows' end (or end them now), gather the records, and forget them at the agents."""
        if stop:
            for node in self.nodes:
                for flow in self.flows:
                    if flow.sender is node:
                        node.agent.stop(flow.number)
        else:
            time.sleep(self.remaining_s)
        time.sleep(GRACE_S)
        for node in self.nodes:
            node.agent.stop()
        self._sample_clocks()
        clocks = {node.name: ClockMap(tuple(self._clocks.get(node.name, ()))) for node in self.nodes}
        traces = tuple(
            FlowTrace(
                flow.vm.name,
                flow.peer.name,
                flow.direction,
                flow.sender.agent.sender_record(flow.number),
                flow.receiver.agent.receiver_record(flow.number),
                sender_clock=clocks[flow.sender.name],
                receiver_clock=clocks[flow.receiver.name],
            )
            for flow in self.flows
        )
        links = {
            node.name: (self._links[node.name], node.agent.link(node.interface))
            for node in self.nodes
            if node.interface
        }
        for node in self.nodes:
            node.agent.clear()
        self._running = False
        return TrafficRun(
            seconds=self._seconds,
            traces=traces,
            windows=tuple(self._windows),
            links=links,
            clock_error_us=max((clock.error_ns for clock in clocks.values()), default=0) // 1000,
            strangers=sum(trace.receiver.strangers for trace in traces),
            clock_steps=sum(trace.receiver.clock_steps for trace in traces),
        )

    def abandon(self) -> None:
        """End what still runs, without its figures; agents that do not answer end their flows by themselves."""
        if self._running:
            self._running = False
            for node in self.nodes:
                with contextlib.suppress(AgentError):
                    node.agent.clear()

    def control(self, seconds: float) -> TrafficRun:
        """A run in which nothing happens, to compare with."""
        self.start(seconds)
        return self.finish()
