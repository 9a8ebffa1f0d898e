"""Whole runs of the coordinator, each adapter of steering on a NIC of its own: the kernel's tc, or a modelled X710.

VMs and switches are the simulated host's; rules are real netlink messages, or what an i40e driver answers (not hardware).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.fake_nic import LOCATION
from tests.support.runs import Killed, SimRun, sim_run
from tests.support.steer_bench import Nic, veth_nic
from tests.support.steering_rigs import ADAPTERS, Rig
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.adapters.netlink import Requests
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SLOTS, SlotName, other_slot
from upgrader.core.nfc import Flow, rule
from upgrader.core.steering import choose

pytestmark = pytest.mark.integration

VMS = 3
_FOREIGN = ["filter", "add", "dev", "pf0", "parent", "ffff:", "protocol", "ip", "prio", "60", "u32", "match", "ip", "dport",
            "53", "0xffff", "action", "mirred", "egress", "redirect", "dev", "vf2r"]  # fmt: skip
_FOREIGN_ON_NIC = rule(Flow.TCP4, 1, 7, dst_port=22)


class Tap:
    """Every change of a rule goes by here; the coordinator dies before, or behind, the one that is named."""

    def __init__(self) -> None:
        self.changes = 0
        self.die_at: tuple[str, int] | None = None

    def arm(self, side: str, number: int) -> None:
        self.changes, self.die_at = 0, (side, number)

    def around(self, change: Callable[[], None]) -> None:
        self.changes += 1
        if self.die_at == ("before", self.changes):
            raise Killed
        change()
        if self.die_at == ("behind", self.changes):
            raise Killed


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    made = Tap()
    send, insert, delete = Requests.send, EthtoolDevice.insert, EthtoolDevice.delete
    monkeypatch.setattr(Requests, "send", lambda s, m: made.around(lambda: send(s, m)) if m else None)
    monkeypatch.setattr(EthtoolDevice, "insert", lambda s, rule: made.around(lambda: insert(s, rule)))
    monkeypatch.setattr(EthtoolDevice, "delete", lambda s, location: made.around(lambda: delete(s, location)))
    return made


@pytest.fixture(scope="module")
def nic() -> Iterator[Nic]:
    with veth_nic("runs") as made:
        made.tc("qdisc", "add", "dev", "pf0", "ingress")
        yield made


def begun(adapter: str, folder: Path, nic: Nic) -> tuple[SimRun, Rig]:
    """A host served by slot a, whose PF and NIC have a rule of somebody else beside ours, and none of an earlier run."""
    folder.mkdir(parents=True)
    nic.tc("qdisc", "del", "dev", "pf0", "ingress")
    nic.tc("qdisc", "add", "dev", "pf0", "ingress")
    nic.tc(*_FOREIGN)
    rig = Rig(adapter, folder, nic)
    if rig.fake:
        EthtoolDevice("pf0", None, rig.fake.ioctl).insert(_FOREIGN_ON_NIC)
    run = sim_run(folder, VMS)
    run.setup = replace(run.setup, accept=("STEERING_UNPROVEN",), adapter=adapter)
    taken_up(run, rig)
    steering = run.setup.host.steering
    for slot in SLOTS:
        steering.prepare(slot)
    steering.steady("a")
    return run, rig


def taken_up(run: SimRun, rig: Rig) -> None:
    """Another coordinator's adapter, on the same NIC."""
    run.setup = replace(run.setup, host=replace(run.setup.host, steering=rig.steering()))


def settled(run: SimRun, rig: Rig, slot: SlotName) -> None:
    """All VMs are served by that slot, one rule leads there, and what is somebody else's is as it was."""
    assert set(run.world.owners().values()) == {slot}
    assert run.world.pids[other_slot(slot)] is None
    assert run.world.trouble == []
    (rule,) = rig.steering().rules()
    assert (rule.vni, rule.mac, rule.targets) == (None, None, (slot,))
    if rig.fake and rig.adapter != "x710-in-tree":
        assert rig.fake.target(4789) == {"a": 0, "b": 1}[slot]
    assert rig.nic.tc("filter", "show", "dev", "pf0", "ingress", "prio", "60").count("mirred") == 1
    if rig.fake:
        assert [p.rule for p in rig.fake.programmed() if p.rule.location != LOCATION and p.effective] == [
            _FOREIGN_ON_NIC
        ]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_whole_run_and_the_way_back(adapter: str, nic: Nic, tap: Tap, tmp_path: Path) -> None:
    run, rig = begun(adapter, tmp_path / "run", nic)
    plan = run.plan()
    capabilities = run.setup.host.steering.capabilities()
    strategy = choose(capabilities, VMS, run.setup.accept, canary_s=run.setup.policy.canary_check_s)
    assert (plan.strategy, plan.loses) == (strategy.name, strategy.loses)
    tap.changes = 0
    assert run.begin().forward().state is RunState.DONE
    assert tap.changes >= (2 * VMS if capabilities.per_vm else 1)
    settled(run, rig, "b")
    run.again()
    assert run.begin().forward().state is RunState.DONE
    settled(run, rig, "a")


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_a_coordinator_that_dies_between_two_rules(adapter: str, way: str, nic: Nic, tap: Tap, tmp_path: Path) -> None:
    """Before and behind every single change of a rule; another one, which remembers nothing, ends it either way."""
    cut = 0
    for side in ("before", "behind"):
        number = 1
        while True:
            tap.die_at = None
            run, rig = begun(adapter, tmp_path / f"{side}-{number}", nic)
            tap.arm(side, number)
            try:
                run.begin().forward()
                break  # it has fewer changes than that
            except Killed:
                cut += 1
            tap.die_at = None
            taken_up(run, rig)
            assert run.again() is not None
            view = run.resume().forward() if way == "resume" else run.rollback().back()
            assert view.state is (RunState.DONE if way == "resume" else RunState.RESTORED), (side, number)
            settled(run, rig, "b" if way == "resume" else "a")
            number += 1
    assert cut >= 2
