"""From facts to a plan: the ordered steps of one run. Pure; the same facts give the same plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from upgrader.core.finding import some
from upgrader.core.findings import Finding, Severity, find
from upgrader.core.inventory import bindings, standing_bindings
from upgrader.core.model import HostFacts, PortBinding, SlotName, SteeringCapabilities, VmPort, other_slot
from upgrader.core.steering import choose, not_steered


class StepKind(StrEnum):
    """What a step does; one file each in `upgrader.steps`."""

    START_STANDBY = "start-standby"
    REPLICATE = "replicate"
    PROVE = "prove"
    COMPARE = "compare"
    ATTACH_STANDBY = "attach-standby"
    OPEN_WINDOW = "open-window"
    MOVE_VM = "move-vm"
    CATCH_UP = "catch-up"
    CLOSE_WINDOW = "close-window"
    MOVE_CONTROL = "move-control"
    PROMOTE = "promote"
    SOAK = "soak"
    RETIRE = "retire"
    TAKE_OVER = "take-over"


class PlanKind(StrEnum):
    """What a run is for.

    UPGRADE   VMs move from one slot to the other
    ARM       a standby is started and attached, and stays; no VM moves
    DISARM    the standby is ended
    TAKEOVER  the active is dead, or is killed: everything goes to the standby; there is no way back
    """

    UPGRADE = "upgrade"
    ARM = "arm"
    DISARM = "disarm"
    TAKEOVER = "takeover"


OnFailure = Literal["back", "stay", "ask"]
ON_FAILURE: tuple[OnFailure, ...] = ("back", "stay", "ask")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a run may cost, and what becomes of it when a step fails.

    blackout_budget_us  a hand-over above it stops the run; nothing is moved back for it, which would hurt twice
    canary_check_s      the first VM is watched for so long before the others move
    soak_s              everything is watched for so long before the old switch is given up
    on_failure          `back`: everything is undone; `stay`: the run halts, every VM where it is, and a person decides;
                        `ask`: as `stay`, and a terminal asks
    keep_old            the old switch goes on standing by, so that the run can still be rolled back when it is done
    """

    blackout_budget_us: int = 20_000
    canary_check_s: float = 2.0
    soak_s: float = 10.0
    on_failure: OnFailure = "back"
    keep_old: bool = False


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan; `port` for the steps that concern a single VM, `canary` for the first VM's move."""

    kind: StepKind
    title: str
    port: VmPort | None = None
    canary: bool = False


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
    policy: Policy = Policy()
    kind: PlanKind = PlanKind.UPGRADE

    @property
    def blocking(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKING)


def upgrade(
    facts: HostFacts,
    capabilities: SteeringCapabilities,
    accept: tuple[str, ...] = (),
    policy: Policy = Policy(),
) -> Plan:
    """Start the switch of the other slot and move every VM to it."""
    source = facts.active or "a"
    found = (*find(facts, accept), *not_steered(capabilities, facts.switch.interfaces if facts.switch else ()))
    return _plan(facts, capabilities, source, other_slot(source), found, accept, policy, start=True)


def restore(
    facts: HostFacts,
    capabilities: SteeringCapabilities,
    slot: SlotName,
    accept: tuple[str, ...] = (),
    policy: Policy = Policy(),
) -> Plan:
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
    if (empty := _empty_switch(facts, slot)) is not None:
        severity = Severity.WARNING if empty.code in accept else Severity.BLOCKING
        found = (replace(empty, severity=severity), *found)
    settled = (*accept, "STEERING_UNPROVEN")
    return _plan(
        facts, capabilities, other_slot(slot), slot, found, settled, replace(policy, keep_old=False), start=False
    )


