"""Whole runs on the simulated host whose NIC is a modelled X710: as a whole port, with a catch, and what fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.fake_nic import VFS, FakeNeighbours, FakeNic, FakeVfs, build_shim, x710
from tests.support.runs import SimRun, new_engine, sim_run, watch
from upgrader.adapters.ethtool import Ethtool
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.core import i40e
from upgrader.core import plan as planning
from upgrader.core.lifecycle import RunState
from upgrader.core.model import Slot, SlotName
from upgrader.core.nfc import Flow, rule, to_vf
from upgrader.core.plan import Plan, PlanKind
from upgrader.core.report import RunReport
from upgrader.core.report import report as report_of
from upgrader.engine.coordinator import make_plan
from upgrader.engine.facts import gather
from upgrader.ports import Host
from upgrader.sim.host import SimSteering, World, make
from upgrader.sim.processes import SimProcesses

RATE_PPS = 1000
ACCEPT = ("STEERING_UNPROVEN",)


@dataclass
class X710Host:
    world: World
    host: Host
    slots: dict[SlotName, Slot]
    nic: FakeNic
    vfs: FakeVfs
    known: FakeNeighbours

    def plan(self, accept: Sequence[str] = ()) -> Plan:
        facts = gather("h1", self.slots, self.host, vni_key="vni", adapter="ethtool")
        return planning.upgrade(facts, self.host.steering.capabilities(), tuple(accept))

    def restore(self, slot: SlotName) -> RunReport:
        facts = gather("h1", self.slots, self.host, vni_key="vni", adapter="ethtool")
        made = planning.restore(facts, self.host.steering.capabilities(), slot)
        assert not made.blocking
        return self.run(made)

    def run(self, plan: Plan) -> RunReport:
        return report_of(new_engine(self.host, self.slots, plan).forward())

    def forget(self) -> None:
        """The coordinator died: another process, which remembers nothing, drives the same NIC."""
        self.host = replace(self.host, steering=x710(self.nic, self.vfs, rate_pps=RATE_PPS))

    def points_to(self) -> list[tuple[SlotName, ...]]:
        return [r.targets for r in self.host.steering.rules()]


def used_by_switches(world: World, nic: FakeNic, vfs: FakeVfs) -> SimProcesses:
    """Switches that open their VF when they start, and close it when they end; the NIC resets it both times."""
    die = world.die

    def dies(name: SlotName) -> None:
        if world.pids[name] is not None:
            vfs.closed(VFS[name])
        die(name)

    class Opening(SimProcesses):
        def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
            if VFS[slot.name] not in vfs.prepared or VFS[slot.name] in vfs.fenced:
                world.trouble.append(f"slot {slot.name}'s switch opened a VF that was not prepared")
            vfs.opened(VFS[slot.name])
            return super().start_switch(slot, timeout_s)

    world.die = dies  # type: ignore[method-assign]
    nic.on_change = lambda: vfs.history.append(("a rule is turned to", nic.target(4789)))
    return Opening(world)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


Made = Callable[..., X710Host]


@pytest.fixture
def x710_host(tmp_path: Path, shim: Path) -> Made:
    def build(*, out_of_tree: bool = True, vms: int = 3, catch: bool = False, detour: bool = False) -> X710Host:
        world, host, slots = make(tmp_path, vms)
        nic = FakeNic(tmp_path / "nic", shim, out_of_tree=out_of_tree)
        vfs = FakeVfs(nic)
        software = SimSteering(world) if catch or detour else None
        known = FakeNeighbours()
        steering: Ethtool = x710(nic, vfs, catch=software, detour=detour, rate_pps=RATE_PPS, known=known)
        for slot in VFS:
            steering.prepare(slot)
        steering.steady("a")
        processes = used_by_switches(world, nic, vfs)
        return X710Host(world, replace(host, steering=steering, processes=processes), slots, nic, vfs, known)

    return build


def test_a_whole_port_run(x710_host: Made) -> None:
    made = x710_host()
    plan = made.plan()
    assert (plan.strategy, plan.blocking) == ("whole-port", ())
    assert "points to the other switch" in plan.loses
    assert "in the gap" in plan.loses
    report = made.run(plan)
    assert report.outcome == "done", report.error
    assert made.points_to() == [("b",)]
    assert set(made.world.owners().values()) == {"b"}
    assert made.world.trouble == []
    assert made.nic.target(4789) == VFS["b"]


def test_a_vf_is_set_before_its_switch_opens_it_and_programmed_after(x710_host: Made) -> None:
    """Either of the first two resets it, and a rule from before that would point to nobody."""
    made = x710_host()
    made.vfs.prepared.discard(VFS["b"])  # as it comes from the driver
    made.vfs.history.clear()
    assert made.run(made.plan()).outcome == "done"
    assert made.vfs.history == [
        ("prepared", VFS["b"]),
        ("opened", VFS["b"]),
        ("a rule is turned to", VFS["b"]),
        ("closed", VFS["a"]),
    ]
    assert made.world.trouble == []


def test_room_is_counted_before_a_run(x710_host: Made) -> None:
    """The table is full of somebody else's: the plan says so, and names the command that shows whose."""
    made = x710_host()
    device = EthtoolDevice("pf0", None, made.nic.ioctl)
    for address in range(1, 401):
        device.insert(rule(Flow.IP4, to_vf(0, 0), 100 + address, dst_ip=address, user_def=i40e.cloud()))
    before = made.nic.programmed()
    (found,) = made.plan().blocking
    assert found.code == "STEERING_TABLE_FULL"
    assert "steering needs 1 rules for 3 VMs, the NIC has room for 0" in found.what
    assert made.nic.programmed() == before
    device.delete(101)
    assert made.plan().blocking == ()


