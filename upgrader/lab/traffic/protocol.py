"""Client of the traffic agent `pktflow`, over a guest's virtio-serial socket or a child's pipes.

The format is described at the top of `pktflow.c`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import subprocess
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from upgrader.adapters import gate
from upgrader.core.errors import HostError
from upgrader.lab.traffic.analysis import ClockSample, ReceiverRecord, SenderRecord

PROTOCOL = "pktflow/1"
CHUNK_BYTES = 64 << 10
FETCH_TRIES = 3


class AgentError(HostError):
    """An agent could not be reached, refused a request, or answered what cannot be understood."""

    def __init__(self, code: str, agent: str, what: str, *, next: str) -> None:  # noqa: A002 - the tree's own word
        super().__init__(
            code,
            f"traffic agent {agent}: {what}",
            state="traffic only: nothing of the host was changed",
            next=next,
        )


class Transport(Protocol):
    """A byte stream in both directions."""

    def send(self, data: bytes, deadline_s: float) -> None:
        """Write all of it; TimeoutError past `deadline_s` (time.monotonic), OSError when nobody is there."""

    def receive(self, deadline_s: float) -> bytes:
        """Read what there is, at least one byte; the same errors."""

    def close(self) -> None:
        """Let go of the other end."""


def _wait(fd: int, deadline_s: float, *, write: bool) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLOUT if write else select.POLLIN)
    if not poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
        raise TimeoutError


class SocketTransport:
    """The unix socket at which QEMU puts the guest's end of a virtio-serial port. One client at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(5)
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def send(self, data: bytes, deadline_s: float) -> None:
        while data:
            _wait(self._socket.fileno(), deadline_s, write=True)
            data = data[self._socket.send(data) :]

    def receive(self, deadline_s: float) -> bytes:
        _wait(self._socket.fileno(), deadline_s, write=False)
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed at the other end")
        return data

    def close(self) -> None:
        self._socket.close()


class ProcessTransport:
    """An agent of our own, on the pipes of a child process. It ends with us: its stdin closes."""

    def __init__(self, argv: Sequence[str], netns: str | None = None) -> None:
        self.process: subprocess.Popen[bytes] = gate.spawn(argv, netns=netns, stdin_pipe=True, stdout_pipe=True)
        assert self.process.stdin
        assert self.process.stdout
        self._stdin = self.process.stdin.fileno()
        self._stdout = self.process.stdout.fileno()
        os.set_blocking(self._stdin, False)

    def send(self, data: bytes, deadline_s: float) -> None:
        while data:
            _wait(self._stdin, deadline_s, write=True)
            data = data[os.write(self._stdin, data) :]

    def receive(self, deadline_s: float) -> bytes:
        _wait(self._stdout, deadline_s, write=False)
        data = os.read(self._stdout, 1 << 16)
        if not data:
            raise ConnectionResetError(f"the agent process ended with {self.process.poll()}")
        return data

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True, slots=True)
class LinkState:
    """A guest's interface as its own kernel sees it.

    A second look tells whether the guest felt anything: a carrier that flapped, a NIC that was probed anew
    (`ifindex`), counters that began again, a reboot (`uptime_ns`).
    """

    ifindex: int
    carrier: bool
    carrier_changes: int
    carrier_up: int
    carrier_down: int
    mac: str
    rx_packets: int
    tx_packets: int
    rx_dropped: int
    tx_dropped: int
    uptime_ns: int


