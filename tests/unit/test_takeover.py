"""The protection of a host: the table, arming, and takeovers cut off anywhere. On the simulated host."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.runs import Killed, SimRun, disarm, settled, sim_run, watch
from upgrader.adapters.death import DeathWatch, threads_are_out
from upgrader.adapters.journal import plan_to_json
from upgrader.core import takeover
from upgrader.core.errors import BlockedError, HostError
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName, Standby
from upgrader.core.plan import Plan, PlanKind, Policy
from upgrader.core.report import report
from upgrader.core.takeover import TABLE, Action, Protection, Sight, TakeoverPolicy, decide, sight
from upgrader.daemon.metrics import Metrics
from upgrader.daemon.server import Runner
from upgrader.engine.control import Control
from upgrader.engine.coordinator import make_plan
from upgrader.engine.sentry import Taken, serve
from upgrader.engine.takeover import Guard, Resume, Todo
from upgrader.sim.facts import ownership
from upgrader.sim.host import refused
from upgrader.sim.world import Hang
from upgrader.steps import Context
from upgrader.steps.take_over import take_over

AUTOMATIC = TakeoverPolicy("automatic")


def host(tmp: Path, vms: int = 2, policy: TakeoverPolicy = AUTOMATIC) -> SimRun:
    run = sim_run(tmp, vms)
    run.setup = replace(run.setup, takeover=policy)
    run.coordinator.setup = lambda: run.setup
    return run


def again(run: SimRun) -> Guard:
    """Another coordinator, with a guard of its own."""
    run.again()
    run.coordinator.setup = lambda: run.setup
    return Guard(run.coordinator)


def carry_out(run: SimRun, todo: Todo) -> RunState:
    if isinstance(todo, Taken):
        engine = run.coordinator.record(todo.plan, todo.data, Control(), watch)
    elif isinstance(todo, Resume):
        engine = run.coordinator.resume(Control(), watch)
    else:
        assert isinstance(todo, Plan)
        engine = run.coordinator.begin(todo, Control(), watch)
    view = engine.forward()
    assert view.state is RunState.DONE, report(view)
    return view.state


def plan(run: SimRun, kind: PlanKind) -> Plan:
    return make_plan(run.setup, None, run.setup.policy, kind)[1]


def armed(run: SimRun) -> Guard:
    carry_out(run, plan(run, PlanKind.ARM))
    guard = Guard(run.coordinator)
    assert guard.look() is None
    assert guard.standing.state is Protection.ARMED, guard.standing
    return guard


# --- the table


def test_every_state_between_runs_has_an_answer_to_every_sight() -> None:
    between = set(Protection) - {Protection.ARMING, Protection.TAKING_OVER}
    assert set(TABLE) >= {(p, s) for p in between for s in Sight if (p, s) != (Protection.STALE, Sight.ACTIVE_HANGS)}
    assert all(TABLE[Protection.DISARMED, s] is Action.NOTHING for s in Sight)
    assert all(TABLE[p, Sight.BOTH_DIED] is Action.SHOUT for p in between - {Protection.DISARMED})


@pytest.mark.parametrize(
    ("state", "seen", "policy", "recent", "action"),
    [
        (Protection.ARMED, Sight.ACTIVE_DIED, TakeoverPolicy("automatic"), 0, Action.TAKE_OVER),
        (Protection.ARMED, Sight.ACTIVE_DIED, TakeoverPolicy("manual"), 0, Action.SHOUT),
        (Protection.ARMED, Sight.ACTIVE_DIED, TakeoverPolicy("off"), 0, Action.SHOUT),
        (Protection.ARMED, Sight.ACTIVE_DIED, TakeoverPolicy("automatic", maintenance=True), 0, Action.SHOUT),
        # a dead switch is taken over from, however often: the guard holds back the next standby
        (Protection.ARMED, Sight.ACTIVE_DIED, TakeoverPolicy("automatic", max_per_hour=3), 3, Action.TAKE_OVER),
        (Protection.ARMED, Sight.ACTIVE_HANGS, TakeoverPolicy("automatic", max_per_hour=3), 3, Action.SHOUT),
        (Protection.ARMED, Sight.ACTIVE_HANGS, TakeoverPolicy("automatic", max_per_hour=3), 2, Action.TAKE_OVER),
        (Protection.STALE, Sight.ACTIVE_HANGS, TakeoverPolicy("automatic"), 0, Action.SHOUT),
        (Protection.EXPOSED, Sight.STANDBY_DIED, TakeoverPolicy("automatic", max_per_hour=3), 3, Action.SHOUT),
        (Protection.EXPOSED, Sight.STANDBY_DIED, TakeoverPolicy("automatic", max_per_hour=3), 2, Action.ARM),
        (Protection.EXPOSED, Sight.STANDBY_DIED, TakeoverPolicy("automatic", rearm=False), 0, Action.SHOUT),
        (Protection.ARMED, Sight.STANDBY_DIED, TakeoverPolicy("manual"), 0, Action.ARM),
        (Protection.ARMED, Sight.BOTH_LIVE, TakeoverPolicy("off"), 0, Action.NOTHING),
        (Protection.ARMED, Sight.BOTH_LIVE, TakeoverPolicy("manual", maintenance=True), 9, Action.FOLLOW),
    ],
)
def test_policy_guard_and_maintenance(
    state: Protection, seen: Sight, policy: TakeoverPolicy, recent: int, action: Action
) -> None:
    assert decide(state, seen, policy, recent) is action


@pytest.mark.parametrize(
    ("active", "standby", "was", "owners", "seen"),
    [
        (1, 2, {1}, {1}, Sight.BOTH_LIVE),
        (1, 2, {1}, {1, 2}, Sight.BOTH_LIVE),  # a VM was restarted and found the standby first
        (None, 2, {1}, {2}, Sight.ACTIVE_DIED),
        (3, 2, {1}, {2}, Sight.ACTIVE_DIED),  # it was started again after it had died
        (3, 2, {1}, {3}, Sight.BOTH_LIVE),
        (1, 2, set(), {2}, Sight.BOTH_LIVE),
        (1, None, {1}, {1}, Sight.STANDBY_DIED),
        (None, None, {1}, set(), Sight.BOTH_DIED),
    ],
)
def test_what_pids_and_owners_mean(
    active: int | None, standby: int | None, was: set[int], owners: set[int], seen: Sight
) -> None:
    assert sight(active=active, standby=standby, was=was, owners=owners) is seen


# --- arming


def test_armed_no_vm_has_moved_and_every_one_has_a_standby(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    assert set(run.world.owners().values()) == {"a"}
    assert all(vm.ownership and vm.ownership.standby and vm.ownership.standby.ready for vm in run.world.vms.values())
    assert (guard.standing.active, guard.standing.standby, guard.standing.vms) == ("a", "b", 2)
    assert guard.wanted
    assert (run.world.steady, run.world.control, run.world.in_control) == (("a",), "a", "a")
    assert run.world.trouble == []


def test_a_kept_old_switch_is_armed_as_it_is(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.setup = replace(run.setup, policy=Policy(soak_s=0, canary_check_s=0, keep_old=True))
    assert run.begin().forward().state is RunState.DONE
    kept = run.world.pids["a"]
    guard = armed(run)
    assert run.world.pids["a"] == kept
    assert (guard.standing.active, guard.standing.standby) == ("b", "a")
    assert set(run.world.owners().values()) == {"b"}


def test_disarmed_nothing_is_left(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    carry_out(run, plan(run, PlanKind.DISARM))
    settled(run.world, "a")
    guard = Guard(run.coordinator)
    assert guard.look() is None
    assert guard.standing.state is Protection.DISARMED
    assert not guard.wanted


def test_an_arming_that_fails_is_taken_back_and_tried_again_later(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.world.fault = lambda name, count: refused("no") if name == "attach vm1" else None
    view = run.coordinator.begin(plan(run, PlanKind.ARM), Control(), watch).forward()
    assert view.state is RunState.RESTORED
    disarm(run)
    settled(run.world, "a")
    guard = Guard(run.coordinator)
    todo = guard.look()
    assert isinstance(todo, Plan)
    run.world.fault = lambda name, count: refused("no") if name == "attach vm1" else None
    assert run.coordinator.begin(todo, Control(), watch).forward().state is RunState.RESTORED
    assert guard.look() is None, "not at once"
    assert guard.standing.state is Protection.EXPOSED
    disarm(run)
    run.world.now += 60
    carry_out(run, guard.look())
    guard.look()
    assert guard.standing.state is Protection.ARMED


def test_a_vm_that_comes_is_attached_and_what_controllers_write_comes_over(tmp_path: Path) -> None:
    run = host(tmp_path, 3)
    late = run.world.vms.pop("vm2")
    guard = armed(run)
    run.world.vms["vm2"] = replace(late, ownership=ownership("charnet0", run.world.pids["a"] or 0))
    run.world.flows["a", "br-int"] = ("priority=11 actions=drop",)
    run.world.now += 10
    guard.look()
    guard.look()
    assert guard.standing.state is Protection.ARMED
    assert guard.standing.vms == 3
    assert run.world.flows["b", "br-int"] == ("priority=11 actions=drop",)
    run.world.die("a")
    carry_out(run, guard.look())
    settled(run.world, "b")


@pytest.mark.parametrize("keeps", [(False,), (False, False), (False, True)])
def test_a_restarted_vm_comes_to_the_active_where_runs_started_both_switches(
    tmp_path: Path, keeps: tuple[bool, ...]
) -> None:
    """The active alone dials libvirt's sockets, whoever had them before."""
    run = host(tmp_path)
    for keep_old in keeps:
        run.setup = replace(run.setup, policy=Policy(soak_s=0, canary_check_s=0, keep_old=keep_old))
        assert run.begin().forward().state is RunState.DONE
    guard = armed(run)
    active: SlotName = "b" if len(keeps) == 1 else "a"
    for _ in range(2):
        run.world.restart("vm1")
        assert set(run.world.owners().values()) == {active}
        guard.look()
        guard.look()
        assert guard.standing.state is Protection.ARMED, guard.standing
    run.world.die(active)
    assert None not in run.world.owners().values()


