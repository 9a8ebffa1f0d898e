"""The module for a standby and a takeover, on the real CLI and daemon of a simulated host: armed, disarmed, taken over, each
twice, in check mode, and refused; and what an armed host is to the other modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ansible.test_modules import collection, failed_with, info, unpatch  # noqa: F401 - a fixture
from tests.support.collection import Collection, Fleet
from tests.support.sim_host import SimHost
from upgrader.core.errors import Exit

UPGRADE = str(Path(sys.executable).parent / "upgrade")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimHost]:
    with SimHost(tmp_path, vms=2, effect_s=0, soak_s=0.1) as made:
        yield made


def run(collection: Collection, host: SimHost, state: str, *, check: bool = False, **parameters: Any) -> dict[str, Any]:  # noqa: F811
    given = {"executable": UPGRADE, "config": str(host.config), "state": state, **parameters}
    return collection.module("hot_upgrade_takeover", check=check, **given)


def protection(host: SimHost) -> str:
    return str(host.status()["protection"]["state"])


def test_armed_and_disarmed_and_nothing_twice(collection: Collection, host: SimHost) -> None:  # noqa: F811
    planned = run(collection, host, "armed", check=True)
    assert (planned["changed"], planned["outcome"]) == (True, "planned")
    assert planned["diff"] == {"before": {"protection": "disarmed"}, "after": {"protection": "armed"}}
    assert host.view() is None, "a check began a run"

    armed = run(collection, host, "armed")
    assert (armed["changed"], armed["outcome"], armed["exit_name"]) == (True, "done", "done")
    assert (armed["protection"]["state"], armed["protection"]["standby"], armed["protection"]["vms"]) == (
        "armed",
        "b",
        2,
    )
    again = run(collection, host, "armed")
    assert (again["changed"], again["outcome"], again["why"]) == (False, "already", "the host is armed")
    assert host.view().heading.run_id == armed["run"]["run_id"]  # type: ignore[union-attr]

    there = info(collection, host)
    assert (there["healthy"], there["problems"], there["slot"]) == (True, [], "a")
    back = collection.module("hot_upgrade", executable=UPGRADE, config=str(host.config), state="rolled_back", slot="b")
    failed_with(back, "NOTHING_TO_ROLL_BACK", Exit.USAGE)

    assert run(collection, host, "disarmed", check=True)["outcome"] == "planned"
    assert protection(host) == "armed"
    assert run(collection, host, "disarmed")["protection"]["state"] == "disarmed"
    assert not run(collection, host, "disarmed")["changed"]


def test_a_takeover_is_shown_done_once_and_told_of(collection: Collection, host: SimHost) -> None:  # noqa: F811
    failed_with(run(collection, host, "taken_over", slot="a"), "BLOCKED", Exit.BLOCKED)
    assert "slot" in run(collection, host, "taken_over")["msg"]
    run(collection, host, "armed")
    shown = run(collection, host, "taken_over", slot="a", check=True)
    assert (shown["changed"], shown["plan"]["strategy"], shown["diff"]["after"]) == (True, "takeover", {"slot": "b"})
    assert protection(host) == "armed"
    assert info(collection, host)["slot"] == "a"

    done = run(collection, host, "taken_over", slot="a")
    assert (done["changed"], done["outcome"], done["run"]["strategy"]) == (True, "done", "takeover")
    armed_anew = run(collection, host, "armed")  # the daemon does it by itself; this waits for it
    assert armed_anew["protection"]["state"] == "armed"
    assert not run(collection, host, "taken_over", slot="a")["changed"], "slot b serves"
    there = info(collection, host)
    assert (there["slot"], [p["code"] for p in there["problems"]]) == ("b", ["TAKEN_OVER"])


def test_what_forbids_a_standby_forbids_it_in_check_mode_too(collection: Collection, host: SimHost) -> None:  # noqa: F811
    unpatch(host)
    for check in (True, False):
        failed_with(run(collection, host, "armed", check=check), "BLOCKED", Exit.BLOCKED)
    host.config.write_text(host.config.read_text() + '[takeover]\npolicy = "off"\n')
    off = run(collection, host, "armed")
    failed_with(off, "TAKEOVER_OFF", Exit.BLOCKED)


@pytest.mark.parametrize("state", ["armed", "disarmed", "taken_over"])
def test_a_run_half_way_is_left_alone(collection: Collection, host: SimHost, state: str) -> None:  # noqa: F811
    host.configure(vms=2, effect_s=0, soak_s=0.1, on_failure="stay", fail_at=["switch vm1"])
    assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.OPERATOR
    before = len(host.view().events)  # type: ignore[union-attr]
    failed_with(run(collection, host, state, slot="a"), "RUN_UNFINISHED", Exit.BLOCKED)
    assert len(host.view().events) == before  # type: ignore[union-attr]


def test_the_role_arms_the_host_and_an_upgrade_of_an_armed_host_passes_its_gate(host: SimHost, tmp_path: Path) -> None:
    conf = host.config.parent / "conf.d" / "50-takeover.toml"
    fleet = Fleet(
        tmp_path,
        {"h1": host.config},
        {
            "standby_daemon": False,
            "standby_config": str(host.config),
            "standby_conf_path": str(conf),
            "standby_executable": UPGRADE,
        },
    )
    first = fleet.play("standby", standby_policy="automatic")
    assert first.returncode == 0, first.stdout
    assert host.status()["protection"]["policy"] == "automatic"
    again = fleet.play("standby", standby_policy="automatic")
    assert again.returncode == 0, again.stdout
    assert "changed=0 " in again.stdout

    upgraded = fleet.play("rolling_upgrade", rollout_slot="b")
    assert upgraded.returncode == 0, upgraded.stdout
    assert fleet.kinds() == {"h1": "done"}
    assert fleet.play("status").returncode == 0
    shown = fleet.report["hosts"][0]["protection"]
    assert shown in ("arming", "armed")
    assert f"<td>{shown}<td" in (tmp_path / "report" / "report.html").read_text()
