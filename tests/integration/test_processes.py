"""What every way to run a slot's daemons promises (ports.Processes), on real daemons.

The same tests for plain processes and for systemd's units; the latter run where systemd is PID 1 (test_systemd.py).
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.slots import PREFIX, SlotFactory, vsctl
from tests.support.systemd_box import MARK
from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.slot_systemd import SlotSystemd
from upgrader.core.errors import HostError, UpgradeError
from upgrader.core.model import Slot, SlotStatus

pytestmark = pytest.mark.integration
AWKWARD = "a \"quoted\" $HOME, 100% \\back\\slash `tick` 'single'"


@pytest.fixture(params=[SlotSystemd if MARK in os.environ else SlotProcesses], name="processes")
def processes_fixture(request: pytest.FixtureRequest) -> SlotProcesses | SlotSystemd:
    adapter: SlotProcesses | SlotSystemd = request.param()
    return adapter


@pytest.fixture(name="slot")
def slot_fixture(tmp_path: Path) -> Iterator[Slot]:
    with SlotFactory(tmp_path) as factory:
        made = factory.make("a")
        yield replace(made, env=(("AWKWARD", AWKWARD),))


@pytest.fixture(autouse=True)
def nothing_left(processes: SlotProcesses | SlotSystemd, slot: Slot) -> Iterator[None]:
    yield
    processes.stop(slot)


Any = SlotProcesses | SlotSystemd


def start(processes: Any, slot: Slot) -> SlotStatus:
    database = processes.start_database(slot)
    return SlotStatus(processes.start_switch(slot), database)


def runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_start_and_stop(processes: Any, slot: Slot) -> None:
    assert processes.status(slot) == SlotStatus(None, None)
    started = start(processes, slot)
    assert processes.status(slot) == started
    assert slot.vswitchd_pidfile.read_text().strip() == str(started.vswitchd_pid)
    assert processes.running_version(slot) == processes.installed_version(slot) == "3.1.0"
    vsctl(slot, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    with pytest.raises(HostError) as raised:
        processes.start_database(slot)
    assert raised.value.code == "SLOT_BUSY"
    processes.stop(slot)
    assert processes.status(slot) == SlotStatus(None, None)
    assert not runs(started.vswitchd_pid)
    assert not runs(started.ovsdb_pid)
    processes.stop(slot)
    again = start(processes, slot)
    assert again.vswitchd_pid != started.vswitchd_pid
    assert vsctl(slot, "list-br").strip() == "br0"


def test_the_switch_runs_as_it_must(processes: Any, slot: Slot) -> None:
    started = start(processes, slot)
    for pid in (started.vswitchd_pid, started.ovsdb_pid):
        process = Path(f"/proc/{pid}")
        assert (process / "ns/net").stat().st_ino == Path(f"/run/netns/{slot.netns}").stat().st_ino
        environment = (process / "environ").read_bytes().split(b"\0")
        assert f"AWKWARD={AWKWARD}".encode() in environment
        assert f"OVS_RUNDIR={slot.rundir}".encode() in environment
    pid = started.vswitchd_pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == -10
    limits = {line[:25].strip(): line[25:].split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert int(limits["Max open files"][0]) >= 20_000
    assert oct(slot.vhost_dir.stat().st_mode)[-3:] == "700"


def test_it_outlives_whoever_started_it(processes: Any, slot: Slot) -> None:
    """The starter, its session and everything that is still its child are killed right after the start."""
    code = (
        "import os, sys, pickle; processes, slot = pickle.load(sys.stdin.buffer)\n"
        "processes.start_database(slot); processes.start_switch(slot)\n"
        "print('started', flush=True); import time; time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert starter.stdin is not None
    assert starter.stdout is not None
    starter.stdin.write(pickle.dumps((processes, slot)))
    starter.stdin.close()
    assert b"started\n" in iter(starter.stdout.readline, b""), "it failed to start them"  # after lines of its log
    status = processes.status(slot)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    time.sleep(0.5)
    assert processes.status(slot) == status
    assert None not in (status.vswitchd_pid, status.ovsdb_pid)
    for pid in (status.vswitchd_pid, status.ovsdb_pid):
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        assert parent == "1"


def test_what_a_killed_coordinator_was_starting_does_not_come_up_after_a_stop(processes: Any, slot: Slot) -> None:
    """Killed at many moments of the start; what was on its way had no pid file yet, or was the child's parent."""
    came_far = set()
    for number in range(30):
        starter = os.fork()
        if starter == 0:
            start(processes, slot)
            os._exit(0)
        time.sleep(number * 0.008)
        os.kill(starter, signal.SIGKILL)
        os.waitpid(starter, 0)
        came_far |= {processes.status(slot).vswitchd_pid is not None, bool(started_for(slot))}
        processes.stop(slot)
        time.sleep(0.4)
        assert started_for(slot) == [], number
        slot.db_file.unlink(missing_ok=True)
    assert came_far == {True, False}


