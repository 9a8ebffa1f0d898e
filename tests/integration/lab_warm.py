"""The memory that a standby's ports share is there before the first VM is connected: no VM is the one that waits for it.

Run by ``make show-replication PARTS=warm``, and not by ``make test``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tests.support.lab_host import LabHost, reachable
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core import plan as planning
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind
from upgrader.lab.up import Lab
from upgrader.steps import STEPS, Context

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]
RUNS = 6
#: What the first VM may wait longer than the others for its standby; a pool that is set up only then takes 1 to 2 s.
_LONGER_S = 0.05


def pools(slot: Slot, lab: Lab) -> set[str]:
    """The heads of the memory pools that the VMs' ports have, one for all: ``mempool <ovs…>@0x…``."""
    told = [SlotProcesses().appctl(slot, "netdev-dpdk/get-mempool-info", vm.port) for vm in lab.guests]
    return {next((line for line in text.splitlines() if line.startswith("mempool <")), "none") for text in told}


@pytest.mark.parametrize("lab", [{"tag": "warm", "vms": 4}], indirect=True)
def test_the_first_vm_waits_no_longer_than_the_others_and_none_brings_memory_about(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    host = LabHost(lab)
    attached: list[list[float]] = []
    blackouts: list[list[float]] = []
    for _ in range(RUNS):
        plan = planning.upgrade(host.facts(), host.host.steering.capabilities())
        context = Context(host.host, plan, host.slots[plan.source], host.slots[plan.target])
        took: list[float] = []
        moves: list[float] = []
        before: set[str] = set()
        for step in plan.steps:
            kind = STEPS[step.kind]
            begun = host.host.clock.monotonic_s()
            kind.check(context, step)
            data = kind.do(context, step)
            kind.verify(context, step, data)
            if step.kind is StepKind.START_STANDBY:
                before = pools(context.target, lab)
                assert "none" not in before, "before any VM is connected"
                assert len(before) == 1
            if step.kind is StepKind.ATTACH_STANDBY:
                took.append(host.host.clock.monotonic_s() - begun)
            if isinstance(move := data.get("move"), dict):
                moves.append(move["blackout_us"] / 1000)
        assert pools(context.target, lab) == before, "the same memory serves them"
        attached.append(took)
        blackouts.append(moves)
    assert reachable(lab) == [vm.name for vm in lab.guests]
    first, others = (statistics.median(t) for t in ([a[0] for a in attached], [x for a in attached for x in a[1:]]))
    record_property("standby of the first VM, ms", round(first * 1000))
    record_property("of the others", round(others * 1000))
    record_property("blackout of the first VM, ms", round(statistics.median(b[0] for b in blackouts), 2))
    record_property("of all others", round(statistics.median(x for b in blackouts for x in b[1:]), 2))
    assert first <= others + _LONGER_S
