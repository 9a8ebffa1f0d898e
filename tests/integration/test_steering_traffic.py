"""Rules turned under traffic: what is lost, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.build_facts import vm_port
from tests.support.fake_nic import FakeNic, build_shim, x710
from tests.support.steer_bench import Nic, Passed, Wiring, build_generator, software, under_traffic, veth_nic
from upgrader.core.model import SlotName
from upgrader.core.steering import Arrival, judge

pytestmark = pytest.mark.integration

RATE_PPS = 50_000
GAP_US = 150  # what a delete and an add by netlink took on this kind of machine, about 6 packets at 40,000 a second
SIDES: tuple[SlotName, SlotName] = ("b", "a")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_generator(tmp_path_factory.mktemp("gen"))


@pytest.fixture
def wired() -> Iterator[Nic]:
    with veth_nic("wired", wired=True) as nic:
        yield nic


def whole(passed: Passed) -> bool:
    return passed.lost == 0 and passed.duplicated == 0


def test_ten_thousand_turns_of_one_vm_lose_nothing(generator: Path) -> None:
    port = vm_port(1)
    with veth_nic("flips") as nic:
        steering = software(nic)
        steering.steady("a")
        steering.open_window([(port, "a")])
        before = steering.arrived()
        passed = under_traffic(
            nic,
            generator,
            port,
            lambda n: steering.move_vm(port, (SIDES[n % 2],)),
            10_000,
            rate_pps=RATE_PPS,
            seconds=14,
        )
        assert judge("a", before, steering.arrived()) is Arrival.BOTH
    assert passed.sent == RATE_PPS * 14
    assert whole(passed), passed
    assert min(passed.sinks.values()) > passed.sent // 4  # it really went to and fro


def test_dual_delivery_reaches_both_and_loses_nothing(generator: Path) -> None:
    """One to both to the other and back, as a hand-over does: a copy at each of the two is meant, none is lost."""
    port = vm_port(1)
    turns: tuple[tuple[SlotName, ...], ...] = (("b", "a"), ("b",), ("a", "b"), ("a",))
    with veth_nic("dual") as nic:
        steering = software(nic)
        steering.steady("a")
        steering.open_window([(port, "a")])
        passed = under_traffic(
            nic, generator, port, lambda n: steering.move_vm(port, turns[n % 4]), 400, rate_pps=RATE_PPS, seconds=6
        )
    assert passed.lost == 0
    assert passed.duplicated > 0
    assert sum(passed.sinks.values()) == passed.sent + passed.duplicated  # at no VF twice


def test_a_whole_port_turn_loses_what_falls_into_its_gap(generator: Path, wired: Nic, tmp_path: Path) -> None:
    fake = FakeNic(tmp_path / "nic", build_shim(tmp_path), out_of_tree=True)
    wiring = Wiring(wired, fake, GAP_US)
    steering = x710(fake)
    steering.steady("a")
    passed = under_traffic(
        wired, generator, vm_port(1), lambda n: steering.steady(SIDES[n % 2]), 200, rate_pps=RATE_PPS, seconds=4
    )
    assert wiring.turns == 201
    assert passed.duplicated == 0
    assert passed.lost >= 200 * GAP_US * RATE_PPS / 1e6 / 2


def test_a_catch_on_the_pf_takes_what_falls_into_the_gap(generator: Path, wired: Nic, tmp_path: Path) -> None:
    fake = FakeNic(tmp_path / "nic", build_shim(tmp_path), out_of_tree=True)
    wiring = Wiring(wired, fake, GAP_US)
    steering = x710(fake, catch=software(wired))
    steering.steady("a")
    passed = under_traffic(
        wired, generator, vm_port(1), lambda n: steering.steady(SIDES[n % 2]), 200, rate_pps=RATE_PPS, seconds=4
    )
    assert wiring.turns == 201
    assert whole(passed), passed


def test_a_detour_over_the_pf_moves_a_vm_without_loss(generator: Path, wired: Nic, tmp_path: Path) -> None:
    """Windows opened, the VM moved, closed: from the NIC to the PF, there to the other switch, and onto the NIC again."""
    fake = FakeNic(tmp_path / "nic", build_shim(tmp_path), out_of_tree=True)
    wiring = Wiring(wired, fake, GAP_US)
    steering = x710(fake, catch=software(wired), detour=True)
    port = vm_port(1)
    steering.steady("a")

    def turn(number: int) -> None:
        to, old = SIDES[number // 3 % 2], SIDES[(number // 3 + 1) % 2]
        match number % 3:
            case 0:
                steering.open_window([(port, old)])
            case 1:
                steering.move_vm(port, (to,))
            case 2:
                steering.close_window(to)

    passed = under_traffic(wired, generator, port, turn, 150, rate_pps=RATE_PPS, seconds=6)
    assert wiring.turns == 51
    assert whole(passed), passed
    assert min(passed.sinks.values()) > passed.sent // 4