def kept(made: X710Host, tmp: Path) -> SimRun:
    """A coordinator that looks after that host, as the daemon does."""
    run = sim_run(tmp / "run", 3)
    run.world = made.world
    run.setup = replace(run.setup, host=made.host, slots=made.slots)
    run.again()
    return run


def test_a_vf_that_was_reset_is_programmed_again(x710_host: Made, tmp_path: Path) -> None:
    """The serving switch was started anew, by hand or by its supervisor: its VF is another target to the NIC."""
    made = x710_host()
    run = kept(made, tmp_path)
    run.coordinator.keep()
    inserts = made.nic.count("inserts")
    run.coordinator.keep()
    assert made.nic.count("inserts") == inserts  # nothing is wrong, nothing is touched
    made.vfs.closed(VFS["a"])
    assert made.nic.target(4789) is None
    run.coordinator.keep()
    assert made.nic.target(4789) == VFS["a"]
    made.vfs.send(100)
    run.coordinator.keep()
    inserts = made.nic.count("inserts")
    made.vfs.packets[VFS["a"]] = 3  # reset, and has got some since: the driver still shows the rule as it was
    run.coordinator.keep()
    assert made.nic.count("inserts") == inserts + 1
    run.coordinator.keep()
    assert made.nic.count("inserts") == inserts + 1


def test_switches_are_told_of_neighbours_that_their_vfs_see_nothing_of(x710_host: Made, tmp_path: Path) -> None:
    """Between runs, within one, and when only one of the two is left; a hop that got another MAC as well."""
    made = x710_host()
    run = kept(made, tmp_path)
    hop = "br-phy", "198.51.100.9"
    made.world.learned["a", "routes", "br-phy", "198.51.100.0/24"] = "dev br-phy"

    def heard(mac: str) -> None:
        made.known.entries[hop[1]] = mac

    def told() -> dict[str, str | None]:
        return {slot: made.world.learned.get((slot, "neighbours", *hop)) for slot in VFS}

    assert made.known.accepts
    run.coordinator.keep()
    assert told() == {"a": None, "b": None}
    heard("02:00:00:00:00:01")
    run.coordinator.keep()
    assert told() == {"a": "02:00:00:00:00:01", "b": None}
    heard("02:00:00:00:00:02")
    run.setup = replace(run.setup, policy=replace(run.setup.policy, keep_old=True))
    assert run.begin().forward().state is RunState.DONE
    assert told() == dict.fromkeys(VFS, "02:00:00:00:00:02")
    heard("02:00:00:00:00:03")
    run.coordinator.keep()
    assert told() == dict.fromkeys(VFS, "02:00:00:00:00:03")
    made.world.die("a")
    heard("02:00:00:00:00:04")
    run.coordinator.keep()
    assert told()["b"] == "02:00:00:00:00:04"
    assert made.world.trouble == []


def test_a_run_is_not_mistaken_for_a_reset(x710_host: Made, tmp_path: Path) -> None:
    """Whose rule it left right is not turned once more, with a gap."""
    made = x710_host()
    made.vfs.send(100)
    run = kept(made, tmp_path)
    run.coordinator.keep()
    assert run.begin().forward().state is RunState.DONE
    inserts = made.nic.count("inserts")
    run.coordinator.keep()
    run.coordinator.keep()
    assert made.nic.count("inserts") == inserts


