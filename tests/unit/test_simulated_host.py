"""The simulated host in a file: the real CLI and the real daemon on it, killed, asked, refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runs import served, settled, sim_run
from tests.support.sim_host import SimHost, until
from upgrader.config import load
from upgrader.core.errors import Exit, HostError, UsageError
from upgrader.core.lifecycle import RunState
from upgrader.sim.stored import CALLS, StoredWorld
from upgrader.wiring import setup


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimHost]:
    with SimHost(tmp_path) as made:
        yield made


def test_what_one_process_does_another_one_sees(tmp_path: Path) -> None:
    one, other = StoredWorld(tmp_path, 3), StoredWorld(tmp_path, 7)
    with one.opened() as world:
        assert len(world.vms) == 3
        world.die("a")
        world.rules[100, "52:54:00:00:00:01"] = ("a", "b")
        world.flows["b", "br-int"] = ("priority=1 actions=drop",)
        world.listeners.add(Path("/run/x.sock"))
        world.end("vm2")
    with other.opened() as seen:
        assert seen.pids["a"] is None
        assert set(seen.vms) == {"vm0", "vm1"}
        assert (seen.vms, seen.rules, seen.flows, seen.listeners, seen.switch) == (
            world.vms, world.rules, world.flows, world.listeners, world.switch,
        )  # fmt: skip


def test_what_a_failed_call_did_before_it_failed_stays(tmp_path: Path) -> None:
    stored = StoredWorld(tmp_path, 1)
    with pytest.raises(KeyError), stored.opened() as world:
        world.die("a")
        raise KeyError
    with StoredWorld(tmp_path, 1).opened() as seen:
        assert seen.pids["a"] is None


def test_a_host_that_another_release_made_is_refused_and_left_alone(tmp_path: Path) -> None:
    StoredWorld(tmp_path, 1).close()
    with sqlite3.connect(tmp_path / "world.db") as file:
        file.execute("PRAGMA user_version = 1")
    before = (tmp_path / "world.db").read_bytes()
    with pytest.raises(HostError, match="another release") as error:
        StoredWorld(tmp_path, 1)
    assert f"rm -r {tmp_path}" in error.value.next
    assert (tmp_path / "world.db").read_bytes() == before


def test_every_call_of_a_run_can_be_made_to_fail(tmp_path: Path) -> None:
    run = sim_run(tmp_path)
    run.begin().forward()
    assert {name.split(" ")[0] for name in run.world.calls} <= set(CALLS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[simulated]\nstate = "here"', "simulated.state"),
        ('[simulated]\nstate = "/x"\nvms = -1', "simulated.vms"),
        ('[simulated]\nstate = "/x"\n[nic]\npf = "eth0"', "in the place of [nic]"),
        ('[simulated]\nstate = "/x"\nfail = "y"', "simulated.fail"),
    ],
)
def test_what_is_wrong_in_the_configuration_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load(path)
    assert says in error.value.what


def test_a_call_that_is_none_cannot_be_made_to_fail(host: SimHost) -> None:
    host.configure(fail_at=["swich vm1"])
    with pytest.raises(UsageError) as error:
        setup(load(host.config))
    assert "swich vm1" in error.value.what
    assert "switch" in error.value.next


def test_an_upgrade_there_and_back(host: SimHost) -> None:
    code, out, err = host.upgrade("--host", "localhost", "--yes", "--json")
    assert code == Exit.DONE, err
    assert json.loads(out)["outcome"] == "done"
    with host.world().opened() as world:
        settled(world, "b")
    code, _, err = host.upgrade("rollback", "--yes")
    assert (code, "NOTHING_TO_ROLL_BACK" in err) == (Exit.BLOCKED, True)
    assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.DONE
    with host.world().opened() as world:
        settled(world, "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="is not root anyway")
def test_it_needs_no_root() -> None:
    nobody = 65534
    folder = Path(tempfile.mkdtemp())
    try:
        os.chown(folder, nobody, nobody)
        with SimHost(folder, effect_s=0.0) as host:
            try:
                process = host.start("--host", "localhost", "--yes", user=nobody, group=nobody, extra_groups=[])
            except PermissionError:  # a checkout below /root
                pytest.skip("nobody may not run what is in this checkout")
            _, err = process.communicate(timeout=60)
            if "ModuleNotFoundError" in err or "Permission denied" in err.partition("upgrader")[0]:
                pytest.skip("nobody may not read this checkout")
            assert process.returncode == Exit.DONE, err
            assert (folder / "host/journal.db").stat().st_uid == nobody
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("way", ["resume", "rollback"])
@pytest.mark.parametrize("seed", range(3))
def test_the_coordinator_killed_at_a_random_moment(host: SimHost, seed: int, way: str) -> None:
    moment = random.Random(f"{seed}{way}").randrange(1, 30)  # events of a run of 13 steps
    client = host.run()
    until(lambda: (view := host.view()) and len(view.events) >= moment, f"event {moment}")
    host.end_coordinator(signal.SIGKILL)
    assert client.wait(90) in (Exit.OPERATOR, Exit.DONE)
    with host.world().opened() as world:
        served(world)
    if client.returncode == Exit.DONE:  # it was quicker
        return
    code, _, err = host.upgrade(way, "--yes")
    assert code == Exit.DONE, err
    with host.world().opened() as world:
        settled(world, "b" if way == "resume" else "a")
    events = (view := host.view()) and view.events
    assert "COORDINATOR_DIED" in [e.data.get("reason") for e in events or ()]


def test_a_failed_run_is_undone(host: SimHost) -> None:
    host.configure(fail_at=["switch vm1"], effect_s=0.0)
    code, _, err = host.upgrade("--host", "localhost", "--yes")
    assert (code, "SIMULATED_FAILURE" in err) == (Exit.RESTORED, True)
    with host.world().opened() as world:
        settled(world, "a")


def test_a_failed_run_halts_by_policy_and_goes_on_when_it_is_mended(host: SimHost) -> None:
    host.configure(fail_at=["switch vm1"], on_failure="stay", effect_s=0.0)
    assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.OPERATOR
    told = host.status()["run"]
    assert told["outcome"] == "halted"
    assert "upgrade resume" in told["next"]
    host.configure(effect_s=0.0)
    assert host.upgrade("resume", "--yes")[0] == Exit.DONE
    with host.world().opened() as world:
        settled(world, "b")


def test_a_switch_that_dies_in_the_middle(host: SimHost) -> None:
    host.configure(dies_at={"b": "steer vm1 b+a"}, effect_s=0.0)
    assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.RESTORED
    with host.world().opened() as world:
        settled(world, "a")


def _owners(host: SimHost) -> set[str | None]:
    if host.view() is None:
        return set()
    with host.world().opened() as world:
        return set(world.owners().values())


def test_a_paused_run_goes_on_and_a_second_one_is_refused(host: SimHost) -> None:
    host.configure(soak_s=60)
    client = host.run()
    until(lambda: "b" in _owners(host), "the first VM to have moved")  # half-way, which by itself forbids a run
    before = (host.upgrade("--host", "localhost", "--yes"), host.upgrade("resume", "--yes"))
    for code, _, err in before:
        assert (code, "RUN_BUSY" in err) == (Exit.LOCKED, True), err
    assert host.upgrade("pause")[0] == Exit.DONE
    assert client.wait(90) == Exit.STOPPED
    assert host.status()["run"]["outcome"] == "paused"
    with host.world().opened() as world:
        served(world)
    code, _, err = host.upgrade("--host", "localhost", "--yes")
    assert code == Exit.BLOCKED, err
    host.configure(soak_s=60)
    client = host.start("resume", "--yes")
    until(lambda: (view := host.view()) and view.state is RunState.RUNNING, "it runs again")
    assert host.upgrade("abort")[0] == Exit.DONE
    assert client.wait(90) == Exit.STOPPED
    with host.world().opened() as world:
        settled(world, "a")


def test_a_client_that_is_killed_leaves_the_run_going(host: SimHost) -> None:
    client = host.run()
    until(lambda: (view := host.view()) and len(view.events) > 4, "the run to be under way")
    client.kill()
    client.wait()
    code, out, err = host.upgrade("status", "--watch")
    assert code == Exit.DONE, err
    assert "done" in out
    with host.world().opened() as world:
        settled(world, "b")


def test_the_example_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/examples/simulated.toml").read_text()
    for commented in ("fail_at", "dies_at.b"):
        text = text.replace(f"# {commented} =", f"{commented} =")
    path = tmp_path / "c.toml"
    path.write_text(text.replace("/var/tmp/ovs-upgrade-simulated", str(tmp_path / "host")))
    config = load(path)
    assert config.simulated is not None
    assert (config.simulated.fail_at, config.simulated.dies_at) == (("switch vm3",), {"b": "steer vm3 b+a"})
    assert len(setup(config).host.hypervisor.vm_interfaces()) == 8
