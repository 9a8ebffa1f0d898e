"""What the demonstration measured, as values, as JSON and as limits that hold or do not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from upgrader.lab.traffic.analysis import Direction, FlowFigures

SCHEMA_VERSION = 1
FABRIC = (Direction.FROM_FABRIC, Direction.TO_FABRIC)

# What a move may cost; issue and README name the same figures.
BLACKOUT_US = 1500
GAP_BEYOND_CONTROL_US = 20_000
GAP_SHARE = 0.9
LOST = 5
TIMES_BETTER = 20
APART_S = 0.3


# What the report says of each direction (FlowFigures tells what they are).
KEEP = (
    "gap_us",
    "network_gap_us",
    "control_gap_us",
    "control_network_gap_us",
    "sent",
    "unsent",
    "lost",
    "duplicated",
    "reordered",
    "loss_time_us",
    "timestamp_time_us",
)


@dataclass(frozen=True, slots=True)
class Felt:
    """What one VM felt of one event.

    event        ``a -> b``, ``b -> a`` or ``stock restart``
    blackout_us  how long nobody served its rings: inside QEMU for a move; for a restart from the loss of the old
                 process to the connection of the new, by QEMU's clock
    bystanders   flows from and to the fabric of the VMs that were not moved, in the same window
    apart_s      from the end of the hand-over before to the end of this one; None for the first two of a run, since the
                 first VM is watched for a while
    """

    event: str
    vm: str
    blackout_us: float
    directions: Mapping[Direction, FlowFigures]
    bystanders: tuple[FlowFigures, ...] = ()
    apart_s: float | None = None

    def beyond_control_us(self) -> int:
        """The longest gap from or to the fabric, minus the control run's longest of that direction; never below 0."""
        return max(_beyond(f.gap_us, f.control_gap_us) for f in self._fabric())

    def network_beyond_control_us(self) -> int:
        """The same of the network part of the gaps: without what the senders themselves were late, in both runs."""
        return max(_beyond(f.network_gap_us, f.control_network_gap_us) for f in self._fabric())

    def gap_us(self) -> int:
        """The longest gap from or to the fabric."""
        return max(f.gap_us for f in self._fabric())

    def network_gap_us(self) -> int:
        """The same without what the sender was late."""
        return max(f.network_gap_us for f in self._fabric())

    def to_json(self) -> dict[str, object]:
        """Plain values; `bystanders` is there for moves only."""
        entry: dict[str, object] = {
            "event": self.event,
            "vm": self.vm,
            "blackout_us": round(self.blackout_us, 1),
            "directions": {d.value: {k: f.as_json()[k] for k in KEEP} for d, f in self.directions.items()},
        }
        if self.apart_s is not None:
            entry["apart_s"] = round(self.apart_s, 3)
        if self.bystanders:
            entry["bystanders"] = {
                kind: {"median": median(values), "worst": max(values)}
                for kind in ("gap_us", "network_gap_us", "lost")
                if (values := [int(getattr(f, kind)) for f in self.bystanders])
            }
        return entry

    def _fabric(self) -> list[FlowFigures]:
        return [f for d, f in self.directions.items() if d in FABRIC]


def _beyond(gap_us: int, control_us: int | None) -> int:
    return max(0, gap_us - (control_us or 0))


