"""The real agent over this machine's own loopback: bad input, lost hosts, bounded flows. Needs a compiler, no root."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from upgrader.lab.traffic.analysis import Direction, FlowTrace
from upgrader.lab.traffic.build import build_agent
from upgrader.lab.traffic.protocol import Agent, AgentError

LOOPBACK = IPv4Address("127.0.0.1")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def program() -> str:
    return str(build_agent())


@pytest.fixture
def pair(program: str) -> Iterator[tuple[Agent, Agent]]:
    agents = [Agent.spawn(name, [program, "--serve", "-"]) for name in ("sender", "receiver")]
    yield agents[0], agents[1]
    for agent in agents:
        agent.close()


def wait_done(agent: Agent, flow: int, limit_s: float = 20) -> None:
    """Poll until a flow has ended by itself."""
    until = time.monotonic() + limit_s
    while agent.status(flow)["state"] != "done":
        assert time.monotonic() < until, f"flow {flow} never ended"
        time.sleep(0.02)


def test_packets_sent_are_packets_received(pair: tuple[Agent, Agent]) -> None:
    sender, receiver = pair
    port = free_port()
    receiver.receive_flow(9, port, records=10_000, duration_ms=30_000)
    sender.send_flow(9, LOOPBACK, port, rate_pps=2000, duration_ms=500)
    assert sender.status(9)["state"] == "waiting"
    start_ns = sender.go(in_ms=10)
    wait_done(sender, 9)
    receiver.stop(9)
    sent, got = sender.sender_record(9), receiver.receiver_record(9)
    flow = FlowTrace("a", "b", Direction.VM_TO_VM, sent, got)
    assert flow.figures().undisturbed
    assert (sent.start_ns, len(sent.lateness_us), len(got.sequences)) == (start_ns, 1000, 1000)
    # both agents run on this kernel, so both clocks are one: nothing arrives before it left
    for sequence, at_ns in zip(got.sequences, got.times_ns, strict=True):
        assert at_ns >= sent.due_ns(sequence) + sent.lateness_us[sequence] * 1000 - 50_000


def test_many_flows_at_once_and_stop(pair: tuple[Agent, Agent]) -> None:
    sender, receiver = pair
    ports = [free_port() for _ in range(8)]
    for flow, port in enumerate(ports, 1):
        receiver.receive_flow(flow, port, records=100_000, duration_ms=60_000)
        sender.send_flow(flow, LOOPBACK, port, rate_pps=100 * flow, duration_ms=60_000)
    sender.go(in_ms=0)
    time.sleep(0.3)
    sender.stop()
    time.sleep(0.1)
    receiver.stop()
    for flow in range(1, 9):
        record = sender.sender_record(flow)
        got = receiver.receiver_record(flow)
        assert 0 < len(record.lateness_us) < 60 * record.rate_pps
        figures = FlowTrace("a", "b", Direction.VM_TO_VM, record, got).figures()
        assert (figures.sent, figures.lost, got.strangers) == (len(record.lateness_us), 0, 0)


def test_packets_of_another_flow_are_strangers(pair: tuple[Agent, Agent]) -> None:
    sender, receiver = pair
    port = free_port()
    receiver.receive_flow(1, port, records=100, duration_ms=30_000)
    sender.send_flow(2, LOOPBACK, port, rate_pps=1000, duration_ms=50)
    sender.go(in_ms=0)
    wait_done(sender, 2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for junk in (b"", b"x", os.urandom(31), os.urandom(64), os.urandom(1400)):
            other.sendto(junk, (str(LOOPBACK), port))
    time.sleep(0.05)
    receiver.stop()
    record = receiver.receiver_record(1)
    assert (len(record.sequences), record.strangers) == (0, 55)


def test_records_are_bounded_and_what_did_not_fit_is_owned_up_to(pair: tuple[Agent, Agent]) -> None:
    sender, receiver = pair
    port = free_port()
    receiver.receive_flow(1, port, records=30, duration_ms=30_000)
    sender.send_flow(1, LOOPBACK, port, rate_pps=1000, duration_ms=100)
    sender.go(in_ms=0)
    wait_done(sender, 1)
    time.sleep(0.05)
    receiver.stop()
    record = receiver.receiver_record(1)
    assert (len(record.sequences), record.own_drops) == (30, 70)


def test_a_receiver_nobody_ends_ends_by_itself(pair: tuple[Agent, Agent]) -> None:
    _, receiver = pair
    receiver.receive_flow(1, free_port(), records=10, duration_ms=50)
    wait_done(receiver, 1)


def test_nobody_listening_is_noticed_and_does_not_slow_the_sender(pair: tuple[Agent, Agent]) -> None:
    sender, _ = pair
    sender.send_flow(1, LOOPBACK, free_port(), rate_pps=1000, duration_ms=200)
    sender.go(in_ms=0)
    wait_done(sender, 1)
    status = sender.status(1)
    assert (status["sent"], status["unsent"]) == ("200", "0")
    assert int(status["refused"]) > 0


def test_a_stopped_sender_catches_up_and_says_it_was_late(pair: tuple[Agent, Agent]) -> None:
    sender, _ = pair
    pid = int(sender.hello()["pid"])
    sender.send_flow(1, LOOPBACK, free_port(), rate_pps=1000, duration_ms=2000)
    sender.go(in_ms=0)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.3)
    os.kill(pid, signal.SIGCONT)
    wait_done(sender, 1)
    status = sender.status(1)
    assert (status["sent"], status["unsent"]) == ("2000", "0")
    assert int(status["worst_late_ns"]) > 200_000_000
    assert int(status["late"]) > 200


@pytest.mark.parametrize(
    "request_line",
    [
        "cmd=recv flow=1 port=99999 records=10 duration_ms=10",
        "cmd=recv flow=1 port=0 records=10 duration_ms=10",
        "cmd=recv flow=0 port=5 records=10 duration_ms=10",
        "cmd=recv flow=1 port=5 records=-1 duration_ms=10",
        "cmd=recv flow=1 port=5 records=99999999999999999999999 duration_ms=10",
        "cmd=recv flow=1 port=5 records=200000000 duration_ms=10",
        "cmd=send flow=1 dst=nowhere port=5 rate_pps=1 duration_ms=1000",
        "cmd=send flow=1 dst=127.0.0.1 port=5 rate_pps=0 duration_ms=1000",
        "cmd=send flow=1 dst=127.0.0.1 port=5 rate_pps=1 duration_ms=1",
        "cmd=send flow=1 dst=127.0.0.1 port=5 rate_pps=1 duration_ms=1000 size=31",
        "cmd=send flow=1 dst=127.0.0.1 port=5 rate_pps=1 duration_ms=1000 size=9000",
        "cmd=send flow=1 dst=127.0.0.1 port=5 rate_pps=1000000 duration_ms=86400000",
        "cmd=send",
        "cmd=recv",
        "cmd=fetch flow=1 offset=0",
        "cmd=status flow=1",
        "cmd=status",
        "cmd=link",
        "cmd=link if=a-name-that-is-far-too-long-for-one",
        "cmd=ping dst=1.2.3",
        "cmd=go in_ms=x",
        "cmd=nonsense",
        "cmd=a-command-with-a-long-name",
        "flow=1",
        "",
    ],
)
def test_bad_requests_are_refused_with_a_reason(program: str, request_line: str) -> None:
    done = subprocess.run(
        [program, "--serve", "-"],
        input=f"pktflow/1 id=5 {request_line}\npktflow/1 id=6 cmd=clear\n".encode(),
        capture_output=True,
        timeout=10,
        check=False,
    )
    first, second = done.stdout.decode().splitlines()
    assert " ok=0 error=" in first
    assert len(first.partition("error=")[2]) > 5
    assert second.startswith("pktflow/1 id=6 ok=1 memory=50331648")
    assert done.returncode == 0


def test_flows_cannot_be_had_twice_nor_fetched_too_early(pair: tuple[Agent, Agent]) -> None:
    _, receiver = pair
    receiver.receive_flow(1, free_port(), records=10, duration_ms=30_000)
    with pytest.raises(AgentError, match="flow 1 exists"):
        receiver.receive_flow(1, free_port(), records=10, duration_ms=30_000)
    with pytest.raises(AgentError, match="has not ended"):
        receiver._request("fetch", {"flow": 1})
    receiver.stop()
    with pytest.raises(AgentError, match="offset up to 0"):
        receiver._request("fetch", {"flow": 1, "offset": 1})


def test_a_busy_port_is_said(pair: tuple[Agent, Agent]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 0))
        with pytest.raises(AgentError, match="Address already in use"):
            pair[1].receive_flow(1, taken.getsockname()[1], records=10, duration_ms=1000)


def test_no_more_flows_than_there_is_room_for(pair: tuple[Agent, Agent]) -> None:
    sender, _ = pair
    for flow in range(1, 65):
        sender.send_flow(flow, LOOPBACK, 9, rate_pps=1, duration_ms=1000)
    with pytest.raises(AgentError, match="64 flows at most"):
        sender.send_flow(65, LOOPBACK, 9, rate_pps=1, duration_ms=1000)
    sender.clear()
    sender.send_flow(65, LOOPBACK, 9, rate_pps=1, duration_ms=1000)


def noise(rng: random.Random) -> bytes:
    pieces = [
        rng.randbytes(rng.randint(0, 3000)),
        b"\n" * rng.randint(0, 5),
        b"\0" * rng.randint(0, 5),
        b"pktflow/1 id=1 cmd=" + rng.randbytes(8) + b"\n",
        b"pktflow/1 id=zz cmd=hello\n",
        b"pktflow/1 id=1 cmd=recv flow=1 port=" + str(rng.randint(-5, 70000)).encode(),
        b"x" * 5000,
        b"pktflow/1 " * 50 + b"\n",
    ]
    return b"".join(rng.choices(pieces, k=rng.randint(1, 20)))


@pytest.mark.parametrize("seed", range(8))
def test_garbage_on_the_line_neither_hangs_nor_ends_it(program: str, seed: int) -> None:
    rng = random.Random(seed)
    agent = Agent.spawn("agent", [program, "--serve", "-"])
    port = free_port()
    agent.send_flow(7, LOOPBACK, port, rate_pps=500, duration_ms=300)
    agent.go(in_ms=0)
    for _ in range(10):
        agent._transport.send(noise(rng), time.monotonic() + 10)
        hello = agent.hello()
    assert int(hello["garbage"]) > 0
    wait_done(agent, 7)
    assert len(agent.sender_record(7).lateness_us) == 150
    agent.close()


def test_a_host_that_does_not_read_stops_no_sender(program: str) -> None:
    agent = Agent.spawn("agent", [program, "--serve", "-"])
    agent.send_flow(1, LOOPBACK, free_port(), rate_pps=1000, duration_ms=400)
    agent.go(in_ms=0)
    transport = agent._transport
    with pytest.raises(TimeoutError):  # its answers fill the pipe, then its requests do: it takes no more
        while True:
            transport.send(b"pktflow/1 id=1 cmd=hello\n" * 200, time.monotonic() + 0.5)
    time.sleep(0.4)
    poller = select.poll()
    poller.register(transport._stdout, select.POLLIN)  # type: ignore[attr-defined]
    while poller.poll(300):
        transport.receive(time.monotonic() + 1)
    assert (agent.status(1)["state"], agent.status(1)["sent"]) == ("done", "400")
    agent.close()


def test_the_end_of_stdin_is_the_end_of_it(program: str) -> None:
    with subprocess.Popen([program, "--serve", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        port = free_port()
        process.stdin.write(
            f"pktflow/1 id=1 cmd=send flow=1 dst=127.0.0.1 port={port} rate_pps=10 duration_ms=60000\n"
            "pktflow/1 id=2 cmd=go in_ms=0\n".encode()
        )
        process.stdin.close()
        assert process.wait(5) == 0


class Line:
    """A serial line: the agent keeps the name, we come and go behind it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.host = -1

    def plug(self) -> None:
        self.host, guest = pty.openpty()
        os.set_blocking(self.host, False)
        new = self._path.with_suffix(".new")
        new.symlink_to(os.ttyname(guest))
        new.rename(self._path)
        self._guest = guest

    def unplug(self) -> None:
        os.close(self.host)
        os.close(self._guest)

    def send(self, data: bytes, deadline_s: float) -> None:
        while data:
            select.select([], [self.host], [], max(0, deadline_s - time.monotonic()))
            data = data[os.write(self.host, data) :]

    def receive(self, deadline_s: float) -> bytes:
        if not select.select([self.host], [], [], max(0, deadline_s - time.monotonic()))[0]:
            raise TimeoutError
        return os.read(self.host, 1 << 16)

    def close(self) -> None:
        self.unplug()


