"""The steering show's own judgement: what it would miss if it were wrong."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.show import steering
from tests.support import nic_guest
from tests.support.nic_guest import Result
from tests.support.steer_bench import Passed
from upgrader.adapters import gate

PASSED = Passed(turns=10, took_s=1.0, sent=1000, lost=0, duplicated=0, reordered=3, sinks={"vf1": 480, "vf2": 520})


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"lost": 1}, False),
        ({"duplicated": 1}, False),
        ({"turns": 9}, False),
        ({"sinks": {"vf1": 1000, "vf2": 0}}, False),  # nothing was ever turned
    ],
)
def test_lossless_is_lossless(changes: dict[str, object], holds: bool) -> None:
    assert steering._lossless("x", replace(PASSED, **changes), 10).holds is holds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "cases", "least", "holds"),
    [
        (0, "<testcase name='a'/><testcase name='b'/>", 2, True),
        (0, "<testcase name='a'/>", 2, False),
        (0, "<testcase name='a'/><testcase name='b'><skipped/></testcase>", 1, False),
        (1, "<testcase name='a'><failure/></testcase>", 1, False),
        (5, "", 0, False),
    ],
)
def test_a_suite_passes_whole_or_not(
    code: int, cases: str, least: int, holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(argv: list[str], **_: object) -> gate.Completed:
        (tmp_path / "suite.xml").write_text(f"<testsuite>{cases}</testsuite>")
        return gate.Completed(tuple(argv), code, "", "")

    monkeypatch.setattr(steering, "OUT", tmp_path)
    monkeypatch.setattr(gate, "run", ran)
    assert steering.suite("x", ["f"], least=least, only="").holds is holds


def test_a_claim_of_hardware_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("It steers an X710; that was not run on hardware.")
    only, plan = steering.claims()
    assert only.holds
    assert plan.holds
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/new.md").write_text("Works on ConnectX.")
    only, _ = steering.claims()
    assert not only.holds
    assert "docs/new.md" in only.figure


@pytest.mark.parametrize(
    ("result", "whole"),
    [
        (Result(0, steering.FLOWER_TESTS, 0, "6.1", ""), True),
        (Result(0, steering.FLOWER_TESTS, 1, "6.1", ""), False),
        (Result(1, steering.FLOWER_TESTS, 0, "6.1", ""), False),
        (Result(None, steering.FLOWER_TESTS, 0, "6.1", ""), False),  # it never got to the end
        (Result(0, 0, 0, "6.1", ""), False),
    ],
)
def test_a_guest_passes_whole_or_not(result: Result, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result.whole is whole
    monkeypatch.setattr(nic_guest, "run_tests", lambda: result)
    (item,) = steering.flower()
    assert item.holds is whole


def test_the_tests_it_selects_are_there() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    for files, only, least in (
        ([steering.CONTRACT], "test_contract and [x710-with-detour]", 7),
        ([*steering.BYTES], "hands_the_kernel", 20),
        ([*steering.X710[1:]], "dies_between", 12),
        ([steering.RUNS], "whole_run and [tc_u32-ipv6]", 1),
        ([steering.RUNS], "dies_between and -tc_u32]", 2),
        ([steering.CONTRACT], "others and not flower", 9),
        ([steering.CHOICE], "each_nic or longest_cut", 8),
        ([*steering.X710[:1]], "never_touched or stays", 2),
        ([*steering.X710[:1]], "probe or counters or broadcasts", 4),
        ([*steering.X710[1:]], "set_before or was_reset or mistaken or behind_all", 4),
        ([*steering.X710[1:]], "not dies_between", 11),
        ([*steering.X710, steering.CHOICE], "room_is_counted", 3),
        ([*steering.COMMANDS], "show_and_check or x710 or refused", 3),
        ([*steering.COMMANDS], "probe or verified", 3),
    ):
        done = gate.run([*argv, "-k", only, *files], cwd=steering.ROOT, timeout_s=120, check=False)
        assert done.returncode == 0, done.stdout
        assert sum("::" in line for line in done.stdout.splitlines()) >= least
