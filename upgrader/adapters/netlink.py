"""Sockets in another network namespace, without a fork.

pyroute2 forks a helper to make a socket in a namespace. A helper is a copy of us: a Ctrl-C that reaches it unwinds our
stack a second time, undo and all. Here a thread enters the namespace, makes the socket and ends; the socket stays
where it was made (network_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE = 0
_ANSWER_S = 2
_ERROR = 2  # NLMSG_ERROR
_CHUNK = 1 << 16


@contextmanager
def netlink(netns: str | None) -> Iterator[IPRoute]:
    """An rtnetlink connection in the named namespace (None: ours).

    Raises FileNotFoundError when there is no such namespace, OSError when it cannot be entered.
    """
    if netns is None:
        with IPRoute() as ipr:
            yield ipr
        return
    with route_socket(netns) as sock, IPRoute(use_socket=sock) as ipr:
        yield ipr


def route_socket(netns: str | None) -> socket.socket:
    """An rtnetlink socket in the named namespace (None: ours), unbound. Raises as `netlink` does."""
    return socket_in(netns, socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_ROUTE)


class Requests:
    """Messages that were built beforehand, on one rtnetlink socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _ANSWER_S, 0))
        self._socket = sock
        self._sequence = 0

    def send(self, messages: list[bytes]) -> None:
        """Send them in one go and read the kernel's answer to each. Raises OSError with the first refusal."""
        if not messages:
            return
        first = self._sequence + 1
        self._sequence += len(messages)
        batch = bytearray().join(messages)
        start = 0
        for number, m in enumerate(messages, first):
            struct.pack_into("=I", batch, start + 8, number)
            start += len(m)
        self._socket.send(batch)
        refused = 0
        left = len(messages)
        while left:
            answer = self._socket.recv(8192)
            (number, code) = struct.unpack_from("=I4xi", answer, 8)  # struct nlmsghdr, then struct nlmsgerr
            if first <= number <= self._sequence:  # else the late answer to a request that was given up
                left -= 1
                refused = refused or -code
        if refused:
            raise OSError(refused, os.strerror(refused))

    def ask(self, message: bytes) -> bytes:
        """Send one message and read the kernel's one answer, whole. Raises OSError with its refusal."""
        self._sequence += 1
        asked = bytearray(message)
        struct.pack_into("=I", asked, 8, self._sequence)
        self._socket.send(asked)
        while True:
            answer = self._socket.recv(_CHUNK)
            kind, number, code = struct.unpack_from(
                "=4xH2xI4xi", answer
            )  # struct nlmsghdr, then perhaps struct nlmsgerr
            if number != self._sequence:
                continue  # the late answer to a request that was given up
            if kind == _ERROR:
                raise OSError(-code, os.strerror(-code))
            return answer


def socket_in(netns: str | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of that family, type and protocol in the named namespace (None: ours). Raises as `netlink` does."""
    if netns is None:
        return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            namespace = os.open(_NETNS / netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(namespace, _CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), f"setns {netns}")
                made.append(socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol))
            finally:
                os.close(namespace)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name=f"netns-{netns}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
