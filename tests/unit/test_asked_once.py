"""What adapters ask once and remember, and when they ask again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from upgrader.adapters import slot_control
from upgrader.adapters.libvirt_qmp import LibvirtQmp
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.model import Slot
from upgrader.sim.facts import slot


def install(prefix: Path, ovs: str, dpdk: str) -> None:
    """An ovs-vswitchd that says this of itself, and notes each time it is run."""
    program = prefix / "sbin/ovs-vswitchd"
    program.parent.mkdir(parents=True, exist_ok=True)
    new = program.with_name("new")
    new.write_text(f"#!/bin/sh\necho x >>{prefix}/runs\necho 'ovs-vswitchd (Open vSwitch) {ovs}'\necho 'DPDK {dpdk}'\n")
    new.chmod(0o755)
    new.replace(program)


def runs(prefix: Path) -> int:
    return len((prefix / "runs").read_text().split())


@pytest.fixture
def installed(tmp_path: Path) -> Slot:
    install(tmp_path, "3.1.0", "22.11.5")
    return slot("a", prefix=tmp_path, rundir=tmp_path / "run")


def test_a_binary_is_run_once_for_both_versions(installed: Slot) -> None:
    for _look in range(3):
        processes = SlotProcesses()  # a plan has adapters of its own
        assert (processes.installed_version(installed), processes.dpdk_version(installed)) == ("3.1.0", "22.11.5")
    assert runs(installed.prefix) == 1


def test_another_binary_of_the_same_name_is_run(installed: Slot) -> None:
    assert SlotProcesses().installed_version(installed) == "3.1.0"
    install(installed.prefix, "3.1.1", "22.11.6")
    assert SlotProcesses().installed_version(installed) == "3.1.1"
    assert SlotProcesses().dpdk_version(installed) == "22.11.6"
    assert runs(installed.prefix) == 2


def test_after_a_library_was_installed_it_is_run_again(
    installed: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "ld.so.cache"
    cache.write_text("old")
    monkeypatch.setattr(slot_control, "_LIBRARIES", cache)
    assert SlotProcesses().dpdk_version(installed) == "22.11.5"
    before = cache.stat()
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(cache)
    os.utime(cache, ns=(before.st_atime_ns, before.st_mtime_ns))
    SlotProcesses().dpdk_version(installed)
    assert runs(installed.prefix) == 2


def test_one_that_is_not_there_or_fails_is_not_remembered(installed: Slot, tmp_path: Path) -> None:
    program = installed.prefix / "sbin/ovs-vswitchd"
    kept = program.read_bytes()
    program.write_text("#!/bin/sh\nexit 1\n")
    assert SlotProcesses().installed_version(installed) is None
    program.unlink()
    assert SlotProcesses().installed_version(installed) is None
    program.write_bytes(kept)
    program.chmod(0o755)
    assert SlotProcesses().installed_version(installed) == "3.1.0"


class Domain:
    def __init__(self, name: str, number: int) -> None:
        self._name, self._number = name, number

    def name(self) -> str:
        return self._name

    def ID(self) -> int:  # noqa: N802 - libvirt's names
        return self._number

    def UUIDString(self) -> str:  # noqa: N802
        return f"00000000-0000-4000-8000-{self._name:>012}"

    def XMLDesc(self) -> str:  # noqa: N802
        return (
            "<domain><devices><interface type='vhostuser'><source type='unix' path='/run/x'/><mac address='52:54:00:00:00:01'/>"
            "<alias name='net0'/></interface></devices></domain>"
        )


class Libvirt:
    def __init__(self, *domains: Domain) -> None:
        self.domains, self.alive = list(domains), True

    def isAlive(self) -> bool:  # noqa: N802
        return self.alive

    def getLibVersion(self) -> int:  # noqa: N802
        return 9_000_000

    def listAllDomains(self, _flags: int) -> list[Domain]:  # noqa: N802
        return self.domains


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[Libvirt], None], list[str]]:
    """Makes a libvirtd the one that is opened; VMs whose QEMU was asked for its version."""
    versions: list[str] = []

    def answer(domain: Domain, text: str, _flags: int) -> str:
        command = json.loads(text)["execute"]
        if command == "query-version":
            versions.append(domain.name())
            return json.dumps({"return": {"qemu": {"major": 7, "minor": 2, "micro": domain.ID()}}})
        entry: dict[str, Any] = {"id": "hostnet0", "owner": "charnet0", "owner-connected": True, "generation": 0}
        return json.dumps({"return": [{**entry, "id": "hostnet0"}]})

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", answer)
    opened: list[Libvirt] = []
    monkeypatch.setattr("libvirt.open", lambda _uri: opened[-1])
    return opened.append, versions


def test_each_qemu_is_asked_for_its_version_once(asked: tuple[Callable[[Libvirt], None], list[str]]) -> None:
    use, versions = asked
    daemon = Libvirt(Domain("1", 1), Domain("2", 2))
    use(daemon)
    hypervisor = LibvirtQmp("qemu:///system")
    for _look in range(3):
        assert [v.qemu for v in hypervisor.vm_interfaces()] == ["7.2.1", "7.2.2"]
    assert versions == ["1", "2"]
    daemon.domains[1] = Domain("2", 3)  # was started again, on another QEMU
    assert [v.qemu for v in hypervisor.vm_interfaces()] == ["7.2.1", "7.2.3"]
    daemon.domains = [Domain("1", 1)]
    hypervisor.vm_interfaces()
    daemon.domains.append(Domain("2", 3))
    assert [v.qemu for v in hypervisor.vm_interfaces()] == ["7.2.1", "7.2.3"]
    assert versions == ["1", "2", "2", "2"], "one that was gone meanwhile is asked anew"


def test_after_libvirtd_was_restarted_everybody_is_asked_again(
    asked: tuple[Callable[[Libvirt], None], list[str]],
) -> None:
    use, versions = asked
    first = Libvirt(Domain("1", 1))
    use(first)
    hypervisor = LibvirtQmp("qemu:///system")
    hypervisor.vm_interfaces()
    first.alive = False
    use(Libvirt(Domain("1", 1)))  # the same number, which may stand for another QEMU by now
    hypervisor.vm_interfaces()
    assert versions == ["1", "1"]
