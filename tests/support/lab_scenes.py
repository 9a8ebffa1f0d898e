"""What an operator finds of a lab, and what its verbs have to tell, without one: none is built."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

from tests.support.operator import Operator
from tests.support.scenes import Scene
from upgrader.lab import commands
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import Phase
from upgrader.lab.traffic import command, selftest
from upgrader.lab.traffic.analysis import (
    ClockMap,
    ClockSample,
    Direction,
    FlowTrace,
    ReceiverRecord,
    SenderRecord,
    Window,
)
from upgrader.lab.traffic.protocol import LinkState
from upgrader.lab.traffic.selftest import Check
from upgrader.lab.traffic.session import TrafficRun
from upgrader.lab.up import GuestStatus, Lab, LabStatus, SlotView

_MS = 1_000_000
_PACKETS = 1000  # a second of them


def lab(problem: str = "", *, phase: Phase | None = Phase.UP) -> Scene:
    """A lab of two guests that runs; with a problem, one of them does not."""
    spec = LabSpec(vms=2)
    slots = (
        SlotView("a", spec.namespaces.slot_a, 71, 70, "3.1.0"),
        SlotView("b", spec.namespaces.slot_b, None, None, None),
    )
    well = [not problem or vm.index == 0 for vm in spec.guests]
    guests = tuple(
        GuestStatus(vm, 80 + vm.index if up else None, ready=up) for vm, up in zip(spec.guests, well, strict=True)
    )
    problems = (problem,) if problem else ()
    status = LabStatus(spec, phase, 60, slots, guests, problems)

    def scene(host: Operator) -> None:
        host._patch.setattr(Lab, "status", lambda self: status)

    return scene


def building(*, built: bool = True) -> Scene:
    """A lab that can be built, or is up already, and taken down."""

    def scene(host: Operator) -> None:
        lab()(host)
        host._patch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: 0.0))
        host._patch.setattr(Lab, "up", lambda self: built)
        host._patch.setattr(Lab, "down", lambda self: built)
        host._patch.setattr(Lab, "existing", lambda name, say: Lab(LabSpec(name=name), say))

    return scene


def trace(vm: str, peer: str, direction: Direction, missing: Sequence[int] = ()) -> FlowTrace:
    """A flow of 1 kpps for a second, without these packets."""
    arrived = [n for n in range(_PACKETS) if n not in missing]
    sender = SenderRecord(1000, 0, array("I", [0] * _PACKETS))
    receiver = ReceiverRecord(array("Q", arrived), array("Q", [n * _MS for n in arrived]))
    return FlowTrace(vm, peer, direction, sender, receiver, receiver_clock=ClockMap((ClockSample(0, 0, 0),)))


def a_run(missing: Sequence[int] = ()) -> TrafficRun:
    """Two flows of one VM, of which the first lost some packets while something was marked."""
    before = LinkState(2, True, 1, 1, 0, "52:54:00:1f:01:0a", 10, 10, 0, 0, 5 * _MS)
    after = LinkState(2, True, 3 if missing else 1, 2, 1, "52:54:00:1f:01:0a", 900, 900, 0, 0, 9 * _MS)
    traces = (
        trace("vm0", "fabric", Direction.FROM_FABRIC, missing),
        trace("vm0", "fabric", Direction.TO_FABRIC),
    )
    windows = (Window("the move of vm0", 500 * _MS, 520 * _MS),) if missing else ()
    return TrafficRun(1.0, traces, windows, {"vm0": (before, after)}, 3, 0, 0)


class _Session:
    """Of a generator that has nothing to send to."""

    def control(self, seconds: float) -> TrafficRun:
        return a_run()

    def start(self, seconds: float) -> None:
        pass

    def finish(self) -> TrafficRun:
        return a_run(range(500, 507))


def measured(host: Operator) -> None:
    """What `lab traffic` measures: seven packets lost, and a carrier that flapped."""

    @contextmanager
    def session(*_: object, **__: object) -> Iterator[_Session]:
        yield _Session()

    host._patch.setattr(command, "lab_named", lambda name: LabSpec(name, vms=2))
    host._patch.setattr(command, "lab_session", session)


def self_tested(*, passed: bool = True) -> Scene:
    """The generator's proof of itself."""
    figures = trace("flow", "receiver", Direction.FROM_FABRIC, range(100, 110)).figures()
    checks = (Check("a hole", "10 packets lost in a row", figures, passed),)

    @contextmanager
    def bench() -> Iterator[None]:
        yield

    def scene(host: Operator) -> None:
        host._patch.setattr(selftest, "bench", bench)
        host._patch.setattr(selftest, "checks", lambda bench: checks)

    return scene
