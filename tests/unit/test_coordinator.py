"""The coordinator killed anywhere and taken up again; requests; what is refused. On the simulated host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.runs import Killed, SimRun, cuts, disarm, served, settled, sim_run
from upgrader.core.errors import BlockedError, SupersededError
from upgrader.core.journal import Event, EventKind, RunView, recorded
from upgrader.core.lifecycle import UNFINISHED, RunState, StepState
from upgrader.core.model import SlotName
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.engine.control import Request
from upgrader.sim.facts import vm_interface
from upgrader.sim.world import refused


def totals(tmp: Path, vms: int) -> tuple[int, int]:
    run = sim_run(tmp, vms)
    assert run.begin().forward().state is RunState.DONE
    return run.journal.writes, len(run.world.calls)


@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_killed_anywhere_and_taken_up_again(tmp_path: Path, way: str) -> None:
    writes, calls = totals(tmp_path / "count", 2)
    ended = 0
    for name, arm in cuts(writes, calls):
        run = sim_run(tmp_path / name.replace(" ", "-"), 2)
        arm(run)
        try:
            run.begin().forward()
            cut = False
        except Killed:
            cut = True
        disarm(run)
        served(run.world)
        view = run.again()
        served(run.world)
        if not cut:
            assert name == f"after write {writes}" or view is not None
        if view is None:  # it was killed before the run began
            settled(run.world, "a")
            continue
        if view.state in UNFINISHED:
            view = run.resume().forward() if way == "resume" else run.rollback().back()
        assert view.state in (RunState.DONE, RunState.RESTORED), (name, report(view))
        if way == "resume":
            assert view.state is RunState.DONE, name
        settled(run.world, "b" if view.state is RunState.DONE else "a")
        ended += 1
    assert ended > 60


def test_a_rollback_that_comes_too_late_finishes_the_run(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: Killed() if run.world.pids["a"] is None else None
    with pytest.raises(Killed):
        run.begin().forward()
    disarm(run)
    run.again()
    told = report(run.rollback().back())
    assert (told.outcome, told.reason) == ("done", "ROLLBACK_TOO_LATE")
    assert "upgrade --host" in (told.next or "")
    settled(run.world, "b")


def test_killed_while_it_goes_back_and_taken_up_again(tmp_path: Path) -> None:
    for number in range(1, 60):
        run = sim_run(tmp_path / str(number), 3)
        run.world.fault = lambda name, count: refused("no") if name == "switch vm2" else None
        writes = run.journal.writes
        seen = 0

        def kill(n: int, writes: int = writes, number: int = number) -> None:
            if n == writes + 20 + number:
                raise Killed

        run.journal.fault_after = kill
        try:
            view = run.begin().forward()
        except Killed:
            disarm(run)
            served(run.world)
            seen = 1
            again = run.again()
            assert again is not None
            view = run.rollback().back() if again.state in UNFINISHED else again
        assert view.state is RunState.RESTORED, (number, report(view))
        settled(run.world, "a")
        if not seen:
            return
    raise AssertionError("the run never came to its end")


def test_an_older_coordinator_stops_before_its_next_effect(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    engine = run.begin()
    calls: list[int] = []

    def another(name: str, count: int) -> None:
        if name == "attach vm0":
            run.journal.generation += 1  # another coordinator claims the journal
            calls.append(count)

    run.world.fault = another
    with pytest.raises(SupersededError):
        engine.forward()
    assert len(run.world.calls) == calls[0]
    served(run.world)


def test_a_coordinator_that_starts_takes_stock_of_journal_and_host(tmp_path: Path) -> None:
    """While none was there the new switch died: QEMU has brought its VM back, which the journal does not know of."""
    run = sim_run(tmp_path, 2)
    run.world.fault = lambda name, count: Killed() if name == "switch vm1" else None
    with pytest.raises(Killed):
        run.begin().forward()
    disarm(run)
    view = run.journal.latest()
    assert view is not None
    assert recorded(view).rings == {"vm0/vhu0": "b", "vm1/vhu1": None}, "of the move in hand it cannot tell"
    run.world.die("b")
    with capture_logs() as lines:
        settled_now = run.again()
    assert settled_now is not None
    assert (settled_now.state, settled_now.reason) == (RunState.HALTED, "COORDINATOR_DIED")
    assert recorded(settled_now).rings == {"vm0/vhu0": "a", "vm1/vhu1": "a"}, "the host's word, not the journal's"
    differ = [line for line in lines if line["event"] == "the journal and QEMU differ"]
    assert [(line["vm"], line["journal"], line["qemu"]) for line in differ] == [
        ("vm0/vhu0", "b", "a"),
        ("vm1/vhu1", None, "a"),
    ]
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


def test_pause_stops_after_the_vm_in_hand_and_resume_goes_on(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "switch vm1" else None
    view = run.begin().forward()
    assert (view.state, view.reason) == (RunState.PAUSED, "ASKED")
    assert run.world.owners() == {"vm0": "b", "vm1": "b", "vm2": "a"}
    served(run.world)
    disarm(run)
    run.again()
    run.world.flows["a", "br-int"] = ("priority=11 actions=drop",)  # a controller wrote while the run was paused
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")
    assert run.world.flows["b", "br-int"] == ("priority=11 actions=drop",)


@pytest.mark.parametrize(
    ("request_", "state", "owners"),
    [(Request.BACK, "restored", {"vm0": "a", "vm1": "a"}), (Request.STAY, "halted", {"vm0": "b", "vm1": "a"})],
)
def test_abort(tmp_path: Path, request_: Request, state: str, owners: dict[str, str]) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: run.control.ask(request_) if name == "switch vm0" else None
    view = run.begin().forward()
    assert (view.state, view.reason) == (state, "ASKED")
    assert run.world.owners() == owners
    served(run.world)


def test_a_request_is_heard_while_the_canary_is_watched_and_while_it_soaks(tmp_path: Path) -> None:
    for number, at in enumerate(("switch vm0", "close_window b")):
        run = sim_run(
            tmp_path / str(number), policy=Policy(soak_s=1e9, canary_check_s=1e9 if at == "switch vm0" else 0)
        )
        run.world.fault = lambda name, count, at=at, run=run: run.control.ask(Request.BACK) if name == at else None
        assert run.begin().forward().state is RunState.RESTORED
        settled(run.world, "a")


def test_policy_stay_takes_only_the_failed_vm_back(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(soak_s=0, canary_check_s=0, on_failure="stay"))
    run.world.fault = lambda name, count: refused("no") if name == "switch vm1" else None
    view = run.begin().forward()
    assert view.state is RunState.HALTED
    assert run.world.owners() == {"vm0": "b", "vm1": "a", "vm2": "a"}
    served(run.world)
    disarm(run)
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")


def test_over_budget_stops_and_moves_nothing_back(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))  # a move takes 713 us
    view = run.begin().forward()
    assert (view.state, view.reason) == (RunState.HALTED, "OVER_BUDGET")
    assert run.world.owners() == {"vm0": "b", "vm1": "a", "vm2": "a"}
    assert "blackout_budget_us" in (report(view).error or "")
    served(run.world)


def test_a_kept_switch_is_a_way_back_after_the_end(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    view = run.begin().forward()
    assert view.state is RunState.DONE
    settled(run.world, "b", kept=True)
    assert run.world.pids["a"] is not None
    run.again()
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


def test_what_was_written_to_the_new_switch_after_the_end_comes_back_with_a_rollback(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    run.begin().forward()
    run.again()
    bridge = run.world.switch.bridges[0].name
    written = (*run.world.flows["b", bridge], "priority=99 actions=NORMAL")
    run.world.flows["b", bridge] = written
    assert run.rollback().back().state is RunState.RESTORED
    assert run.world.flows["a", bridge] == written


def test_a_vm_that_comes_to_a_kept_switch_follows_the_others(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    run.begin().forward()
    run.again()
    run.world.vms["vm1"] = vm_interface(1)  # it was restarted, and the old switch dialled first
    assert run.world.owners() == {"vm0": "b", "vm1": "a"}
    assert run.world.unreached() != []
    run.coordinator.keep()
    assert set(run.world.owners().values()) == {"b"}
    settled(run.world, "b", kept=True)
    before = list(run.world.calls)
    run.coordinator.keep()
    assert run.world.calls == before
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


def test_nothing_is_moved_where_no_switch_is_kept_or_a_run_is_half_way(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0, on_failure="stay", keep_old=True))
    run.world.fault = lambda name, count: refused("no") if name == "switch vm1" else None
    assert run.begin().forward().state is RunState.HALTED
    run.world.fault = lambda name, count: None
    before = list(run.world.calls)
    run.coordinator.keep()
    assert run.world.calls == before
    assert run.world.owners() == {"vm0": "b", "vm1": "a"}


def test_without_a_kept_switch_there_is_nothing_to_roll_back(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    for refuse in (run.rollback, run.resume):
        with pytest.raises(BlockedError):
            refuse()
    run.begin().forward()
    before = list(run.world.calls)
    with pytest.raises(BlockedError) as error:
        run.rollback()
    assert error.value.code == "NOTHING_TO_ROLL_BACK"
    with pytest.raises(BlockedError) as error:
        run.resume()
    assert error.value.code == "NOTHING_TO_RESUME"
    assert run.world.calls == before


def test_a_stale_plan_is_refused(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    plan = run.plan()
    run.world.vms["vm7"] = vm_interface(7)
    run.world.pids["a"] = 4711
    with pytest.raises(BlockedError) as error:
        run.coordinator.begin(plan, run.control, lambda view, event: None)
    assert error.value.code in ("PLAN_STALE", "BLOCKED")
    assert run.world.calls == []


def test_traffic_does_not_make_a_plan_stale(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    plan = run.plan()
    for domain, vm in run.world.vms.items():
        assert vm.ownership is not None
        rings = tuple(replace(r, avail_idx=r.avail_idx + 100) for r in vm.ownership.rings)
        run.world.vms[domain] = replace(vm, ownership=replace(vm.ownership, rings=rings))
    assert run.plan().id == plan.id


def test_no_run_begins_while_another_is_half_way(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "start_switch b" else None
    assert run.begin().forward().state is RunState.PAUSED
    disarm(run)
    with pytest.raises(BlockedError) as error:
        run.begin()
    assert error.value.code == "RUN_UNFINISHED"
    assert "resume" in error.value.next


def test_a_restore_takes_a_run_over_that_stopped_half_way(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "switch vm1" else None
    run.begin().forward()
    disarm(run)
    plan = run.plan("a")
    assert run.coordinator.begin(plan, run.control, lambda view, event: None).forward().state is RunState.DONE
    settled(run.world, "a")
    first = run.journal.view(1)
    assert first is not None
    assert first.state is RunState.SUPERSEDED


def test_a_standby_that_is_another_process_is_not_resumed_onto(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "attach vm1" else None
    run.begin().forward()
    disarm(run)
    run.world.die("b")
    run.world.pids["b"] = 9999
    with pytest.raises(BlockedError) as error:
        run.resume()
    assert error.value.code == "STANDBY_IS_ANOTHER"
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


def test_vms_that_come_during_the_run_are_moved_too(tmp_path: Path) -> None:
    for number, at in enumerate(("attach vm1", "switch vm1", "close_window b")):
        run = sim_run(tmp_path / str(number))
        run.world.idle_port(9)

        def come(name: str, count: int, run: SimRun = run, at: str = at) -> None:
            if name == at:
                run.world.vms.setdefault("vm9", vm_interface(9))

        run.world.fault = come
        view = run.begin().forward()
        assert view.state is RunState.DONE, report(view)
        settled(run.world, "b")
        assert "vm9" in run.world.owners()


def test_a_vm_that_is_restarted_during_the_run_is_moved_all_the_same(tmp_path: Path) -> None:
    run = sim_run(tmp_path)

    def restart(name: str, count: int) -> None:
        if name == "switch vm0":
            run.world.restart("vm1")

    run.world.fault = restart
    view = run.begin().forward()
    assert view.state is RunState.DONE, report(view)
    settled(run.world, "b")


def test_a_host_without_vms_is_steered_back_too(tmp_path: Path) -> None:
    for dual in (True, False):
        run = sim_run(tmp_path / str(dual), 0, Policy(soak_s=0, canary_check_s=0, keep_old=True))
        run.world.dual = dual
        assert run.begin().forward().state is RunState.DONE
        assert run.world.steady == ("b",)
        assert run.rollback().back().state is RunState.RESTORED
        settled(run.world, "a")


def test_when_every_vm_has_ended_the_way_back_is_steered_too(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    assert run.begin().forward().state is RunState.DONE
    for domain in list(run.world.vms):
        run.world.end(domain)
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


@pytest.mark.parametrize("request_", [Request.PAUSE, Request.STAY])
def test_a_pause_does_not_hide_that_a_vm_has_no_switch(tmp_path: Path, request_: Request) -> None:
    run = sim_run(tmp_path)

    def die(name: str, count: int) -> None:
        if name == "attach vm0":  # nobody has a standby yet
            run.world.die("a")
            run.control.ask(request_)

    run.world.fault = die
    told = report(run.begin().forward())
    assert (told.outcome, told.reason) == ("operator-needed", "SWITCH_DIED")
    assert "stand by" in (told.error or "")


def test_a_run_that_stops_where_a_vm_has_no_switch_is_not_called_restored(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 1)
    stop_at = {"n": 1}
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if count == stop_at["n"] else None
    assert run.begin().forward().state is RunState.PAUSED
    stop_at["n"] = len(run.world.calls) + 1
    plan = run.plan("a")
    assert run.coordinator.begin(plan, run.control, lambda view, event: None).forward().state in UNFINISHED
    disarm(run)
    run.control.take()
    run.world.die("a")
    assert run.resume().forward().state is RunState.OPERATOR_NEEDED


def test_a_pause_before_the_window_leaves_traffic_where_the_vms_are(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 1, Policy(soak_s=0, canary_check_s=0, keep_old=True))
    run.world.dual = False
    assert run.begin().forward().state is RunState.DONE
    run.world.die("b")  # QEMU brings the VM to the old switch, which stands by
    assert run.world.unreached() == ["vm0"]
    first = len(run.world.calls) + 1
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if count == first else None
    assert run.begin().forward().state is RunState.PAUSED
    assert run.world.unreached() == []


def test_the_only_switch_that_lives_is_not_killed_when_the_old_one_dies_on_the_way_back(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))  # stops after the first move
    run.begin().forward()
    run.world.fault = lambda name, count: run.world.die("a") if name == "switch vm0" else None
    assert run.rollback().back().state is RunState.OPERATOR_NEEDED
    assert "kill b" not in run.world.calls
    assert set(run.world.owners().values()) == {"b"}


def test_killed_while_it_goes_back_and_resumed_instead(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: refused("no") if name == "switch vm1" else None
    writes: list[int] = []

    def kill(number: int) -> None:
        view = run.journal.latest()
        if view and StepState.UNDOING in [s.state for s in view.steps]:
            writes.append(number)
            raise Killed

    run.journal.fault_after = kill
    with pytest.raises(Killed):
        run.begin().forward()
    disarm(run)
    run.again()
    assert writes
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")


def test_a_step_that_could_not_be_undone_may_fail_again(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))
    run.begin().forward()
    run.world.fault = lambda name, count: run.world.die("a") if name == "switch vm0" else None
    assert run.rollback().back().state is RunState.OPERATOR_NEEDED
    run.world.fault = lambda name, count: run.world.die("b") if name == "assume_control b" else None
    assert run.resume().forward().state is RunState.OPERATOR_NEEDED


def test_traffic_follows_vms_that_failover_moved_while_the_run_could_not_go_back(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))
    run.begin().forward()
    run.world.fault = lambda name, count: run.world.die("a") if name == "switch vm0" else None
    run.rollback().back()
    served(run.world)


@pytest.mark.parametrize("at", ["close_window b", "drop_clients a"])
def test_a_new_switch_that_dies_at_the_very_end_is_noticed_before_the_old_one_is_ended(tmp_path: Path, at: str) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0))
    run.world.fault = lambda name, count: run.world.die("b") if name == at else None
    assert run.begin().forward().state is RunState.RESTORED
    settled(run.world, "a")


def test_the_new_switch_dies_when_the_old_one_has_been_ended(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 2, Policy(soak_s=0, canary_check_s=0))
    run.world.fault = lambda name, count: run.world.die("b") if name == "redirect vhu1" and count > 25 else None
    assert run.begin().forward().state is RunState.OPERATOR_NEEDED


@pytest.mark.parametrize("way", ["resume", "rollback"])
def test_cut_off_with_an_empty_database_in_the_new_slot(tmp_path: Path, way: str) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: Killed() if name == "sync a b" else None
    with pytest.raises(Killed):
        run.begin().forward()
    disarm(run)
    run.again()
    assert run.world.database_pids["b"] is not None
    assert run.world.pids["b"] is None
    assert run.plan("a").blocking == (), "the host can be read"
    if way == "resume":
        assert run.resume().forward().state is RunState.DONE
    else:
        assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "b" if way == "resume" else "a")
    assert run.world.database_pids["a" if way == "resume" else "b"] is None


def test_a_run_whose_old_switch_is_gone_goes_on_with_what_was_copied(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "attach vm1" else None
    run.begin().forward()
    disarm(run)
    run.world.die("a")  # its database lives on
    before = len(run.world.calls)
    assert run.resume().forward().state is RunState.DONE
    assert not any(call.startswith(("copy", "sync ")) for call in run.world.calls[before:])
    settled(run.world, "b")


def test_a_switch_that_was_copied_and_could_not_be_proved_is_gone_on_with(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.look_fault = lambda name, count: run.world.die("a") if name == "traces" else None
    assert run.begin().forward().state is RunState.OPERATOR_NEEDED
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")


def test_a_switch_whose_flows_were_never_copied_is_not_gone_on_with(tmp_path: Path) -> None:
    run = sim_run(tmp_path, vms=0)
    run.world.fault = lambda name, count: run.world.die("a") if name == "start_switch b" else None
    told = report(run.begin().forward())
    assert (told.outcome, told.reason) == ("operator-needed", "OLD_SWITCH_DIED")
    told = report(run.resume().forward())
    assert (told.outcome, told.reason) == ("operator-needed", "OLD_SWITCH_DIED")
    assert run.world.in_control == "a"


def test_a_connection_that_serves_a_vm_is_not_taken_away(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "attach vm1" else None
    run.begin().forward()
    disarm(run)
    run.world.die("a")
    view = run.rollback().back()
    assert view.state is RunState.OPERATOR_NEEDED
    served(run.world)
    assert run.resume().forward().state is RunState.DONE
    settled(run.world, "b")


def test_a_restore_that_is_taken_back_says_where_the_vms_are(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 3, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))
    run.begin().forward()
    engine = run.coordinator.begin(run.plan("a"), run.control, lambda view, event: None)
    run.control.ask(Request.BACK)
    told = report(engine.forward())
    assert told.outcome == "restored"
    assert "as before" not in (told.state or "")
    assert "upgrade check" in (told.next or "")


def test_a_switch_that_let_go_is_not_killed_because_a_rule_could_not_be_set(tmp_path: Path) -> None:
    run = sim_run(tmp_path, 1, Policy(blackout_budget_us=700, soak_s=0, canary_check_s=0))
    run.begin().forward()
    run.world.fault = lambda name, count: refused("no") if name == "steer vm0 a" else None
    assert run.rollback().back().state is RunState.OPERATOR_NEEDED
    assert "kill b" not in run.world.calls
    assert run.world.owners() == {"vm0": "a"}


@pytest.mark.parametrize("vms", [0, 2])
def test_a_run_that_is_taken_back_leaves_nothing_with_a_kept_switch_that_died(tmp_path: Path, vms: int) -> None:
    """The names, controllers and traffic were with the switch that died; the run was to start its slot anew."""
    for number in range(1, 20):
        run = sim_run(tmp_path / str(number), vms, Policy(soak_s=0, canary_check_s=0, keep_old=True))
        run.world.dual = False
        assert run.begin().forward().state is RunState.DONE
        run.world.die("b")
        at = len(run.world.calls) + number

        def back(name: str, count: int, run: SimRun = run, at: int = at) -> None:
            if count == at:
                run.control.ask(Request.BACK)

        run.world.fault = back
        view = run.begin().forward()
        assert view.state is RunState.RESTORED, (number, report(view))
        assert run.world.in_control == "a", number
        settled(run.world, "a", kept=True)  # what the first run attached is still there
        assert run.world.pids["b"] is None


@pytest.mark.parametrize("vms", [0, 2])
@pytest.mark.parametrize("request_", [Request.PAUSE, Request.STAY])
def test_a_pause_under_which_the_new_switch_dies_goes_back(tmp_path: Path, vms: int, request_: Request) -> None:
    """What the run prepared is gone with that process: `resume`, which a paused run offers, would be refused."""
    run = sim_run(tmp_path, vms)
    run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "start_switch b" else None
    assert run.begin().forward().state is RunState.PAUSED
    run.world.fault = lambda name, count: None

    def die(_view: RunView, event: Event | None) -> None:
        """Between two steps: the one before did not notice."""
        if event and event.kind is EventKind.OUTCOME and run.world.pids["b"] is not None:
            run.world.die("b")
            run.control.ask(request_)

    told = report(run.coordinator.resume(run.control, die).forward())
    assert (told.outcome, told.reason) == ("restored", "SWITCH_DIED")
    disarm(run)
    settled(run.world, "a")


KEPT = Policy(soak_s=0, canary_check_s=0, keep_old=True)


def there_and_kept(tmp: Path, vms: int = 2) -> SimRun:
    """An upgrade a -> b, and one b -> a that keeps its old switch: both dial paths of their own."""
    run = sim_run(tmp, vms, Policy(soak_s=0, canary_check_s=0))
    assert run.begin().forward().state is RunState.DONE
    run.setup = replace(run.setup, policy=KEPT)
    assert run.begin().forward().state is RunState.DONE
    settled(run.world, "a", kept=True)
    return run


def test_a_vm_that_is_restarted_comes_to_the_switch_in_charge_and_can_go_back(tmp_path: Path) -> None:
    run = there_and_kept(tmp_path)
    run.world.restart("vm1")
    served(run.world)
    assert set(run.world.owners().values()) == {"a"}
    run.again()
    run.coordinator.keep()
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "b")
    run.world.restart("vm0")
    assert set(run.world.owners().values()) == {"b"}


def test_a_vm_that_is_restarted_comes_to_a_kept_switch_that_dials_for_itself_and_is_brought_over(
    tmp_path: Path,
) -> None:
    run = sim_run(tmp_path, 2, KEPT)
    assert run.begin().forward().state is RunState.DONE
    for _ in range(2):
        run.world.restart("vm1")
        assert run.world.owners() == {"vm0": "b", "vm1": "a"}
        run.coordinator.keep()
        settled(run.world, "b", kept=True)
    assert run.rollback().back().state is RunState.RESTORED
    settled(run.world, "a")


@pytest.mark.parametrize("back", [False, True])
def test_a_vm_that_is_restarted_in_the_middle_comes_to_the_old_switch_whichever_way_the_run_goes(
    tmp_path: Path, back: bool
) -> None:
    number = 0
    while number < 120:
        number += 1
        run = sim_run(tmp_path / str(number), 2, Policy(soak_s=0, canary_check_s=0))
        assert run.begin().forward().state is RunState.DONE
        run.setup = replace(run.setup, policy=KEPT)
        at = len(run.world.calls) + number
        hit: list[str] = []

        def restart(name: str, count: int, run: SimRun = run, at: int = at, hit: list[str] = hit) -> None:
            if count == at:
                run.world.restart("vm1")
                hit.append(name)

        run.world.fault = restart
        view = run.begin().forward()
        # in the second in which the new switch dials libvirt's socket to stand by, both do: docs/adr/0002
        both = hit == ["redirect vhu1"]
        if both and view.state is RunState.RESTORED and view.reason == "STANDBY_NOT_READY":
            settled(run.world, "b")
            continue
        assert view.state is RunState.DONE, (number, report(view))
        settled(run.world, "a", kept=True)
        if back:
            view = run.rollback().back()
            if both and view.state is RunState.OPERATOR_NEEDED and view.error:
                assert view.error["code"] == "STANDBY_NOT_READY"
                served(run.world)
                continue
            assert view.state is RunState.RESTORED, number
            settled(run.world, "b")
        if not hit:
            break
    assert 20 < number < 120


@pytest.mark.parametrize("dead", ["a", "b"])
def test_when_one_of_two_dies_a_vm_that_is_restarted_comes_to_the_other(tmp_path: Path, dead: SlotName) -> None:
    for number, make in enumerate((there_and_kept, kept)):
        run = make(tmp_path / str(number))
        run.world.die(dead)
        run.coordinator.keep()
        run.world.restart("vm1")
        assert set(run.world.owners().values()) == {"b" if dead == "a" else "a"}


def kept(tmp: Path) -> SimRun:
    run = sim_run(tmp, 2, KEPT)
    assert run.begin().forward().state is RunState.DONE
    return run


@pytest.mark.parametrize("churn", ["end", "restart"])
def test_a_vm_that_ends_while_it_is_brought_back_costs_the_new_switch_nothing(tmp_path: Path, churn: str) -> None:
    run = kept(tmp_path)
    seen: list[dict[str, SlotName | None]] = []

    def end(name: str, count: int) -> None:
        if name == "switch vm1" and "vm1" in run.world.vms:
            getattr(run.world, churn)("vm1")
        if name.startswith(("kill", "stop b")):
            seen.append(run.world.owners())

    run.world.fault = end
    assert run.rollback().back().state is RunState.RESTORED
    assert "kill b" not in run.world.calls
    assert all("b" not in owners.values() for owners in seen)
    settled(run.world, "a")


@pytest.mark.parametrize("way", ["resume", "rollback"])
@pytest.mark.parametrize("restores", [False, True])
def test_a_run_is_not_called_done_whose_new_switch_died_before_that_was_written(
    tmp_path: Path, way: str, restores: bool
) -> None:
    """Killed between the last outcome and the word that the run is done."""
    run = sim_run(tmp_path, 1, Policy(soak_s=0, canary_check_s=0))
    if restores:
        run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "switch vm0" else None
        assert run.begin().forward().state is RunState.PAUSED
        disarm(run)
        engine = run.coordinator.begin(run.plan("a"), run.control, lambda view, event: None)
    else:
        engine = run.begin()

    def kill(number: int) -> None:
        view = run.journal.latest()
        if view and all(step.state is StepState.DONE for step in view.steps):
            raise Killed

    run.journal.fault_after = kill
    with pytest.raises(Killed):
        engine.forward()
    disarm(run)
    run.world.die("a" if restores else "b")
    run.again()
    if way == "resume" and not restores:
        with pytest.raises(BlockedError):
            run.resume()
        return
    view = run.resume().forward() if way == "resume" else run.rollback().back()
    assert view.state is RunState.OPERATOR_NEEDED


@pytest.mark.parametrize("vms", [0, 1])
def test_a_switch_that_was_never_filled_is_no_way_out(tmp_path: Path, vms: int) -> None:
    """The old one dies while the new one is started, and somebody asks for a pause: nothing was copied yet."""
    run = sim_run(tmp_path, vms)

    def die(name: str, count: int) -> None:
        if name == "start_switch b":
            run.world.die("a")
            run.control.ask(Request.PAUSE)

    run.world.fault = die
    told = report(run.begin().forward())
    assert (told.outcome, told.reason) == ("operator-needed", "SWITCH_DIED")
    disarm(run)
    before = list(run.world.calls)
    plan = run.plan("b")
    remedies = [f.remedy for f in plan.blocking if f.code == "SWITCH_EMPTY"]
    assert ['policy.accept = ["SWITCH_EMPTY"]' in r for r in remedies] == [True]
    with pytest.raises(BlockedError):
        run.coordinator.begin(plan, run.control, lambda view, event: None)
    assert run.world.calls == before
    run.setup = replace(run.setup, accept=("SWITCH_EMPTY",))
    assert "SWITCH_EMPTY" not in [f.code for f in run.plan("b").blocking]


def test_a_restore_to_a_switch_that_is_not_in_charge_fills_it_first(tmp_path: Path) -> None:
    for dies in (False, True):
        run = sim_run(tmp_path / str(dies), 0)
        run.world.fault = lambda name, count, run=run: (
            run.control.ask(Request.PAUSE) if name == "start_switch b" else None
        )
        assert run.begin().forward().state is RunState.PAUSED
        disarm(run)
        engine = run.coordinator.begin(run.plan("b"), run.control, lambda view, event: None)
        if dies:
            run.world.die("a")
        view = engine.forward()
        if dies:
            assert (view.state, view.error and view.error["code"]) == (RunState.OPERATOR_NEEDED, "SWITCH_EMPTY")
        else:
            assert view.state is RunState.DONE
            settled(run.world, "b")
