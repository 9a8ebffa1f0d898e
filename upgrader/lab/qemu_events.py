"""What QEMU says of a guest's vhost-user connections while something happens, by libvirt's own command line."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError
from upgrader.lab.libvirtd import virsh
from upgrader.lab.spec import LabSpec

_SUBSCRIBED_S: Final = 20.0
_ECHO_S: Final = 2.0
_ALL_S: Final = 20.0
_END_S: Final = 5.0
_EVENT: Final = re.compile(
    r"^event NETDEV_VHOST_USER_(LOST|CONNECTED) at (\d+)\.(\d+) for domain '([^']+)': (\{.*\})$", re.M
)


def outages_us(log: str) -> dict[str, float]:
    """By domain the longest time from the loss of the owner to the next connection of one, in us of QEMU's clock."""
    lost: dict[str, int] = {}
    out: dict[str, float] = {}
    for kind, seconds, micros, domain, data in _EVENT.findall(log):
        if json.loads(data).get("role") != "owner":
            continue
        at_us = int(seconds) * 1_000_000 + int(micros)
        if kind == "LOST":
            lost.setdefault(domain, at_us)
        elif domain in lost:
            out[domain] = max(out.get(domain, 0.0), float(at_us - lost.pop(domain)))
    return out


@dataclass(frozen=True, slots=True)
class QemuEvents:
    """A subscription that is known to work."""

    lab: LabSpec
    log: Path
    _process: subprocess.Popen[bytes]

    def outages_us(self, domains: Sequence[str], timeout_s: float = _ALL_S) -> dict[str, float]:
        """How long each of these domains had no owner, once all of them have one again. Raises HostError."""
        got: dict[str, float] = {}

        def complete() -> bool:
            got.update(outages_us(self._text()))
            return got.keys() >= set(domains)

        if not _until(complete, timeout_s):
            missing = ", ".join(sorted(set(domains) - got.keys()))
            raise HostError(
                "EVENTS_INCOMPLETE",
                f"QEMU reported no loss and return of the owner within {timeout_s:g} s for {missing}",
                state="the restart was carried out; the lab is left as it is",
                next=f"upgrade lab status --name {self.lab.name}; the events: {self.log}",
            )
        return {d: got[d] for d in domains}

    def _text(self) -> str:
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def prove(self) -> None:
        """Return once an event made on purpose has come all the way. Raises HostError when none does.

        `virsh qemu-monitor-event` gives no sign of its having subscribed, and what comes before is lost. A network
        backend that no device of the guest uses is made to connect to a socket of ours: QEMU reports that.
        """
        guest = self.lab.guests[0].name
        path = self.lab.directory / "events.sock"
        deadline = time.monotonic() + _SUBSCRIBED_S
        attempt = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            path.unlink(missing_ok=True)
            server.bind(str(path))
            server.listen(16)
            try:
                while self._process.poll() is None and time.monotonic() < deadline:
                    attempt += 1
                    netdev = f"events-{attempt}"
                    backend = {"type": "stream", "server": False, "addr": {"type": "unix", "path": str(path)}}
                    self._qmp(guest, "netdev_add", {"id": netdev, **backend})
                    try:
                        if _until(lambda: f'"netdev-id":"{netdev}"' in self._text(), _ECHO_S):  # noqa: B023 - called at once
                            return
                    finally:
                        self._qmp(guest, "netdev_del", {"id": netdev})
            except CommandError as error:
                raise self._deaf(f"{error}") from error
            finally:
                path.unlink(missing_ok=True)
        ended = self._process.poll()
        said = self._text().strip().splitlines()[-1:]
        raise self._deaf(f"virsh exited with {ended}: {' '.join(said)}" if ended is not None else "no event came")

    def _qmp(self, guest: str, command: str, arguments: dict[str, object]) -> None:
        answer = virsh(
            self.lab, "qemu-monitor-command", guest, json.dumps({"execute": command, "arguments": arguments})
        )
        if "return" not in json.loads(answer):
            raise self._deaf(f"QEMU refused `{command}`: {answer.strip()}")

    def _deaf(self, why: str) -> HostError:
        return HostError(
            "EVENTS_UNHEARD",
            f"the events of the guests' QEMU do not reach us: {why}",
            state="nothing was restarted; the lab is left as it is",
            next=f"virsh -c '{self.lab.libvirt_uri}' qemu-monitor-event --loop",
        )


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


@contextmanager
def qemu_events(lab: LabSpec) -> Iterator[QemuEvents]:
    """Listen to the vhost-user events of every guest of a lab while inside. Raises HostError when they do not come."""
    log = lab.directory / "events.log"
    log.unlink(missing_ok=True)
    argv = ["virsh", "-c", lab.libvirt_uri, "qemu-monitor-event", "--loop", "--regex"]
    process = gate.spawn(["stdbuf", "-oL", *argv, "--event", "NETDEV_(VHOST_USER|STREAM)_.*"], output=log)
    try:
        events = QemuEvents(lab, log, process)
        events.prove()
        yield events
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        if process.poll() is None:
            process.kill()
            process.wait()
