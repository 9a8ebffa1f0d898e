"""The well-known names on real switches: who uses them ends up at the slot that has the control plane, and never nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.ovs_clients import MARK, Hammer, IdlClient, Tools
from tests.support.slots import PREFIX, SlotFactory, ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_control import live_pid
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.well_known import WellKnownDirectory
from upgrader.core import plan as planning
from upgrader.core.errors import CommandError, HostError, StepError
from upgrader.core.model import Slot
from upgrader.core.plan import PlannedStep, StepKind
from upgrader.daemon.server import Runner
from upgrader.engine.coordinator import Coordinator, Setup
from upgrader.engine.facts import gather
from upgrader.sim import host as simhost
from upgrader.sim.journal import SimJournal
from upgrader.steps import STEPS, Context

pytestmark = pytest.mark.integration


@dataclass
class Scene:
    """Two real switches without VMs, the directory of names, and a run from a to b that has come to its promotion."""

    context: Context
    directory: Path

    @property
    def tools(self) -> Tools:
        return Tools(self.directory)

    def step(self, kind: StepKind) -> PlannedStep:
        return next(s for s in self.context.plan.steps if s.kind is kind)

    def carry_out(self, kind: StepKind) -> dict[str, object]:
        step, it = self.step(kind), STEPS[kind]
        it.check(self.context, step)
        data = it.do(self.context, step)
        it.verify(self.context, step, data)
        return dict(data)

    def undo(self, kind: StepKind) -> None:
        STEPS[kind].undo(self.context, self.step(kind))

    def control(self) -> str | None:
        return self.context.host.well_known.current()


def mark(slot: Slot, names: WellKnownDirectory) -> None:
    """A bridge, and what tells the two switches apart: a row and a flow."""
    vsctl(slot, "--may-exist", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev",
          "fail_mode=secure", "--", "set", "Open_vSwitch", ".", f"external_ids:slot={slot.name}")  # fmt: skip
    names.adopt()  # the bridge's sockets, too
    ofctl(slot, "add-flow", "br-int", f"{MARK[slot.name]} actions=drop")


def start_in(directory: Path, slot: Slot) -> None:
    """Start a switch in the well-known directory itself, with the names and the monitor process of ovs-ctl(8)."""
    env = new_database(directory)
    for program, arguments in daemons(directory).items():
        gate.run([str(PREFIX / "sbin" / program), *arguments], netns=slot.netns, env=env)


def new_database(directory: Path) -> dict[str, str]:
    """An empty database there; returns the environment that points OVS programs to the directory."""
    directory.mkdir()
    schema = PREFIX / "share/openvswitch/vswitch.ovsschema"
    gate.run([str(PREFIX / "bin/ovsdb-tool"), "create", str(directory / "conf.db"), str(schema)])
    return {f"OVS_{n}": str(directory) for n in ("RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR")}


def daemons(directory: Path) -> dict[str, list[str]]:
    """Both programs and their arguments, in the order of their start."""
    common = ["-vconsole:off", "--no-chdir", "--log-file", "--detach", "--monitor"]
    remote = f"unix:{directory / 'db.sock'}"
    return {
        "ovsdb-server": [
            str(directory / "conf.db"),
            f"--remote=p{remote}",
            f"--pidfile={directory}/ovsdb-server.pid",
            *common,
        ],
        "ovs-vswitchd": [remote, f"--pidfile={directory}/ovs-vswitchd.pid", *common],
    }


Starter = Callable[[Path, Slot], None]


@contextmanager
def setup(folder: Path, *, adopted: bool, start: Starter = start_in) -> Iterator[Scene]:
    """`start` brings up the switch that is adopted."""
    directory = folder / "run"
    with SlotFactory(folder) as factory:
        a, b = factory.make("a"), factory.start("b")
        if adopted:
            a = factory.redirect(a, directory / "slot-a")
            start(directory, a)
        else:
            SlotProcesses().start_database(a)
            SlotProcesses().start_switch(a)
        names = WellKnownDirectory(directory, {"a": a, "b": b}, "a" if adopted else None)
        names.adopt()
        for slot in (a, b):
            mark(slot, names)
        _, simulated, _ = simhost.make(folder / "sim", vms=0)
        host = replace(
            simulated, processes=SlotProcesses(), database=Ovsdb(), openflow=Ofctl(), well_known=names
        )  # VMs, steering and hugepages are not what this is about
        if not adopted:
            names.point_to("a", ["br-int"])
        facts = gather("h1", {"a": a, "b": b}, host, vni_key="vni", adapter="sim")
        assert (facts.active, facts.control, facts.control_problem) == ("a", "a", None)
        plan = planning.upgrade(facts, host.steering.capabilities())
        yield Scene(Context(host, plan, a, b), directory)


def unreachable_links(directory: Path) -> list[str]:
    return [p.name for p in directory.iterdir() if p.is_symlink() and not p.exists()]


def test_there_and_back_nobody_is_left_without_a_switch(tmp_path: Path) -> None:
    with setup(tmp_path, adopted=False) as it:
        tools, client = it.tools, IdlClient(it.directory)
        until = [str(PREFIX / "bin/ovs-vsctl"), "--retry", "--timeout=60", "wait-until", "Open_vSwitch", ".",
                 "external_ids:slot=b"]  # fmt: skip
        waiting = subprocess.Popen(until, env={**os.environ, **tools.env})
        try:
            assert client.comes_to("a")
            with Hammer(tools) as hammer:
                assert tools.slots() == {"a"}
                assert waiting.poll() is None
                assert it.carry_out(StepKind.PROMOTE) == {"names": "b", "clients": "moved"}
                assert tools.slots() == {"b"}
                assert client.comes_to("b")
                assert waiting.wait(10) == 0, "a wait-until that began at the old database ends at the new one"
                client.write("written-by", "an-old-client")
                assert "an-old-client" in vsctl(it.context.target, "get", "Open_vSwitch", ".", "external_ids")

                it.undo(StepKind.PROMOTE)
                it.undo(StepKind.PROMOTE)
                assert tools.slots() == {"a"}
                assert it.control() == "a"
                assert client.comes_to("a")

                assert it.carry_out(StepKind.PROMOTE)["clients"] == "moved"
                it.carry_out(StepKind.RETIRE)
                assert tools.slots() == {"b"}
                assert client.comes_to("b")
            assert hammer.failed == []
            assert hammer.rounds > 20
            assert {"a", "b"} <= set(hammer.seen)
        finally:
            client.close()
            waiting.kill()
            waiting.wait()
        pid = live_pid(it.context.target.vswitchd_pidfile, "ovs-vswitchd")
        assert (it.directory / "ovs-vswitchd.pid").read_text().strip() == str(pid)
        assert unreachable_links(it.directory) == []
        assert it.context.host.processes.status(it.context.source).ovsdb_pid is None


def test_a_switch_started_in_the_directory_itself(tmp_path: Path) -> None:
    """The old daemons' files are the well-known names: they are reached by others, and unlink none of the new ones."""
    with setup(tmp_path, adopted=True) as it:
        tools, client, processes = it.tools, IdlClient(it.directory), it.context.host.processes
        try:
            assert client.comes_to("a")
            before = processes.status(it.context.source)
            assert None not in (before.vswitchd_pid, before.ovsdb_pid)
            assert processes.running_version(it.context.source) == "3.1.0"
            with Hammer(tools) as hammer:
                assert it.carry_out(StepKind.PROMOTE)["clients"] == "follow at retire"
                assert tools.slots() == {"b"}
                assert it.control() == "b"
                # each slot is still itself
                assert processes.status(it.context.source) == before
                assert it.context.host.database.read(it.context.source).bridges
                client.work(2.0)
                assert client.slot() == "a", "sent away, the old switch would go to the new database, too"
                flows = Ofctl().flows(it.context.source, "br-int")
                assert any(MARK["a"] in f for f in flows), "the old switch has its bridges, so it can have VMs back"

                it.undo(StepKind.PROMOTE)
                assert tools.slots() == {"a"}
                assert it.control() == "a"

                it.carry_out(StepKind.PROMOTE)
                it.carry_out(StepKind.RETIRE)
                assert tools.slots() == {"b"}
                assert client.comes_to("b")
            assert hammer.failed == []
        finally:
            client.close()
        assert processes.status(it.context.source).vswitchd_pid is None
        assert unreachable_links(it.directory) == []
        assert [p.name for p in it.directory.iterdir() if p.is_socket() and not p.is_symlink()] == []