def test_a_line_that_is_cut_and_comes_back(program: str, tmp_path: Path) -> None:
    """Cut in the middle of a request, in the middle of a reply; a flow goes on to its end meanwhile and no further."""
    line = Line(tmp_path / "port")
    with subprocess.Popen([program, "--serve", str(tmp_path / "port")]) as process:
        try:
            line.plug()
            agent = Agent("agent", line)
            agent.send_flow(1, LOOPBACK, free_port(), rate_pps=10_000, duration_ms=500)
            agent.go(in_ms=0)
            line.send(b"pktflow/1 id=ab cmd=sta", time.monotonic() + 1)
            line.unplug()
            line.plug()
            agent = Agent("agent", line)
            wait_done(agent, 1)
            for _ in range(3):
                line.send(b"\npktflow/1 id=ab cmd=fetch flow=1 offset=0\n", time.monotonic() + 1)
                line.receive(time.monotonic() + 5)
                line.unplug()
                line.plug()
                agent = Agent("agent", line)
                assert agent.status(1)["sent"] == "5000"
            assert len(agent.sender_record(1).lateness_us) == 5000
        finally:
            process.terminate()
            process.wait(5)
            line.unplug()


@pytest.mark.parametrize("argv", [[], ["--serve"], ["--what", "1"], ["--serve", "-", "--memory-mib", "0"]])
def test_wrong_arguments(program: str, argv: list[str]) -> None:
    done = subprocess.run([program, *argv], capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=5)
    assert done.returncode == 2
    assert b"usage" in done.stderr
