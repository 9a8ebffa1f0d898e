"""From records to figures: what one flow lost, how long its longest gap was. Pure functions.

Three rules hold throughout. Sequence numbers, never clocks, decide what was lost. A gap is a difference of
two timestamps of one receiver. A clock of one machine is compared with another's only to say which packets
belong to an event's window, and windows are wider than that comparison's error.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise

NS_PER_S = 1_000_000_000
UNSENT = 0xFFFFFFFF

# Losses closer to each other than this are one interruption.
OUTAGE_MERGE_NS = 50_000_000


class Direction(StrEnum):
    """Which way a flow goes, seen from the VM it is accounted to (in `vm_to_vm`, the sender)."""

    FROM_FABRIC = "from_fabric"
    TO_FABRIC = "to_fabric"
    VM_TO_VM = "vm_to_vm"


def _column(typecode: str, data: bytes) -> array[int]:
    column: array[int] = array(typecode)
    column.frombytes(data)
    if sys.byteorder == "big":  # the agent writes little-endian
        column.byteswap()
    return column


@dataclass(frozen=True, slots=True)
class SenderRecord:
    """What a sender did. Sequence number i was due at `start_ns + i / rate` in its own CLOCK_MONOTONIC.

    lateness_us  one entry per sequence number that fell due: how late it left, or UNSENT (refused by the kernel)
    refused      ICMP "port unreachable" that came back: the receiver was not listening
    last_errno   why the last unsent packet was not sent, 0 if there was none
    """

    rate_pps: int
    start_ns: int
    lateness_us: array[int]
    refused: int = 0
    last_errno: int = 0

    @staticmethod
    def lateness_from(data: bytes) -> array[int]:
        """Decode the agent's u32 array."""
        return _column("I", data)

    def due_ns(self, sequence: int) -> int:
        """When a packet was due, in the sender's clock."""
        return self.start_ns + sequence * NS_PER_S // self.rate_pps


@dataclass(frozen=True, slots=True)
class ReceiverRecord:
    """What a receiver saw, in order of arrival: sequence numbers and kernel times (its CLOCK_MONOTONIC).

    own_drops    packets that reached the receiver's socket and were lost there: the measurement's fault
    strangers    packets of other flows, not recorded
    clock_steps  how often somebody set the receiver's CLOCK_REALTIME during the run
    """

    sequences: array[int]
    times_ns: array[int]
    own_drops: int = 0
    strangers: int = 0
    clock_steps: int = 0

    @staticmethod
    def columns_from(data: bytes) -> tuple[array[int], array[int]]:
        """Decode the agent's array of (u64 sequence, u64 time) into two columns."""
        both = _column("Q", data)
        return both[0::2], both[1::2]


@dataclass(frozen=True, slots=True)
class ClockSample:
    """The same instant in our CLOCK_MONOTONIC and in an agent's, to within `error_ns`."""

    host_ns: int
    agent_ns: int
    error_ns: int


@dataclass(frozen=True, slots=True)
class ClockMap:
    """Our CLOCK_MONOTONIC to an agent's: straight lines between samples in order. Without any: the same clock."""

    samples: tuple[ClockSample, ...] = ()

    @property
    def error_ns(self) -> int:
        """How far off the map may be at a sample; between samples the drift's unevenness comes on top."""
        return max((sample.error_ns for sample in self.samples), default=0)

    def to_agent(self, host_ns: int) -> int:
        """Translate a time of ours."""
        if not self.samples:
            return host_ns
        if len(self.samples) == 1:
            return host_ns + self.samples[0].agent_ns - self.samples[0].host_ns
        right = bisect_left([sample.host_ns for sample in self.samples], host_ns)
        right = min(max(right, 1), len(self.samples) - 1)
        a, b = self.samples[right - 1], self.samples[right]
        return a.agent_ns + (host_ns - a.host_ns) * (b.agent_ns - a.agent_ns) // max(1, b.host_ns - a.host_ns)


@dataclass(frozen=True, slots=True)
class Window:
    """The time around an event, in our CLOCK_MONOTONIC."""

    label: str
    start_ns: int
    end_ns: int

    def widened(self, lead_ms: int, settle_ms: int) -> Window:
        """Begin earlier and end later: packets in flight at the event belong to it, and so does what comes after."""
        return replace(self, start_ns=self.start_ns - lead_ms * 1_000_000, end_ns=self.end_ns + settle_ms * 1_000_000)


