"""What tests do with a lab's host: the command as an operator types it, and a look at who serves whom."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upgrader import wiring
from upgrader.adapters import gate
from upgrader.config import Config, load
from upgrader.core import plan as planning
from upgrader.core.model import ORIGIN_KEY, SLOTS, HostFacts, SlotName
from upgrader.core.plan import Plan, StepKind
from upgrader.engine.facts import gather
from upgrader.lab.up import Lab
from upgrader.ports import Host
from upgrader.steps import STEPS, Context


def upgrade(config: Path, *arguments: str, host: str = "localhost") -> gate.Completed:
    """`upgrade --host …` as a process of its own, without a terminal."""
    command = [sys.executable, "-m", "upgrader.cli.app", "--config", str(config), "--host", host, *arguments]
    return gate.run(command, check=False, timeout_s=180)


def report(done: gate.Completed) -> dict[str, Any]:
    """The JSON a command printed on stdout."""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@dataclass(frozen=True)
class Seen:
    """Everything an upgrade could change, at one moment."""

    pids: tuple[tuple[SlotName, int | None, int | None], ...]
    owners: tuple[tuple[str, str, int | None, int, str | None], ...]
    rules: tuple[object, ...]
    files: tuple[str, ...]
    names: tuple[tuple[str, str], ...]


class LabHost:
    """The host inside a lab, through the real adapters."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.config: Config = load(lab.config_path)
        self.slots = wiring.slots(self.config)
        self.host: Host = wiring.host(self.config)

    def facts(self) -> HostFacts:
        return gather("lab", self.slots, self.host, vni_key="vni", adapter="tc_u32")

    def active(self) -> SlotName:
        active = self.facts().active
        assert active is not None
        return active

    def dials_for_itself(self, slot: SlotName) -> bool:
        """Whether libvirt's paths themselves are in the database of the slot's switch: no run of ours started it."""
        switch = self.host.database.read(self.slots[slot])
        return all(i.external_id(ORIGIN_KEY) is None for i in switch.vhost_interfaces())

    def pid(self, slot: SlotName) -> int | None:
        return self.host.processes.status(self.slots[slot]).vswitchd_pid

    def see(self) -> Seen:
        facts = self.facts()
        owners = []
        for port in facts.ports:
            o = port.ownership
            owners.append(
                (port.label, o.owner, o.owner_pid, o.generation, o.standby.chardev if o.standby else None)
                if o
                else (port.label, "unpatched", None, 0, None)
            )
        folders = [s.rundir for s in self.slots.values()]
        return Seen(
            pids=tuple((n, facts.slot(n).status.vswitchd_pid, facts.slot(n).status.ovsdb_pid) for n in SLOTS),
            owners=tuple(owners),
            rules=tuple((r.vni, r.mac, r.targets) for r in self.host.steering.rules()),
            names=tuple(sorted((p.name, str(p.readlink())) for p in self.lab.spec.well_known.iterdir())),
            files=tuple(sorted(str(p) for f in folders for p in f.rglob("*") if not p.name.startswith(".conf.db"))),
        )

    def steps_until(self, last: StepKind) -> tuple[Plan, Context]:
        """Carry out a plan's steps up to and including the last of one kind, as a coordinator that is then cut off."""
        plan = planning.upgrade(self.facts(), self.host.steering.capabilities())
        assert plan.blocking == ()
        context = Context(self.host, plan, self.slots[plan.source], self.slots[plan.target])
        end = max(i for i, s in enumerate(plan.steps) if s.kind is last)
        for step in plan.steps[: end + 1]:
            kind = STEPS[step.kind]
            kind.check(context, step)
            kind.verify(context, step, kind.do(context, step))
        return plan, context

    def served_by(self, slot: SlotName) -> bool:
        """Whether that slot's switch owns every VM's rings, and steering sends everything there by one rule."""
        pid = self.pid(slot)
        owners = [p.ownership.owner_pid for p in self.facts().ports if p.ownership]
        rules = self.host.steering.rules()
        return pid is not None and set(owners) == {pid} and len(rules) == 1 and rules[0].targets == (slot,)


def reachable(lab: Lab) -> list[str]:
    """Guests that answer the remote hypervisor through the overlay."""
    ns = lab.spec.namespaces.remote
    return [
        vm.name
        for vm in lab.guests
        if gate.run(["ping", "-c", "3", "-i", "0.2", "-W", "2", vm.ip], netns=ns, check=False).returncode == 0
    ]


def children_named(name: str) -> set[int]:
    """Pids of processes whose command line has `name` in it, ours aside."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if name.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found
