"""How descriptors come to QEMU through libvirt, a standby's socket and a fence; and libvirts that hand none on."""

from __future__ import annotations

import json
import os
import select
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.libvirt_qmp import LibvirtQmp, _runs_as_root
from upgrader.core.errors import HostError
from upgrader.core.model import VmPort
from upgrader.ports import Fence


class Monitor:
    """A libvirtd of some version, and the monitor of its one VM: it answers, and keeps what it was told."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.told: list[tuple[str, Any, int]] = []
        self.answers: dict[str, Any] = {}
        self.refuses = ""
        self.files: list[int] = []  # its own descriptors of what it was given

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
        if message["execute"] == self.refuses:
            return json.dumps({"error": {"class": "GenericError", "desc": "no"}})
        return json.dumps({"return": self.answers.get(message["execute"], [])})

    def with_files(self, _domain: Any, text: str, files: list[int], _flags: int) -> tuple[str, list[Any]]:
        message = json.loads(text)
        self.told.append((message["execute"], message["arguments"], len(files)))
        self.files += [os.dup(fd) for fd in files]
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


def fence(monitor: Monitor) -> Fence | None:
    port = VmPort("vm0", "uuid", "mac", Path("/run/vm0.sock"), "hostnet0", "charnet0", "vhu0", 10, 100, None)
    monitor.told.clear()
    return LibvirtQmp("uri").give_fence(port, 4711)


def netdev(**more: object) -> dict[str, object]:
    fields = {"id": "hostnet0", "owner": "charnet0", "owner-connected": True, "owner-pid": 4711, "generation": 0}
    return {**fields, "state": "steady", **more}


@pytest.mark.parametrize("monitor", [9_000_000], indirect=True)
def test_a_fence_is_an_eventfd_that_qemu_has_too(monitor: Monitor) -> None:
    monitor.answers["query-netdev-vhost-user"] = [netdev(fence="")]
    given = fence(monitor)
    assert given is not None
    assert [(command, fds) for command, _, fds in monitor.told[1:]] == [("getfd", 1), ("netdev-vhost-user-fence", 0)]
    assert monitor.told[-1][1] == {"id": "hostnet0", "owner-pid": 4711, "fdname": given.name}
    (qemus,) = monitor.files
    assert str(Path(f"/proc/self/fd/{qemus}").readlink()) == "anon_inode:[eventfd]"
    assert select.select([qemus], [], [], 0) == ([], [], [])
    given.say()
    given.say()
    given.close()
    assert select.select([qemus], [], [], 0) == ([qemus], [], []), "said, also when whoever said it is gone"
    os.close(qemus)
    again = fence(monitor)
    assert again is not None
    assert again.name != given.name
    again.close()
    os.close(monitor.files[-1])


@pytest.mark.parametrize(
    ("monitor", "answers"),
    [
        (9_000_000, {"query-netdev-vhost-user": [netdev()]}),  # a QEMU with the series as it was before
        (8_001_000, {"query-netdev-vhost-user": [netdev(fence="")]}),  # a libvirt that hands no descriptors on
    ],
    indirect=["monitor"],
)
def test_who_cannot_is_not_asked(monitor: Monitor, answers: dict[str, Any]) -> None:
    monitor.answers.update(answers)
    assert fence(monitor) is None
    assert "getfd" not in [command for command, _, _ in monitor.told]


@pytest.mark.parametrize("monitor", [9_000_000], indirect=True)
def test_a_fence_that_is_refused_is_closed(monitor: Monitor) -> None:
    monitor.answers["query-netdev-vhost-user"] = [netdev(fence="")]
    monitor.refuses = "netdev-vhost-user-fence"
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names are what is compared
    with pytest.raises(HostError, match="refused netdev-vhost-user-fence"):
        fence(monitor)
    os.close(monitor.files[-1])
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
