"""A rollout over many simulated hosts with failures put in, and what it has to come to, worked out apart from it.

python -m tests.support.sim_rollout 10000    # figures as JSON, with the process's time and memory
"""

from __future__ import annotations

import json
import logging
import random
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tests.support.collection import installed_in
from tests.support.sim_fleet import HARMS, VMS, SimFleet

SEED = 7


@dataclass
class Play:
    """One run of the playbook: how many hosts failed, and were left untouched."""

    failed: int
    untouched: int
    took_s: float


def upgrade_all(fleet: SimFleet) -> list[Play]:
    """The rollout, again and again with what stopped it mended, until it is done. Each time the report has to be right."""
    batches = fleet.batches("rolling_upgrade")
    harmed, upgraded, plays = dict(fleet.harms), set[str](), []
    assert [n for b in batches for n in b] == list(fleet.names)
    while not plays or plays[-1].failed:
        began = time.monotonic()
        report = fleet.rollout("rolling_upgrade", state="upgraded", wanted="b")
        last = next((i for i, b in enumerate(batches) if harmed.keys() & set(b)), len(batches) - 1)
        bad = [n for n in batches[last] if n in harmed]
        reached = [n for b in batches[: last + 1] for n in b]
        new = [n for n in reached if n not in upgraded and n not in bad]
        untouched = len(fleet.names) - len(reached)
        assert [(s["host"], s["code"]) for s in report["stopped_by"]] == [(n, harmed[n].code) for n in bad]
        assert all(s["what"] and s["state"] and s["next"] for s in report["stopped_by"])
        assert report["outcome"] == ("stopped" if bad else "done")
        assert report["counts"] == {
            "hosts": len(fleet.names), "failed": len(bad), "untouched": untouched, "planned": 0,
            "done": len(new), "already": len(reached) - len(new) - len(bad),
        }  # fmt: skip
        assert list(fleet.hosts) == reached, "a host was looked at before its batch"
        upgraded.update(new)
        for name in upgraded:
            assert set(fleet.hosts[name].world.owners().values()) == {"b"}, name
        page = fleet.page(report)
        assert all(f">{n}<" in page for n in fleet.names)
        plays.append(Play(len(bad), untouched, round(time.monotonic() - began, 1)))
        for name in bad:
            mend(fleet, name)
            del harmed[name]
    assert upgraded == set(fleet.names)
    return plays


def mend(fleet: SimFleet, name: str) -> None:
    """As a person does what the report says."""
    fleet.harms[name].mend(fleet.hosts[name])
    if fleet.harms[name].rolled_back_first:
        assert fleet.host(name, state="rolled_back", slot="a")["kind"] == "done"
        assert set(fleet.hosts[name].world.owners().values()) == {"a"}


def roll_back_all(fleet: SimFleet) -> float:
    """Every host back to its old switch; the time it took, s."""
    began = time.monotonic()
    report = fleet.rollout("rollback", state="rolled_back", wanted="a")
    assert report["counts"]["done"] == len(fleet.names) == len(fleet.hosts)
    for name, host in fleet.hosts.items():
        assert set(host.world.owners().values()) == {"a"}, name
        assert host.world.trouble == []
    return round(time.monotonic() - began, 1)


def made(folder: Path, count: int, harmed: int) -> SimFleet:
    """Of `count` hosts, `harmed` of which fail, each kind of failure as often, drawn with a fixed seed."""
    names = [f"hv{n:05d}" for n in range(count)]
    drawn = random.Random(SEED).sample(names, harmed)
    return SimFleet(folder, names, {n: HARMS[i % len(HARMS)] for i, n in enumerate(drawn)})


def figures(count: int, harmed: int) -> dict[str, Any]:
    """A fleet upgraded and rolled back in this process."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        sys.path.insert(0, str(installed_in(Path(name))))
        began = time.monotonic()
        fleet = made(Path(name), count, harmed)
        plays = upgrade_all(fleet)
        back_s = roll_back_all(fleet)
        return {
            "hosts": count,
            "vms": count * VMS,
            "plays": [vars(p) for p in plays],
            "rollback_s": back_s,
            "took_s": round(time.monotonic() - began, 1),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(json.dumps(figures(int(sys.argv[1]), 12)))
