"""Real switches without DPDK, for what needs OVSDB and OpenFlow but no packets from a VM."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, cast

from upgrader.adapters import gate
from upgrader.adapters.clock import SystemClock
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses, slot_env
from upgrader.core import plan as planning
from upgrader.core.model import Slot, SteeringCapabilities
from upgrader.core.plan import StepKind
from upgrader.sim.facts import host_facts
from upgrader.sim.host import make
from upgrader.steps import STEPS, Context

PREFIX = Path(__file__).resolve().parents[2] / "build/stack/ovs"


_NUMBERS = itertools.count()  # several factories may be in use at a time


class SlotFactory:
    """Starts slots, each in a namespace named after this process, and takes them all down at the end.

    prefixes  of the OVS of a slot that has another one than `make stack` builds
    """

    def __init__(self, folder: Path, prefixes: Mapping[str, Path] | None = None) -> None:
        self._folder = folder
        self._prefixes = prefixes or {}
        self._slots: list[Slot] = []

    def __enter__(self) -> SlotFactory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self._slots:
            SlotProcesses().stop(slot)
            gate.run(["ip", "netns", "del", str(slot.netns)])

    def start(self, name: str) -> Slot:
        """A slot `a` or `b` that runs."""
        slot = self.make(name)
        SlotProcesses().start_database(slot)
        SlotProcesses().start_switch(slot)
        return slot

    def redirect(self, slot: Slot, rundir: Path) -> Slot:
        """The same slot in another folder, from then on the one that is taken down."""
        moved = replace(slot, rundir=rundir)
        self._slots[self._slots.index(slot)] = moved
        return moved

    def start_standby(self, name: str, source: Slot) -> Slot:
        """A slot that stands by for another, as the step start-standby makes it."""
        slot = self.make(name)
        image = Ovsdb().image(source, slot, ())
        SlotProcesses().start_database(slot, image)
        if image is None:
            Ovsdb().sync(source, slot, (), applied=False)
        SlotProcesses().start_switch(slot)
        return slot

    def make(self, name: str) -> Slot:
        netns = f"t{os.getpid()}-{next(_NUMBERS)}{name}"
        slot = Slot(
            name=cast("Literal['a', 'b']", name),
            prefix=self._prefixes.get(name, PREFIX),
            rundir=self._folder / name,
            netns=netns,
            vf="lo",
            representor=None,
            uplink="uplink0",
            devargs="net_null0",
            pmd_cpu_mask="0x1",
            socket_mem_mib="64",
            dpdk_extra="--no-huge",
        )
        gate.run(["ip", "netns", "add", netns])
        self._slots.append(slot)
        return slot


@dataclass(frozen=True)
class Pair:
    """An active slot, and a standby that was started from it and follows it."""

    a: Slot
    b: Slot


def vsctl(slot: Slot, *command: str) -> str:
    return gate.run([str(slot.prefix / "bin/ovs-vsctl"), "--timeout=10", *command], env=slot_env(slot)).stdout


def ofctl(slot: Slot, *command: str) -> str:
    return gate.run([str(slot.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow15", *command], env=slot_env(slot)).stdout


def context_of(folder: Path, a: Slot, b: Slot) -> Context:
    """A run from a to b on real switches, with the rest of the host simulated and no VM on it."""
    simulated = make(folder / "sim", vms=0)[1]
    host = replace(
        simulated,
        processes=SlotProcesses(),
        database=Ovsdb(),
        openflow=Ofctl(),
        resources=HostResources(),
        clock=SystemClock(),
    )
    plan = planning.upgrade(host_facts(vms=0), SteeringCapabilities(dual_delivery=True))
    return Context(host, replace(plan, source="a", target="b", bindings=()), a, b)


def carry_out(context: Context, kind: StepKind) -> dict[str, object]:
    """One step, as a run carries it out; returns what it records."""
    step = next(s for s in context.plan.steps if s.kind is kind)
    STEPS[kind].check(context, step)
    data = STEPS[kind].do(context, step)
    assert json.loads(json.dumps(data)) == data, "what is recorded has to survive a journal"
    STEPS[kind].verify(context, step, data)
    return dict(data)


def undo(context: Context, kind: StepKind) -> None:
    """Take one step back."""
    STEPS[kind].undo(context, next(s for s in context.plan.steps if s.kind is kind))