def bystanders_line(moves: Sequence[Felt]) -> str:
    """What VMs felt while another one was moved, in one line; empty where there was no other."""
    flows = [f for m in moves for f in m.bystanders]
    if not flows:
        return ""
    gaps, network = ([getattr(f, kind) / 1000 for f in flows] for kind in ("gap_us", "network_gap_us"))
    lost = [f.lost for f in flows]
    return (
        "bystanders, from and to the fabric while another VM moved: longest gap "
        f"median {median(gaps):.1f} ms, worst {max(gaps):.1f} (network part {median(network):.1f}, {max(network):.1f}); "
        f"lost median {median(lost):.0f}, worst {max(lost)} packets"
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that must hold: what was measured, what it may be, and whether it is."""

    what: str
    measured: str
    limit: str
    holds: bool

    def line(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what}: {self.measured} (limit {self.limit})"


def limits(moves: Sequence[Felt], restart: Sequence[Felt], disturbed: Mapping[str, str]) -> tuple[Limit, ...]:
    """Judge a run. `disturbed` tells, by VM, what the guest noticed of its NIC; empty when it noticed nothing."""
    blackout = median(m.blackout_us for m in moves)
    worst = max(m.blackout_us for m in moves)
    calm, calm_network = (
        sum(beyond(m) <= GAP_BEYOND_CONTROL_US for m in moves)
        for beyond in (Felt.beyond_control_us, Felt.network_beyond_control_us)
    )
    worst_gap, worst_network = (
        max(beyond(m) for m in moves) / 1000 for beyond in (Felt.beyond_control_us, Felt.network_beyond_control_us)
    )
    losses = [f.lost for m in moves for d, f in m.directions.items() if d in FABRIC]
    unsent = sum(f.unsent for m in moves for d, f in m.directions.items() if d in FABRIC)
    moved_gap = max(1, median(m.gap_us() for m in moves))
    restart_gap = median(r.gap_us() for r in restart)
    restart_out = median(r.blackout_us for r in restart)
    return (
        Limit(
            "blackout inside QEMU, median",
            f"{blackout:.0f} us (max {worst:.0f}; stock restart {restart_out:.0f})",
            f"{BLACKOUT_US} us",
            blackout <= BLACKOUT_US,
        ),
        Limit(
            f"moves whose longest gap is at most {GAP_BEYOND_CONTROL_US // 1000} ms beyond the control run's",
            f"{calm} of {len(moves)}, worst {worst_gap:.1f} ms (without the senders' own lateness "
            f"{calm_network} of {len(moves)}, worst {worst_network:.1f} ms)",
            f"{GAP_SHARE:.0%}",
            calm >= GAP_SHARE * len(moves),
        ),
        Limit(
            "lost per move and direction, from and to the fabric",
            f"{max(losses)} in the worst of {len(losses)} (median {median(losses):.0f}; refused by the sender: {unsent})",
            f"{LOST} packets",
            max(losses) <= LOST,
        ),
        Limit(
            "stock restart is worse by (longest gap, medians)",
            f"{restart_gap / moved_gap:.0f} times ({restart_gap / 1000:.0f} ms against {moved_gap / 1000:.1f} ms)",
            f"{TIMES_BETTER} times",
            restart_gap >= TIMES_BETTER * moved_gap,
        ),
        Limit(
            "guests that noticed anything of their NIC during the moves",
            "; ".join(f"{vm}: {what}" for vm, what in disturbed.items()) or "none",
            "none",
            not disturbed,
        ),
        *_pace([m.apart_s for m in moves if m.apart_s is not None]),
    )


def _pace(apart_s: Sequence[float]) -> tuple[Limit, ...]:
    """How quickly one VM follows the other; nothing where that cannot be told."""
    if not apart_s:
        return ()
    measured = f"{median(apart_s) * 1000:.0f} ms (max {max(apart_s) * 1000:.0f})"
    what = "from one VM's hand-over to the next one's, median"
    return (Limit(what, measured, f"{APART_S * 1000:.0f} ms", median(apart_s) <= APART_S),)


def report_json(
    options: Mapping[str, object],
    moves: Sequence[Felt],
    restart: Sequence[Felt],
    judged: Sequence[Limit],
) -> dict[str, object]:
    """The whole demonstration; fields are only ever added under the same schema_version."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "demo",
        "options": dict(options),
        "moves": [m.to_json() for m in moves],
        "stock_restart": [r.to_json() for r in restart],
        "limits": [{"what": x.what, "measured": x.measured, "limit": x.limit, "holds": x.holds} for x in judged],
    }
