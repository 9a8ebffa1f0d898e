"""No VM is moved to a switch whose ports could not serve it: link, rings that are polled; QEMU's word is not enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.runs import SimRun, sim_run, watch
from upgrader.core.journal import RunView
from upgrader.core.lifecycle import RunState
from upgrader.core.model import Slot
from upgrader.core.report import report
from upgrader.engine.control import Control
from upgrader.ports import Watcher
from upgrader.sim.processes import SimProcesses


class Unpolled(SimProcesses):
    """A switch whose PMDs let go of every ring once all VMs are attached."""

    deaf = False

    def polled_queues(self, slot: Slot) -> dict[str, int]:
        return {} if self.deaf else super().polled_queues(slot)

    def hear(self, _view: RunView, _event: object) -> None:
        self.deaf = "attach vm2" in self._w.calls


def unpolled(run: SimRun) -> Watcher:
    processes = Unpolled(run.world)
    run.setup = replace(run.setup, host=replace(run.setup.host, processes=processes))
    run.coordinator.setup = lambda: run.setup
    return processes.hear


def silent(run: SimRun) -> Watcher:
    """It acknowledges everything, and has no device for one VM."""
    run.world.silent.add(("b", "vhu1"))
    return watch


def at(called: str, act: Callable[[SimRun], None]) -> Callable[[SimRun], Watcher]:
    def arm(run: SimRun) -> Watcher:
        def fault(name: str, count: int) -> None:
            if name == called:
                act(run)

        run.world.fault = fault
        return watch

    return arm


def uplink_down(run: SimRun) -> None:
    run.world.silent.add(("b", run.setup.slots["b"].uplink))


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        (silent, "vhu1"),
        (unpolled, "vhu0: no ring is polled"),
        (at("copy br-int", uplink_down), "link down"),
    ],
    ids=["a VM's port has no link", "no ring is polled", "the uplink has no link"],
)
def test_a_port_that_could_not_serve_stops_the_run_before_the_first_vm(
    tmp_path: Path, arm: Callable[[SimRun], Watcher], why: str
) -> None:
    run = sim_run(tmp_path, vms=3)
    watcher = arm(run)
    view = run.coordinator.begin(run.plan(), Control(), watcher).forward()
    assert view.state is RunState.RESTORED, report(view)
    error = str(report(view).error)
    assert "PORTS_NOT_READY" in error
    assert why in error
    assert not any(call.startswith("switch ") for call in run.world.calls)
    assert set(run.world.owners().values()) == {"a"}


def test_a_guest_without_a_driver_has_no_device_for_anybody(tmp_path: Path) -> None:
    run = sim_run(tmp_path, vms=2)
    run.world.silent.add(("b", "vhu1"))
    vm = run.world.vms["vm1"]
    assert vm.ownership is not None
    rings = tuple(replace(ring, enabled=False) for ring in vm.ownership.rings)
    run.world.vms["vm1"] = replace(vm, ownership=replace(vm.ownership, rings=rings))
    assert run.begin().forward().state is RunState.DONE
