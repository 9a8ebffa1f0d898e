"""Whole runs on the simulated host: there and back, a failure at every call, deaths of either switch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.runs import Killed, new_engine, settled
from upgrader.core import plan as planning
from upgrader.core.errors import CommandError, HostError
from upgrader.core.journal import Event, EventKind, RunView
from upgrader.core.lifecycle import StepState
from upgrader.core.model import HostFacts, Slot, SlotName
from upgrader.core.plan import Plan, StepKind
from upgrader.core.report import RunReport
from upgrader.core.report import report as report_of
from upgrader.engine.control import Control, Request
from upgrader.engine.facts import gather
from upgrader.engine.run import Engine
from upgrader.ports import Host, Watcher
from upgrader.sim.facts import ownership, vm_interface
from upgrader.sim.host import is_ours, make
from upgrader.sim.world import World, refused

Made = tuple[World, Host, dict[SlotName, Slot]]


def look(made: Made) -> HostFacts:
    _, host, slots = made
    return gather("h1", slots, host, vni_key="vni", adapter="sim")


def upgrade_plan(made: Made) -> Plan:
    return planning.upgrade(look(made), made[1].steering.capabilities())


def new_run(
    made: Made, plan: Plan, watch: Watcher = lambda view, event: None, control: Control | None = None
) -> Engine:
    return new_engine(made[1], made[2], plan, watch, control)


def carry_out(
    made: Made, plan: Plan, watch: Watcher = lambda view, event: None, control: Control | None = None
) -> RunReport:
    return report_of(new_run(made, plan, watch, control).forward())


def restore_plan(made: Made, slot: SlotName) -> Plan:
    return planning.restore(look(made), made[1].steering.capabilities(), slot)


def test_there_and_back(tmp_path: Path) -> None:
    made = make(tmp_path, vms=3)
    world = made[0]
    report = carry_out(made, upgrade_plan(made))
    assert (report.outcome, report.error) == ("done", None)
    assert [m.vm for m in report.moves] == ["vm0/vhu0", "vm1/vhu1", "vm2/vhu2"]
    assert report.moves[0].blackout_us == 713.0
    settled(world, "b")
    # the new switch's next connection goes to where a restarted VM listens
    assert world.links[tmp_path / "b/vhost/vhu0"] == Path("/run/vm0.sock")
    back = carry_out(made, upgrade_plan(made))
    assert (back.outcome, back.from_slot, back.to_slot) == ("done", "b", "a")
    settled(world, "a")
    for vm in world.vms.values():
        assert vm.ownership is not None
        assert vm.ownership.owner == "charnet0"
        assert vm.ownership.standby is None or not is_ours(vm.ownership.standby.chardev)


def test_a_switch_that_dies_while_it_is_read_is_one_that_does_not_run(tmp_path: Path) -> None:
    made = make(tmp_path)

    def at_look(name: str, count: int) -> BaseException | None:
        if name != "read a" or made[0].pids["a"] is None:
            return None
        made[0].die("a")
        return CommandError("ovs-ofctl dump-flows", "exited with 1", "connection refused")

    made[0].look_fault = at_look
    facts = look(made)
    assert facts.slots[0].status.vswitchd_pid is None
    assert facts.active is None
    made = make(tmp_path)
    made[0].look_fault = lambda name, count: refused("no answer") if name == "read a" else None
    with pytest.raises(HostError):  # it is as it was: what fails is said
        look(made)


def test_all_rules_are_read_as_often_for_many_vms_as_for_few(tmp_path: Path) -> None:
    looks: dict[int, Counter[str]] = {}
    for vms in (3, 30):
        made = make(tmp_path / str(vms), vms=vms)
        seen = looks[vms] = Counter()
        plan = upgrade_plan(made)
        made[0].look_fault = lambda name, count, seen=seen: seen.update([name])  # type: ignore[misc]
        assert carry_out(made, plan).outcome == "done"
        assert seen["rule"] == vms
    assert looks[3]["rules"] == looks[30]["rules"] > 0


def test_intent_comes_before_every_effect(tmp_path: Path) -> None:
    made = make(tmp_path)
    plan = upgrade_plan(made)
    run = new_run(made, plan)
    effects: list[tuple[str, StepState]] = []

    def at_effect(name: str, count: int) -> None:
        place = next((i for i, s in enumerate(run.view.steps) if s.state is not StepState.DONE), 0)
        effects.append((name, run.view.steps[place].state))

    made[0].fault = at_effect
    run.forward()
    assert len(effects) > 20
    assert {state for _, state in effects} == {StepState.INTENDED}, effects
    kinds = [(e.kind, e.step) for e in run.view.events if e.step is not None]
    assert kinds == [(kind, i) for i in range(len(plan.steps)) for kind in (EventKind.INTENT, EventKind.OUTCOME)]


def test_with_dual_delivery_a_packet_always_reaches_the_owner(tmp_path: Path) -> None:
    made = make(tmp_path, vms=3)
    world = made[0]
    plan = upgrade_plan(made)
    lost: list[list[str]] = []

    def watch(name: str, count: int) -> None:
        if any(world.rules):
            lost.append(world.unreached())

    world.fault = watch
    carry_out(made, plan)
    assert plan.strategy == "per-vm-dual"
    assert len(lost) > 10
    assert not any(lost)


def test_without_dual_delivery_the_plan_says_what_it_loses(tmp_path: Path) -> None:
    made = make(tmp_path)
    made[0].dual = False
    plan = upgrade_plan(made)
    assert plan.strategy == "per-vm"
    assert "between the hand-over and the turn" in plan.loses
    assert carry_out(made, plan).outcome == "done"
    settled(made[0], "b")


def count_calls(tmp: Path, vms: int) -> int:
    made = make(tmp, vms)
    carry_out(made, upgrade_plan(made))
    return len(made[0].calls)


def fails_at(number: int, error: Callable[[], BaseException]) -> Callable[[str, int], BaseException | None]:
    """The call of that number fails; a command that is tried again fails again."""
    tried: list[str] = []

    def fault(name: str, count: int) -> BaseException | None:
        again = bool(tried) and name == tried[0] and name.startswith("switch") and count <= number + 2
        if count != number and not again:
            return None
        tried.append(name)
        return error()

    return fault


@pytest.mark.parametrize("error", [lambda: refused("no"), lambda: KeyError("x"), lambda: OSError(5, "I/O error")])
def test_a_failure_at_any_call_leaves_every_vm_served(tmp_path: Path, error: Callable[[], BaseException]) -> None:
    made = make(tmp_path / "count")
    carry_out(made, upgrade_plan(made))
    total, ended = len(made[0].calls), made[0].calls.index("stop a") + 2
    for number in range(1, total + 1):
        made = make(tmp_path / str(number))
        world = made[0]
        plan = upgrade_plan(made)
        world.fault = fails_at(number, error)
        report = carry_out(made, plan)
        if number < ended:
            assert report.error
            assert report.next
            assert report.outcome == "restored", (number, world.calls[-5:])
            settled(world, "a")
        else:  # there is no way back; the step is tried again, and what failed has passed
            assert report.outcome == "done", report.error
            settled(world, "b")


def test_a_retirement_that_cannot_be_finished_needs_a_person_and_resumes(tmp_path: Path) -> None:
    made = make(tmp_path)
    world = made[0]
    run = new_run(made, upgrade_plan(made))
    world.fault = lambda name, count: refused("no") if name.startswith("redirect") and world.pids["a"] is None else None
    report = report_of(run.forward())
    assert report.outcome == "operator-needed"
    assert "upgrade resume" in (report.next or "")
    assert set(world.owners().values()) == {"b"}
    assert world.unreached() == []
    world.fault = lambda name, count: None
    assert run.forward().state == "done"
    settled(world, "b")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_off_anywhere_either_slot_can_be_restored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A host half-way goes to either slot whose switch is whole; to one that is not, it is refused and nothing moves."""
    tmp = tmp_path_factory.mktemp("cut")
    vms = data.draw(st.integers(1, 4))
    number = data.draw(st.integers(1, count_calls(tmp / "count", vms)))
    made = make(tmp / "run", vms)
    world = made[0]
    plan = upgrade_plan(made)
    world.fault = fails_at(number, Killed)
    with pytest.raises(Killed):
        carry_out(made, plan)
    assert world.trouble == []
    assert None not in world.owners().values()
    assert world.unreached() == []
    world.fault = lambda name, count: None
    world.listeners.clear()
    before = world.owners()
    running = [n for n, pid in world.pids.items() if pid is not None]
    to: SlotName = data.draw(st.sampled_from(running))
    again = restore_plan(made, to)
    assert again.blocking == ()
    report = carry_out(made, again)
    if report.outcome == "done":
        settled(world, to)
    else:
        assert "SWITCHES_DIFFER" in (report.error or "")
        assert to == "b"
        assert world.owners() == before
        assert carry_out(made, restore_plan(made, "a")).outcome == "done"
        settled(world, "a")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_restore_that_fails_leaves_every_vm_served_and_reached(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Also VMs that the restoring run was not to move keep their switch and their way to it."""
    tmp = tmp_path_factory.mktemp("again")
    made = make(tmp / "run", 3)
    world = made[0]
    plan = upgrade_plan(made)
    moves = [i for i, s in enumerate(plan.steps) if s.kind is StepKind.MOVE_VM]
    cut = data.draw(st.sampled_from(["switch vm1", "switch vm2", "steer vm2 b"]))
    world.fault = lambda name, count: Killed() if name == cut else None
    with pytest.raises(Killed):
        carry_out(made, plan)
    assert moves
    world.fault = lambda name, count: None
    start = len(world.calls)
    number = start + data.draw(st.integers(1, 25))
    world.fault = fails_at(number, lambda: refused("no"))
    report = carry_out(made, restore_plan(made, data.draw(st.sampled_from(["a", "b"]))))
    assert None not in world.owners().values()
    assert world.unreached() == [], (report.outcome, world.calls[start:])
    assert world.trouble == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(1, 60))
def test_a_look_at_the_host_that_fails_is_a_run_undone(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    made = make(tmp_path_factory.mktemp("look"))
    world = made[0]
    plan = upgrade_plan(made)
    first = world.looks
    world.look_fault = lambda name, count: refused("no answer") if count == first + number else None
    report = carry_out(made, plan)
    assert None not in world.owners().values()
    assert world.unreached() == []
    assert world.trouble == []
    if report.outcome == "restored":
        world.look_fault = lambda name, count: None
        settled(world, "a")


@pytest.mark.parametrize("at", ["start_switch b", "attach vm0", "switch vm0", "steer vm1 b", "close_window b"])
def test_ctrl_c_undoes_the_run_after_the_step_in_hand(tmp_path: Path, at: str) -> None:
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)
    control = Control()

    def watch(name: str, count: int) -> None:
        if name == at:
            control.ask(Request.BACK)

    world.fault = watch
    report = carry_out(made, plan, control=control)
    assert (report.outcome, report.error) == ("restored", "ASKED: a person asked for it")
    assert report.moved == 0
    settled(world, "a")


@pytest.mark.parametrize("at", ["attach vm1", "switch vm0", "switch vm1", "steer vm1 b", "close_window b"])
def test_a_vm_that_ends_in_the_middle_is_no_reason_to_stop(tmp_path: Path, at: str) -> None:
    made = make(tmp_path, vms=3)
    world = made[0]
    plan = upgrade_plan(made)

    def end(name: str, count: int) -> None:
        if name == at:
            world.vms.pop("vm2", None)

    world.fault = end
    report = carry_out(made, plan)
    assert report.outcome == "done", report.error
    world.chardevs = {(d, c) for d, c in world.chardevs if d != "vm2"}  # they went with its QEMU
    world.listeners = {p for p in world.listeners if "vhu2" not in p.name}
    settled(world, "b")


def test_a_terminal_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    def gone(view: RunView, event: Event) -> None:
        raise OSError(5, "Input/output error")

    made = make(tmp_path)
    assert carry_out(made, upgrade_plan(made), gone).outcome == "done"
    settled(made[0], "b")
    world = made[0]
    world.fault = lambda name, count: refused("no") if name.startswith("switch vm1") else None
    assert carry_out(made, upgrade_plan(made), gone).outcome == "restored"
    settled(world, "b")


def test_a_vm_that_comes_in_the_middle_is_not_left_without_a_switch(tmp_path: Path) -> None:
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)

    def come(name: str, count: int) -> None:
        if name == "switch vm1":
            world.vms["vm9"] = vm_interface(9)  # started, and connected to by the old switch

    world.fault = come
    report = carry_out(made, plan)
    assert report.outcome == "restored"
    assert "vm9" in (report.error or "")
    settled(world, "a")


def test_a_switch_that_dies_while_the_vms_move(tmp_path: Path) -> None:
    """The new switch dies after the first VM went to it: QEMU brings that VM home, the run stops, all is as before."""
    made = make(tmp_path, vms=3)
    world = made[0]
    plan = upgrade_plan(made)

    def die(name: str, count: int) -> None:
        if name == "steer vm1 b+a":
            world.die("b")

    world.fault = die
    report = carry_out(made, plan)
    assert report.outcome == "restored"
    settled(world, "a")


def test_the_old_switch_dies_while_the_vms_move(tmp_path: Path) -> None:
    """QEMU brings every VM to the new switch, which stands by on all of them: the run goes on to its end."""
    made = make(tmp_path, vms=3)
    world = made[0]
    plan = upgrade_plan(made)

    def die(name: str, count: int) -> None:
        if name == "steer vm1 b":
            world.die("a")

    world.fault = die
    report = carry_out(made, plan)
    assert report.outcome == "done", report.error
    settled(world, "b")


def test_the_old_switch_dies_before_the_vms_are_attached(tmp_path: Path) -> None:
    """Then nobody can serve them; the new switch, the only one that lives, is kept."""
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)

    def die(name: str, count: int) -> None:
        if name == "copy br-phy":
            world.die("a")
            raise refused("no answer")

    world.fault = die
    report = carry_out(made, plan)
    assert report.outcome == "operator-needed"
    assert world.pids["b"] is not None


@pytest.mark.parametrize("at", ["point_to b", "start_at_boot b", "drop_clients a"])
@pytest.mark.parametrize(("dead", "outcome", "left"), [("a", "done", "b"), ("b", "restored", "a")])
def test_a_switch_that_dies_while_the_names_change(
    tmp_path: Path, at: str, dead: SlotName, outcome: str, left: SlotName
) -> None:
    """The names end up with the one that lives and serves the VMs."""
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)

    def die(name: str, count: int) -> None:
        if name == at and world.pids[dead] is not None and not died:
            died.append(name)
            world.die(dead)

    died: list[str] = []
    world.fault = die
    report = carry_out(made, plan)
    assert died == [at]
    assert report.outcome == outcome, report.error
    settled(world, left)


def test_names_that_somebody_else_has_block_the_run(tmp_path: Path) -> None:
    made = make(tmp_path)
    made[1].well_known.problem = lambda: "ovs-vswitchd (pid 5) runs there"  # type: ignore[method-assign]
    assert [f.code for f in upgrade_plan(made).blocking] == ["WELL_KNOWN_TAKEN"]


def test_a_missed_deadline_is_tried_again(tmp_path: Path) -> None:
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)
    world.fault = lambda name, count: (
        refused("deadline") if name == "switch vm0" and world.calls.count(name) == 1 else None
    )
    report = carry_out(made, plan)
    assert report.outcome == "done", report.error
    assert world.calls.count("switch vm0") == 2
    settled(world, "b")


def test_a_new_switch_that_does_not_let_go_is_killed(tmp_path: Path) -> None:
    """The rings stand still and the switch back gets no answer: QEMU brings the VMs home when it is dead."""
    made = make(tmp_path)
    world = made[0]
    plan = upgrade_plan(made)

    def hangs(name: str, count: int) -> BaseException | None:
        back = name == "switch vm0" and world.calls.count("switch vm0") >= 2
        return refused("missed its deadline") if back or name == "switch vm1" else None

    world.fault = hangs
    report = carry_out(made, plan)
    assert "kill b" in world.calls
    assert report.outcome == "restored", report.error
    settled(world, "a")


def test_rings_that_stand_still_bring_the_vm_back(tmp_path: Path) -> None:
    """A switch that acknowledged the rings and does nothing on them is found out, and everything undone."""
    made = make(tmp_path)
    world, host, _ = made
    plan = upgrade_plan(made)
    switch = host.hypervisor.switch

    def stuck(port: object, owner: str, generation: int, *, fenced: bool = False) -> object:
        from dataclasses import replace

        result = switch(port, owner, generation, fenced=fenced)  # type: ignore[arg-type]
        vm = world.vms["vm1"]
        assert vm.ownership is not None
        if port.domain == "vm1" and vm.ownership.owner.startswith("hotup"):  # type: ignore[attr-defined]
            rings = tuple(replace(r, avail_idx=r.used_idx + 5) for r in vm.ownership.rings)
            world.vms["vm1"] = replace(vm, ownership=replace(vm.ownership, rings=rings))
        return result

    host.hypervisor.switch = stuck  # type: ignore[assignment,method-assign]
    report = carry_out(made, plan)
    assert report.outcome == "restored"
    assert "RINGS_STAND_STILL" in (report.error or "")
    settled(world, "a")


def test_plans_are_the_same_for_the_same_facts(tmp_path: Path) -> None:
    made = make(tmp_path)
    first, second = upgrade_plan(made), upgrade_plan(made)
    assert first.id == second.id
    made[0].pids["a"] = 4242
    assert upgrade_plan(made).id != first.id


def test_plan_order(tmp_path: Path) -> None:
    kinds = [s.kind for s in upgrade_plan(make(tmp_path, vms=2)).steps]
    assert kinds == [
        StepKind.START_STANDBY,
        StepKind.REPLICATE,
        StepKind.PROVE,
        StepKind.ATTACH_STANDBY,
        StepKind.ATTACH_STANDBY,
        StepKind.OPEN_WINDOW,
        StepKind.MOVE_VM,
        StepKind.MOVE_VM,
        StepKind.CATCH_UP,
        StepKind.CLOSE_WINDOW,
        StepKind.MOVE_CONTROL,
        StepKind.PROMOTE,
        StepKind.SOAK,
        StepKind.RETIRE,
    ]


def test_a_standby_that_serves_vms_is_not_stopped(tmp_path: Path) -> None:
    made = make(tmp_path)
    plan = upgrade_plan(made)
    world = made[0]
    world.pids["b"] = 77
    world.vms["vm0"] = vm_interface(0, ownership=ownership("hotup-b-hostnet0", 77, generation=1))
    report = carry_out(made, plan)
    assert "STANDBY_SERVES_VMS" in (report.error or "")
    assert world.owners() == {"vm0": "b", "vm1": "a"}
    assert world.trouble == []


def test_gather_needs_libvirt(tmp_path: Path) -> None:
    made = make(tmp_path)

    def gone() -> object:
        raise HostError("LIBVIRT_UNREACHABLE", "no libvirt", state="-", next="-")

    made[1].hypervisor.vm_interfaces = gone  # type: ignore[assignment,method-assign]
    with pytest.raises(HostError):
        look(made)