def test_the_dead_switchs_vf_is_stopped_behind_all_that_a_vm_waits_for(x710_host: Made, tmp_path: Path) -> None:
    """The rule, the rings, then the fence, which may take 300 ms; and the next standby lifts it before it opens the VF."""
    made = x710_host()
    run = kept(made, tmp_path)
    made.world.fails_over = False

    def carry_out(kind: PlanKind) -> None:
        made_plan = make_plan(run.setup, None, run.setup.policy, kind)[1]
        assert run.coordinator.begin(made_plan, run.control, watch).forward().state is RunState.DONE

    carry_out(PlanKind.ARM)
    fence = made.vfs.fence

    def fenced(vf: int) -> None:
        assert set(made.world.owners().values()) == {"b"}
        assert made.nic.target(4789) == VFS["b"]
        fence(vf)

    made.vfs.fence = fenced  # type: ignore[method-assign]
    carry_out(PlanKind.TAKEOVER)
    assert made.vfs.fenced == {VFS["a"]}
    assert made.points_to() == [("b",)]
    carry_out(PlanKind.ARM)
    assert made.vfs.fenced == set()
    assert made.nic.target(4789) == VFS["b"]
    assert made.world.trouble == []


def test_a_run_with_a_catch_or_a_detour(x710_host: Made) -> None:
    made = x710_host(catch=True)
    plan = made.plan()
    assert plan.strategy == "whole-port"
    assert "nothing in the gap" in plan.loses
    assert made.run(plan).outcome == "done"
    assert made.points_to() == [("b",)]
    assert made.world.steady == ("b",)


def test_a_run_with_a_detour(x710_host: Made) -> None:
    made = x710_host(detour=True)
    plan = made.plan()
    assert plan.strategy == "per-vm-dual"
    assert "passes the PF's kernel path" in plan.loses
    assert made.run(plan).outcome == "done"
    assert made.points_to() == [("b",)]
    assert made.world.rules == {}
    assert made.nic.target(4789) == VFS["b"]


def test_a_rule_without_effect_at_the_end_of_a_detour(x710_host: Made) -> None:
    """The catch on the PF has the overlay still, so nobody misses it; the rule goes again, and the run is undone."""
    made = x710_host(detour=True)
    counted = made.world
    arrived = SimSteering.arrived
    seen = 0

    def through_the_pf(self: SimSteering) -> dict[SlotName, int]:
        nonlocal seen
        seen += 100 if made.nic.target(4789) is None else 0
        return {"a": seen, "b": 0}

    SimSteering.arrived = through_the_pf  # type: ignore[method-assign]
    try:
        plan = made.plan()
        made.nic.set(drop_next=1)  # the one insert of this run: at its end
        report = made.run(plan)
    finally:
        SimSteering.arrived = arrived  # type: ignore[method-assign]
    assert report.outcome == "restored", report.error
    assert "by the VFs' counters nothing arrives" in (report.error or "")
    assert set(counted.owners().values()) == {"a"}
    assert made.nic.programmed() == () or made.nic.target(4789) == VFS["a"]


def test_the_in_tree_driver_blocks_a_run_until_that_is_accepted(x710_host: Made) -> None:
    made = x710_host(out_of_tree=False)
    assert [f.code for f in made.plan().blocking] == ["STEERING_UNPROVEN"]
    assert made.plan(ACCEPT).blocking == ()
    assert made.run(made.plan(ACCEPT)).outcome == "done"  # nothing ever arrived, so nothing was there to miss
    assert made.nic.count("cloud_requests") == 0


def test_a_rule_without_effect_is_found_by_what_arrives_and_the_run_undone(x710_host: Made) -> None:
    made = x710_host()
    plan = made.plan()
    made.nic.set(drop_next=1)  # the turn to slot b: taken, listed, never in the hardware
    report = made.run(plan)
    assert report.outcome == "restored", report.error
    assert "by the VFs' counters nothing arrives" in (report.error or "")
    assert made.nic.target(4789) == VFS["a"]
    assert set(made.world.owners().values()) == {"a"}


def test_a_refused_rule_undoes_the_run(x710_host: Made) -> None:
    made = x710_host()
    made.nic.set(refuse_next=1)
    report = made.run(made.plan())
    assert report.outcome == "restored", report.error
    assert made.points_to() == [("a",)]
    assert made.nic.target(4789) == VFS["a"]
    assert set(made.world.owners().values()) == {"a"}


class Killed(BaseException):
    """The coordinator's end, which no handler of ours may catch."""


@pytest.mark.parametrize("back_to", ["a", "b"])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_coordinator_that_dies_between_two_rules_is_mended(x710_host: Made, at: int, back_to: SlotName) -> None:
    """Cut before the n-th change of steering; whoever comes next remembers nothing, and reads the NIC."""
    made = x710_host(vms=4)
    plan = made.plan()
    steering = made.host.steering
    count = 0

    def cut(name: str) -> None:
        verb = getattr(steering, name)

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            return verb(*args, **kwargs)

        setattr(steering, name, counted)

    for name in ("steady", "open_window", "move_vm", "close_window"):
        cut(name)
    with pytest.raises(Killed):
        made.run(plan)
    made.forget()
    assert made.restore(back_to).outcome == "done"
    assert made.points_to() == [(back_to,)]
    assert set(made.world.owners().values()) == {back_to}
    assert made.nic.target(4789) == VFS[back_to]
    assert made.world.trouble == []