@dataclass(frozen=True, slots=True)
class FlowFigures:
    """What one VM felt in one direction, in a run or in a window of it.

    sent               packets handed to the sender's kernel; `unsent` fell due and were refused by it
    received           different packets that arrived; lost = sent - received
    duplicated         arrivals beyond the first of a packet
    reordered          type-P-reordered packets (RFC 4737): they arrived after a later one
    gap_us             longest time between two arrivals, and the control run's where there was one; silence at the run's
                       begin or end counts from the first and to the last packet that fell due, and a gap that reaches
                       out of the window counts whole
    network_gap_us     the same after taking off how late the packet that ended the gap had left its sender: what a
                       sender that stalled (an emulated vCPU that had to wait) does not explain; and the control run's
    loss_time_us       RFC 6201's loss-derived reset time: lost / rate
    timestamp_time_us  RFC 6201's timestamp-derived one: from the last arrival before a loss to the first
                       after it; the longest (losses within 50 ms are one interruption); 0: no loss
    late_sends         packets that left more than 1 ms after they were due; `worst_late_us` the worst
    own_drops          packets the receiver itself lost, in the whole run (they are among the lost)
    """

    vm: str
    peer: str
    direction: Direction
    rate_pps: int
    sent: int
    received: int
    lost: int
    duplicated: int
    reordered: int
    gap_us: int
    loss_time_us: int
    timestamp_time_us: int
    late_sends: int
    own_drops: int
    unsent: int = 0
    worst_late_us: int = 0
    network_gap_us: int = 0
    control_gap_us: int | None = None
    control_network_gap_us: int | None = None

    @property
    def undisturbed(self) -> bool:
        """Nothing lost, twice, or out of order."""
        return not (self.lost or self.duplicated or self.reordered)

    def as_json(self) -> dict[str, object]:
        """Field names as above; the direction as its word."""
        return asdict(self)


