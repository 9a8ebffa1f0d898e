"""The client against agents that are slow, broken, or lie."""

from __future__ import annotations

import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from upgrader.lab.traffic.protocol import Agent, AgentError

Answer = Callable[[str, str], bytes | None]  # (identifier, request) -> what to say; None: hang up


@contextmanager
def fake_agent(tmp_path: Path, answer: Answer) -> Iterator[Path]:
    """Listen where QEMU would, and answer each request."""
    path = tmp_path / "vm0.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client, client.makefile("r") as lines:
                for line in lines:
                    found = re.match(r"pktflow/1 id=(\w+) (cmd=.*)", line)
                    if not found:
                        continue
                    said = answer(found[1], found[2])
                    if said is None:
                        break
                    client.sendall(said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield path
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def ok(identifier: str, words: str = "") -> bytes:
    return f"pktflow/1 id={identifier} ok=1 {words}\n".encode()


def bulk(identifier: str, data: bytes, crc32: int | None = None) -> bytes:
    return ok(identifier, f"length={len(data)} crc32={zlib.crc32(data) if crc32 is None else crc32:08x}") + data


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as raised:
        Agent.connect("vm0", tmp_path / "none.sock")
    assert raised.value.code == "AGENT_UNREACHABLE"
    assert raised.value.next


def test_an_agent_that_says_nothing(tmp_path: Path) -> None:
    with fake_agent(tmp_path, lambda _i, _r: b"") as path, pytest.raises(AgentError) as raised:
        Agent.connect("vm0", path, timeout_s=0.2)
    assert raised.value.code == "AGENT_SILENT"


def test_an_agent_that_hangs_up(tmp_path: Path) -> None:
    with fake_agent(tmp_path, lambda _i, _r: None) as path, pytest.raises(AgentError) as raised:
        Agent.connect("vm0", path)
    assert raised.value.code == "AGENT_UNREACHABLE"


def test_the_rest_of_an_earlier_exchange_is_passed_over(tmp_path: Path) -> None:
    earlier = b"\x00\xffpktflow/1 id=0123456789abcdef ok=1 mono_ns=1\n" + bytes(range(256)) * 40

    def answer(identifier: str, request: str) -> bytes:
        return (earlier if request == "cmd=hello" else b"") + ok(identifier, "mono_ns=42 real_ns=43 version=1")

    with fake_agent(tmp_path, answer) as path:
        agent = Agent.connect("vm0", path)
        assert agent.clock().agent_ns == 42
        agent.close()


def test_a_refusal_is_told_in_the_agents_words(tmp_path: Path) -> None:
    def answer(identifier: str, request: str) -> bytes:
        if request == "cmd=hello":
            return ok(identifier)
        return f"pktflow/1 id={identifier} ok=0 error=no such interface\n".encode()

    with fake_agent(tmp_path, answer) as path:
        agent = Agent.connect("vm0", path)
        with pytest.raises(AgentError, match="no such interface") as raised:
            agent.link("eth7")
        assert raised.value.code == "AGENT_REFUSED"
        agent.close()


@pytest.mark.parametrize("spoilt", [1, 2, 99])
def test_records_damaged_on_the_way_are_asked_for_again(tmp_path: Path, spoilt: int) -> None:
    times = iter(range(1000))
    data = bytes(range(200)) * 100

    def answer(identifier: str, request: str) -> bytes:
        if "cmd=status" in request:
            words = "kind=send rate_pps=1000 start_ns=5 refused=0 last_errno=0"
            return ok(identifier, f"{words} bytes={len(data)}")
        if "cmd=fetch" in request:
            return bulk(identifier, data, crc32=0 if next(times) < spoilt else None)
        return ok(identifier)

    with fake_agent(tmp_path, answer) as path:
        agent = Agent.connect("vm0", path)
        if spoilt == 99:
            with pytest.raises(AgentError) as raised:
                agent.sender_record(1)
            assert raised.value.code == "AGENT_GARBLED"
        else:
            assert agent.sender_record(1).lateness_us.tobytes() == data
        agent.close()


@pytest.mark.parametrize("words", ["length=5", "length=x crc32=0", "length=3 crc32=zz"])
def test_a_bulk_without_sense(tmp_path: Path, words: str) -> None:
    def answer(identifier: str, request: str) -> bytes:
        if "cmd=status" in request:
            return ok(identifier, "rate_pps=1 start_ns=5 refused=0 last_errno=0 bytes=4")
        return ok(identifier, words if "cmd=fetch" in request else "")

    with fake_agent(tmp_path, answer) as path:
        agent = Agent.connect("vm0", path, timeout_s=0.3)
        with pytest.raises(AgentError) as raised:
            agent.sender_record(1)
        assert raised.value.code == "AGENT_GARBLED"
        agent.close()


def test_half_a_clock_round_trip_is_the_error(tmp_path: Path) -> None:
    with fake_agent(tmp_path, lambda i, _r: ok(i, "mono_ns=1000 real_ns=1")) as path:
        agent = Agent.connect("vm0", path)
        sample = agent.clock()
        agent.close()
    assert sample.agent_ns == 1000
    assert 0 < sample.error_ns < 5_000_000_000