class Agent:
    """One agent. Every method is one exchange; errors are AgentError. Not for two threads at once."""

    def __init__(self, name: str, transport: Transport, *, timeout_s: float = 5.0) -> None:
        self.name = name
        self._transport = transport
        self._timeout_s = timeout_s
        self._buffer = b""
        self._dirty = True  # what the other end still has to say belongs to an earlier client, until `hello` answers

    @classmethod
    def connect(cls, name: str, path: Path, *, timeout_s: float = 10.0) -> Agent:
        """Reach a guest's agent through its virtio-serial socket; wait up to `timeout_s` for its first word."""
        try:
            transport = SocketTransport(path)
        except OSError as error:
            raise AgentError(
                "AGENT_UNREACHABLE",
                name,
                f"nothing answers at {path} ({error.strerror or error})",
                next="upgrade lab status",
            ) from error
        return cls._greet(cls(name, transport, timeout_s=timeout_s))

    @classmethod
    def spawn(cls, name: str, argv: Sequence[str], *, netns: str | None = None) -> Agent:
        """Start an agent as a child process, in the named network namespace if there is a name."""
        return cls._greet(cls(name, ProcessTransport(argv, netns)))

    @staticmethod
    def _greet(agent: Agent) -> Agent:
        try:
            agent.hello()
        except AgentError:
            agent.close()
            raise
        return agent

    def close(self) -> None:
        """Let go of the agent; one of our own ends, one in a guest goes on and keeps its records."""
        self._transport.close()

    # -- requests

    def hello(self) -> Mapping[str, str]:
        """Version, pid, memory left (bytes), scheduling."""
        return self._request("hello")[0]

    def clock(self) -> ClockSample:
        """One reading of the agent's CLOCK_MONOTONIC beside ours; half the round trip is the error."""
        before = time.monotonic_ns()
        fields, _ = self._request("clock")
        after = time.monotonic_ns()
        return ClockSample(
            host_ns=(before + after) // 2, agent_ns=int(fields["mono_ns"]), error_ns=(after - before + 1) // 2
        )

    def link(self, interface: str) -> LinkState:
        """The state of an interface where the agent runs."""
        f, _ = self._request("link", {"if": interface})
        return LinkState(
            ifindex=int(f["ifindex"]),
            carrier=f["carrier"] == "1",
            carrier_changes=int(f["carrier_changes"]),
            carrier_up=int(f["carrier_up"]),
            carrier_down=int(f["carrier_down"]),
            mac=f["mac"],
            rx_packets=int(f["rx_packets"]),
            tx_packets=int(f["tx_packets"]),
            rx_dropped=int(f["rx_dropped"]),
            tx_dropped=int(f["tx_dropped"]),
            uptime_ns=int(f["uptime_ns"]),
        )

    def ping(self, address: IPv4Address, *, timeout_ms: int = 1000) -> int | None:
        """Send one ICMP echo; the round trip in us as the agent's loop saw it, None without an answer."""
        f, _ = self._request("ping", {"dst": address, "timeout_ms": timeout_ms}, wait_s=timeout_ms / 1000)
        return int(f["rtt_us"]) if f["reachable"] == "1" else None

    def receive_flow(
        self, flow: int, port: int, *, records: int, duration_ms: int, receive_buffer_bytes: int | None = None
    ) -> None:
        """Record what arrives at a UDP port, from now on and for `duration_ms` at most."""
        arguments: dict[str, object] = {"flow": flow, "port": port, "records": records, "duration_ms": duration_ms}
        if receive_buffer_bytes is not None:
            arguments["rcvbuf"] = receive_buffer_bytes
        self._request("recv", arguments)

    def send_flow(
        self,
        flow: int,
        address: IPv4Address,
        port: int,
        *,
        rate_pps: int,
        duration_ms: int,
        payload_bytes: int = 64,
        late_us: int = 1000,
    ) -> None:
        """Prepare a sender; `go` starts it. `late_us`: from when on a packet counts as late."""
        arguments: dict[str, object] = {
            "flow": flow,
            "dst": address,
            "port": port,
            "rate_pps": rate_pps,
            "duration_ms": duration_ms,
            "size": payload_bytes,
            "late_us": late_us,
        }
        self._request("send", arguments)

    def go(self, *, in_ms: int = 50) -> int:
        """Start all prepared senders; returns the start in the agent's CLOCK_MONOTONIC."""
        return int(self._request("go", {"in_ms": in_ms})[0]["start_ns"])

    def stop(self, flow: int = 0) -> None:
        """End a flow, or all (0). A sender's packets that were not yet due do not count as scheduled."""
        self._request("stop", {"flow": flow})

    def clear(self) -> None:
        """Forget all flows and their records."""
        self._request("clear")

    def status(self, flow: int) -> Mapping[str, str]:
        """The counters of a flow, as the agent words them."""
        return self._request("status", {"flow": flow})[0]

    def sender_record(self, flow: int) -> SenderRecord:
        """Fetch what an ended sender did."""
        status = self.status(flow)
        return SenderRecord(
            rate_pps=int(status["rate_pps"]),
            start_ns=int(status["start_ns"]),
            lateness_us=SenderRecord.lateness_from(self._fetch(flow, int(status["bytes"]))),
            refused=int(status["refused"]),
            last_errno=int(status["last_errno"]),
        )

    def receiver_record(self, flow: int) -> ReceiverRecord:
        """Fetch what an ended receiver saw."""
        status = self.status(flow)
        sequences, times_ns = ReceiverRecord.columns_from(self._fetch(flow, int(status["bytes"])))
        return ReceiverRecord(
            sequences=sequences,
            times_ns=times_ns,
            own_drops=int(status["queue_drops"]) + int(status["overflow"]),
            strangers=int(status["strangers"]),
            clock_steps=int(status["clock_steps"]),
        )

    # -- exchanges

    def _fetch(self, flow: int, total: int) -> bytes:
        data = bytearray()
        while len(data) < total:
            length = min(CHUNK_BYTES, total - len(data))
            _, chunk = self._request("fetch", {"flow": flow, "offset": len(data), "length": length})
            if not chunk:
                raise self._garbled(f"sent nothing of flow {flow} at {len(data)} of {total} bytes")
            data += chunk
        return bytes(data)

    def _request(
        self, command: str, arguments: Mapping[str, object] | None = None, *, wait_s: float = 0.0
    ) -> tuple[dict[str, str], bytes]:
        tries = FETCH_TRIES if command == "fetch" else 1  # a piece of records may be asked for again
        for left in range(tries, 0, -1):
            deadline_s = time.monotonic() + self._timeout_s + wait_s
            try:
                if self._dirty and command != "hello":
                    self._exchange("hello", {}, deadline_s)
                return self._exchange(command, arguments or {}, deadline_s)
            except TimeoutError as error:
                self._dirty = True
                if left == 1:
                    raise AgentError(
                        "AGENT_SILENT",
                        self.name,
                        f"no answer to `{command}` within {self._timeout_s + wait_s:g} s (a guest that hangs "
                        "or still boots, or another client holds its channel)",
                        next="upgrade lab status",
                    ) from error
            except OSError as error:
                self._dirty = True
                raise AgentError(
                    "AGENT_UNREACHABLE", self.name, f"the channel broke ({error})", next="upgrade lab status"
                ) from error
            except _GarbledError as error:
                self._dirty = True
                if left == 1:
                    raise self._garbled(str(error)) from error
        raise AssertionError("every try returns or raises")

    def _garbled(self, what: str) -> AgentError:
        return AgentError("AGENT_GARBLED", self.name, what, next="upgrade lab traffic")

    def _exchange(
        self, command: str, arguments: Mapping[str, object], deadline_s: float
    ) -> tuple[dict[str, str], bytes]:
        # The identifier is random, so that what is left of an earlier exchange, bulk included, cannot pass for
        # the answer; the empty line in front ends whatever an earlier client left unfinished.
        identifier = secrets.token_hex(8)
        words = [PROTOCOL, f"id={identifier}", f"cmd={command}", *(f"{k}={v}" for k, v in arguments.items())]
        self._transport.send(f"\n{' '.join(words)}\n".encode(), deadline_s)
        mark = f"{PROTOCOL} id={identifier} ok=".encode()
        while (at := self._buffer.find(mark)) < 0:
            self._buffer = self._buffer[-len(mark) :] + self._transport.receive(deadline_s)
        self._buffer = self._buffer[at + len(mark) :]
        while b"\n" not in self._buffer:
            self._buffer += self._transport.receive(deadline_s)
        line, self._buffer = self._buffer.split(b"\n", 1)
        self._dirty = False
        text = line.decode(errors="replace")
        if not text.startswith("1"):
            reason = text.partition("error=")[2] or text
            raise AgentError("AGENT_REFUSED", self.name, f"`{command}`: {reason}", next="upgrade lab status")
        fields = dict(word.partition("=")[::2] for word in text[1:].split())
        if "length" not in fields:
            return fields, b""
        try:
            length, checksum = int(fields["length"]), int(fields["crc32"], 16)
        except (KeyError, ValueError) as error:
            raise _GarbledError(f"no length and checksum in `{text}`") from error
        parts, have = [self._buffer], len(self._buffer)
        while have < length:
            parts.append(self._transport.receive(deadline_s))
            have += len(parts[-1])
        joined = b"".join(parts)
        bulk, self._buffer = joined[:length], joined[length:]
        if zlib.crc32(bulk) != checksum:
            raise _GarbledError(f"the checksum of {length} bytes is wrong")
        return fields, bulk


class _GarbledError(Exception):
    """A reply that was damaged on its way."""
