"""`upgrade nic show | check | probe`: what this NIC, its driver and firmware can do for us, and who gets what."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from upgrader.cli import documents
from upgrader.core.errors import BlockedError, Exit, HostError, UsageError
from upgrader.core.findings import Finding, Severity
from upgrader.core.model import SLOTS, SlotName, SteeringCapabilities, SteeringRule
from upgrader.core.steering import Arrival, Strategy, choose, judge, who_gets
from upgrader.terminal import consoles, print_json

if TYPE_CHECKING:
    from upgrader.adapters.overlay_probe import OverlayProbe
    from upgrader.config import Config
    from upgrader.ports import Steering

_POLL_S = 0.05

nic_app = typer.Typer(
    name="nic", help="The NIC whose overlay traffic is steered: what it can do, its rules, who gets what."
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Vms = Annotated[int, typer.Option("--vms", min=0, help="VMs to reckon with.")]


@nic_app.command()
def show(context: typer.Context, vms: Vms = 1, as_json: Json = False) -> None:
    """Driver, firmware, what they can do for a run, and whose rules are on the NIC. Changes nothing."""
    settings, steering = _open(context)
    facts, capabilities, rules = steering.facts(), steering.capabilities(), steering.rules()
    strategy = choose(capabilities, vms, settings.policy.accept, canary_s=settings.policy.canary_check_s)
    if as_json:
        print_json(
            documents.NicDocument(
                pf=settings.nic.pf,
                adapter=settings.nic.adapter,
                nic=facts,
                capabilities=capabilities,
                strategy=documents.StrategyDocument(strategy.name, strategy.loses),
                rules=rules,
            )
        )
        return
    out = consoles()[0]
    c = capabilities
    lines: dict[str, object] = {
        "PF": f"{settings.nic.pf} ({facts.bus or 'no bus'}), in {settings.nic.netns or 'the host'}, by {settings.nic.adapter}",
        "driver": f"{facts.driver} {facts.version} ({facts.flavour})",
        "firmware": facts.firmware or "not told",
        "steers": _how(c),
        "single VMs": "yes" if c.per_vm else "no: the whole port at once",
        "overlay in": f"IPv{c.underlay}",
        "to both slots": "yes" if c.dual_delivery else "no",
        "a rule is turned": "in one step" if c.atomic else "by delete and add" + (", caught" if c.gap_caught else ""),
        "room for rules": "enough" if c.capacity is None else c.capacity,
        "neighbours": "both switches see what is answered to the PF"
        if c.copies_answers
        else "ovs-upgraded tells the switches of those that the PF's kernel knows",
        "strategy": f"{strategy.name}; it can lose: {strategy.loses}",
    }
    for name, text in lines.items():
        out.print(f"{name:<17} {escape(str(text))}", soft_wrap=True)
    for rule in rules:
        out.print(f"ours              {escape(_words(rule, rules))}", soft_wrap=True)
    for foreign in facts.foreign:
        out.print(f"not ours          {escape(foreign)}", soft_wrap=True)
    if c.unproven:
        out.print(f"unproven          {escape(c.unproven)}", soft_wrap=True)


@nic_app.command()
def check(context: typer.Context, vms: Vms = 1, as_json: Json = False) -> None:
    """Whether a run could steer by this NIC as it is: exit 0 if so, 3 with what stands against it. Changes nothing."""
    settings, steering = _open(context)
    strategy = choose(steering.capabilities(), vms, settings.policy.accept, canary_s=settings.policy.canary_check_s)
    findings = (*strategy.findings, *_of_rules(steering.rules()))
    blocking = [f for f in findings if f.severity is Severity.BLOCKING]
    if as_json:
        print_json(documents.NicCheckDocument(strategy=strategy.name, findings=findings))
        raise typer.Exit(Exit.BLOCKED if blocking else Exit.DONE)
    _say_findings(strategy, findings)
    if blocking:
        raise BlockedError(
            "NIC_NOT_READY",
            f"{settings.nic.pf} cannot steer a run as it is: {', '.join(f.code for f in blocking)}",
            state="nothing was changed",
            next=blocking[0].remedy if len(blocking) == 1 else "what each finding above says, then: upgrade nic check",
        )


@nic_app.command()
def probe(
    context: typer.Context,
    vni: Annotated[int, typer.Option("--vni", min=0, max=2**24 - 1, help="VNI of the VM's network.")],
    mac: Annotated[str, typer.Option("--mac", help="The VM's MAC address.")],
    seconds: Annotated[float, typer.Option("--for", min=0.1, max=600, help="Seconds to watch what arrives.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Who gets a VM's overlay traffic: by the rules, then by what arrives at the VFs while you watch.

    With nic.probe_from another host sends them; else do so meanwhile, e.g. ping the VM from another host. Changes nothing.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac):
        raise UsageError(
            "NOT_A_MAC",
            f"{mac} is no MAC address",
            state="nothing was changed",
            next="virsh domiflist VM   (it lists them), then: upgrade nic probe --vni VNI --mac MAC",
        )
    settings, steering = _open(context)
    sender = _sender(settings)
    rule = who_gets(steering.rules(), vni, mac)
    before = _seen(steering, vni, mac)
    with sender.sending(vni, mac) if sender else nullcontext():
        now, deadline = before, time.monotonic() + seconds
        while now == before and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            now = _seen(steering, vni, mac)
    slots = rule.targets if rule else ()
    found = _verdict(slots, before, now)
    came = {s: max(0, now[s] - before[s]) for s in SLOTS}
    seen = found not in (Arrival.SILENT, Arrival.ELSEWHERE)
    if as_json:
        told = documents.NicProbeDocument(vni=vni, mac=mac.lower(), by_rules=slots, arrived=came, verdict=found)
        print_json(told)
        raise typer.Exit(Exit.DONE if seen else Exit.BLOCKED)
    out = consoles()[0]
    out.print(f"by the rules      {_join(slots) or 'no slot: it stays with the PF'}")
    out.print(f"by the counters   {', '.join(f'{n} packets to slot {s}' for s, n in came.items())}")
    out.print(f"so                {found}")
    if not seen:
        raise BlockedError(
            "NOT_SEEN_TO_ARRIVE",
            f"what the rules say of {mac} in VNI {vni} was not seen: {found}",
            state="nothing was changed",
            next="upgrade nic show   (whose rules are on the NIC)"
            if found is Arrival.ELSEWHERE
            else "send overlay traffic to this host (ping the VM from another one) and run the same command again",
        )


def _sender(settings: Config) -> OverlayProbe | None:
    from upgrader import wiring  # noqa: PLC0415 - as in `_open`

    return wiring.probe(settings)


def _seen(steering: Steering, vni: int, mac: str) -> dict[SlotName, int]:
    """Packets so far: of the very rule that takes this VM's traffic where it counts them, else all that the VFs got."""
    rule = who_gets(steering.rules(), vni, mac)
    if rule is None or rule.packets is None:
        return steering.arrived()
    return {slot: rule.packets if slot in rule.targets else 0 for slot in SLOTS}


