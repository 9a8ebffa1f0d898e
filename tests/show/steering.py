"""What steering must show, run for real: a line an item with figure, limit and baseline, non-zero if one falls short.

make show-steering                       # all of it, about half an hour: two parts are in an emulated guest
make show-steering PARTS="turns traffic" # some of it

Needs root. Packets go through veth pairs in namespaces of the run's own; the X710 is a model of its drivers' answers.
"""

from __future__ import annotations

import re
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import bench_steering as bench
from tests.show.items import OUT, ROOT, Item, show
from tests.support import nic_guest, sriov_guest, steer_bench
from tests.support.steer_bench import GAP_US, RATE_PPS
from tests.support.steering_rigs import ADAPTERS
from upgrader.adapters import gate
from upgrader.core.model import SteeringCapabilities
from upgrader.core.steering import choose

CONTRACT = "tests/integration/test_steering.py"
RUNS = "tests/integration/test_steering_runs.py"
BYTES = ("tests/integration/test_nfc_bytes.py",)
TC_BYTES = "tests/integration/test_tc_bytes.py"
CHOICE = "tests/unit/test_steering_choice.py"
X710 = ("tests/unit/test_x710.py", "tests/unit/test_run_x710.py")
COMMANDS = ("tests/integration/test_nic_commands.py",)
HERE = tuple(a for a in ADAPTERS if not a.startswith("tc_flower"))  # this kernel has no flower
FLOWER_TESTS = 54
TURN_LIMIT_US = 50
FAILOVER_LIMIT_US = 1000
VMS = 100
TURNS = 10_000
PORT_TURNS, WINDOWS, PORT_SECONDS = 30, 15, 16
# Documents that may speak of hardware, and the words they owe then.
DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/**/*.*", "ansible/**/*.md", "ansible/**/*.yml", "packaging/**/*.*")
_HARDWARE = re.compile(r"X710|E810|ConnectX|ixgbe")
_OWED = re.compile(r"not\s+(been\s+)?run\s+on\s+hardware|has\s+not\s+been\s+run", re.IGNORECASE)


def contract() -> Iterator[Item]:
    """The one suite of contract tests, by adapter."""
    for adapter in HERE:
        yield suite(f"contract tests, {adapter}", [CONTRACT], least=7, only=f"test_contract and [{adapter}]")
    only = "not test_contract and not others and not flower"
    yield suite("tc on the real kernel: packets, errors", [CONTRACT], least=4, only=only)
    only = "others and not flower"
    yield suite("filters and rules of others never touched (property tests)", [CONTRACT], least=9, only=only)


def runs() -> Iterator[Item]:
    """Whole upgrades by each adapter, and a coordinator that dies before and behind every change of a rule."""
    for adapter in HERE:
        yield suite(f"whole upgrade and way back, {adapter}", [RUNS], least=1, only=f"whole_run and [{adapter}]")
        only = f"dies_between and -{adapter}]"
        yield suite(f"dead between two rules: resume, rollback, {adapter}", [RUNS], least=2, only=only)


def flower() -> Iterator[Item]:
    """The contract tests and real packets by tc flower and u32, in a guest with Debian's kernel; in software."""
    result = nic_guest.run_tests()
    figure = f"{result.passed} pass, {result.skipped} skipped, exit code {result.code}"
    if not result.whole:
        figure += f"; {result.output[-300:]}"
    what = f"contract, packets, whole runs, tc_flower, kernel {result.kernel} (software, not run on hardware)"
    yield Item(what, figure, f"all, {FLOWER_TESTS} or more", result.whole and result.passed >= FLOWER_TESTS)


def encoding() -> Iterator[Item]:
    """Bytes against the real ethtool's, tc's and ip's."""
    yield suite("rule shapes whose bytes are those of the real ethtool -N", BYTES, least=20, only="hands_the_kernel")
    yield suite(
        "rules of ours that the real ethtool -n reads, and the other way", BYTES, least=3, only="back or prints"
    )
    yield suite("tc filters, actions and VF attributes as iproute2 sends them", [TC_BYTES], least=13, only="")


def model() -> Iterator[Item]:
    """The modelled X710: its traps, whole runs, a dead coordinator, and rules of others."""
    yield suite("X710's traps, each handled (modelled, not run on hardware)", X710[:1], least=20, only="")
    only = "set_before or was_reset or mistaken or behind_all"
    yield suite(
        "VFs: set, opened, then programmed; anew after a reset; the dead one stopped", X710[1:], least=4, only=only
    )
    yield suite("room for rules counted before a run", [*X710, CHOICE], least=3, only="room_is_counted")
    yield suite("turns verified by counters and by a probe", X710[:1], least=4, only="probe or counters or broadcasts")
    yield suite("whole upgrades on it", X710[1:], least=11, only="not dies_between")
    yield suite("coordinator dead between two rules, mended to either side", X710[1:], least=12, only="dies_between")
    yield suite("rules of others never touched (property tests)", X710[:1], least=2, only="never_touched or stays")


def commands() -> Iterator[Item]:
    """What an operator has: the plan, and `upgrade nic show`, `check` and `probe` as processes."""
    yield suite(
        "the plan of each NIC says its strategy and its cost", [CHOICE], least=8, only="each_nic or longest_cut"
    )
    yield suite("upgrade nic show, check", COMMANDS, least=3, only="show_and_check or x710 or refused")
    yield suite("upgrade nic probe, and a probe sent across a wire", COMMANDS, least=3, only="probe or verified")


