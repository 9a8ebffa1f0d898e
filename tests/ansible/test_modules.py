"""The modules of ansible/, run as Ansible runs them, on the real CLI, daemon and journal of a simulated host: every exit
code, check mode, idempotence. What no healthy CLI prints is printed by a stand-in."""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.collection import Collection, result
from tests.support.sim_host import SimHost, until
from upgrader.core.errors import Exit
from upgrader.core.lifecycle import RunState
from upgrader.sim.stored import StoredWorld

UPGRADE = str(Path(sys.executable).parent / "upgrade")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimHost]:
    with SimHost(tmp_path, vms=2, effect_s=0, soak_s=0.1, keep_old=True) as made:
        yield made


def run(collection: Collection, host: SimHost, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
    return collection.module(
        "hot_upgrade", check=check, **{"executable": UPGRADE, "config": str(host.config), **parameters}
    )


def info(collection: Collection, host: SimHost, **parameters: Any) -> dict[str, Any]:
    return collection.module("hot_upgrade_info", executable=UPGRADE, config=str(host.config), **parameters)


def failed_with(found: dict[str, Any], code: str, exit_code: Exit) -> None:
    """It failed so, and says what happened, in which state the host is, and what to type next."""
    assert found["failed"]
    assert (found["error"]["code"], found["exit_code"]) == (code, exit_code), found["msg"]
    assert found["msg"].startswith(f"{code}: {found['error']['what']}\nstate: ")
    assert found["error"]["state"] in found["msg"]
    assert found["msg"].endswith(f"next: {found['error']['next']}")
    assert found["error"]["next"]


def unpatch(host: SimHost, domain: str = "vm1") -> None:
    """This VM's QEMU has no second connection."""
    with StoredWorld(host.state, 2).opened() as world:
        world.vms[domain] = replace(world.vms[domain], ownership=None)


def test_there_and_back_and_nothing_twice(collection: Collection, host: SimHost) -> None:
    planned = run(collection, host, check=True, slot="b")
    assert (planned["changed"], planned["outcome"], planned["exit_code"]) == (True, "planned", Exit.CHANGES)
    assert host.view() is None, "a check began a run"
    assert planned["diff"] == {
        "before": {"slot": "a", "version": "3.1.0"},
        "after": {"slot": "b", "version": "3.1.0"},
    }

    done = run(collection, host, slot="b")
    assert (done["changed"], done["outcome"], done["exit_name"]) == (True, "done", "done")
    assert {m["vm"] for m in done["run"]["moves"]} == {"vm0/vhu0", "vm1/vhu1"}
    assert done["plan"]["id"] == planned["plan"]["id"] == done["run"]["plan_id"]

    again = run(collection, host, slot="b")
    assert (again["changed"], again["outcome"]) == (False, "already")
    assert again["why"] == "slot b serves, OVS 3.1.0"

    there = info(collection, host, gather=["status", "findings", "history", "report", "config"])
    assert (there["changed"], there["healthy"], there["slot"], there["version"]) == (False, True, "b", "3.1.0")
    assert (len(there["history"]), there["report"]["outcome"], there["config"]["policy"]["soak_s"]) == (1, "done", 0.1)

    assert run(collection, host, check=True, state="rolled_back", slot="a")["outcome"] == "planned"
    assert not run(collection, host, state="rolled_back", slot="b")["changed"], "the run led there"
    back = run(collection, host, state="rolled_back", slot="a")
    assert (back["changed"], back["outcome"], back["exit_code"]) == (True, "restored", Exit.DONE)
    assert not run(collection, host, state="rolled_back", slot="a")["changed"]
    assert info(collection, host)["slot"] == "a"


def test_force_runs_whatever_serves(collection: Collection, host: SimHost) -> None:
    assert not run(collection, host)["changed"], "both slots have one version"
    assert run(collection, host, force=True)["run"]["to_slot"] == "b"


def test_no_run_is_no_report(collection: Collection, host: SimHost) -> None:
    assert info(collection, host, gather=["report"])["report"] == {}
    assert not run(collection, host, state="rolled_back")["changed"]


def test_exit_1_a_part_of_the_host_does_not_answer(collection: Collection, host: SimHost) -> None:
    host.world().close()
    (host.state / "world.db").write_bytes(b"no database" * 500)
    found = run(collection, host, slot="b")
    failed_with(found, "SIMULATED_HOST_UNUSABLE", Exit.UNEXPECTED)
    assert (found["changed"], found["exit_name"], found["outcome"]) == (False, "unexpected", "unexpected")


def test_exit_2_no_configuration(collection: Collection, host: SimHost) -> None:
    host.config.unlink()
    failed_with(run(collection, host, slot="b"), "CONFIG_MISSING", Exit.USAGE)
    failed_with(info(collection, host), "CONFIG_MISSING", Exit.USAGE)


@pytest.mark.parametrize("check", [True, False])
def test_exit_3_a_finding_forbids_it(collection: Collection, host: SimHost, check: bool) -> None:
    unpatch(host)
    found = run(collection, host, check=check, slot="b")
    failed_with(found, "BLOCKED", Exit.BLOCKED)
    assert (found["changed"], found["outcome"], found["exit_name"]) == (False, "blocked", "blocked")
    assert [f["code"] for f in found["findings"]] == ["QEMU_UNPATCHED"]
    assert not run(collection, host, check=check, slot="a")["changed"], "no run is wanted, so none is forbidden"
    there = info(collection, host)
    assert (there["blocked"], there["healthy"]) == (True, True)


def test_exit_4_failed_and_taken_back(collection: Collection, host: SimHost) -> None:
    host.configure(vms=2, effect_s=0, soak_s=0.1, keep_old=True, fail_at=["switch vm1"])
    found = run(collection, host, slot="b")
    failed_with(found, "SIMULATED_FAILURE", Exit.RESTORED)
    assert (found["changed"], found["outcome"], found["exit_name"]) == (False, "restored", "restored")
    host.configure(vms=2, effect_s=0, soak_s=0.1, keep_old=True)
    assert run(collection, host, slot="b")["changed"], "mended: the next call finishes"


def test_exit_5_over_budget_and_what_becomes_of_it(collection: Collection, host: SimHost) -> None:
    host.configure(vms=2, effect_s=0, soak_s=0.1, keep_old=True, blackout_budget_us=500)
    found = run(collection, host, slot="b")
    failed_with(found, "OVER_BUDGET", Exit.OPERATOR)
    assert (found["changed"], found["outcome"], found["exit_name"]) == (True, "halted", "operator-needed")
    assert [p["code"] for p in info(collection, host)["problems"]] == ["RUN_UNFINISHED", "BOTH_SLOTS_OWN_VMS"]

    events = len(host.view().events)  # type: ignore[union-attr]
    again = run(collection, host, slot="b")
    failed_with(again, "RUN_UNFINISHED", Exit.BLOCKED)
    assert f"--config {host.config} resume" in again["error"]["next"]
    assert len(host.view().events) == events, "nobody asked to go on"  # type: ignore[union-attr]

    assert run(collection, host, check=True, slot="b", resume=True)["outcome"] == "planned"
    for _ in range(3):  # each VM is over it, and stops the run anew
        resumed = run(collection, host, slot="b", resume=True)
        if not resumed.get("failed"):
            break
        failed_with(resumed, "OVER_BUDGET", Exit.OPERATOR)
    assert (resumed["changed"], resumed["outcome"]) == (True, "done")
    assert [p["code"] for p in info(collection, host)["problems"]] == ["OVER_BUDGET"]


def test_exit_6_paused_meanwhile_and_resumed(collection: Collection, host: SimHost) -> None:
    host.configure(vms=3, effect_s=0.2, soak_s=0.1, keep_old=True)
    process = collection.start("hot_upgrade", executable=UPGRADE, config=str(host.config), slot="b")
    until(lambda: (v := host.view()) is not None and v.state is RunState.RUNNING, "the run")
    going = run(collection, host, slot="b")
    failed_with(going, "RUN_UNFINISHED", Exit.LOCKED)
    assert not going["changed"]
    assert host.upgrade("pause")[0] == Exit.DONE
    found = result(process)
    failed_with(found, "ASKED", Exit.STOPPED)
    assert (found["outcome"], found["exit_name"]) == ("paused", "stopped")
    host.configure(vms=3, effect_s=0, soak_s=0.1, keep_old=True)
    resumed = run(collection, host, slot="b", resume=True)
    assert (resumed["changed"], resumed["outcome"]) == (True, "done")


def test_a_run_that_goes_on_is_followed(collection: Collection, host: SimHost) -> None:
    host.configure(vms=2, effect_s=0.1, soak_s=0.1, keep_old=True)
    first = host.run()
    until(lambda: (v := host.view()) is not None and v.state is RunState.RUNNING, "the run")
    first.kill()  # the connection is lost; the coordinator is not
    found = run(collection, host, slot="b", resume=True)
    assert (found["changed"], found["outcome"], found["run"]["run_id"]) == (True, "done", 1)


def test_a_dead_coordinators_run_is_taken_up(collection: Collection, host: SimHost) -> None:
    host.configure(vms=2, effect_s=0.1, soak_s=0.1, keep_old=True)
    host.run()
    until(lambda: (v := host.view()) is not None and v.state is RunState.RUNNING, "the run")
    host.end_coordinator(9)
    assert run(collection, host, slot="b")["error"]["code"] == "RUN_UNFINISHED"
    found = run(collection, host, slot="b", resume=True)
    assert (found["changed"], found["outcome"], found["run"]["run_id"]) == (True, "done", 1)


def test_exit_7_another_holds_the_host(collection: Collection, host: SimHost) -> None:
    host.state.mkdir(exist_ok=True)
    with (host.state / "lock").open("w") as lock:
        lock.write("1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = run(collection, host, slot="b")
    failed_with(found, "HOST_LOCKED", Exit.LOCKED)
    assert (found["changed"], found["exit_name"]) == (False, "locked")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "printed no JSON"),
        ("Traceback", "Expecting value"),
        (json.dumps({"schema_version": 2, "kind": "status"}), "schema_version is 2"),
        (json.dumps([1]), "no object"),
    ],
)
def test_what_cannot_be_read_is_no_success(
    collection: Collection, host: SimHost, tmp_path: Path, text: str, words: str
) -> None:
    stand_in = tmp_path / "upgrade"
    stand_in.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    stand_in.chmod(0o755)
    (tmp_path / "said").write_text(text)
    found = run(collection, host, executable=str(stand_in))
    assert found["failed"]
    assert found["error"]["code"] == "NO_ANSWER"
    assert words in found["msg"]


def test_no_such_command(collection: Collection, host: SimHost) -> None:
    failed_with(run(collection, host, executable="/no/such/upgrade"), "COMMAND_MISSING", Exit.USAGE)


def test_only_one_of_slot_version_and_force(collection: Collection, host: SimHost) -> None:
    found = run(collection, host, slot="b", version="3.1.0")
    assert found["failed"]
    assert "mutually exclusive" in found["msg"]
