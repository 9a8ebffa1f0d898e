"""What a step is: check, do, verify, undo, on one host, for one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from upgrader.core.errors import StepError, StopAskedError
from upgrader.core.model import Slot, SlotName, VmInterface, VmPort, owned_by
from upgrader.core.plan import Plan, PlannedStep
from upgrader.ports import Host

Data = Mapping[str, object]


@dataclass(slots=True)
class Freshness:
    """When the standby was last brought in step, CLOCK_MONOTONIC, seconds; None: not by this coordinator.

    at_s    the same, None while that is tried again, and when it failed
    last_s  whatever has failed since
    gone_s  when the switch that it followed was first seen to be gone; None: it was not
    """

    at_s: float | None = None
    last_s: float | None = None
    gone_s: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What every step of a run is given: the host, the plan, and the two slots it names.

    acted  what a takeover did before this run was begun, None where it did nothing yet
    """

    host: Host
    plan: Plan
    source: Slot
    target: Slot
    stop_asked: Callable[[], bool] = lambda: False
    freshness: Freshness = field(default_factory=Freshness)
    acted: Data | None = None

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises StopAskedError at once when a person wants the run to stop: for steps that only wait."""
        if self.stop_asked():
            raise StopAskedError
        self.host.clock.sleep(seconds)

    def pid(self, slot: Slot) -> int | None:
        """Pid of the slot's switch, None when it does not run."""
        return self.host.processes.status(slot).vswitchd_pid

    def target_pid(self) -> int:
        """Pid of the new switch. Raises StepError when it does not run."""
        pid = self.pid(self.target)
        if pid is None:
            raise StepError(
                "SWITCH_DIED",
                f"ovs-vswitchd of slot {self.target.name} does not run any more",
                state="QEMU brings the VMs it served to the other switch, where that stands by",
                next=f"tail {self.target.rundir / 'ovs-vswitchd.log'}",
            )
        return pid

    def served_by(self, slot: Slot) -> list[VmInterface]:
        """VMs, of the plan or not, whose rings that slot's switch owns at this moment."""
        pid = self.pid(slot)
        if pid is None:
            return []
        return [v for v in self.host.hypervisor.vm_interfaces() if v.ownership and v.ownership.owner_pid == pid]

    def owners(self) -> list[tuple[VmPort, SlotName | None]]:
        """Every VM of the plan that still runs, and the slot that serves it (None: neither does now)."""
        pids = [(s.name, self.pid(s)) for s in (self.source, self.target)]
        found = []
        for port in self.plan.all_ports:
            now = self.host.hypervisor.ownership(port)
            if now is not None:
                found.append((port, next((name for name, pid in pids if owned_by(now, pid)), None)))
        return found

    def steer_to_owners(self) -> None:
        """Bring steering in line with who serves whom: one rule where that is one slot, else one for each VM."""
        served = [(port, slot) for port, slot in self.owners() if slot is not None]
        slots = {slot for _, slot in served}
        if len(slots) <= 1:  # with no VM there is, those that come are the old switch's
            self.host.steering.close_window(slots.pop() if slots else self.source.name)
        else:
            self.host.steering.open_window(served)


class Step(Protocol):
    """One kind of step.

    check   looks only; raises when `do` must not be tried
    do      the effect; idempotent, so that it can be resumed; returns what is worth recording, in JSON's types
    verify  looks at the real host; raises when the effect is not there
    undo    takes the effect back, also of a `do` that broke off half-way; idempotent; returns what is worth recording

    pause_safe  the host may be left as it is after this step until somebody says how to go on
    lasting     what it did is as good after a long pause; else it is done once more before further VMs move

    A VM that has ended meanwhile is nothing to do and nothing to undo.
    """

    pause_safe: bool
    lasting: bool

    def check(self, context: Context, step: PlannedStep) -> None: ...
    def do(self, context: Context, step: PlannedStep) -> Data: ...
    def verify(self, context: Context, step: PlannedStep, data: Data) -> None: ...
    def undo(self, context: Context, step: PlannedStep) -> Data: ...


def port_of(step: PlannedStep) -> VmPort:
    if step.port is None:
        raise ValueError(f"the step {step.kind} concerns one VM, the plan names none")
    return step.port
