"""Everything that replication must show, run for real: a line an item with figure and limit, non-zero if one fails.

make show-replication                      # all of it, about twenty minutes
make show-replication PARTS="corpus bench" # some of it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.bench.bench_first_packet import measure as first_packet
from tests.bench.bench_replication import in_process
from tests.show.items import Item, show, tested
from tests.support.corpus import LARGEST

_REPLICATE_LIMIT = 4.0  # times ovs-ofctl --bundle alone
_MEMORY_LIMIT_MIB = 300
_FIRST_PACKET_LIMIT = 3.0  # times the control run's median
_BETWEEN_VMS_LIMIT_S = 0.1  # a round after which nothing was changed
_ROUNDS = 3


def equal() -> Iterator[Item]:
    """Each class of state: brought over, and each change of the standby found and named."""
    yield from tested("tests/integration/test_replicate.py")


def corpus() -> Iterator[Item]:
    """Switches made up by hypothesis, up to the largest that is promised; every mutation of each is named."""
    yield from tested("tests/unit/test_openflow.py")
    yield from tested("tests/integration/test_corpus.py")
    yield from tested("tests/integration/lab_corpus.py")


def follow() -> Iterator[Item]:
    """Writers at work, a monitor that is lost, another schema; never moved to without being up to date."""
    yield from tested("tests/integration/test_follow.py")
    yield from tested("tests/unit/test_in_step.py")
    yield from tested("tests/unit/test_watch.py")


def control() -> Iterator[Item]:
    """A controller, a database client and ovs-vsctl across the move of control, and back."""
    yield from tested("tests/integration/test_control.py")


def findings() -> Iterator[Item]:
    """What is not carried over, each with its code: from made-up facts, and from those of a real switch."""
    yield from tested("tests/unit/test_findings.py")
    yield from tested("tests/integration/test_findings.py")


def versions() -> Iterator[Item]:
    """Up and down between two versions of OVS and DPDK."""
    yield from tested("tests/integration/lab_versions.py")


def learned() -> Iterator[Item]:
    """Each switch knows its tunnels' neighbours at first hand."""
    yield from tested("tests/integration/test_neighbours.py")


def stale() -> Iterator[Item]:
    """A standby that is an old copy is not moved to, nor taken over to without that being said."""
    yield from tested("tests/unit/test_stale.py")


def warm() -> Iterator[Item]:
    """The memory of a standby's ports is there before the VMs."""
    yield from tested("tests/integration/lab_warm.py")


def writer() -> Iterator[Item]:
    """A whole run on the real lab while flows and ports change all the time."""
    yield from tested("tests/integration/test_writer.py")


def bench() -> Iterator[Item]:
    """The largest switch that is promised, beside ovs-ofctl alone in the same run."""
    flows, ports = LARGEST
    figures = in_process(flows, ports, _ROUNDS)
    baseline = f"ovs-ofctl --bundle alone: {figures.ofctl_bundle_s:.2f} s"
    yield Item(
        f"{flows} flows, {ports} ports, replicated and proved",
        f"{figures.replicate_s + figures.prove_s:.2f} s, {figures.ratio:.1f} times ({baseline})",
        f"{_REPLICATE_LIMIT:g} times",
        figures.ratio <= _REPLICATE_LIMIT,
    )
    yield Item(
        f"one of {flows} flows changed on the standby, named, and nothing else",
        f"{figures.mutations_named} of {_ROUNDS}",
        f"{_ROUNDS} of {_ROUNDS}",
        figures.mutations_named == _ROUNDS,
    )
    idle = figures.follow_idle_s
    yield Item(
        f"a round between two VMs, none of {flows} flows and {ports} ports changed",
        f"{idle * 1000:.0f} ms ({figures.follow_changed_s:.2f} s with one changed)",
        f"{_BETWEEN_VMS_LIMIT_S * 1000:.0f} ms",
        idle <= _BETWEEN_VMS_LIMIT_S,
    )
    peak = figures.peak_rss_mib
    yield Item("memory of the coordinator", f"{peak:.0f} MiB", f"{_MEMORY_LIMIT_MIB} MiB", peak < _MEMORY_LIMIT_MIB)


def packet() -> Iterator[Item]:
    """The first packet of each flow on a standby that has just been brought over."""
    figures = first_packet()
    yield Item(
        "first packet after the move, 99th percentile",
        f"{figures.moved_p99_us:.0f} us, {figures.ratio:.1f} times "
        f"(control run's median: {figures.control_median_us:.0f} us, its 99th percentile {figures.control_p99_us:.0f}; of a "
        f"known flow {figures.known_median_us:.0f}; {figures.packets} each)",
        f"{_FIRST_PACKET_LIMIT:g} times",
        figures.ratio <= _FIRST_PACKET_LIMIT,
    )


PARTS = {
    "equal": equal,
    "corpus": corpus,
    "follow": follow,
    "control": control,
    "findings": findings,
    "learned": learned,
    "stale": stale,
    "versions": versions,
    "warm": warm,
    "writer": writer,
    "bench": bench,
    "packet": packet,
}

if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
