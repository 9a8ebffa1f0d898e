"""The well-known directory, with programs that only bear the daemons' names: which names are made, kept and removed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from upgrader.adapters.well_known import WellKnownDirectory
from upgrader.core.errors import HostError
from upgrader.core.model import Slot, SlotName
from upgrader.sim.facts import slot

PROGRAMS = ("ovs-vswitchd", "ovsdb-server")


class Fakes:
    """Slots below a folder whose daemons sleep, and whose sockets this process listens on."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.slots: dict[SlotName, Slot] = {n: slot(n, rundir=folder / f"slot-{n}") for n in ("a", "b")}
        (folder / "bin").mkdir()
        for program in PROGRAMS:
            shutil.copy(shutil.which("sleep") or "/bin/sleep", folder / "bin" / program)

    def start(self, rundir: Path, bridges: tuple[str, ...] = ("br0",), *, ctl_with_pid: bool = False) -> list[int]:
        rundir.mkdir(exist_ok=True)
        pids = []
        for program in PROGRAMS:
            process = subprocess.Popen([self.folder / "bin" / program, "60"])
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)
            (rundir / f"{program}.pid").write_text(f"{process.pid}\n")
            self.listen(rundir / (f"{program}.{process.pid}.ctl" if ctl_with_pid else f"{program}.ctl"))
            pids.append(process.pid)
        for name in ("db.sock", *(f"{b}.{kind}" for b in bridges for kind in ("mgmt", "snoop"))):
            self.listen(rundir / name)
        return pids

    def listen(self, path: Path) -> None:
        server = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(os.path.relpath(path))
        server.listen(8)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fakes]:
    monkeypatch.chdir(tmp_path)  # for short addresses
    with ExitStack() as stack:
        yield Fakes(tmp_path, stack)


def links(directory: Path) -> dict[str, str]:
    return {p.name: str(p.readlink()) for p in directory.iterdir() if p.is_symlink()}


def test_every_name_leads_to_the_slot_by_a_relative_link(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    switch, database = fakes.start(fakes.slots["a"].rundir)
    names = WellKnownDirectory(directory, fakes.slots)
    assert names.current() is None
    names.point_to("a", ["br0"])
    assert links(directory) == {
        "db.sock": "../slot-a/db.sock",
        "ovs-vswitchd.pid": "../slot-a/ovs-vswitchd.pid",
        "ovsdb-server.pid": "../slot-a/ovsdb-server.pid",
        f"ovs-vswitchd.{switch}.ctl": "../slot-a/ovs-vswitchd.ctl",
        f"ovsdb-server.{database}.ctl": "../slot-a/ovsdb-server.ctl",
        "br0.mgmt": "../slot-a/br0.mgmt",
        "br0.snoop": "../slot-a/br0.snoop",
    }
    assert names.current() == "a"
    answers = names.who_answers(["br0", "br1"])
    assert set(answers) == {"ovs-vswitchd", "ovsdb-server", "db.sock", "br0.mgmt", "br1.mgmt"}
    assert answers["br1.mgmt"] is None
    assert answers["br0.mgmt"] == os.getpid()


def test_only_names_of_slots_are_removed(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    for name in ("a", "b"):
        fakes.start(fakes.slots[name].rundir, bridges=("br0",) if name == "b" else ("br0", "br-old"))
    names = WellKnownDirectory(directory, fakes.slots)
    names.point_to("a", ["br0", "br-old"])
    (directory / "vm1.sock").symlink_to("/run/elsewhere/vm1.sock")
    (directory / "notes").write_text("mine")
    names.point_to("b", ["br0"])
    assert set(links(directory).values()) == {
        "/run/elsewhere/vm1.sock",
        *(f"../slot-b/{n}" for n in ("db.sock", "br0.mgmt", "br0.snoop")),
        *(f"../slot-b/{p}.{kind}" for p in PROGRAMS for kind in ("pid", "ctl")),
    }
    assert (directory / "notes").read_text() == "mine"


def test_a_slot_that_does_not_run_whole_is_given_nothing(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    fakes.start(fakes.slots["a"].rundir)
    names = WellKnownDirectory(directory, fakes.slots)
    names.point_to("a", ["br0"])
    before = links(directory)
    fakes.slots["b"].rundir.mkdir()
    with pytest.raises(HostError) as raised:
        names.point_to("b", ["br0"])
    assert raised.value.code == "SLOT_DOWN"
    assert links(directory) == before


def test_a_strangers_names_and_a_file_in_the_place_of_the_directory(fakes: Fakes) -> None:
    fakes.start(fakes.slots["a"].rundir)
    fakes.start(fakes.folder / "run")
    for directory, said in (
        (fakes.folder / "run", "belongs to neither slot"),
        (fakes.folder / "bin/ovs-vswitchd", "not a directory"),
    ):
        names = WellKnownDirectory(directory, fakes.slots)
        assert said in (names.problem() or "")
        with pytest.raises(HostError) as raised:
            names.point_to("a", ["br0"])
        assert raised.value.code == "WELL_KNOWN_TAKEN"


def test_a_name_that_cannot_be_changed_is_named(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    fakes.start(fakes.slots["a"].rundir)
    (directory / "db.sock/in-the-way").mkdir(parents=True)
    with pytest.raises(HostError) as raised:
        WellKnownDirectory(directory, fakes.slots).point_to("a", ["br0"])
    assert raised.value.code == "NAMES_NOT_CHANGED"
    assert "db.sock" in raised.value.what


def test_names_that_a_dead_switch_left_are_free(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    directory.mkdir()
    fakes.start(fakes.slots["a"].rundir)
    (directory / "ovs-vswitchd.pid").write_text("4194303\n")
    (directory / "ovs-vswitchd.4194303.ctl").touch()
    names = WellKnownDirectory(directory, fakes.slots)
    assert names.problem() is None
    assert names.mend() == "a"
    assert names.current() == "a"
    assert not (directory / "ovs-vswitchd.4194303.ctl").exists()


def test_an_adopted_switch_is_known_by_its_second_names(fakes: Fakes) -> None:
    directory = fakes.folder / "run"
    slots = {**fakes.slots, "a": slot("a", rundir=directory / "slot-a")}
    pids = fakes.start(directory, ctl_with_pid=True)
    fakes.start(slots["b"].rundir)
    names = WellKnownDirectory(directory, slots, "a")
    names.adopt()
    names.adopt()
    own = {p.name: p.stat().st_ino for p in (directory / "slot-a").iterdir()}
    assert own["db.sock"] == (directory / "db.sock").stat().st_ino
    assert own["ovs-vswitchd.ctl"] == (directory / f"ovs-vswitchd.{pids[0]}.ctl").stat().st_ino
    assert names.current() == "a"
    assert links(directory) == {}, "it was only looked at"
    names.point_to("b", ["br0"])
    assert {p.name: p.stat().st_ino for p in (directory / "slot-a").iterdir()} == own
    assert (directory / "slot-a/ovs-vswitchd.pid").read_text().strip() == str(pids[0])
    assert names.current() == "b"
    names.adopt()
    assert (directory / "slot-a/ovs-vswitchd.pid").read_text().strip() == str(pids[0]), "a link is nobody's own name"
    names.point_to("a", ["br0"])
    assert links(directory)["db.sock"] == "slot-a/db.sock"
    assert names.current() == "a"
