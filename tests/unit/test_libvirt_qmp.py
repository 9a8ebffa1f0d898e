"""How a standby's socket comes to QEMU: as a descriptor through libvirt, or, where that hands none on, by its path."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.libvirt_qmp import LibvirtQmp, _runs_as_root
from upgrader.core.model import VmPort


class Monitor:
    """A libvirtd of some version, and the monitor of its one VM: it answers, and keeps what it was told."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.told: list[tuple[str, Any, int]] = []

    def isAlive(self) -> bool:  # noqa: N802 - libvirt's names
        return True

    def getLibVersion(self) -> int:  # noqa: N802
        return self.version

    def lookupByUUIDString(self, _uuid: str) -> Monitor:  # noqa: N802
        return self

    def name(self) -> str:
        return "vm0"

    def command(self, _domain: Any, text: str, _flags: int) -> str:
        message = json.loads(text)
        self.told.append((message["execute"], message["arguments"], 0))
        return json.dumps({"return": []})

    def with_files(self, _domain: Any, text: str, files: list[int], _flags: int) -> tuple[str, list[Any]]:
        message = json.loads(text)
        self.told.append((message["execute"], message["arguments"], len(files)))
        return json.dumps({"return": {}}), []


@pytest.fixture
def monitor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Monitor:
    it = Monitor(request.param)
    monkeypatch.setattr(libvirt, "open", lambda _uri: it)
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", it.command)
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommandWithFiles", it.with_files)
    return it


def attach(path: Path) -> None:
    port = VmPort("vm0", "uuid", "mac", path, "hostnet0", "charnet0", "vhu0", 10, 100, None)
    listener = HostResources().listen(path)
    try:
        LibvirtQmp("uri").attach_standby(port, "hotup-b-hostnet0", listener, os.getpid())
    finally:
        os.close(listener)


def backend_of(monitor: Monitor) -> Any:
    ((added, _),) = [(a, f) for command, a, f in monitor.told if command == "chardev-add"]
    return added["backend"]["data"]


@pytest.mark.parametrize("monitor", [8_002_000, 9_000_000], indirect=True)
def test_libvirt_hands_the_socket_over(monitor: Monitor, tmp_path: Path) -> None:
    attach(tmp_path / "vhu0")
    assert ("getfd", {"fdname": "hotup-b-hostnet0-socket"}, 1) in monitor.told
    assert backend_of(monitor)["addr"] == {"type": "fd", "data": {"str": "hotup-b-hostnet0-socket"}}


@pytest.mark.parametrize("monitor", [7_000_000, 8_001_000], indirect=True)
def test_an_older_one_cannot_and_qemu_binds_the_path(monitor: Monitor, tmp_path: Path) -> None:
    attach(tmp_path / "vhu0")
    assert "getfd" not in [command for command, _, _ in monitor.told]
    assert backend_of(monitor)["addr"] == {"type": "unix", "data": {"path": str(tmp_path / "vhu0")}}
    assert backend_of(monitor)["server"] is True


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("<seclabel type='dynamic' model='dac'><label>+0:+0</label></seclabel>", True),
        ("<seclabel type='dynamic' model='dac'><label>+64055:+108</label></seclabel>", False),
        ("<seclabel type='dynamic' model='apparmor'><label>libvirt-1</label></seclabel>", None),
        ("", None),
    ],
)
def test_who_qemu_runs_as(labels: str, expected: bool | None) -> None:
    assert _runs_as_root(ET.fromstring(f"<domain>{labels}</domain>")) is expected
