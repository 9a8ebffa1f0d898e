"""The listener's process: it tells the daemon that something has happened to a VM, so that it need not be found by looking.

It ends with the daemon, however that ends; where it ends by itself another one is started. Without it the daemon looks
every two seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

_AGAIN_S = 5.0


class VmEvents:
    """`tell` is called from a thread of its own, until `close`."""

    def __init__(self, uri: str, tell: Callable[[], None]) -> None:
        self._argv = [sys.executable, "-m", "upgrader.daemon.vm_events", uri]
        self._tell = tell
        self._end = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="vm-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join()

    def _keep(self) -> None:
        while not self._end.is_set():
            with subprocess.Popen(
                self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as self._process:
                if self._end.is_set():
                    self._process.kill()
                while self._process.stdout and self._process.stdout.read(1):
                    self._tell()
                self._process.kill()
            self._end.wait(_AGAIN_S)


def main() -> None:
    """Entry point; the argument is the URI. A byte on stdout for each event; the end of stdin is that of the daemon."""
    from upgrader.adapters.libvirt_events import listen  # noqa: PLC0415 - libvirt is no part of the daemon's side

    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    listen(sys.argv[1], lambda: os.write(1, b"."))


def _end_with_the_daemon() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
