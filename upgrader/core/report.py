"""What a run reports: its outcome, and what each VM's hand-over took. Rendered as JSON with a schema version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from upgrader.core.errors import UpgradeError
from upgrader.core.findings import Finding
from upgrader.core.model import SlotName
from upgrader.core.plan import Plan

SCHEMA_VERSION = 1

Outcome = Literal["done", "restored", "operator-needed"]


@dataclass(frozen=True, slots=True)
class VmMove:
    """One VM's hand-over. Times inside QEMU in microseconds; the moments are CLOCK_REALTIME, ns since the epoch.

    blackout_us      from the first message to the old switch to the last notification: nobody served the rings
    command_us       the whole QMP command as the coordinator saw it
    started_at_ns    before the command was sent
    ended_at_ns      after its answer came
    over_budget      blackout above policy.blackout_budget_us
    undone           it was the way back of a run that failed
    """

    vm: str
    mac: str
    from_slot: SlotName
    to_slot: SlotName
    generation: int
    blackout_us: float
    quiesce_us: float
    index_us: float
    activate_us: float
    notify_us: float
    command_us: float
    started_at_ns: int
    ended_at_ns: int
    over_budget: bool
    undone: bool = False


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a run as it went."""

    title: str
    state: Literal["done", "failed", "undone", "undo-failed"]
    took_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run, from its plan to its outcome. `error`, `state` and `next` as in `UpgradeError`, None when done."""

    plan_id: str
    host: str
    from_slot: SlotName
    to_slot: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    outcome: Outcome
    took_s: float
    moves: tuple[VmMove, ...]
    steps: tuple[StepRecord, ...]
    findings: tuple[Finding, ...]
    error: str | None = None
    state: str | None = None
    next: str | None = None

    @property
    def moved(self) -> int:
        """VM ports that are with the new switch for good."""
        return 0 if self.outcome == "restored" else sum(-1 if m.undone else 1 for m in self.moves)

    def to_json(self) -> dict[str, object]:
        """As printed by --json; fields are only ever added under the same schema_version."""
        return {"schema_version": SCHEMA_VERSION, "kind": "run", **asdict(self)}


def plan_json(plan: Plan) -> dict[str, object]:
    """A plan as printed by --dry-run --json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "plan",
        "id": plan.id,
        "host": plan.host,
        "from_slot": plan.source,
        "to_slot": plan.target,
        "from_version": plan.from_version,
        "to_version": plan.to_version,
        "strategy": plan.strategy,
        "loses": plan.loses,
        "vms": [p.label for p in plan.ports],
        "steps": [{"kind": s.kind, "title": s.title, "vm": s.port.label if s.port else None} for s in plan.steps],
        "findings": [asdict(f) for f in plan.findings],
        "blocked": bool(plan.blocking),
    }


def error_json(error: UpgradeError) -> dict[str, object]:
    """A refusal as printed by --json."""
    said = {"code": error.code, "what": error.what, "state": error.state, "next": error.next}
    return {"schema_version": SCHEMA_VERSION, "kind": "error", **said}


def vm_move(data: Mapping[str, object]) -> VmMove | None:
    """The hand-over that a step's outcome data tells of, if it was one."""
    move = data.get("move")
    return move if isinstance(move, VmMove) else None
