"""Telling systemd how a service does: sd_notify(3)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send e.g. ``READY=1`` to whom NOTIFY_SOCKET names; nothing where nobody asked."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


def watchdog_s() -> float | None:
    """How often systemd wants to hear of us (half of WatchdogSec), None where it does not."""
    usec = os.environ.get("WATCHDOG_USEC")
    if not usec or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 1e6 / 2