class Killed(BaseException):
    """The coordinator ends here."""


@pytest.mark.parametrize("adopted", [False, True])
def test_a_retirement_cut_off_is_carried_to_its_end(tmp_path: Path, adopted: bool) -> None:
    with setup(tmp_path, adopted=adopted) as it:
        it.carry_out(StepKind.PROMOTE)
        whole = it.context
        real = whole.host.processes

        class Cut(SlotProcesses):
            def stop(self, slot: Slot) -> None:
                self.stop_switch(slot)
                raise Killed

        it.context = replace(whole, host=replace(whole.host, processes=Cut()))
        with pytest.raises(Killed):
            it.carry_out(StepKind.RETIRE)
        assert real.status(whole.source).vswitchd_pid is None
        assert real.status(whole.source).ovsdb_pid is not None
        it.context = whole
        it.carry_out(StepKind.RETIRE)
        it.carry_out(StepKind.RETIRE)
        assert it.tools.slots() == {"b"}
        assert real.status(whole.source).ovsdb_pid is None
        assert unreachable_links(it.directory) == []


def test_half_a_promotion_is_told_as_such_and_taken_back_or_finished(tmp_path: Path) -> None:
    with setup(tmp_path, adopted=False) as it:
        a, b = it.context.source, it.context.target
        (it.directory / "new").symlink_to(os.path.relpath(b.db_socket, it.directory))
        (it.directory / "new").replace(it.directory / "db.sock")
        assert it.control() is None
        it.undo(StepKind.PROMOTE)
        assert it.control() == "a"
        assert it.tools.slots() == {"a"}
        it.carry_out(StepKind.PROMOTE)
        assert it.tools.slots() == {"b"}
        assert not (it.directory / f"ovs-vswitchd.{live_pid(a.vswitchd_pidfile, 'ovs-vswitchd')}.ctl").is_symlink()


