"""Takeover on the real stack: armed, the active killed, and everything at the standby; with and without a daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_upgrade import all_reachable
from tests.support.killing import coordinator_pid, latest, settled, verb, wait_until
from tests.support.lab_host import LabHost, upgrade
from tests.support.protection import (
    await_state,
    daemon,
    kill_active,
    kill_coordinator,
    protection,
    restart_vm,
    takeover_policy,
)
from tests.support.rings import watched_rings
from upgrader.core.errors import Exit
from upgrader.core.lifecycle import RunState
from upgrader.core.model import SlotName, other_slot
from upgrader.lab.exercise import disturbances
from upgrader.lab.figures import FABRIC
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("lab", [{"vms": 4}], indirect=True),
]


@pytest.fixture(autouse=True)
def disarmed(lab: Lab) -> Iterator[None]:
    """Whatever a test leaves, the next one begins with one switch and no daemon."""
    yield
    host = LabHost(lab)
    wait_until(lambda: verb(lab, "disarm", "--yes").returncode == Exit.DONE, "the end of what goes on", 60)
    wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)


def arm(lab: Lab) -> tuple[LabHost, SlotName]:
    host = LabHost(lab)
    active = host.active()
    done = verb(lab, "arm", "--yes")
    assert done.returncode == Exit.DONE, done.stderr
    await_state(lab, "armed")
    assert set(owners(host)) == {host.pid(active)}, "no VM has moved"
    return host, active


def owners(host: LabHost) -> list[int | None]:
    return [vm.ownership.owner_pid for vm in host.host.hypervisor.vm_interfaces() if vm.ownership]


def finished(host: LabHost) -> bool:
    view = latest(host)
    return view is not None and view.heading.kind == "takeover" and view.state is RunState.DONE


def test_the_active_is_killed_and_every_vm_is_served_and_the_host_armed_again(lab: Lab) -> None:
    with takeover_policy(lab, "automatic"):
        host, active = arm(lab)
        for _ in range(2):
            standby = other_slot(active)
            new = host.pid(standby)
            with lab_session(lab.spec, rate_pps=500) as session:
                session.start(60)
                time.sleep(1)
                with session.window("kill"):
                    kill_active(host, active)
                    wait_until(lambda: set(owners(host)) == {new}, "the rings at the standby")  # noqa: B023
                time.sleep(3)
                run = session.finish(stop=True)
            for figures in run.figures(run.window("kill"), lead_ms=0, settle_ms=2500):
                if figures.direction in FABRIC:
                    assert figures.received > 500, figures
            assert disturbances(run.links) == {}
            wait_until(lambda: finished(host) or protection(lab)["state"] == "armed", "the takeover's end", 30)
            await_state(lab, "armed", 60)
            assert host.pid(standby) == new
            assert set(owners(host)) == {new}
            assert host.served_by(standby), host.see()
            assert host.host.well_known.current() == standby
            assert host.host.database.in_control(host.slots[standby])
            assert not host.host.database.in_control(host.slots[active])
            assert all_reachable(lab)
            active = standby


def test_with_the_daemon_dead_qemu_brings_the_rings_and_a_new_daemon_all_else(lab: Lab) -> None:
    with takeover_policy(lab, "automatic"):
        host, active = arm(lab)
        standby = other_slot(active)
        new = host.pid(standby)
        kill_coordinator(host)
        assert protection(lab)["state"] == "stale"
        kill_active(host, active)
        wait_until(lambda: set(owners(host)) == {new}, "the rings at the standby")
        assert host.host.well_known.current() == active
        with daemon(lab):
            wait_until(lambda: finished(host) or host.served_by(standby), "a takeover", 30)
            await_state(lab, "armed", 60)
            assert host.served_by(standby), host.see()
            assert host.host.well_known.current() == standby
            assert all_reachable(lab)


def test_the_old_switch_that_an_upgrade_kept_is_the_standby_and_a_restarted_vm_is_looked_after(lab: Lab) -> None:
    with takeover_policy(lab, "automatic", max_per_hour=1):
        before = LabHost(lab).active()
        kept = LabHost(lab).pid(before)
        done = upgrade(lab.config_path, "--yes", "--keep-old")
        assert done.returncode == Exit.DONE, done.stderr
        host, active = arm(lab)
        assert (active, host.pid(before)) == (other_slot(before), kept)
        restart_vm(lab, lab.guests[0].name)
        wait_until(lambda: all_reachable(lab), "the restarted VM", 60)
        await_state(lab, "armed")
        assert set(owners(host)) == {host.pid(active)}
        kill_active(host, active)
        wait_until(lambda: finished(host), "the takeover's end", 60)
        assert host.pid(before) == kept
        assert host.served_by(before)
        assert all_reachable(lab)
        await_state(lab, "exposed")
        assert "max_per_hour" in protection(lab)["reason"]


def test_a_switch_that_is_stopped_is_killed_first_and_then_taken_over_from(lab: Lab) -> None:
    with takeover_policy(lab, "automatic"):
        host, active = arm(lab)
        standby, pid = other_slot(active), host.pid(active)
        new = host.pid(standby)
        assert pid is not None
        with lab_session(lab.spec, rate_pps=500) as session, watched_rings(lab) as rings:
            session.start(60)
            time.sleep(1)
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: set(owners(host)) == {new}, "the rings at the standby")
            time.sleep(1)
            session.finish(stop=True)
        assert rings.checked > 500
        assert rings.wrong == []
        assert not Path(f"/proc/{pid}").exists(), "it was killed, and not only left"
        await_state(lab, "armed", 60)
        assert host.served_by(standby), host.see()
        assert all_reachable(lab)


def test_by_hand_from_a_switch_that_lives(lab: Lab) -> None:
    with takeover_policy(lab, "manual"):
        host, active = arm(lab)
        standby = other_slot(active)
        before = host.see()
        dry = verb(lab, "takeover", "--dry-run")
        assert dry.returncode == Exit.DONE, dry.stderr
        assert host.see() == before
        done = verb(lab, "takeover", "--yes", "--json")
        assert done.returncode == Exit.DONE, done.stderr
        assert host.served_by(standby)
        assert all_reachable(lab)
        await_state(lab, "armed", 60)  # rearm is on, and no VM is touched by that


def test_by_hand_from_a_switch_that_hangs(lab: Lab) -> None:
    with takeover_policy(lab, "manual"):
        host, active = arm(lab)
        pid = host.pid(active)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            done = verb(lab, "takeover", "--yes", "--json")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        assert done.returncode == Exit.DONE, done.stderr
        assert time.monotonic() - started < 30, "nothing waited for an answer of the one that hangs"
        assert host.served_by(other_slot(active))
        assert all_reachable(lab)


def test_manual_waits_for_a_person_and_says_what_to_type(lab: Lab) -> None:
    with takeover_policy(lab, "manual"):
        host, active = arm(lab)
        standby = other_slot(active)
        kill_active(host, active)
        await_state(lab, "exposed")
        assert protection(lab)["next"] == "upgrade takeover"
        assert host.host.well_known.current() == active
        done = verb(lab, "takeover", "--yes")
        assert done.returncode == Exit.DONE, done.stderr
        assert host.served_by(standby)
        assert all_reachable(lab)


def test_disarmed_nothing_is_left_and_a_takeover_is_refused(lab: Lab) -> None:
    host, active = arm(lab)
    done = verb(lab, "disarm", "--yes")
    assert done.returncode == Exit.DONE, done.stderr
    assert settled(host, active) == []
    assert protection(lab)["state"] == "disarmed"
    before = host.see()
    refused = verb(lab, "takeover", "--yes")
    assert refused.returncode == Exit.BLOCKED
    assert "NO_STANDBY" in refused.stderr
    assert host.see() == before
    assert all_reachable(lab)
