"""Rules turned under traffic: what is lost, and what is not. Every figure is by packets that arrived or did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.steer_bench import (
    GAP_US,
    RATE_PPS,
    Passed,
    build_generator,
    detoured,
    in_tree_turned,
    one_vm_handed_over,
    one_vm_turned,
    whole_port_turned,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_generator(tmp_path_factory.mktemp("gen"))


def require_whole(passed: Passed, turns: int) -> None:
    assert passed.turns == turns
    assert (passed.lost, passed.duplicated) == (0, 0), passed
    assert min(passed.sinks.values()) > passed.sent // 4, "it did not go to and fro"


def test_turns_of_one_vm_lose_nothing(generator: Path) -> None:
    passed = one_vm_turned(generator, 2_000, 6)  # seconds, of which a busy machine needs most
    assert passed.sent == 6 * RATE_PPS
    require_whole(passed, 2_000)


def test_a_drivers_rule_that_takes_nothing_is_made_good_by_tc_on_its_pf(generator: Path, tmp_path: Path) -> None:
    require_whole(in_tree_turned(generator, tmp_path, 1_000, 4), 1_000)


def test_dual_delivery_reaches_both_and_loses_nothing(generator: Path) -> None:
    """A copy at each of the two is meant; none at all is lost, and no VF gets one twice."""
    passed = one_vm_handed_over(generator, 400, 4)
    assert passed.lost == 0
    assert passed.duplicated > 0
    assert sum(passed.sinks.values()) == passed.sent + passed.duplicated


def test_a_whole_port_turn_loses_what_falls_into_its_gap(generator: Path, tmp_path: Path) -> None:
    passed = whole_port_turned(generator, tmp_path, 20, 10, catch=False)
    assert passed.turns == 20
    assert passed.duplicated == 0
    assert passed.lost >= 20 * GAP_US * RATE_PPS / 1e6 / 2


def test_a_catch_on_the_pf_takes_what_falls_into_the_gap(generator: Path, tmp_path: Path) -> None:
    require_whole(whole_port_turned(generator, tmp_path, 15, 10, catch=True), 15)


def test_a_detour_over_the_pf_moves_a_vm_without_loss(generator: Path, tmp_path: Path) -> None:
    require_whole(detoured(generator, tmp_path, 10, 10), 10)
