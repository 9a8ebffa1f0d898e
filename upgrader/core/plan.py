"""From facts to a plan: the ordered steps of one run. Pure; the same facts give the same plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from upgrader.core.findings import Finding, Severity, find
from upgrader.core.inventory import bindings, standing_bindings
from upgrader.core.model import HostFacts, PortBinding, SlotName, SteeringCapabilities, VmPort, other_slot
from upgrader.core.steering import choose


class StepKind(StrEnum):
    """What a step does; one file each in `upgrader.steps`."""

    START_STANDBY = "start-standby"
    REPLICATE = "replicate"
    COMPARE = "compare"
    ATTACH_STANDBY = "attach-standby"
    OPEN_WINDOW = "open-window"
    MOVE_VM = "move-vm"
    CLOSE_WINDOW = "close-window"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan; `port` for the steps that concern a single VM."""

    kind: StepKind
    title: str
    port: VmPort | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    id         from the content: two plans with the same id do the same
    source     slot whose switch serves the VMs now, and is retired
    target     slot whose switch serves them afterwards
    strategy   how a VM's traffic is moved, see `core.steering.choose`
    loses      what the strategy can cost, in words for the operator
    ports      the VMs to move
    all_ports  every VM of the host, with those that are where they should be
    """

    id: str
    host: str
    source: SlotName
    target: SlotName
    from_version: str | None
    to_version: str | None
    strategy: str
    loses: str
    ports: tuple[VmPort, ...]
    all_ports: tuple[VmPort, ...]
    bindings: tuple[PortBinding, ...]
    steps: tuple[PlannedStep, ...]
    findings: tuple[Finding, ...]

    @property
    def blocking(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKING)


def upgrade(facts: HostFacts, capabilities: SteeringCapabilities, accept: tuple[str, ...] = ()) -> Plan:
    """Start the switch of the other slot and move every VM to it."""
    source = facts.active or "a"
    return _plan(facts, capabilities, source, other_slot(source), find(facts, accept), accept, start=True)


def restore(facts: HostFacts, capabilities: SteeringCapabilities, slot: SlotName, accept: tuple[str, ...] = ()) -> Plan:
    """Both slots run since a run was cut off: bring every VM to `slot`, whose switch runs, and retire the other."""
    # being half-way is what this plan is for
    found = tuple(
        f
        for f in find(facts, accept)
        if f.code not in ("BOTH_SLOTS_OWN_VMS", "STANDBY_LEFT_OVER", "VM_SERVED_BY_OTHER")
    )
    if facts.slot(slot).status.vswitchd_pid is None:
        found = (
            Finding(
                "SLOT_DOWN",
                Severity.BLOCKING,
                f"slot {slot} runs no switch, so no VM can be brought to it",
                "upgrade --host localhost --dry-run",
            ),
            *found,
        )
    return _plan(facts, capabilities, other_slot(slot), slot, found, (*accept, "STEERING_UNPROVEN"), start=False)


def _plan(
    facts: HostFacts,
    capabilities: SteeringCapabilities,
    source: SlotName,
    target: SlotName,
    findings: tuple[Finding, ...],
    accept: tuple[str, ...],
    *,
    start: bool,
) -> Plan:
    strategy = choose(capabilities, len(facts.ports), accept)
    old, new = facts.slot(source), facts.slot(target)
    to_move = tuple(p for p in facts.ports if start or facts.serving(p) != target)
    bound: tuple[PortBinding, ...] = ()
    if start and facts.switch:
        bound = bindings(to_move, facts.switch, new.slot)
    elif new.switch:
        bound = standing_bindings(to_move, new.switch, new.slot)
    steps: list[PlannedStep] = []
    if start:
        steps.append(
            PlannedStep(
                StepKind.START_STANDBY,
                f"start the switch of slot {target} ({new.installed_version}) beside {source}",
            )
        )
        steps.append(
            PlannedStep(
                StepKind.REPLICATE,
                f"copy OpenFlow state and neighbours from {source} to {target}, and compare",
            )
        )
    elif to_move:
        steps.append(PlannedStep(StepKind.COMPARE, f"compare slot {target} with {source}"))
    steps += [PlannedStep(StepKind.ATTACH_STANDBY, f"{p.label}: connect slot {target}, parked", p) for p in to_move]
    if to_move:
        window = "a steering rule for each VM, to the switch that serves it"
        steps.append(
            PlannedStep(
                StepKind.OPEN_WINDOW, window if strategy.per_vm else "the whole port to where most VMs are served"
            )
        )
    steps += [PlannedStep(StepKind.MOVE_VM, f"{p.label}: {source} -> {target}", p) for p in to_move]
    steps.append(PlannedStep(StepKind.CLOSE_WINDOW, f"all overlay traffic to {target}"))
    steps.append(PlannedStep(StepKind.RETIRE, f"retire slot {source} ({old.running_version or 'stopped'})"))
    content = repr((facts.host, source, target, old.status, new.installed_version, strategy.name, bound, steps))
    return Plan(
        id=hashlib.sha256(content.encode()).hexdigest()[:12],
        host=facts.host,
        source=source,
        target=target,
        from_version=old.running_version,
        to_version=new.installed_version,
        strategy=strategy.name,
        loses=strategy.loses,
        ports=to_move,
        all_ports=facts.ports,
        bindings=bound,
        steps=tuple(steps),
        findings=tuple(sorted((*strategy.findings, *findings), key=lambda f: list(Severity).index(f.severity))),
    )
