"""The show's own judgement: what it would miss if it were wrong."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.show import coordinator, items, machine, upgrade
from tests.support import numa_guest
from upgrader.adapters import gate
from upgrader.lab.spec import RUN_ROOT
from upgrader.lab.traffic.analysis import Direction

DIRECTIONS = {d.value: dict.fromkeys(upgrade.OF_DIRECTION, 0) for d in Direction}
ENTRY = {"event": "a -> b", "vm": "vm0", "blackout_us": 900.0, "directions": DIRECTIONS}
REPORT = {"schema_version": 1, "moves": [ENTRY] * 8, "stock_restart": [ENTRY] * 4}


def test_a_whole_report_lacks_nothing() -> None:
    assert upgrade.lacking(REPORT) == []


@pytest.mark.parametrize("kind", ["moves", "stock_restart"])
@pytest.mark.parametrize("key", upgrade.OF_DIRECTION)
def test_a_missing_figure_is_noticed(kind: str, key: str) -> None:
    report: dict[str, Any] = copy.deepcopy(REPORT)
    report[kind][1]["directions"]["to_fabric"][key] = None
    report[kind][2]["directions"]["vm_to_vm"].pop(key)
    assert upgrade.lacking(report)


def test_missing_entries_and_events_are_noticed() -> None:
    assert upgrade.lacking({}) != []
    assert upgrade.lacking({**REPORT, "moves": [ENTRY] * 7}) == ["moves: 7 entries, 8 expected"]
    assert upgrade.lacking({**REPORT, "moves": [{**ENTRY, "blackout_us": None}] * 8})[0] == "moves[0].blackout_us"


@pytest.mark.parametrize(
    ("code", "xml", "holds"),
    [
        (0, "<testsuite><testcase name='a'/></testsuite>", [True, True]),
        (0, "<testsuite/>", [False]),
        (4, "<testsuite/>", [False]),
        (1, "<testsuite><testcase name='a'/></testsuite>", [True, False]),
        (0, "<testsuite><testcase name='a'><skipped message='no root'/></testcase></testsuite>", [False, True]),
        (2, None, [False]),
    ],
)
def test_nothing_passes_in_silence(
    code: int, xml: str | None, holds: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pytest_ran(argv: list[str], **_: object) -> gate.Completed:
        assert argv[-1] == f"{upgrade.UPGRADE_TESTS}::test_it"
        if xml is not None:
            (tmp_path / "tests.xml").write_text(xml)
        return gate.Completed(tuple(argv), code, "", "")

    monkeypatch.setattr(items, "OUT", tmp_path)
    monkeypatch.setattr(gate, "run", pytest_ran)
    assert [item.holds for item in items.tested(upgrade.UPGRADE_TESTS, "test_it")] == holds


def test_the_tests_it_names_are_there() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    names = [f"{upgrade.UPGRADE_TESTS}::{name}" for name in (*upgrade.KILLED, *upgrade.REFUSED)]
    done = gate.run([*argv, *names], cwd=items.ROOT, timeout_s=120, check=False)
    assert done.returncode == 0, done.stdout
    assert all(name in done.stdout for name in names)


def test_the_coordinators_bench_is_run_and_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    run = gate.run

    def small(argv: list[str], **options: Any) -> gate.Completed:
        return run([*argv, "--vms", "2", "--times", "1"], **options)

    monkeypatch.setattr(gate, "run", small)
    assert [item.what for item in coordinator.bench()] == ["upgrade --help", "upgrade status, 2 VMs", "plan of 2 VMs"]


def test_a_process_of_a_lab_is_told_by_its_arguments() -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as other,
        subprocess.Popen(["bash", "-c", "read -r", f"{RUN_ROOT}/nobody/x"], stdin=subprocess.PIPE) as mine,
    ):
        try:
            deadline = time.monotonic() + 10  # its arguments can be read a little after it was started
            while machine._of_a_lab(mine.pid) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert machine._of_a_lab(other.pid) is None
            assert str(mine.pid) in (machine._of_a_lab(mine.pid) or "")
        finally:
            other.kill()
            mine.kill()


def test_sockets_of_a_lab_are_told_by_their_paths() -> None:
    text = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"0000: 00000002 00000000 00010000 0001 01 7 {RUN_ROOT}/x/a.sock\n"
        "0000: 00000002 00000000 00010000 0001 01 8 /run/other.sock\n"
        "0000: 00000003 00000000 00000000 0001 03 9\n"
    )
    assert machine._lab_sockets(text) == {f"{RUN_ROOT}/x/a.sock"}


def console(line: str = "", instead: str = "", *, verdict: str = "ok") -> str:
    """What the guest of `check-numa` writes; one line of it changed."""
    written = []
    for number, (pairs, test) in enumerate(((1, "one-pair"), (2, "two-pairs")), 1):
        for ring, heap in ((0, 1), (1, 1), (0, 1), (1, 0), (0, 0), (1, 0)):
            written += [
                f"# queue pairs {pairs}, rings on node {ring}: scratch region on {ring} in QEMU, on {ring} in the parked "
                f"{parked}; QEMU's heap on {heap}\r"
                for parked in ("standby", "owner")
            ]
        written.append(f"{verdict} {number} /x86_64/vhost-user-standby/guest/numa/{test}\r")
    return "\n".join(written).replace(line, instead) if line else "\n".join(written)


def test_parked_rings_on_the_right_node_hold() -> None:
    seen = list(numa_guest.judged(console()))
    assert len(seen) == 6
    assert all(item.holds for item in seen)


@pytest.mark.parametrize(
    ("output", "fail"),
    [
        ("", 6),
        (console("1, rings on node 0: scratch region on 0", "1, rings on node 0: scratch region on 1"), 1),
        (console("node 1: scratch region on 1 in QEMU, on 1", "node 1: scratch region on 1 in QEMU, on 0"), 2),
        (console("parked owner", "parked standby"), 4),
        (console("heap on 1", "heap on 0"), 2),  # rings on node 0 prove nothing
        (console("heap on 0", "heap on -1"), 2),
        (console("rings on node 1", "rings on node 0"), 6),
        (console(verdict="not ok"), 2),
        (console("one-pair", "one-pair # SKIP it takes two NUMA nodes"), 1),
    ],
)
def test_parked_rings_that_are_elsewhere_or_not_looked_at_do_not(output: str, fail: int) -> None:
    assert sum(not item.holds for item in numa_guest.judged(output)) == fail