def test_a_restarted_vm_that_found_the_standby_first_goes_back_and_nobody_is_killed(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.setup = replace(run.setup, policy=Policy(soak_s=0, canary_check_s=0, keep_old=True))
    assert run.begin().forward().state is RunState.DONE
    guard = armed(run)
    run.world.restart("vm1")
    assert run.world.owners() == {"vm0": "b", "vm1": "a"}
    active = run.world.pids["b"]
    assert guard.look() is None
    assert run.world.pids["b"] == active
    assert run.world.owners() == {"vm0": "b", "vm1": "b"}
    assert guard.standing.state is Protection.ARMED
    assert run.world.unreached() == []
    assert run.world.trouble == []


def test_a_standby_that_acknowledges_and_has_no_device_is_connected_anew(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.silent.add(("b", "vhu1"))
    before = len(run.world.calls)
    for _ in range(3):
        assert guard.look() is None
        assert guard.standing.state is Protection.STALE
        assert "its port is down" in guard.standing.reason
    done = [c for c in run.world.calls[before:] if c.endswith("hostnet0") or c.startswith("attach")]
    assert done == ["drop vm1 hotup-b-hostnet0", "attach vm1"]
    run.world.silent.clear()
    guard.look()
    assert guard.standing.state is Protection.ARMED
    assert run.world.trouble == []


# --- takeover


@pytest.mark.parametrize("fails_over", [True, False])
def test_the_active_dies(tmp_path: Path, fails_over: bool) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.fails_over = fails_over
    run.world.die("a")
    writes = run.journal.writes
    todo = guard.look()
    assert isinstance(todo, Taken)
    assert run.journal.writes == writes, "effects first"
    assert set(run.world.owners().values()) == {"b"}
    assert run.world.unreached() == []
    assert todo.data["switched by us"] == (0 if fails_over else 2)
    carry_out(run, todo)
    settled(run.world, "b")
    assert run.world.in_control == "b"
    run.world.now += 60
    carry_out(run, guard.look())  # armed again
    guard.look()
    assert (guard.standing.state, guard.standing.standby) == (Protection.ARMED, "a")


def posted(run: SimRun) -> Connection:
    """A sentry in a thread: the simulated host is of this process."""
    ours, theirs = Pipe()
    threading.Thread(target=serve, args=(theirs, run.setup), daemon=True).start()
    return ours


def test_a_sentry_that_is_gone_is_posted_anew(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.world.watchable = True
    guard = Guard(run.coordinator, post=lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    guard.look()
    assert guard.standing.state is Protection.ARMED
    first = guard._armed.sentry if guard._armed else None
    assert first is not None
    assert first.stop() is None
    assert first.gone
    guard.look()
    assert guard._armed is not None
    assert guard._armed.sentry is not first
    assert guard.standing.state is Protection.ARMED
    run.world.die("a")
    while not isinstance(todo := guard.look(), Taken):
        time.sleep(0.01)
    carry_out(run, todo)
    settled(run.world, "b")


def test_one_that_does_not_get_ready_makes_the_host_stale(tmp_path: Path) -> None:
    run = host(tmp_path)

    def no_sentry() -> Connection:
        ours, theirs = Pipe()
        theirs.close()
        return ours

    guard = Guard(run.coordinator, post=no_sentry)
    carry_out(run, plan(run, PlanKind.ARM))
    guard.look()
    assert guard.standing.state is Protection.STALE
    assert "SENTRY_NOT_READY" in guard.standing.reason
    run.world.die("a")
    carry_out(run, guard.look())  # by the guard itself
    settled(run.world, "b")


def test_manual_the_sentry_only_tells(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    run.world.watchable = True
    runner = Runner(run.coordinator, lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    calls = list(run.world.calls)
    run.world.die("a")
    assert runner.news.wait(10)
    runner.keep()
    assert run.world.calls == calls
    assert runner.guard.standing.state is Protection.EXPOSED


def test_a_switch_that_is_stopped_is_taken_over_from(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.world.watchable = True
    runner = Runner(run.coordinator, lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    runner.keep()  # armed when it was looked at before: what it says of a hang counts
    run.world.hung["a"] = Hang.STOPPED
    assert runner.news.wait(10)
    assert run.world.calls.index("fence a") < run.world.calls.index("failover b")
    runner.keep()
    runner.join(10)
    settled(run.world, "b")
    assert run.world.trouble == []
    latest = run.journal.latest()
    assert latest is not None
    assert latest.steps[0].data["hung"] == "it is stopped by a signal"


def test_manual_a_switch_that_hangs_is_told_of_and_that_it_goes_on(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    run.world.watchable = True
    runner = Runner(run.coordinator, lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    runner.keep()
    calls = list(run.world.calls)
    run.world.hung["a"] = Hang.STOPPED
    assert runner.news.wait(10)
    runner.news.clear()
    runner.keep()
    assert run.world.calls == calls
    assert runner.guard.standing.state is Protection.EXPOSED
    assert "stopped by a signal" in runner.guard.standing.reason
    assert runner.guard.standing.next == "upgrade takeover"
    run.world.hung.clear()
    assert runner.news.wait(10)
    runner.keep()
    assert runner.guard.standing.state is Protection.ARMED


def test_the_sentry_takes_over_by_itself(tmp_path: Path) -> None:
    run = host(tmp_path)
    run.world.watchable = True
    runner = Runner(run.coordinator, lambda: posted(run))
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    assert runner.guard.standing.state is Protection.ARMED
    run.world.die("a")
    assert runner.news.wait(10)
    assert run.world.steady == ("b",), "before anybody looked"
    runner.keep()
    runner.join(10)
    settled(run.world, "b")
    latest = run.journal.latest()
    assert latest is not None
    assert (latest.heading.kind, latest.state) == ("takeover", RunState.DONE)
    assert "fence_us" in latest.steps[0].data


def test_a_person_need_not_wait_for_what_waits_for_a_switch_that_hangs(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    carry_out(run, plan(run, PlanKind.ARM))
    runner = Runner(run.coordinator)
    made = plan_to_json(plan(run, PlanKind.TAKEOVER))
    hangs, dead = threading.Event(), threading.Event()

    def hang(name: str, count: int) -> HostError | None:
        if name == "copy br-int" and not dead.is_set():
            hangs.set()
            assert dead.wait(10)
            return refused("the connection was closed")
        if name == "failover b":
            dead.set()
        return None

    run.world.fault = hang
    keeper = threading.Thread(target=runner.keep)
    keeper.start()
    assert hangs.wait(10)
    started = runner.begin(made)
    keeper.join(10)
    runner.join(10)
    view = run.journal.view(started["run_id"])
    assert view is not None
    assert view.state is RunState.DONE
    settled(run.world, "b")


def test_manual_waits_for_a_person(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("manual"))
    guard = armed(run)
    run.world.die("a")
    calls = list(run.world.calls)
    assert guard.look() is None
    assert run.world.calls == calls
    assert guard.standing.state is Protection.EXPOSED
    assert guard.standing.next == "upgrade takeover"
    carry_out(run, plan(run, PlanKind.TAKEOVER))
    settled(run.world, "b")


def test_a_person_takes_over_from_a_switch_that_lives(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    run.world.fails_over = False
    carry_out(run, plan(run, PlanKind.TAKEOVER))
    settled(run.world, "b")
    calls = run.world.calls
    assert calls.index("fence a") < calls.index("failover b") < calls.index("switch vm0")


def test_without_a_standby_a_takeover_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = host(tmp_path)
    made = plan(run, PlanKind.TAKEOVER)
    assert "NO_STANDBY" in [f.code for f in made.blocking]
    with pytest.raises(BlockedError):
        run.coordinator.begin(made, Control(), watch)
    assert run.world.calls == []


def test_a_switch_that_cannot_be_fenced_keeps_its_vms(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    made = plan(run, PlanKind.TAKEOVER)
    before = run.world.owners()
    run.world.fault = lambda name, count: refused("a thread stays") if name == "fence a" else None
    view = run.coordinator.begin(made, Control(), watch).forward()
    assert view.state in (RunState.OPERATOR_NEEDED, RunState.HALTED)
    assert run.world.owners() == before
    assert run.world.steady == ("a",)
    assert report(view).next


def test_a_process_that_is_no_slots_switch_keeps_its_vm(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    made = plan(run, PlanKind.TAKEOVER)
    stranger = Standby("hotup-b-hostnet0", True, True, None, run.world.pids["b"], run.world.pids["b"])
    run.world.vms["vm1"] = replace(run.world.vms["vm1"], ownership=ownership("charnet0", 77, standby=stranger))
    run.world.die("a")
    view = run.coordinator.begin(made, Control(), watch).forward()
    assert view.state is RunState.OPERATOR_NEEDED
    assert "VMS_LEFT_BEHIND" in (report(view).error or "")
    own = run.world.vms["vm1"].ownership
    assert own is not None
    assert own.owner_pid == 77
    assert run.world.owners()["vm0"] == "b"


def test_a_vm_that_has_no_standby_yet_is_reached_by_libvirts_socket(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    vm = run.world.vms["vm1"]
    run.world.vms["vm1"] = replace(vm, ownership=ownership("charnet0", run.world.pids["a"] or 0))  # restarted
    run.world.die("a")
    assert run.world.owners() == {"vm0": "b", "vm1": None}
    todo = guard.look()
    assert isinstance(todo, Taken)

    def dial(name: str, count: int) -> None:
        if name == "redirect vhu1":
            run.world.vms["vm1"] = replace(vm, ownership=ownership("charnet0", run.world.pids["b"] or 0))

    run.world.fault = dial
    carry_out(run, todo)
    assert run.world.owners() == {"vm0": "b", "vm1": "b"}
    assert run.world.unreached() == []
    assert run.world.trouble == []


def test_one_vm_that_is_not_ready_keeps_no_other_waiting(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.fails_over = False
    own = run.world.vms["vm0"].ownership
    assert own is not None
    assert own.standby is not None
    busy = replace(own, standby=replace(own.standby, ready=False, reason="set-up"))
    run.world.vms["vm0"] = replace(run.world.vms["vm0"], ownership=busy)
    run.world.die("a")
    began = run.world.now
    moved: list[float] = []
    run.world.fault = lambda name, count: moved.append(run.world.now) if name == "switch vm1" else None
    assert isinstance(guard.look(), Taken)
    assert moved == [began]
    assert run.world.owners()["vm0"] is None


def test_a_pid_file_that_names_the_standby_kills_nobody(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run)
    made = plan(run, PlanKind.TAKEOVER)
    run.world.pids["a"] = run.world.pids["b"]
    context = Context(run.setup.host, made, run.setup.slots["a"], run.setup.slots["b"])
    with pytest.raises(HostError) as error:
        take_over(context, made.all_ports)
    assert error.value.code == "PID_FILE_STALE"
    assert "fence a" not in run.world.calls


def test_the_standby_dies_and_is_replaced(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.die("b")
    carry_out(run, guard.look())
    guard.look()
    assert guard.standing.state is Protection.ARMED
    assert set(run.world.owners().values()) == {"a"}
    assert run.world.trouble == []


@pytest.mark.parametrize("slot", ["a", "b"])
def test_a_database_server_that_died_is_started_again_and_no_vm_is_moved(tmp_path: Path, slot: SlotName) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.database_pids[slot] = None
    before = len(run.world.calls)
    assert guard.look() is None
    assert guard.standing.state is Protection.ARMED
    assert f"start_database {slot}" in run.world.calls[before:]
    assert not [c for c in run.world.calls[before:] if c.split()[0] in ("switch", "failover", "fence", "kill")]


def test_in_maintenance_it_is_told_of_only(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.setup = replace(run.setup, takeover=replace(AUTOMATIC, maintenance=True))
    run.world.database_pids["a"] = None
    assert guard.look() is None
    assert guard.standing.state is Protection.STALE
    assert "DATABASE_DIED" in guard.standing.reason
    assert run.world.database_pids["a"] is None


def test_both_dead_is_shouted_and_nothing_is_tried(tmp_path: Path) -> None:
    run = host(tmp_path)
    guard = armed(run)
    run.world.die("b")
    run.world.die("a")
    calls = list(run.world.calls)
    assert guard.look() is None
    assert run.world.calls == calls
    assert "both switches" in guard.standing.reason


def test_the_storm_guard_leaves_the_host_with_who_serves_and_says_so(tmp_path: Path) -> None:
    run = host(tmp_path, policy=TakeoverPolicy("automatic", max_per_hour=2))
    guard = armed(run)
    for number in range(2):
        active = "a" if number % 2 == 0 else "b"
        run.world.die(active)
        carry_out(run, guard.look())
        run.world.now += 60
        if number == 0:
            carry_out(run, guard.look())
            guard.look()
    assert guard.look() is None
    assert guard.standing.state is Protection.EXPOSED
    assert "max_per_hour" in guard.standing.reason
    settled(run.world, "a")
    run.world.now += 3600
    assert isinstance(guard.look(), Plan), "an hour later it is armed again"


def test_an_upgrade_of_an_armed_host_leaves_it_to_be_armed_again(tmp_path: Path) -> None:
    run = host(tmp_path)
    armed(run).suspend()
    assert run.begin().forward().state is RunState.DONE
    settled(run.world, "b")
    guard = Guard(run.coordinator)
    carry_out(run, guard.look())
    guard.look()
    assert (guard.standing.state, guard.standing.active) == (Protection.ARMED, "b")


def test_killed_anywhere_in_a_takeover_and_completed_by_the_next(tmp_path: Path) -> None:
    run = host(tmp_path / "count")
    guard = armed(run)
    writes, calls = run.journal.writes, len(run.world.calls)
    run.world.fails_over = False
    run.world.die("a")
    carry_out(run, guard.look())
    ends = run.journal.writes - writes, len(run.world.calls) - calls
    cut = 0
    for what, total in (("before write", ends[0]), ("after write", ends[0]), ("before effect", ends[1])):
        for number in range(1, total + 1):
            run = host(tmp_path / f"{what.replace(' ', '-')}-{number}")
            guard = armed(run)
            writes, calls = run.journal.writes, len(run.world.calls)
            run.world.fails_over = False
            run.world.die("a")
            _kill_at(run, what, number + (calls if what == "before effect" else writes))
            try:
                carry_out(run, guard.look())
                assert (what, number) == ("after write", ends[0]), "nothing was cut off"
            except Killed:
                cut += 1
            disarm(run)
            guard = again(run)
            todo = guard.look()
            if todo is not None:
                assert isinstance(todo, (Taken, Resume)) or run.journal.latest().state is RunState.DONE  # type: ignore[union-attr]
            if isinstance(todo, (Taken, Resume)):
                carry_out(run, todo)
            assert set(run.world.owners().values()) == {"b"}, (what, number)
            assert run.world.control == "b", (what, number, todo, report(run.journal.latest()))
            settled(run.world, "b")
            assert run.world.in_control == "b", (what, number)
            latest = run.journal.latest()
            assert latest is not None
            assert (latest.heading.kind, latest.state) == ("takeover", RunState.DONE), (what, number)
    assert cut > 30


def _kill_at(run: SimRun, what: str, number: int) -> None:
    def die(n: int) -> None:
        if n == number:
            raise Killed

    if what == "before write":
        run.journal.fault = die
    elif what == "after write":
        run.journal.fault_after = die
    else:
        run.world.fault = lambda name, n: Killed() if n == number else None


def test_history_is_of_the_last_wish(tmp_path: Path) -> None:
    run = host(tmp_path)
    assert takeover.history(run.journal.headings(9), 0).state is Protection.DISARMED
    armed(run)
    past = takeover.history(run.journal.headings(9), run.setup.host.clock.now_ns())
    assert (past.state, past.run_id, past.recent) == (Protection.ARMED, 1, 0)


# --- the fence and the first sign, on real processes

_MEMORY_MIB = 300


@contextmanager
def big_process(then: str, *, core: bool = False, folder: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process with some threads and touched memory, which takes a while to be cleared away."""
    code = (
        "import mmap, os, resource, sys, threading, time\n"
        f"resource.setrlimit(resource.RLIMIT_CORE, ({-1 if core else 0},) * 2)\n"
        f"m = mmap.mmap(-1, {_MEMORY_MIB} << 20)\n"
        "for i in range(0, len(m), 4096): m[i] = 1\n"
        "for _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(1, flush=True); sys.stdin.readline()\n"
        f"{then}; time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


@pytest.mark.skipif(os.geteuid() != 0, reason="process events are root's")
@pytest.mark.parametrize(
    ("then", "number", "core"),
    [
        ("0", signal.SIGKILL, False),
        ("0", signal.SIGSEGV, True),
        ("os.abort()", None, False),
        ("os._exit(0)", None, False),
    ],
    ids=["killed", "dumps core", "aborts", "exits"],
)
def test_a_death_is_seen_before_the_process_is_gone(tmp_path: Path, then: str, number: int | None, core: bool) -> None:
    with big_process(then, core=core, folder=tmp_path) as process:
        watch = DeathWatch(process.pid)
        gone = os.pidfd_open(process.pid)
        try:
            assert watch.early
            assert not select.select([watch], [], [], 0.05)[0]
            os.kill(process.pid, number) if number else tell(process)
            while not watch.died():
                assert select.select([watch], [], [], 10)[0]
            deadline = time.monotonic() + 10
            while not threads_are_out(process.pid):
                assert time.monotonic() < deadline
            assert not select.select([gone], [], [], 0)[0], "all its threads are out, and it is not gone"
            assert select.select([gone], [], [], 30)[0]
        finally:
            watch.close()
            os.close(gone)


@pytest.mark.skipif(os.geteuid() != 0, reason="process events are root's")
def test_a_thread_that_ends_is_no_death() -> None:
    with big_process("threading.Thread(target=int).start()") as process:
        watch = DeathWatch(process.pid)
        try:
            tell(process)
            assert select.select([watch], [], [], 10)[0]
            assert not watch.died()
            assert not select.select([watch], [], [], 0)[0], "the sign was taken up"
            process.kill()
            assert select.select([watch], [], [], 10)[0]
            assert watch.died()
        finally:
            watch.close()


def test_threads_of_a_killed_process_are_out_and_those_of_one_that_lives_are_not() -> None:
    code = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint(1, flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 4
        assert not threads_are_out(process.pid)
        process.kill()
        deadline = time.monotonic() + 10
        while not threads_are_out(process.pid):
            assert time.monotonic() < deadline
        assert Path(f"/proc/{process.pid}").exists(), "not reaped yet: it was told from the threads"
    finally:
        process.kill()
        process.wait()
    assert threads_are_out(process.pid)


# --- metrics


def test_what_prometheus_is_told(tmp_path: Path) -> None:
    run = host(tmp_path)
    runner = Runner(run.coordinator)
    file = tmp_path / "ovs-upgrade.prom"
    metrics = Metrics(file)

    def told() -> dict[str, float]:
        metrics.write(runner)
        families = text_string_to_metric_families(file.read_text())
        return {
            s.name + "".join(f"/{v}" for v in s.labels.values()): s.value for family in families for s in family.samples
        }

    runner.keep()
    assert told()["ovs_upgrade_protection/disarmed"] == 1
    carry_out(run, plan(run, PlanKind.ARM))
    runner.keep()
    now = told()
    assert (now["ovs_upgrade_protection/armed"], now["ovs_upgrade_protection/disarmed"]) == (1, 0)
    assert (now["ovs_upgrade_standby_ports"], now["ovs_upgrade_takeovers_last_hour"]) == (2, 0)
    run.world.die("a")
    runner.keep()
    runner.join(10)
    now = told()
    assert now["ovs_upgrade_takeovers_last_hour"] == 1
    assert now["ovs_upgrade_run/done"] == 1
    assert {n for n in now if n.startswith("ovs_upgrade_takeover_seconds")} == {
        f"ovs_upgrade_takeover_seconds/{part}" for part in ("fence", "steer", "rings")
    }


def test_a_disk_without_room_ends_no_protection(tmp_path: Path) -> None:
    run = host(tmp_path)
    Metrics(tmp_path / "no such folder" / "file.prom").write(Runner(run.coordinator))