def _empty_switch(facts: HostFacts, slot: SlotName) -> Finding | None:
    """Where the only switch that runs was never in charge and lacks what it should have been given by the one that died."""
    only, gone = facts.slot(slot), facts.slot(other_slot(slot))
    if only.status.vswitchd_pid is None or gone.status.vswitchd_pid is not None or facts.control == slot:
        return None
    bridges = only.switch.bridges if only.switch else ()
    empty = [b.name for b in bridges if not b.flows and set(b.protocols) != {"OpenFlow10"}]  # which are not read
    if not empty:
        return None
    return Finding(
        "SWITCH_EMPTY",
        Severity.BLOCKING,
        f"slot {gone.slot.name} died before slot {slot} was made what it was: {some(empty)} of slot {slot} has no flow",
        f"start the switch of slot {gone.slot.name} again, then: upgrade rollback; or, where controllers fill slot "
        f'{slot}: policy.accept = ["SWITCH_EMPTY"]',
    )


def _plan(
    facts: HostFacts,
    capabilities: SteeringCapabilities,
    source: SlotName,
    target: SlotName,
    findings: tuple[Finding, ...],
    accept: tuple[str, ...],
    policy: Policy,
    *,
    start: bool,
) -> Plan:
    strategy = choose(capabilities, len(facts.ports), accept, canary_s=policy.canary_check_s)
    old, new = facts.slot(source), facts.slot(target)
    every = tuple(without_rings(p) for p in facts.ports)
    to_move = tuple(p for p in every if start or facts.serving(p) != target)
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
                f"copy ports, OpenFlow state and what was learned from {source} to {target}",
            )
        )
        steps.append(PlannedStep(StepKind.PROVE, f"prove that {target} forwards as {source} does"))
    elif to_move or facts.control != target:  # one in charge is what the host is
        steps.append(PlannedStep(StepKind.COMPARE, f"compare slot {target} with {source}"))
    steps += [PlannedStep(StepKind.ATTACH_STANDBY, f"{p.label}: connect slot {target}, parked", p) for p in to_move]
    if to_move:
        window = "a steering rule for each VM, to the switch that serves it"
        steps.append(
            PlannedStep(
                StepKind.OPEN_WINDOW, window if strategy.per_vm else "the whole port to where most VMs are served"
            )
        )
    steps += _moves(to_move, source, target)
    steps.append(PlannedStep(StepKind.CATCH_UP, f"VMs that came meanwhile: {source} -> {target}"))
    steps.append(PlannedStep(StepKind.CLOSE_WINDOW, f"all overlay traffic to {target}"))
    steps.append(PlannedStep(StepKind.MOVE_CONTROL, f"controllers and managers to {target}"))
    steps.append(PlannedStep(StepKind.PROMOTE, f"well-known names and database clients to {target}"))
    if start and (policy.soak_s or policy.keep_old):  # where the old switch is kept nothing else looks for late VMs
        steps.append(PlannedStep(StepKind.SOAK, f"watch slot {target} for {policy.soak_s:g} s"))
    if not policy.keep_old:
        steps.append(PlannedStep(StepKind.RETIRE, f"retire slot {source} ({old.running_version or 'stopped'})"))
    return Plan(
        id=plan_id(facts.host, source, target, old.status, new.installed_version, strategy.name, bound, steps, policy),
        host=facts.host,
        source=source,
        target=target,
        from_version=old.running_version,
        to_version=new.installed_version,
        strategy=strategy.name,
        loses=strategy.loses,
        ports=to_move,
        all_ports=every,
        bindings=bound,
        steps=tuple(steps),
        findings=tuple(sorted((*strategy.findings, *findings), key=lambda f: list(Severity).index(f.severity))),
        policy=policy,
    )


def plan_id(*content: object) -> str:
    """The same for plans that do the same."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def without_rings(port: VmPort) -> VmPort:
    """Ring indexes run on while a plan is read, and a sentry gives its fences anew; it does not stand on them."""
    return replace(port, ownership=replace(port.ownership, rings=(), fence=None)) if port.ownership else port


def _moves(ports: Sequence[VmPort], source: SlotName, target: SlotName) -> list[PlannedStep]:
    """The first one is the canary, watched for longer before the others follow."""
    return [
        PlannedStep(
            StepKind.MOVE_VM, f"{p.label}: {source} -> {target}" + (", the canary" if n == 0 else ""), p, canary=n == 0
        )
        for n, p in enumerate(ports)
    ]