def sriov() -> Iterator[Item]:
    """Two VFs of an emulated NIC: their attributes, and DPDK on one."""
    yield from sriov_guest.items()


def turns() -> Iterator[Item]:
    """How long a turn takes."""
    ready, unprepared = bench.one_vm(TURNS), bench.one_vm_by_replacing(100)
    yield Item(
        "turn of one VM, median",
        f"{ready.median_us:.1f} us, p99 {ready.p99_us:.0f} us; baseline, filters read first: {unprepared.median_us:.0f} us",
        f"{TURN_LIMIT_US} us",
        ready.median_us <= TURN_LIMIT_US,
    )
    host = bench.whole_host(VMS, 100)
    figure = f"{host.median_us:.0f} us, p99 {host.p99_us:.0f} us; baseline, one by one: {VMS * ready.median_us:.0f} us"
    yield Item(f"failover of {VMS} VMs, median", figure, f"{FAILOVER_LIMIT_US} us", host.median_us <= FAILOVER_LIMIT_US)


def traffic() -> Iterator[Item]:
    """Turns under traffic."""
    with tempfile.TemporaryDirectory(prefix="show-") as name:
        folder = Path(name)
        generator = steer_bench.build_generator(folder)
        one = steer_bench.one_vm_turned(generator, TURNS, 20)
        yield _lossless(f"{TURNS} turns of one VM at {RATE_PPS} pps", one, TURNS)
        dual = steer_bench.one_vm_handed_over(generator, 400, 4)
        figure = f"lost {dual.lost} of {dual.sent}; {dual.duplicated} went to both VFs, as meant"
        yield Item("400 hand-overs with dual delivery", figure, "lost 0", dual.lost == 0 and dual.duplicated > 0)
        bare = steer_bench.whole_port_turned(generator, folder, PORT_TURNS, PORT_SECONDS, catch=False)
        each, expected = bare.lost / PORT_TURNS, GAP_US * RATE_PPS / 1e6
        yield Item(
            f"{PORT_TURNS} turns of the whole port with a gap of {GAP_US} us (modelled), packets lost per turn",
            f"{each:.1f}; rate x gap is {expected:.1f}",
            "more than half of that: it is a loss, and the plan says so",
            bare.turns == PORT_TURNS and each > expected / 2,
        )
        caught = steer_bench.whole_port_turned(generator, folder, PORT_TURNS, PORT_SECONDS, catch=True)
        yield _lossless(f"the same with a catch on the PF (without: {bare.lost} lost)", caught, PORT_TURNS)
        told = f"{TURNS // 5} turns by tc_u32 on the PF of a modelled X710 with the kernel's driver, whose rule takes nothing"
        yield _lossless(told, steer_bench.in_tree_turned(generator, folder, TURNS // 5, 6), TURNS // 5)
        detour = steer_bench.detoured(generator, folder, WINDOWS, PORT_SECONDS)
        yield _lossless(f"{WINDOWS} windows by detour over the PF", detour, WINDOWS)


def claims() -> Iterator[Item]:
    """Nothing claims hardware that was not there."""
    documents = [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))]
    texts = {path: path.read_text(errors="replace") for path in documents if path.is_file()}
    speaking = [path for path, text in texts.items() if _HARDWARE.search(text)]
    silent = [str(path.relative_to(ROOT)) for path in speaking if not _OWED.search(texts[path])]
    figure = f"{len(speaking)} name a NIC" + (
        f"; {', '.join(silent)} do not say what has not been run" if silent else ""
    )
    yield Item("documents that name a NIC say what was not run on it", figure, "all", bool(speaking) and not silent)
    hardware = SteeringCapabilities(dual_delivery=False, per_vm=False, hardware=True)
    told = [f.what for f in choose(hardware, 1).findings]
    says = any(_OWED.search(what) for what in told)
    yield Item("a plan that steers in hardware says so, too", "; ".join(told), "not run on hardware", says)


def _lossless(what: str, passed: steer_bench.Passed, turns: int) -> Item:
    """All turns made, every packet at exactly one VF, and each VF had its part."""
    to = list(passed.sinks.values())
    figure = (
        f"lost {passed.lost}, duplicated {passed.duplicated} of {passed.sent}, {passed.turns} turns, to the VFs {to}"
    )
    holds = (passed.lost, passed.duplicated, passed.turns) == (0, 0, turns) and min(to) > passed.sent // 4
    return Item(what, figure, "lost 0, duplicated 0", holds)


def suite(what: str, files: list[str] | tuple[str, ...], *, least: int, only: str) -> Item:
    """The tests of these files that `only` selects (pytest -k), as one item; a skipped test does not count."""
    report = OUT / "suite.xml"
    report.unlink(missing_ok=True)
    select = ["-k", only] if only else []
    argv = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *select, *files]
    done = gate.run(argv, cwd=ROOT, timeout_s=900, check=False)
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    bad = [str(c.get("name")) for c in cases if any(e.tag in ("failure", "error", "skipped") for e in c)]
    whole = done.returncode == 0 and not bad and len(cases) >= least
    tail = "" if whole else f"; {', '.join(bad[:3]) or (done.stdout + done.stderr)[-300:]}"
    return Item(what, f"{len(cases) - len(bad)} pass, {len(bad)} do not{tail}", f"all, {least} or more", whole)


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "contract": contract,
    "runs": runs,
    "flower": flower,
    "encoding": encoding,
    "model": model,
    "commands": commands,
    "turns": turns,
    "traffic": traffic,
    "sriov": sriov,
    "claims": claims,
}


if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
