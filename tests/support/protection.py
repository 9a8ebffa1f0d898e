"""A lab's host that is armed, and whose switches die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.killing import coordinator_pid, verb, wait_until
from tests.support.lab_host import LabHost
from upgrader.adapters import gate
from upgrader.core.model import SlotName
from upgrader.lab.up import Lab


@contextmanager
def takeover_policy(lab: Lab, policy: str, *, max_per_hour: int = 1000) -> Iterator[None]:
    """The lab's configuration with a [takeover] section, while inside."""
    before = lab.config_path.read_text()
    lab.config_path.write_text(f'{before}\n[takeover]\npolicy = "{policy}"\nmax_per_hour = {max_per_hour}\n')
    try:
        yield
    finally:
        lab.config_path.write_text(before)


def protection(lab: Lab) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(verb(lab, "status", "--json").stdout)["protection"]
    return told


def await_state(lab: Lab, state: str, timeout_s: float = 60.0) -> float:
    """Return once `status` says so; how long that took, seconds."""
    started = time.monotonic()
    last: dict[str, Any] = {}

    def there() -> bool:
        last.update(protection(lab))
        return bool(last["state"] == state)

    try:
        wait_until(there, state, timeout_s, poll_s=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last}") from error
    return time.monotonic() - started


def kill_active(host: LabHost, active: SlotName) -> int:
    """SIGKILL; returns CLOCK_MONOTONIC, ns, at that moment."""
    pid = host.pid(active)
    assert pid is not None
    at = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return at


def kill_coordinator(host: LabHost) -> None:
    pid = coordinator_pid(host)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end")


def restart_vm(lab: Lab, name: str) -> None:
    """End a guest's QEMU and start another one, as a person does it."""
    virsh = ["virsh", "-c", lab.spec.libvirt_uri]
    xml = lab.spec.directory / "vm.xml"
    xml.write_text(gate.run([*virsh, "dumpxml", name]).stdout)
    gate.run([*virsh, "destroy", name])
    gate.run([*virsh, "create", str(xml)], timeout_s=60)


@contextmanager
def daemon(lab: Lab) -> Iterator[None]:
    """The daemon, started by hand, which is told to end at the end."""
    argv = [sys.executable, "-m", "upgrader.daemon.service", "--config", str(lab.config_path)]
    host = LabHost(lab)
    process = subprocess.Popen(argv)
    try:
        wait_until(lambda: coordinator_pid(host) == process.pid, "the daemon", 20)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