def _verdict(slots: tuple[SlotName, ...], before: Mapping[SlotName, int], now: Mapping[SlotName, int]) -> Arrival:
    """Compare with the slot the rules name; where they name both, or none, arrival at either is what they say, or not."""
    found = judge(slots[0] if slots else "a", before, now)
    if found is Arrival.SILENT or len(slots) == 1:
        return found
    return Arrival.BOTH if slots else Arrival.ELSEWHERE


def _of_rules(rules: tuple[SteeringRule, ...]) -> list[Finding]:
    """Rules of ours that are not as they were set."""
    return [
        Finding(
            "STEERING_RULE_ASTRAY",
            Severity.BLOCKING,
            f"our {_words(r, rules)}: its VF was reset since, or the rule was changed",
            "bring a VF's switch up first, then: upgrade --host localhost   (it writes the rule anew)",
        )
        for r in rules
        if not r.targets
    ]


def _how(c: SteeringCapabilities) -> str:
    if not c.hardware:
        return "in software"
    how = "by rules of the NIC" + (", in software while a window is open" if c.detour else "")
    return f"{how} (see unproven)" if c.unproven else f"{how} (modelled, not run on hardware)"


def _words(rule: SteeringRule, rules: tuple[SteeringRule, ...]) -> str:
    whole = "all of the overlay" if len(rules) == 1 else "the rest of the overlay"
    match = whole if rule.mac is None else f"VNI {rule.vni}, MAC {rule.mac}"
    counted = f", {rule.packets} packets" if rule.packets is not None else ""
    return f"rule for {match} points to {_join(rule.targets) or 'nobody we know'}{counted}"


def _join(slots: tuple[SlotName, ...]) -> str:
    return " and ".join(f"slot {s}" for s in slots)


def _say_findings(strategy: Strategy, findings: tuple[Finding, ...]) -> None:
    from upgrader.cli.render import show_findings  # noqa: PLC0415 - as below

    out, err = consoles()
    show_findings(err, findings)
    out.print(f"strategy {strategy.name}; it can lose: {escape(strategy.loses)}", soft_wrap=True)


def _open(context: typer.Context) -> tuple[Config, Steering]:
    """The configuration that `upgrade --config FILE nic …` names, and its NIC."""
    # late: --help needs neither libvirt nor pyroute2, which take half a second to import
    from upgrader import wiring  # noqa: PLC0415
    from upgrader.config import config_path, load  # noqa: PLC0415

    given = context.find_root().params.get("config")
    settings = load(config_path(given))
    steering = wiring.steering(settings)
    try:
        steering.rules()
    except HostError as error:
        error.state = "nothing was changed"
        raise
    return settings, steering
