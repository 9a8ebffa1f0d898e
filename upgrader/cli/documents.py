"""What each verb prints with --json, as values. docs/schemas is made of these; fields are only ever added to a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from upgrader.core.errors import UpgradeError
from upgrader.core.findings import Finding
from upgrader.core.journal import Heading, Recorded, RunView, recorded
from upgrader.core.lifecycle import RunState, VmState
from upgrader.core.model import NicFacts, SlotName, SteeringCapabilities, SteeringRule
from upgrader.core.plan import Plan, StepKind
from upgrader.core.report import SCHEMA_VERSION, RunReport, report
from upgrader.core.steering import Arrival
from upgrader.core.takeover import Standing

if TYPE_CHECKING:
    from upgrader.config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingsDocument:
    """`check`. blocked: a finding forbids the run."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["findings"] = "findings"
    blocked: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class StepDocument:
    """One step of a plan. vm: the VM port it concerns, null for the host's steps."""

    kind: StepKind
    title: str
    vm: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDocument:
    """`plan` and `--dry-run`: what a run would do. `plan --out` writes another file, for `run` alone to read."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["plan"] = "plan"
    id: str
    host: str
    from_slot: SlotName
    to_slot: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    loses: str
    vms: tuple[str, ...]
    steps: tuple[StepDocument, ...]
    findings: tuple[Finding, ...]
    blocked: bool


@dataclass(frozen=True, slots=True)
class RunDocument(RunReport):
    """`run`, `resume`, `rollback` and `report`: what a run came to. Times as in each field's name."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run"] = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDocument:
    """`status`: the latest run by its journal; `run` and `facts` are null where there has been none.

    coordinator_pid  of whoever holds the host, null where nobody does; 0 where it did not say
    vms              by VM port
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["status"] = "status"
    coordinator_pid: int | None
    run: RunDocument | None
    vms: dict[str, VmState]
    facts: Recorded | None
    protection: Standing


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One run. kind: of its plan; steps: how many that has; generation: of the coordinator that began it."""

    run_id: int
    kind: str
    plan_id: str
    host: str
    source: SlotName
    target: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    steps: int
    started_at_ns: int
    generation: int
    state: RunState
    changed_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryDocument:
    """`history`: runs, the newest first."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["history"] = "history"
    runs: tuple[HistoryLine, ...]


@dataclass(frozen=True, slots=True)
class StrategyDocument:
    """How a run would steer. loses: what that can cost, in words."""

    name: str
    loses: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NicDocument:
    """`nic show`: what the NIC can do for a run, and the rules of ours on it."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["nic"] = "nic"
    pf: str
    adapter: str
    nic: NicFacts
    capabilities: SteeringCapabilities
    strategy: StrategyDocument
    rules: tuple[SteeringRule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NicCheckDocument:
    """`nic check`: what stands against steering by the NIC as it is."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["nic-check"] = "nic-check"
    strategy: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NicProbeDocument:
    """`nic probe`: who gets a VM's traffic by the rules, and packets that came to each slot while it was watched."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["nic-probe"] = "nic-probe"
    vni: int
    mac: str
    by_rules: tuple[SlotName, ...]
    arrived: dict[SlotName, int]
    verdict: Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDocument:
    """Any verb that is refused or fails, with --json."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["error"] = "error"
    code: str
    what: str
    state: str
    next: str


def findings_document(findings: tuple[Finding, ...], *, blocked: bool) -> FindingsDocument:
    return FindingsDocument(blocked=blocked, findings=findings)


def plan_document(plan: Plan) -> PlanDocument:
    return PlanDocument(
        id=plan.id,
        host=plan.host,
        from_slot=plan.source,
        to_slot=plan.target,
        from_version=plan.from_version,
        to_version=plan.to_version,
        strategy=plan.strategy,
        loses=plan.loses,
        vms=tuple(p.label for p in plan.ports),
        steps=tuple(StepDocument(s.kind, s.title, s.port.label if s.port else None) for s in plan.steps),
        findings=plan.findings,
        blocked=bool(plan.blocking),
    )


def run_document(told: RunReport) -> RunDocument:
    return RunDocument(**{f.name: getattr(told, f.name) for f in fields(RunReport)})


def status_document(view: RunView | None, coordinator: int | None, protection: Standing) -> StatusDocument:
    return StatusDocument(
        coordinator_pid=coordinator,
        run=run_document(report(view)) if view else None,
        vms=view.vms() if view else {},
        facts=recorded(view) if view else None,
        protection=protection,
    )


def history_document(runs: tuple[tuple[Heading, RunState, int], ...]) -> HistoryDocument:
    def line(head: Heading, state: RunState, changed_at_ns: int) -> HistoryLine:
        shared = {f.name: getattr(head, f.name) for f in fields(Heading) if f.name != "steps"}
        return HistoryLine(**shared, steps=len(head.steps), state=state, changed_at_ns=changed_at_ns)

    return HistoryDocument(runs=tuple(line(*run) for run in runs))


def error_document(error: UpgradeError) -> ErrorDocument:
    return ErrorDocument(code=error.code, what=error.what, state=error.state, next=error.next)


def config_document(config: Config) -> Mapping[str, Any]:
    """`config show`: every key with the value that counts, defaults too."""
    return {"schema_version": SCHEMA_VERSION, "kind": "config", "config": config.model_dump(mode="json")}
