"""Rollouts over many hosts in memory: batches, stop and report, whatever fails where."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collection import installed_in
from tests.support.sim_fleet import HARMS, SimFleet
from tests.support.sim_rollout import made, roll_back_all, upgrade_all


@pytest.fixture(autouse=True)
def collection(tmp_path: Path) -> Iterator[None]:
    """Found under the name that Ansible gives it."""
    path = str(installed_in(tmp_path))
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)
        for name in [n for n in sys.modules if n.startswith("ansible_collections")]:
            del sys.modules[name]


def test_a_rollout_with_failures_stops_is_mended_and_finishes(tmp_path: Path) -> None:
    fleet = made(tmp_path, 200, 8)
    plays = upgrade_all(fleet)
    assert sum(p.failed for p in plays) == 8
    assert len(plays) > 2, "they were to be in more than one batch"
    roll_back_all(fleet)


@pytest.mark.parametrize("harm", HARMS, ids=lambda h: h.code)
def test_a_canary_that_fails_is_all_that_was_touched(tmp_path: Path, harm: object) -> None:
    names = [f"hv{n}" for n in range(20)]
    fleet = SimFleet(tmp_path, names, {"hv0": harm})  # type: ignore[dict-item]
    first, *_, last = upgrade_all(fleet)
    assert (first.failed, first.untouched) == (1, 19)
    assert (last.failed, last.untouched) == (0, 0)


def test_the_check_notices_a_rollout_that_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = made(tmp_path, 40, 2)
    monkeypatch.setattr(fleet, "batches", lambda _playbook: [fleet.names[:39], fleet.names[39:]])
    whole = fleet.rollout
    monkeypatch.setattr(fleet, "rollout", lambda *a, **k: [fleet.at(n) for n in fleet.names] and whole(*a, **k))
    with pytest.raises(AssertionError, match="looked at before its batch"):
        upgrade_all(fleet)