@pytest.mark.parametrize("adopted", [False, True])
def test_names_follow_bridges_restarts_and_boots(tmp_path: Path, adopted: bool) -> None:
    """Nothing to do is nothing done; what changed since is mended."""
    with setup(tmp_path, adopted=adopted) as it:
        names, b = it.context.host.well_known, it.context.target
        assert names.mend() == "a"
        assert (it.directory / "db.sock").is_symlink() is not adopted, "before its first upgrade it is left as it is"
        it.carry_out(StepKind.PROMOTE)
        before = {p.name: p.lstat().st_mtime_ns for p in it.directory.iterdir()}
        assert names.mend() == "b"
        assert {p.name: p.lstat().st_mtime_ns for p in it.directory.iterdir()} == before

        it.tools.run("ovs-vsctl", "add-br", "br-new", "--", "set", "bridge", "br-new", "datapath_type=netdev")
        with pytest.raises(CommandError):
            it.tools.run("ovs-ofctl", "show", "br-new")
        assert names.mend() == "b"
        assert "br-new" in it.tools.run("ovs-ofctl", "show", "br-new")
        it.tools.run("ovs-vsctl", "del-br", "br-new")
        names.mend()
        assert not (it.directory / "br-new.mgmt").is_symlink()

        it.carry_out(StepKind.RETIRE)
        SlotProcesses().stop_switch(b)
        assert names.mend() is None, "a switch that is down is given no names"
        SlotProcesses().start_switch(b)
        assert names.mend() == "b"
        assert it.tools.run("ovs-appctl", "version").startswith("ovs-vswitchd")

        if not adopted:
            shutil.rmtree(it.directory)  # /run after a boot
            assert names.current() is None
            settled = Setup("h1", it.context.host, {"a": it.context.source, "b": b}, (), it.context.plan.policy, "sim")
            Runner(Coordinator(lambda: settled, SimJournal())).keep()  # as the daemon does
            assert it.control() == "b"
            assert it.tools.slot_by_database() == "b"


def test_with_both_running_nobody_is_given_names_that_lead_nowhere(tmp_path: Path) -> None:
    with setup(tmp_path, adopted=False) as it:
        shutil.rmtree(it.directory)
        assert it.context.host.well_known.mend() is None
        assert not it.directory.exists()


def test_names_that_lead_elsewhere_are_found_out(tmp_path: Path) -> None:
    with setup(tmp_path, adopted=False) as it:
        it.carry_out(StepKind.PROMOTE)
        (it.directory / "br-int.mgmt").unlink()
        (it.directory / "br-int.mgmt").symlink_to(it.context.source.rundir / "br-int.mgmt")
        with pytest.raises(StepError) as raised:
            STEPS[StepKind.PROMOTE].verify(it.context, it.step(StepKind.PROMOTE), {})
        assert raised.value.code == "NAMES_NOT_AS_SET"
        assert "br-int.mgmt" in raised.value.what
        it.carry_out(StepKind.PROMOTE)


def test_the_names_of_a_switch_that_is_neither_slots_are_not_taken(tmp_path: Path) -> None:
    """A third one runs in the directory: preflight says so, and nothing is changed."""
    directory = tmp_path / "run"
    with SlotFactory(tmp_path) as factory:
        a = factory.start("a")
        stranger = factory.redirect(factory.make("b"), directory)
        SlotProcesses().start_database(stranger)
        before = {p.name for p in directory.iterdir()}
        names = WellKnownDirectory(directory, {"a": a})
        assert "belongs to neither slot" in (names.problem() or "")
        with pytest.raises(HostError) as raised:
            names.point_to("a", [])
        assert raised.value.code == "WELL_KNOWN_TAKEN"
        assert {p.name for p in directory.iterdir()} == before
        assert names.current() is None
