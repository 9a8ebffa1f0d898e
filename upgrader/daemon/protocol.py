"""How the daemon and its clients speak: one JSON object a line, over a unix socket that only root can open.

    -> {"version": 1, "method": "run", "params": {"plan": …}}
    <- {"version": 1, "result": {"run_id": 7}}       or       {"version": 1, "error": {code, what, state, next, exit}}

A connection takes any number of requests, one after the other. It ends when the daemon does: a client that follows a run
learns of the daemon's death by that.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Protocol

from upgrader.core.errors import Exit, UpgradeError

VERSION = 1
MAX_LINE = 64 * 1024 * 1024  # a plan of thousands of VMs is some megabytes
_UCRED = struct.Struct("3i")  # unix(7): pid, uid, gid


class RemoteError(UpgradeError):
    """An error of the daemon's, as it was there."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields["code"], fields["what"], state=fields["state"], next=fields["next"])
        self.exit_code = Exit(fields["exit"])


class Stream(Protocol):
    """The half of a binary file that a line is read from."""

    def readline(self, size: int = ..., /) -> bytes: ...


def error_fields(error: UpgradeError) -> dict[str, Any]:
    return {
        "code": error.code,
        "what": error.what,
        "state": error.state,
        "next": error.next,
        "exit": int(error.exit_code),
    }


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **message}).encode() + b"\n"


def read(stream: Stream) -> dict[str, Any] | None:
    """The next message, None at the end. Raises UpgradeError for what is no message of this version."""
    line = stream.readline(MAX_LINE + 1)
    if not line:
        return None
    try:
        message = json.loads(line)
    except ValueError as error:
        raise _unreadable(f"no JSON object on a line: {error}") from error
    if not isinstance(message, dict):
        raise _unreadable("no JSON object on a line")
    if message.get("version") != VERSION:
        raise UpgradeError(
            "PROTOCOL_VERSION",
            f"the other side speaks version {message.get('version')}, this one {VERSION}",
            state="nothing was changed",
            next="systemctl restart ovs-upgraded   (no run is lost by that), then the same command again",
        )
    return message


def peer_uid(connection: socket.socket) -> int:
    """User at the other end, by the kernel's word (SO_PEERCRED)."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Process at the other end; of a listener the one that has called listen(2)."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid), int(uid), int(gid)


def _unreadable(what: str) -> UpgradeError:
    return UpgradeError("PROTOCOL_ERROR", what, state="nothing was changed", next="upgrade status")
