"""`ovs-upgraded` as systemd starts it: in the foreground, telling whoever listens at NOTIFY_SOCKET how it does."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.sim_host import DEADLINE_S


class Service:
    """One daemon, from `with` to its end."""

    def __init__(
        self, config: Path, *arguments: str, stderr: int = subprocess.DEVNULL, env: Mapping[str, str] | None = None
    ) -> None:
        self._argv = [sys.executable, "-m", "upgrader.daemon.service", "--config", str(config), *arguments]
        self._stderr = stderr
        self._env = {**os.environ, **(env or {})}
        self._folder = tempfile.TemporaryDirectory()
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = str(Path(self._folder.name) / "notify")
        self._notified.bind(address)
        self._env["NOTIFY_SOCKET"] = address

    def __enter__(self) -> Service:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._stderr, env=self._env
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._notified.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        return self._process.pid

    def says(self, within_s: float) -> str | None:
        """The next word to systemd, None where it says nothing for so long."""
        if not select.select([self._notified], [], [], within_s)[0]:
            return None
        return self._notified.recv(4096).decode()

    def ready(self) -> None:
        said = self.says(DEADLINE_S)
        assert said == "READY=1", said

    def silent_for(self, seconds: float) -> bool:
        """Whether it says nothing for so long, once what it has said before is read."""
        while self.says(0) is not None:
            pass
        return self.says(seconds) is None

    def sends(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self, number: int) -> int:
        """Its exit code after that signal."""
        self.sends(number)
        return self._process.wait(DEADLINE_S)

    def waits(self) -> int:
        """Its exit code, when it ends by itself."""
        return self._process.wait(DEADLINE_S)
