"""The generator proves itself: what is done to packets on purpose is what it reports. Needs root (namespaces)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from upgrader.adapters import gate
from upgrader.core.errors import HostError, UsageError
from upgrader.lab.traffic import selftest
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.build import build_agent
from upgrader.lab.traffic.command import traffic
from upgrader.lab.traffic.protocol import Agent
from upgrader.lab.traffic.selftest import RECEIVER_ADDRESS, SENDER_ADDRESS, Bench, Check
from upgrader.lab.traffic.session import Node, TrafficSession

pytestmark = pytest.mark.integration

SECOND_VM = IPv4Address("198.18.0.3")


def namespaces_left() -> list[str]:
    return [
        line for line in gate.run(["ip", "netns"]).stdout.splitlines() if line.startswith(f"pktflow-{os.getpid()}-")
    ]


@pytest.fixture(scope="module")
def done() -> dict[str, Check]:
    with selftest.bench() as bench:
        return {check.name: check for check in selftest.checks(bench)}


@pytest.mark.parametrize(
    "name",
    ["undisturbed", "undisturbed, relayed", "loss", "hole", "duplicates", "reorders", "misdelivery", "own drops"],
)
def test_what_was_done_is_what_is_reported(done: dict[str, Check], name: str) -> None:
    assert done[name].passed, done[name]


def test_there_is_no_other_check(done: dict[str, Check]) -> None:
    assert len(done) == 8


def test_the_checks_can_fail(done: dict[str, Check]) -> None:
    """The figures of the disturbed runs are not those of the undisturbed one."""
    calm = done["undisturbed"].figures
    assert (calm.lost, calm.duplicated, calm.reordered, calm.own_drops) == (0, 0, 0, 0)
    assert done["loss"].figures.lost == len(selftest.DROPPED)
    assert done["hole"].figures.timestamp_time_us > 250_000 > 10 * calm.timestamp_time_us
    assert done["duplicates"].figures.duplicated == len(selftest.TWICE)
    assert done["reorders"].figures.reordered == len(selftest.HELD)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with selftest.bench() as made:
        yield made
    assert namespaces_left() == []


@pytest.fixture
def session(bench: Bench) -> Iterator[TrafficSession]:
    """A fabric and two VMs; the VMs share a namespace, each has its agent and its address."""
    gate.run(["ip", "-n", bench.receiver_ns, "addr", "add", f"{SECOND_VM}/24", "dev", "veth-rx"])
    second = Agent.spawn("vm1", [str(build_agent()), "--serve", "-", *selftest.AGENT_OPTIONS], netns=bench.receiver_ns)
    fabric = Node("fabric", SENDER_ADDRESS, bench.sender, same_clock=True)
    # their clock is ours, too, but estimating it is what is tested
    vms = [
        Node("vm0", RECEIVER_ADDRESS, bench.receiver, interface="veth-rx"),
        Node("vm1", SECOND_VM, second, interface="veth-rx"),
    ]
    yield TrafficSession(fabric, vms)
    second.close()


def misdeliver(bench: Bench, address: IPv4Address, seconds: float) -> None:
    """Give one VM a wrong MAC address for a while."""
    for mac in ("02:00:00:00:00:99", bench.receiver.link("veth-rx").mac):
        neighbour = [str(address), "lladdr", mac, "dev", "veth-tx", "nud", "permanent"]
        gate.run(["ip", "-n", bench.sender_ns, "neigh", "replace", *neighbour])
        time.sleep(seconds)


def test_events_are_seen_by_whom_they_concern_and_when(bench: Bench, session: TrafficSession) -> None:
    control = session.control(1)
    assert all(f.undisturbed for f in control.figures())
    session.start(20)
    for name, address in (("first", RECEIVER_ADDRESS), ("second", SECOND_VM)):
        time.sleep(0.7)
        with session.window(name):
            misdeliver(bench, address, 0.1)
    time.sleep(0.7)
    run = session.finish(stop=True)

    assert [window.label for window in run.windows] == ["first", "second"]
    assert len(run.figures()) == 6
    assert (run.strangers, run.clock_steps) == (0, 0)
    hit = {"first": "vm0", "second": "vm1"}
    for label, vm in hit.items():
        for f in run.figures(run.window(label), control=control):
            assert f.control_gap_us is not None
            if (f.vm, f.direction) == (vm, Direction.FROM_FABRIC):
                assert f.lost >= 50
                assert f.gap_us >= 100_000
            else:
                assert f.undisturbed, f
    whole = {(f.vm, f.direction): f for f in run.figures()}
    for vm in hit.values():
        one = whole[vm, Direction.FROM_FABRIC]
        window = next(f for f in run.figures(run.window("first" if vm == "vm0" else "second")) if f.vm == vm)
        assert one.lost == window.lost
        assert one.sent == one.received + one.lost < 20_000
        before, after = run.links[vm]
        assert (before.carrier_changes, before.ifindex) == (after.carrier_changes, after.ifindex)
    with pytest.raises(KeyError):
        run.window("third")


def test_a_link_that_goes_down_at_the_sender_is_no_loss_but_unsent(bench: Bench, session: TrafficSession) -> None:
    session.start(20)
    time.sleep(0.3)
    gate.run(["ip", "-n", bench.sender_ns, "link", "set", "veth-tx", "down"])
    time.sleep(0.2)
    gate.run(["ip", "-n", bench.sender_ns, "link", "set", "veth-tx", "up"])
    time.sleep(0.3)
    run = session.finish(stop=True)
    flows = [f for f in run.figures() if f.direction is Direction.FROM_FABRIC]
    for f, trace in zip(flows, run.traces, strict=False):
        assert f.unsent > 0
        assert f.gap_us >= 200_000
        assert f.sent + f.unsent == len(trace.sender.lateness_us)
    assert any(after.carrier_changes > before.carrier_changes for before, after in run.links.values())


def test_no_path_is_said_before_anything_starts(bench: Bench, session: TrafficSession) -> None:
    gate.run(["ip", "-n", bench.sender_ns, "link", "set", "veth-tx", "down"])
    with pytest.raises(HostError) as raised:
        session.start(5)
    assert raised.value.code == "TRAFFIC_NO_PATH"
    assert "vm0 to fabric" in raised.value.what
    assert bench.sender.hello()["memory"] == str(48 << 20)  # no flow was made


def test_nothing_is_left_when_a_bench_is_interrupted() -> None:
    pids = []
    with pytest.raises(KeyboardInterrupt), selftest.bench() as bench:
        pids = [int(agent.hello()["pid"]) for agent in (bench.sender, bench.receiver)]
        raise KeyboardInterrupt
    assert namespaces_left() == []
    assert [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()] == []


def cli() -> typer.Typer:
    app = typer.Typer()
    app.command()(traffic)
    return app


def test_the_command_proves_itself_in_json() -> None:
    result = CliRunner().invoke(cli(), ["--self-test", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["schema_version"] == 1
    assert said["passed"] is True
    assert len(said["checks"]) == 8
    assert namespaces_left() == []


def test_the_command_without_a_lab() -> None:
    result = CliRunner().invoke(cli(), ["--name", "no-such-lab"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.code == "LAB_NOT_UP"
    assert result.exception.next == "upgrade lab up --name no-such-lab"
