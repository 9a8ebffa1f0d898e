"""A whole run on the real lab while a controller changes a thousand flows a second, and ports come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lab_host import LabHost
from tests.support.slots import vsctl
from tests.support.switch import eventually
from tests.support.writers import CONTROLLER_IP, Said, controllers_network
from upgrader.adapters import gate
from upgrader.core import plan as planning
from upgrader.core.errors import UpgradeError
from upgrader.core.model import Slot
from upgrader.core.plan import Policy, StepKind
from upgrader.lab import spec as names
from upgrader.lab.overlay import int_flows
from upgrader.lab.up import Lab
from upgrader.steps import STEPS, Context, replication

pytestmark = pytest.mark.integration
PORT = 16653
RATE = 1000  # changes a second
BATCH, DIFFERENT = 20, 2000


class Ports(threading.Thread):
    """Adds and deletes a port in the database of whichever slot is in control, several times a second."""

    def __init__(self, host: LabHost) -> None:
        super().__init__(daemon=True)
        self._host, self._stop_asked = host, threading.Event()
        self.changes = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(0.2):
                slot = self._leader()
                if slot is None:
                    continue
                name = f"w{self.changes % 7}"
                vsctl(slot, "--if-exists", "del-port", names.BR_INT, name)
                vsctl(slot, "add-port", names.BR_INT, name, "--", "set", "interface", name, "type=internal")
                self.changes += 2
        except UpgradeError as error:
            self.error = error

    def _leader(self) -> Slot | None:
        database = self._host.host.database
        running = [s for n, s in self._host.slots.items() if self._host.pid(n) is not None]
        return next((s for s in running if database.in_control(s)), None)

    def finish(self) -> None:
        self._stop_asked.set()
        self.join(30)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lab", [{"tag": "w", "vms": 2}], indirect=True)
def test_a_run_under_a_writer_ends_with_both_switches_equal(
    lab: Lab, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    host = LabHost(lab)
    with controllers_network() as lay:
        netns = [lay(slot) for slot in host.slots.values()].pop()
        controller = Said(
            ["-m", "tests.support.openflow_controller", str(PORT), str(BATCH), str(DIFFERENT)], tmp_path, netns
        )
        ports = Ports(host)
        try:
            active = host.slots[host.active()]
            vsctl(active, "set-controller", names.BR_INT, f"tcp:{CONTROLLER_IP}:{PORT}")
            # OVS deletes a bridge's flows when its first controller comes; the VMs' are put back, as one would
            add_flows = [str(active.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow15", "--bundle", "add-flows"]
            gate.run(
                [*add_flows, f"unix:{active.rundir}/{names.BR_INT}.mgmt", "-"],
                stdin=int_flows(lab.spec),
            )
            eventually(lambda: controller.last("taken") > DIFFERENT, "the controller to write")
            ports.start()
            begun, before = time.monotonic(), controller.last("taken")
            policy = Policy(
                canary_check_s=0.5, soak_s=2.0, keep_old=True
            )  # kept, so that both can be compared at the end
            plan = planning.upgrade(host.facts(), host.host.steering.capabilities(), (), policy)
            assert plan.blocking == (), plan.blocking
            context = Context(host.host, plan, host.slots[plan.source], host.slots[plan.target])
            moves, at_move = [], 0
            for step in plan.steps:
                kind = STEPS[step.kind]
                kind.check(context, step)
                data = kind.do(context, step)
                kind.verify(context, step, data)
                if isinstance(move := data.get("move"), dict):
                    moves.append(move)
                if step.kind is StepKind.MOVE_CONTROL:
                    at_move = controller.last("taken")
            assert plan.steps[-1].kind is StepKind.SOAK
            eventually(lambda: controller.last("taken") > at_move + RATE, "the controller to go on at the new switch")
            rate = (controller.last("taken") - before) / (time.monotonic() - begun)
        finally:
            if ports.is_alive():
                ports.finish()
            controller.stop()
        assert ports.error is None
        assert ports.changes > 10
        assert len(moves) == 2
        assert all(not m["over_budget"] for m in moves), moves
        replication.follow(context, context.target, context.source)
        assert replication.differences(context, context.target, context.source) == ()
        assert host.host.database.in_control(context.target)
        record_property("flow changes/s", round(rate))
        record_property("port changes", ports.changes)
        record_property("blackouts, us", [round(m["blackout_us"]) for m in moves])
        assert rate >= RATE