def started_for(slot: Slot) -> list[str]:
    """Command lines of processes that have the slot's folder in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(slot.rundir).encode() in (words := path.read_bytes()):
                found.append(words.replace(b"\0", b" ").decode())
    return found


def test_starting_from_an_image(processes: Any, slot: Slot, tmp_path: Path) -> None:
    start(processes, slot)
    vsctl(slot, "add-br", "br-kept", "--", "set", "bridge", "br-kept", "datapath_type=netdev")
    image = tmp_path / "image"
    processes.stop(slot)
    shutil.copy(slot.db_file, image)
    slot.db_file.unlink()
    processes.start_database(slot, image)
    processes.start_switch(slot)
    assert vsctl(slot, "list-br").strip() == "br-kept"
    assert not image.exists()


def test_a_killed_switch_stays_away_until_it_is_started(processes: Any, slot: Slot) -> None:
    started = start(processes, slot)
    processes.kill_switch(slot)
    time.sleep(2)
    assert processes.status(slot) == SlotStatus(None, started.ovsdb_pid), (
        "the database runs on, the switch is not revived"
    )
    processes.kill_switch(slot)
    pid = processes.start_switch(slot)
    assert pid != started.vswitchd_pid
    assert runs(pid)


def test_a_switch_alone_can_be_stopped(processes: Any, slot: Slot) -> None:
    started = start(processes, slot)
    processes.stop_switch(slot)
    assert processes.status(slot) == SlotStatus(None, started.ovsdb_pid)


def test_a_start_that_takes_too_long_leaves_nothing_behind(processes: Any, slot: Slot) -> None:
    """Without its database a switch waits for ever; one that came up later, unasked, would dial the VMs."""
    slot.rundir.mkdir()
    with pytest.raises(HostError) as raised:
        processes.start_switch(slot, timeout_s=1.0)
    assert raised.value.code == "SLOT_START_FAILED"
    assert processes.status(slot) == SlotStatus(None, None)
    started = start(processes, slot)
    assert processes.status(slot) == started


def test_binaries_that_are_not_there(processes: Any, slot: Slot) -> None:
    start(processes, slot)
    processes.stop(slot)
    nowhere = replace(slot, prefix=Path("/nonexistent"))
    assert processes.installed_version(nowhere) is None
    with pytest.raises(UpgradeError):
        processes.start_database(nowhere)
    assert processes.status(slot) == SlotStatus(None, None)


def test_a_daemon_that_does_not_listen_is_killed(processes: Any, slot: Slot) -> None:
    started = start(processes, slot)
    pid = started.vswitchd_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    processes.stop(slot)
    assert not runs(pid)
    assert processes.status(slot) == SlotStatus(None, None)


def test_daemons_that_somebody_else_started_are_ended_too(processes: Any, slot: Slot) -> None:
    """By names of OVS' own choice: the control sockets carry the pid."""
    slot.rundir.mkdir()
    env = {f"OVS_{n}": str(slot.rundir) for n in ("RUNDIR", "DBDIR", "LOGDIR", "SYSCONFDIR")}
    gate.run(
        [
            str(PREFIX / "bin/ovsdb-tool"),
            "create",
            str(slot.db_file),
            str(PREFIX / "share/openvswitch/vswitch.ovsschema"),
        ]
    )
    common = ["--pidfile", "--detach", "--no-chdir", "--log-file", "-vconsole:off"]
    for program, arguments in (("ovsdb-server", [f"--remote=punix:{slot.db_socket}"]), ("ovs-vswitchd", [])):
        gate.run([str(PREFIX / "sbin" / program), *arguments, *common], env=env, netns=slot.netns)
    status = processes.status(slot)
    assert None not in (status.vswitchd_pid, status.ovsdb_pid)
    assert processes.running_version(slot) == "3.1.0"
    processes.stop(slot)
    assert not runs(status.vswitchd_pid)
    assert not runs(status.ovsdb_pid)
