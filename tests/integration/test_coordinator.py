"""The real coordinator on the real stack: killed, paused, aborted, rolled back, and commands beside it."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext

import pytest

from tests.integration.test_upgrade import all_reachable
from tests.support.killing import coordinator_pid, latest, running_upgrade, settled, verb, wait_until
from tests.support.lab_host import LabHost, upgrade
from tests.support.protection import daemon, restart_vm
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName, other_slot
from upgrader.lab.up import Lab

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
one_lab = pytest.mark.parametrize("lab", [{"vms": 4}], indirect=True)


def every_vm_has_an_owner(host: LabHost) -> None:
    pids = {host.pid("a"), host.pid("b")} - {None}
    for port in host.facts().ports:
        assert port.ownership is not None
        assert port.ownership.owner_pid in pids, port.label


# where, and what is typed then; `make show-coordinator` has many more of them
KILLS = [
    (EventKind.INTENT, "start-standby", 0, "rollback"),
    (EventKind.OUTCOME, "attach-standby", 1, "resume"),
    (EventKind.INTENT, "move-vm", 1, "resume"),
    (EventKind.OUTCOME, "move-vm", 2, "rollback"),
    (EventKind.INTENT, "close-window", 0, "rollback"),
    (EventKind.INTENT, "retire", 0, "resume"),
]


@one_lab
@pytest.mark.parametrize(("kind", "step", "nth", "then"), KILLS)
def test_killed_and_taken_up_again(lab: Lab, kind: EventKind, step: str, nth: int, then: str) -> None:
    host = LabHost(lab)
    source = host.active()
    with running_upgrade(lab) as run:
        run.wait_for(kind, step, nth)
        run.kill_coordinator()
        code = run.process.wait(30)
        run.read()
    assert code == Exit.OPERATOR, run.text
    assert "COORDINATOR_DIED" in run.text
    every_vm_has_an_owner(host)
    said = verb(lab, "status")
    assert "its coordinator is gone" in said.stdout, said.stdout
    done = verb(lab, then, "--yes", "--json")
    assert done.returncode == Exit.DONE, done.stderr
    assert settled(host, source if then == "rollback" else other_slot(source)) == []


@one_lab
def test_a_command_that_is_killed_leaves_the_run_going(lab: Lab) -> None:
    host = LabHost(lab)
    source = host.active()
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.INTENT, "attach-standby")
        run.process.kill()
        second = upgrade(lab.config_path, "--yes")
        assert second.returncode in (Exit.LOCKED, Exit.BLOCKED), second.stderr
        watched = verb(lab, "status", "--watch")
    assert watched.returncode == Exit.DONE, watched.stderr
    assert "done" in watched.stdout
    assert settled(host, other_slot(source)) == []


@one_lab
def test_a_second_run_beside_one_is_refused(lab: Lab) -> None:
    host = LabHost(lab)
    source = host.active()
    plan = lab.spec.directory / "plan.json"
    assert verb(lab, "plan", "--out", str(plan)).returncode == Exit.DONE
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.OUTCOME, "start-standby")
        refused = verb(lab, "run", str(plan), "--yes")
        assert refused.returncode == Exit.LOCKED, refused.stderr
        assert "RUN_BUSY" in refused.stderr
        assert run.process.wait(60) == Exit.DONE
    assert settled(host, other_slot(source)) == []
    stale = verb(lab, "run", str(plan), "--yes")
    assert stale.returncode == Exit.BLOCKED
    assert "PLAN_STALE" in stale.stderr


@one_lab
def test_pause_resume_and_abort(lab: Lab) -> None:
    host = LabHost(lab)
    source = host.active()
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.INTENT, "move-vm")
        assert verb(lab, "pause").returncode == Exit.DONE
        assert run.process.wait(30) == Exit.STOPPED
    view = latest(host)
    assert view is not None
    assert view.state is RunState.PAUSED
    served = [p.ownership.owner_pid for p in host.facts().ports if p.ownership]
    assert set(served) == {host.pid("a"), host.pid("b")}
    wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)
    blocked = upgrade(lab.config_path, "--yes")
    assert blocked.returncode == Exit.BLOCKED
    assert verb(lab, "resume", "--yes").returncode == Exit.DONE
    assert settled(host, other_slot(source)) == []
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.OUTCOME, "move-vm", 1)
        assert verb(lab, "abort").returncode == Exit.DONE
        assert run.process.wait(30) == Exit.STOPPED
    assert settled(host, other_slot(source)) == []


@one_lab
def test_a_kept_switch_is_a_way_back(lab: Lab) -> None:
    host = LabHost(lab)
    source: SlotName = host.active()
    done = upgrade(lab.config_path, "--yes", "--keep-old", "--json")
    assert done.returncode == Exit.DONE, done.stderr
    assert host.served_by(other_slot(source))
    assert host.pid(source) is not None
    back = verb(lab, "rollback", "--yes", "--json")
    assert back.returncode == Exit.DONE, back.stderr
    assert settled(host, source) == []
    report = json.loads(back.stdout)
    assert report["outcome"] == "restored"
    assert sum(1 for m in report["moves"] if m["undone"]) == len(lab.guests)


@pytest.mark.parametrize("lab", [{"vms": 2}], indirect=True)
def test_a_vm_that_is_restarted_beside_a_kept_switch_is_with_the_new_one_and_can_go_back(lab: Lab) -> None:
    """The first switch of a lab dials libvirt's sockets for itself: there the daemon looks after such a VM. Switches that
    a run started do so only while they are in charge: there nobody has to."""
    host = LabHost(lab)
    for first in (True, False):
        source: SlotName = host.active()
        assert host.dials_for_itself(source) is first
        done = upgrade(lab.config_path, "--yes", "--keep-old")
        assert done.returncode == Exit.DONE, done.stderr
        wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)
        with daemon(lab) if first else nullcontext():
            restart_vm(lab, lab.guests[0].name)
            wait_until(lambda: len(host.facts().ports) == len(lab.guests), "the VM's port")
            wait_until(lambda: host.served_by(other_slot(source)), "the VM at the new switch", 20)  # noqa: B023
            wait_until(lambda: all_reachable(lab), "the restarted VM", 60)
        assert host.pid(source) is not None
        back = verb(lab, "rollback", "--yes", "--json")
        assert back.returncode == Exit.DONE, back.stderr
        assert settled(host, source) == []
        wait_until(lambda: all_reachable(lab), "every VM", 20)
        if first:
            assert upgrade(lab.config_path, "--yes").returncode == Exit.DONE


@one_lab
def test_reading_needs_no_coordinator(lab: Lab) -> None:
    host = LabHost(lab)
    wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)
    before = host.see()
    for words in (["check"], ["plan"], ["status"], ["history"], ["config", "show"], ["config", "validate"]):
        done = verb(lab, *words)
        assert done.returncode == Exit.DONE, (words, done.stderr)
        assert done.stdout
    assert coordinator_pid(host) is None
    time.sleep(0.1)
    assert host.see() == before
