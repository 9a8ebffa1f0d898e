"""While the window is open a standby gets copies of what is sent to a VM: its datapath knows those flows beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.support.lab_host import LabHost, reachable
from tests.support.switch import eventually
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.lab.up import Lab

pytestmark = pytest.mark.integration


def datapath_flows(slot: Slot) -> list[str]:
    return SlotProcesses().appctl(slot, "dpctl/dump-flows", "--names").splitlines()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lab", [{"tag": "win", "vms": 1}], indirect=True)
def test_a_standby_that_gets_copies_knows_the_flows_to_a_vm_before_it_serves_it(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """What the VM itself sends it sees only when it has the rings."""
    host = LabHost(lab)
    _, context = host.steps_until(StepKind.OPEN_WINDOW)
    (vm,) = lab.guests
    assert host.host.steering.capabilities().dual_delivery
    assert reachable(lab) == [vm.name]
    to_vm, from_vm = f"dst={vm.mac}", f"in_port({vm.port})"
    eventually(
        lambda: [f for f in datapath_flows(context.target) if "tunnel(" in f and to_vm in f and "packets:0," not in f],
        "the standby's datapath to know the flow that the active serves",
    )
    assert [f for f in datapath_flows(context.source) if from_vm in f]
    assert not [f for f in datapath_flows(context.target) if from_vm in f]
    # what the first packet of a flow takes longer than the next
    shown = SlotProcesses().appctl(context.target, "dpif-netdev/pmd-perf-show")
    record_property("us per upcall", re.findall(r"Upcalls:\s+[1-9]\d*\s.*?([\d.]+) us/upcall", shown))
