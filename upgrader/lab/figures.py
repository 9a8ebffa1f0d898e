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


@dataclass(frozen=True, slots=True)
class Felt:
    """What one VM felt of one event.

    event        ``a -> b``, ``b -> a`` or ``stock restart``
    blackout_us  how long nobody served its rings: inside QEMU for a move; for a restart from the loss of the old
                 process to the connection of the new, by QEMU's clock
    """

    event: str
    vm: str
    blackout_us: float
    directions: Mapping[Direction, FlowFigures]

    def beyond_control_us(self) -> int:
        """The longest gap from or to the fabric, minus the control run's longest of that direction; never below 0."""
        return max(max(0, f.gap_us - (f.control_gap_us or 0)) for d, f in self.directions.items() if d in FABRIC)

    def gap_us(self) -> int:
        return max(f.gap_us for d, f in self.directions.items() if d in FABRIC)

    def to_json(self) -> dict[str, object]:
        keep = (
            "gap_us",
            "control_gap_us",
            "sent",
            "lost",
            "duplicated",
            "reordered",
            "loss_time_us",
            "timestamp_time_us",
        )
        return {
            "event": self.event,
            "vm": self.vm,
            "blackout_us": round(self.blackout_us, 1),
            "directions": {d.value: {k: f.as_json()[k] for k in keep} for d, f in self.directions.items()},
        }


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
    calm = sum(m.beyond_control_us() <= GAP_BEYOND_CONTROL_US for m in moves)
    losses = [f.lost for m in moves for d, f in m.directions.items() if d in FABRIC]
    moved_gap = median(m.gap_us() for m in moves)
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
            f"{calm} of {len(moves)} (worst {max(m.beyond_control_us() for m in moves) / 1000:.1f} ms)",
            f"{GAP_SHARE:.0%}",
            calm >= GAP_SHARE * len(moves),
        ),
        Limit(
            "lost per move and direction, from and to the fabric, worst",
            f"{max(losses)} of {len(losses)} (median {median(losses):.0f})",
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
    )


def report_json(
    options: Mapping[str, object], moves: Sequence[Felt], restart: Sequence[Felt], judged: Sequence[Limit]
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