class FlowTrace:
    """One flow's records, digested once so that many windows can be asked about cheaply."""

    def __init__(
        self,
        vm: str,
        peer: str,
        direction: Direction,
        sender: SenderRecord,
        receiver: ReceiverRecord,
        *,
        sender_clock: ClockMap | None = None,
        receiver_clock: ClockMap | None = None,
        late_us: int = 1000,
    ) -> None:
        self.vm, self.peer, self.direction = vm, peer, direction
        self.sender, self.receiver = sender, receiver
        self.sender_clock = sender_clock or ClockMap()
        self.receiver_clock = receiver_clock or ClockMap()
        self.late_us = late_us
        total = len(sender.lateness_us)
        arrived = bytearray(total)  # per sequence number: has it been seen
        self._first_ns = array("Q", bytes(8 * total))
        self._duplicated: list[int] = []
        self._reordered: list[int] = []
        arrivals: list[tuple[int, int]] = []  # time and sequence number of first copies
        expected = 0
        for sequence, time_ns in zip(receiver.sequences, receiver.times_ns, strict=True):
            if sequence >= total:
                continue  # a packet that `stop` cut off between its sending and its record
            if arrived[sequence]:
                self._duplicated.append(sequence)
                continue
            arrived[sequence] = 1
            self._first_ns[sequence] = time_ns
            arrivals.append((time_ns, sequence))
            if sequence >= expected:
                expected = sequence + 1
            else:
                self._reordered.append(sequence)
        self._arrived = arrived
        self._unsent = [s for s, late in enumerate(sender.lateness_us) if late == UNSENT]
        missing = (s for s in range(total) if not arrived[s])
        refused = set(self._unsent)
        self._lost = [s for s in missing if s not in refused]
        self._late = [s for s, late in enumerate(sender.lateness_us) if late_us < late < UNSENT]
        self._duplicated.sort()
        self._reordered.sort()
        arrivals.sort()
        self._arrivals_ns = [time_ns for time_ns, _ in arrivals]
        self._late_ns = [sender.lateness_us[sequence] * 1000 for _, sequence in arrivals]  # of each arrival
        self._earliest = arrivals[0][1] if arrivals else 0  # the sequence number that arrived first
        self._bound_arrivals()

    def _bound_arrivals(self) -> None:
        # Silence that does not begin or does not end within the run is a gap too: put an arrival where the first packet
        # would have arrived if it is missing, and where the last one that fell due would have. By sequence numbers, since
        # the two clocks differ. A packet held back on its way does not move either bound: they are kept in order.
        if not self._arrivals_ns:
            return
        interval_ns = NS_PER_S / self.sender.rate_pps
        last = self._arrived.rfind(1)
        end_ns = self._first_ns[last] + round((len(self._arrived) - 1 - last) * interval_ns)
        if self._earliest > 0:
            self._arrivals_ns.insert(0, self._arrivals_ns[0] - round(self._earliest * interval_ns))
            self._late_ns.insert(0, 0)
        if end_ns > self._arrivals_ns[-1]:
            self._arrivals_ns.append(end_ns)
            self._late_ns.append(0)

    @property
    def lost_sequences(self) -> tuple[int, ...]:
        """What was sent and never arrived, in order."""
        return tuple(self._lost)

    def sequences_in(self, window: Window | None) -> range:
        """The sequence numbers that fell due in a window (all without one)."""
        total = len(self.sender.lateness_us)
        if window is None:
            return range(total)
        since_ns = [self.sender_clock.to_agent(t) - self.sender.start_ns for t in (window.start_ns, window.end_ns)]
        low, high = (min(max(math.ceil(t * self.sender.rate_pps / NS_PER_S), 0), total) for t in since_ns)
        return range(low, max(low, high))

    def figures(self, window: Window | None = None) -> FlowFigures:
        """The figures of a window, or of the whole run."""
        within = self.sequences_in(window)
        lost = _slice(self._lost, within)
        unsent = len(_slice(self._unsent, within))
        late = _slice(self._late, within)
        sent = len(within) - unsent
        gap_ns, network_gap_ns = self._longest_gaps_ns(window, within)
        return FlowFigures(
            vm=self.vm,
            peer=self.peer,
            direction=self.direction,
            rate_pps=self.sender.rate_pps,
            sent=sent,
            received=sent - len(lost),
            lost=len(lost),
            duplicated=len(_slice(self._duplicated, within)),
            reordered=len(_slice(self._reordered, within)),
            gap_us=gap_ns // 1000,
            loss_time_us=len(lost) * 1_000_000 // self.sender.rate_pps,
            timestamp_time_us=max(map(self._span_ns, self._outages(lost)), default=0) // 1000,
            late_sends=len(late),
            own_drops=self.receiver.own_drops,
            unsent=unsent,
            worst_late_us=max((self.sender.lateness_us[s] for s in late), default=0),
            network_gap_us=network_gap_ns // 1000,
        )

    def _longest_gaps_ns(self, window: Window | None, within: range) -> tuple[int, int]:
        times = self._arrivals_ns
        if not times:
            silence_ns = len(self._arrived) * NS_PER_S // self.sender.rate_pps if within else 0  # it reaches out, too
            return silence_ns, silence_ns
        low, high = 0, len(times)
        if window is not None:  # and the arrivals just outside: a gap that reaches out counts whole
            low = max(0, bisect_left(times, self.receiver_clock.to_agent(window.start_ns)) - 1)
            high = bisect_right(times, self.receiver_clock.to_agent(window.end_ns)) + 1
        gaps = [b - a for a, b in pairwise(times[low:high])]
        network = (gap - late for gap, late in zip(gaps, self._late_ns[low + 1 : high], strict=True))
        return max(gaps, default=0), max(0, max(network, default=0))

    def _outages(self, lost: Sequence[int]) -> list[tuple[int, int]]:
        """Group lost sequence numbers into interruptions: (first lost, last lost)."""
        reach = max(1, OUTAGE_MERGE_NS * self.sender.rate_pps // NS_PER_S)
        outages: list[tuple[int, int]] = []
        for sequence in lost:
            if outages and sequence - outages[-1][1] <= reach:
                outages[-1] = (outages[-1][0], sequence)
            else:
                outages.append((sequence, sequence))
        return outages

    def _span_ns(self, outage: tuple[int, int]) -> int:
        """From the last arrival before an interruption to the first after it, or to when that was due."""
        first, last = outage
        before = self._arrived.rfind(1, 0, first)
        after = self._arrived.find(1, last + 1)
        interval_ns = NS_PER_S // self.sender.rate_pps
        if before >= 0 and after >= 0:
            return max(0, self._first_ns[after] - self._first_ns[before])
        end = after if after >= 0 else len(self._arrived)
        return (end - max(before, -1)) * interval_ns


def _slice(ordered: Sequence[int], within: range) -> Sequence[int]:
    return ordered[bisect_left(ordered, within.start) : bisect_left(ordered, within.stop)]


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0 to 100) by nearest rank: a value that was measured. ValueError without values."""
    if not values or not 0 <= q <= 100:
        raise ValueError("a percentile needs values and 0 <= q <= 100")
    return sorted(values)[max(1, math.ceil(q / 100 * len(values))) - 1]


def with_control(figures: Sequence[FlowFigures], control: Sequence[FlowFigures]) -> tuple[FlowFigures, ...]:
    """Put the control run's longest gaps beside each flow's own; None where the control had no such flow."""
    calm = {(f.vm, f.peer, f.direction): f for f in control}
    return tuple(
        replace(f, control_gap_us=c.gap_us, control_network_gap_us=c.network_gap_us)
        if (c := calm.get((f.vm, f.peer, f.direction)))
        else f
        for f in figures
    )
