"""Plans that are not upgrades: a standby that stays (arm), its end (disarm), and a takeover by it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from upgrader.core import plan as planning
from upgrader.core.findings import Finding, Severity, find
from upgrader.core.inventory import bindings, standing_bindings
from upgrader.core.model import HostFacts, PortBinding, SlotName, SteeringCapabilities, VmPort, other_slot
from upgrader.core.plan import Plan, PlanKind, PlannedStep, Policy, StepKind, plan_id, without_rings
from upgrader.core.steering import choose


def arm(facts: HostFacts, capabilities: SteeringCapabilities, accept: tuple[str, ...], policy: Policy) -> Plan:
    """A standby in the other slot, on every VM, proved. One that an upgrade kept is taken as it is."""
    source = facts.active or "a"
    target = other_slot(source)
    new = facts.slot(target)
    kept = new.status.vswitchd_pid is not None and new.switch is not None
    ports = tuple(without_rings(p) for p in facts.ports)
    bound: tuple[PortBinding, ...] = ()
    if kept and new.switch:
        bound = standing_bindings(ports, new.switch, new.slot)
    elif facts.switch:
        bound = bindings(ports, facts.switch, new.slot)
    steps = []
    if not kept:
        title = f"start the switch of slot {target} ({new.installed_version}) beside {source}"
        steps.append(PlannedStep(StepKind.START_STANDBY, title))
    steps.append(PlannedStep(StepKind.REPLICATE, f"copy ports, OpenFlow state and what was learned to {target}"))
    steps.append(PlannedStep(StepKind.PROVE, f"prove that {target} forwards as {source} does"))
    steps += [PlannedStep(StepKind.ATTACH_STANDBY, f"{p.label}: connect slot {target}, parked", p) for p in ports]
    strategy = choose(capabilities, len(ports), accept)
    found = tuple(f for f in find(facts, accept) if not (kept and f.code == "STANDBY_LEFT_OVER"))
    policy = replace(policy, on_failure="back", keep_old=False)
    old = facts.slot(source)
    return Plan(
        id=plan_id(PlanKind.ARM, facts.host, source, target, old.status, new.installed_version, bound, steps, policy),
        host=facts.host,
        source=source,
        target=target,
        from_version=old.running_version,
        to_version=new.installed_version,
        strategy="standby",
        loses="nothing: no VM is moved",
        ports=ports,
        all_ports=ports,
        bindings=bound,
        steps=tuple(steps),
        findings=(*strategy.findings, *found),
        policy=policy,
        kind=PlanKind.ARM,
    )


def disarm(facts: HostFacts, capabilities: SteeringCapabilities, accept: tuple[str, ...], policy: Policy) -> Plan:
    """What brings every VM to the active slot, where they are, and ends the other."""
    made = planning.restore(facts, capabilities, facts.active or "a", accept, policy)
    loses = made.loses if made.ports else "nothing: no VM is moved"
    return replace(made, id=plan_id(PlanKind.DISARM, made.id), kind=PlanKind.DISARM, loses=loses)


def takeover(facts: HostFacts, policy: Policy) -> Plan:
    """From the active, which is killed if it lives, to the other slot's switch, which stands by.

    Where one slot's switch runs, that one takes over, whoever the VMs are with. VMs it does not stand by on block a
    takeover from a switch that lives; from a dead one they lose nothing by it.
    """
    running = [s.slot.name for s in facts.slots if s.status.vswitchd_pid is not None]
    source = other_slot(running[0]) if len(running) == 1 else facts.active or "a"
    target = other_slot(source)
    found = [f for f in find(facts, ("STEERING_UNPROVEN",)) if f.code in ("STEERING_UNUSABLE", "WELL_KNOWN_TAKEN")]
    pid = facts.slot(target).status.vswitchd_pid
    if pid is None:
        what = f"slot {target} runs no switch that could take over"
        found.append(Finding("NO_STANDBY", Severity.BLOCKING, what, "upgrade arm"))
    elif facts.active is None:
        what = "each slot serves some VMs (a run was cut off): nobody is the active"
        found.append(Finding("BOTH_SLOTS_OWN_VMS", Severity.BLOCKING, what, "upgrade resume, or: upgrade rollback"))
    elif len(running) == 1 and facts.control == target and all(facts.serving(p) == target for p in facts.ports):
        what = f"slot {target} is the only switch of this host, and has every VM and the names already"
        found.append(Finding("NO_STANDBY", Severity.BLOCKING, what, "upgrade arm"))
    bare = [p.label for p in facts.ports if pid is not None and not _reachable(p, pid)]
    if bare:
        severity = Severity.BLOCKING if len(running) == len(facts.slots) else Severity.WARNING
        what = f"slot {target} does not stand by on {', '.join(bare[:5])}"
        anew = f"nothing: slot {target} connects to them anew, and they see their link go down and come up"
        remedy = "upgrade arm" if severity is Severity.BLOCKING else anew
        found.append(Finding("STANDBY_NOT_READY", severity, what, remedy))
    switch = facts.slot(target).switch
    ports = tuple(without_rings(p) for p in facts.ports)
    bound = standing_bindings(ports, switch, facts.slot(target).slot) if switch else ()
    old, new = facts.slot(source), facts.slot(target)
    return takeover_plan(
        facts.host, source, target, ports, bound, (old.installed_version, new.installed_version), tuple(found), policy
    )


def takeover_plan(
    host: str,
    source: SlotName,
    target: SlotName,
    ports: Sequence[VmPort],
    bound: Sequence[PortBinding],
    versions: tuple[str | None, str | None],
    findings: tuple[Finding, ...],
    policy: Policy,
) -> Plan:
    """The same for VMs and bindings that are known: what the daemon has ready while it is armed."""
    steps = (
        PlannedStep(StepKind.TAKE_OVER, f"fence slot {source}; rings and steering to slot {target}"),
        PlannedStep(StepKind.CLOSE_WINDOW, f"all overlay traffic to {target}"),
        PlannedStep(StepKind.MOVE_CONTROL, f"controllers and managers to {target}"),
        PlannedStep(StepKind.PROMOTE, f"well-known names and database clients to {target}"),
        PlannedStep(StepKind.RETIRE, f"clear slot {source} away"),
    )
    policy = replace(policy, keep_old=False)
    return Plan(
        id=plan_id(PlanKind.TAKEOVER, host, source, target, tuple(bound), steps, policy),
        host=host,
        source=source,
        target=target,
        from_version=versions[0],
        to_version=versions[1],
        strategy="takeover",
        loses=f"what slot {source} had taken up, and what arrives until slot {target} serves",
        ports=tuple(ports),
        all_ports=tuple(ports),
        bindings=tuple(bound),
        steps=steps,
        findings=findings,
        policy=policy,
        kind=PlanKind.TAKEOVER,
    )


def with_staleness(plan: Plan, why: str) -> Plan:
    """The plan of a takeover, with what is to be said before it, and is recorded by it: the standby is an old copy."""
    if not why or stale(plan):
        return plan
    found = Finding(
        "STANDBY_STALE",
        Severity.WARNING,
        f"slot {plan.target}'s switch is not known to be what slot {plan.source}'s is: {why}",
        "upgrade status   (it says why); afterwards have controllers write once more what they wrote since",
    )
    return replace(plan, findings=(*plan.findings, found))


def stale(plan: Plan) -> str:
    """In what words the plan of a takeover says that the standby is an old copy; empty where it is none."""
    return next((f.what for f in plan.findings if f.code == "STANDBY_STALE"), "")


def _reachable(port: VmPort, pid: int) -> bool:
    """Whether that process serves the port, or could at once."""
    now = port.ownership
    if now is None:
        return False
    return now.owner_pid == pid or bool(now.standby and now.standby.ready and now.standby.pid == pid)
