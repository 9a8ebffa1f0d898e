"""Upgrade and downgrade between two versions of OVS and DPDK: ours, and those of a newer release of the distribution.

Run by ``make show-replication PARTS=versions``, which downloads the newer ones, and not by ``make test``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.test_replicate import fill
from tests.support.lab_host import LabHost, reachable, report, upgrade
from tests.support.labs import lab_spec
from tests.support.newer_ovs import newer_ovs
from tests.support.slots import PREFIX, SlotFactory, carry_out, context_of, ofctl, undo, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.errors import Exit
from upgrader.core.model import other_slot
from upgrader.core.plan import StepKind
from upgrader.lab.up import Lab
from upgrader.steps import replication

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module", name="newer")
def newer_fixture() -> Path:
    return newer_ovs()


@pytest.mark.parametrize("direction", ["to the newer", "to the older"])
def test_every_class_is_replicated_proved_and_followed_back(
    newer: Path, direction: str, tmp_path: Path, record_property: Record
) -> None:
    """Tables, rows, control, and after the move of control the old switch follows: whichever of the two is the newer."""
    up = direction == "to the newer"
    prefixes = {"a": PREFIX, "b": newer} if up else {"a": newer, "b": PREFIX}
    with SlotFactory(tmp_path / "slots", prefixes) as factory:
        a = factory.start("a")
        fill(a)
        b = factory.start_standby("b", a)
        gate.run(["ip", "link", "set", "br-int", "up"], netns=b.netns)
        context = context_of(tmp_path, *(replace(s, uplink="br-int") for s in (a, b)))
        done = carry_out(context, StepKind.REPLICATE)
        assert carry_out(context, StepKind.PROVE)["rounds"] == 1
        assert replication.differences(context, context.source, context.target) == ()
        assert vsctl(a, "get", "bridge", "br-int", "_uuid") == vsctl(b, "get", "bridge", "br-int", "_uuid")
        ofctl(b, "del-flows", "br-int", "table=1,dl_dst=52:54:00:00:00:01")
        assert [d.kind for d in replication.differences(context, context.source, context.target)] == ["flow"]
        carry_out(context, StepKind.REPLICATE)
        carry_out(context, StepKind.MOVE_CONTROL)
        assert Ovsdb().in_control(b)
        vsctl(b, "set", "port", "p2", "tag=9")
        ofctl(b, "add-flow", "br-int", "table=9,priority=9 actions=drop")
        replication.follow(context, context.target, context.source)
        assert replication.differences(context, context.target, context.source) == ()
        undo(context, StepKind.MOVE_CONTROL)
        assert Ovsdb().in_control(a)
        versions = [SlotProcesses().running_version(s) for s in (a, b)]
        assert versions[0] != versions[1]
        record_property("OVS", " -> ".join(map(str, versions)))
        record_property("not carried", done.get("not carried", []))


def test_a_host_goes_up_and_down_with_its_vms(newer: Path, record_property: Record) -> None:
    lab = Lab(lab_spec("v", vms=2, new_prefix=newer))
    lab.up()
    try:
        host = LabHost(lab)
        seen = []
        for _ in range(2):
            source = host.active()
            done = upgrade(lab.config_path, "--yes", "--json")
            assert done.returncode == Exit.DONE, done.stderr
            ended = report(done)
            target = other_slot(source)
            assert host.served_by(target)
            assert host.pid(source) is None
            assert reachable(lab) == [vm.name for vm in lab.guests]
            assert ended["from_version"] != ended["to_version"]
            assert not any(m["over_budget"] for m in ended["moves"])
            slot = next(s for s in host.facts().slots if s.slot.name == target)
            assert slot.running_version == ended["to_version"]
            seen.append(f"{ended['from_version']} -> {slot.running_version} (DPDK {slot.dpdk_version})")
            record_property("blackouts, us", [round(m["blackout_us"]) for m in ended["moves"]])
        assert len(set(seen)) == 2
        record_property("OVS", ", ".join(seen))
    finally:
        lab.down()
