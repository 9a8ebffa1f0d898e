"""What a step is: check, do, verify, undo, on one host, for one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from upgrader.core.errors import StepError
from upgrader.core.model import Slot, VmPort
from upgrader.core.plan import Plan, PlannedStep
from upgrader.ports import Host

Data = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Context:
    """What every step of a run is given: the host, the plan, and the two slots it names."""

    host: Host
    plan: Plan
    source: Slot
    target: Slot
    blackout_budget_us: int

    def target_pid(self) -> int:
        """Pid of the new switch. Raises StepError when it does not run."""
        return self._pid(self.target)

    def _pid(self, slot: Slot) -> int:
        pid = self.host.processes.status(slot).vswitchd_pid
        if pid is None:
            raise StepError(
                "SWITCH_DIED",
                f"ovs-vswitchd of slot {slot.name} does not run any more",
                state="VMs it served are taken over by QEMU where a standby was ready",
                next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
            )
        return pid


class Step(Protocol):
    """One kind of step.

    check   looks only; raises when `do` must not be tried
    do      the effect; idempotent; returns what is worth recording
    verify  looks at the real host; raises when the effect is not there
    undo    takes the effect back, also of a `do` that broke off half-way; idempotent
    """

    undoable: bool

    def check(self, context: Context, step: PlannedStep) -> None: ...
    def do(self, context: Context, step: PlannedStep) -> Data: ...
    def verify(self, context: Context, step: PlannedStep, data: Data) -> None: ...
    def undo(self, context: Context, step: PlannedStep) -> None: ...


def port_of(step: PlannedStep) -> VmPort:
    if step.port is None:
        raise ValueError(f"the step {step.kind} concerns one VM, the plan names none")
    return step.port
