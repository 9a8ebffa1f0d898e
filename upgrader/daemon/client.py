"""Speaking to the daemon; starting one where none runs."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from upgrader.core.errors import HostError, UpgradeError
from upgrader.daemon.protocol import RemoteError, Stream, encode, peer_pid, read

_START_S = 30.0
_TAKEOVER_S = 3.0
_ANSWER_S = 10.0


class Client:
    """One connection. Every method of `upgrader.daemon.server` is asked for by `call`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = connection.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def call(self, method: str, *, within_s: float | None = None, **params: Any) -> dict[str, Any]:
        """One request and its answer. Raises RemoteError for a refusal, HostError when the daemon is gone.

        Or, with `within_s`, when it does not answer in that time: one that hangs still has its socket. Then this
        connection is of no use any more.
        """
        self._socket.settimeout(within_s)
        try:
            self._socket.sendall(encode({"method": method, "params": params}))
            answer = read(cast("Stream", self._stream))
        except TimeoutError as error:
            raise _hangs(peer_pid(self._socket), within_s or 0.0) from error
        except OSError as error:
            raise _gone(str(error)) from error
        if answer is None:
            raise _gone("it closed the connection")
        if "error" in answer:
            raise RemoteError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def ping(self) -> bool:
        """Whether it carries a run out. Raises HostError when it does not answer."""
        return bool(self.call("ping", within_s=_ANSWER_S)["busy"])

    def alive(self, wait_s: float = 0.0) -> bool:
        """Whether the daemon is still there; waits for its end for so long."""
        readable, _, _ = select.select([self._socket], [], [], wait_s)
        return not readable  # it sends nothing unasked, so this is the end


def connect(path: Path) -> Client | None:
    """A connection to the daemon that listens there, None where none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise HostError(
            "DAEMON_UNREACHABLE",
            f"the daemon's socket {path}: {error.strerror}",
            state="nothing was changed",
            next=f"ls -l {path}; systemctl status ovs-upgraded",
        ) from error
    return Client(connection)


def ensure(path: Path, config: Path) -> Client:
    """A connection to the daemon; where none runs one is started, which outlives us and ends when it has nothing to do.

    Raises what it says when it cannot start: LockedError's exit code where another one holds the host.
    """
    # late: who only asks one that runs has no use for it
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed  # noqa: PLC0415

    # one that lingered may be about to end: it answers no more, and holds the host for a moment yet
    for attempt in Retrying(
        retry=retry_if_exception(_may_pass), stop=stop_after_delay(_TAKEOVER_S), wait=wait_fixed(0.05), reraise=True
    ):
        with attempt:
            if (client := connect(path)) is not None:
                client.ping()
                return client
            _start(config)
            if (client := connect(path)) is not None:
                client.ping()
                return client
            raise _gone("it was started and does not listen")
    raise AssertionError("tenacity ends by a result or an error")


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, UpgradeError) and error.code in ("DAEMON_GONE", "HOST_LOCKED")


def _start(config: Path) -> None:
    """Start a daemon in a session of its own, and wait until it says that it is ready, or why not."""
    told, tell = os.pipe()
    try:
        argv = [
            sys.executable,
            "-m",
            "upgrader.daemon.service",
            "--config",
            str(config),
            "--linger",
            "--tell",
            str(tell),
        ]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(tell,),
        )
        os.close(tell)
        tell = -1
        ready, _, _ = select.select([told], [], [], _START_S)
        words = os.read(told, 65536) if ready else b""
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    if not words:
        code = process.poll()
        raise _gone(
            f"it ended with {code} as it started" if code is not None else f"it was not ready in {_START_S:g} s"
        )
    answer = json.loads(words)
    if "error" in answer:
        raise RemoteError(answer["error"])


def _hangs(pid: int, within_s: float) -> UpgradeError:
    return HostError(
        "DAEMON_HANGS",
        f"the coordinator (pid {pid}) does not answer within {within_s:g} s",
        state="every VM is served by the switch that owns its rings; this command changed nothing",
        next=f"kill -9 {pid}   (no VM notices that), then: upgrade status",
    )


def _gone(how: str) -> UpgradeError:
    return HostError(
        "DAEMON_GONE",
        f"the coordinator is not there: {how}",
        state="every VM is served by the switch that owns its rings; the journal tells how far a run came",
        next="upgrade status",
    )
