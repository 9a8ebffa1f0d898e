"""What the ways to run a slot's daemons share: finding, asking and ending them. Whatever started a daemon, this works."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import structlog

from upgrader.adapters import gate
from upgrader.adapters.death import DeathWatch, is_dying, threads_are_out
from upgrader.adapters.probe import SwitchProbe
from upgrader.core.errors import CommandError, HostError
from upgrader.core.model import Slot, SlotStatus
from upgrader.core.versions import Ovs, can

log = structlog.get_logger(__name__)

NICE = -10  # of ovs-vswitchd, whatever that of who starts it is; what ovs-ctl(8) gives it
SWITCH, DATABASE = "ovs-vswitchd", "ovsdb-server"

_LIBRARIES = Path("/etc/ld.so.cache")  # written anew with each library that is installed

_STOP_S = 10.0  # a daemon may take for its exit,
_KILL_S = 120.0  # and the kernel for its memory: 12 to 42 ms per GB of 4 KiB pages
_FENCE_S = 5.0  # threads of a killed process may take until they are on their way out
_FENCE_POLL_S = 0.0002
_BY_ITSELF_S = 0.01  # a process that dies already is given for that: a signal would cut its core off


def slot_env(slot: Slot) -> dict[str, str]:
    """Environment that points every OVS program at the slot: OVS_RUNDIR and its kin (ovs-appctl(8))."""
    d = str(slot.rundir)
    return {"OVS_RUNDIR": d, "OVS_LOGDIR": d, "OVS_DBDIR": d, "OVS_SYSCONFDIR": d, **dict(slot.env)}


def live_pid(pidfile: Path, program: str) -> int | None:
    """Pid in `pidfile` when that process lives and is `program` (a pid may have been given out anew)."""
    try:
        pid = int(pidfile.read_text().strip())
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return pid if comm == program[:15] and state not in ("Z", "X") else None


def control_socket(slot: Slot, program: str) -> Path:
    """Where the daemon takes commands (unixctl): at the slot's path, or as OVS names it by itself, with the pid."""
    own, pidfile = (
        (slot.vswitchd_ctl, slot.vswitchd_pidfile) if program == SWITCH else (slot.ovsdb_ctl, slot.ovsdb_pidfile)
    )
    with_pid = slot.rundir / f"{program}.{live_pid(pidfile, program)}.ctl"
    return with_pid if with_pid.exists() else own


def started_with(pid: int, argument: str) -> bool:
    """Whether a process has this argument on its command line; False when it cannot be read."""
    try:
        return os.fsencode(argument) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _version_text(slot: Slot) -> str:
    """What the slot's ovs-vswitchd prints for --version; empty where it is not installed or does not start.

    It is run again only when the file is another one, or ldconfig(8) was run since: DPDK's number is that of a library.
    """
    program = slot.prefix / "sbin/ovs-vswitchd"
    try:
        return _printed_version(program, slot, _identity(program), _identity(_LIBRARIES))
    except CommandError:
        return ""


@lru_cache(maxsize=8)
def _printed_version(program: Path, slot: Slot, *_identities: tuple[int, ...]) -> str:
    return gate.run([str(program), "--version"], env=slot_env(slot)).stdout


def _identity(path: Path) -> tuple[int, ...]:
    """What tells a file from another one of its name; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class SlotControl:
    """Looks at the daemons of slots, asks them, and ends them."""

    def status(self, slot: Slot) -> SlotStatus:
        """What runs now, by the pid files; starts no process and never raises."""
        return SlotStatus(live_pid(slot.vswitchd_pidfile, SWITCH), live_pid(slot.ovsdb_pidfile, DATABASE))

    def running_version(self, slot: Slot) -> str | None:
        """Version of the vswitchd that runs, None where none does or it does not answer."""
        if live_pid(slot.vswitchd_pidfile, SWITCH) is None:
            return None
        try:
            return self.appctl(slot, "version").split("\n")[0].split()[-1]
        except CommandError:
            return None

    def installed_version(self, slot: Slot) -> str | None:
        """Version of the slot's binaries, None where they are not installed or do not start."""
        found = re.search(r"\(Open vSwitch\) (\S+)", _version_text(slot))
        return found.group(1) if found else None

    def dpdk_version(self, slot: Slot) -> str | None:
        """Version of the DPDK in the slot's ovs-vswitchd, as that prints it behind its own."""
        found = re.search(r"^DPDK (\S+)", _version_text(slot), re.MULTILINE)
        return found.group(1) if found else None

    def appctl(self, slot: Slot, *command: str, timeout_s: float = 10.0) -> str:
        """Run one ovs-appctl command against the slot's vswitchd and return what it prints."""
        return gate.run(
            [
                str(slot.prefix / "bin/ovs-appctl"),
                f"--timeout={int(timeout_s)}",
                "-t",
                str(control_socket(slot, SWITCH)),
                *command,
            ],
            env=slot_env(slot),
            timeout_s=timeout_s + 2,
        ).stdout

    def polled_queues(self, slot: Slot) -> dict[str, int]:
        """Receive queues by port that a PMD thread polls and the peer has enabled (`dpif-netdev/pmd-rxq-show`).

        A switch that does not tell enabled from disabled queues (before 2.12) is taken at its word that it polls them.
        """
        queues: dict[str, int] = {}
        for line in self.appctl(slot, "dpif-netdev/pmd-rxq-show").splitlines():
            if found := re.search(r"port:\s+(\S+)\s+queue-id:\s+\d+\b(?!\s+\(disabled\))", line):
                queues[found[1]] = queues.get(found[1], 0) + 1
        return queues

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        """By DPDK's log level for them (`dpdk/log-set`, ovs-vswitchd(8)); warnings are written either way.

        Without effect on a switch that has no such command: it goes on to write them.
        """
        if can(Ovs.LOG_LEVELS, self.running_version(slot)) is False:
            return
        self.appctl(slot, "dpdk/log-set", f"lib.vhost.config:{'info' if on else 'notice'}")

    def stop(self, slot: Slot) -> None:
        """End both daemons in order, the switch first; a daemon that ignores the command is killed. Idempotent.

        What a coordinator was killed in the middle of starting is ended as well: it would come up unasked later.
        """
        self.stop_switch(slot)
        _stop(slot, slot.ovsdb_pidfile, DATABASE)
        end_commands("ovsdb-tool", "create", str(slot.db_file))

    def stop_switch(self, slot: Slot) -> None:
        """End ovs-vswitchd alone; the database goes on. Idempotent."""
        _stop(slot, slot.vswitchd_pidfile, SWITCH)

    def kill_switch(self, slot: Slot) -> None:
        """SIGKILL the slot's vswitchd and wait until it is gone. For a switch that hangs or must not act again."""
        pid = live_pid(slot.vswitchd_pidfile, SWITCH)
        if pid is not None:
            _end(pid, 0.0)
        end_commands(SWITCH, f"--pidfile={slot.vswitchd_pidfile}")

    def watch(self, slot: Slot) -> DeathWatch | None:
        """By the kernel's process events where it sends them, else by the pidfd alone."""
        pid = live_pid(slot.vswitchd_pidfile, SWITCH)
        if pid is None:
            return None
        try:
            return DeathWatch(pid)
        except ProcessLookupError:
            return None

    def probe(self, slot: Slot) -> SwitchProbe | None:
        pid = live_pid(slot.vswitchd_pidfile, SWITCH)
        return SwitchProbe(pid, control_socket(slot, SWITCH)) if pid is not None else None

    def fence(self, slot: Slot, pids: Collection[int] = ()) -> frozenset[int]:
        """By the state of every thread in /proc (proc_pid_stat(5)): a big process is fenced long before it is gone."""
        named = _pid_in(slot.vswitchd_pidfile)
        return frozenset(
            pid for pid in {*pids, *({named} if named is not None else ())} if _fence(slot, pid, named=pid == named)
        )


def _pid_in(pidfile: Path) -> int | None:
    try:
        return int(pidfile.read_text().strip())
    except (OSError, ValueError):
        return None


def _fence(slot: Slot, pid: int, *, named: bool) -> bool:
    """Whether the process is proved harmless. One that the pid file does not name is killed only if it was started as
    the slot's: numbers are given out anew."""
    try:
        handle = os.pidfd_open(pid)  # from here on the number stays this process's
    except OSError:
        return True
    try:
        if not _is(pid, SWITCH) or not (named or started_with(pid, f"--pidfile={slot.vswitchd_pidfile}")):
            # its command line is empty once its memory is gone
            return bool(select.select([handle], [], [], 0)[0]) or threads_are_out(pid)
        if not _dies_by_itself(pid):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        deadline = time.monotonic() + _FENCE_S
        while not select.select([handle], [], [], 0)[0] and not threads_are_out(pid):
            if time.monotonic() > deadline:
                raise HostError(
                    "NOT_FENCED",
                    f"ovs-vswitchd of slot {slot.name} (pid {pid}) was killed, and a thread of it has not ended "
                    f"after {_FENCE_S:g} s (uninterruptible sleep?)",
                    state="nothing was switched: each VM is with whoever served it",
                    next=f"cat /proc/{pid}/task/*/stack   then, when it is gone: upgrade takeover",
                )
            time.sleep(_FENCE_POLL_S)
    finally:
        os.close(handle)
    return True


def _dies_by_itself(pid: int) -> bool:
    """Whether it was killed before, or has crashed, and all its threads are out within a moment."""
    deadline = time.monotonic() + _BY_ITSELF_S
    while is_dying(pid):
        if threads_are_out(pid):
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(_FENCE_POLL_S)
    return False


def _is(pid: int, program: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == program[:15]
    except OSError:
        return False


def prepare_database(slot: Slot, image: Path | None) -> None:
    """Make the slot's folders and database file: from `image` (moved in place), else what is there, else an empty one.

    Raises HostError when the slot has an ovsdb-server already.
    """
    if pid := live_pid(slot.ovsdb_pidfile, DATABASE):
        raise HostError(
            "SLOT_BUSY",
            f"an ovsdb-server (pid {pid}) already runs in slot {slot.name}",
            state="nothing was changed",
            next=f"look at it: OVS_RUNDIR={slot.rundir} ovs-vsctl show",
        )
    slot.rundir.mkdir(parents=True, exist_ok=True, mode=0o755)
    slot.vhost_dir.mkdir(exist_ok=True, mode=0o700)
    slot.vhost_dir.chmod(0o700)
    if image:
        image.replace(slot.db_file)
    elif not slot.db_file.exists():
        schema = slot.prefix / "share/openvswitch/vswitch.ovsschema"
        gate.run([str(slot.prefix / "bin/ovsdb-tool"), "create", str(slot.db_file), str(schema)])


def require_started(slot: Slot, program: str) -> int:
    """Pid of a daemon that has just been started. Raises HostError when it has ended."""
    pidfile = slot.vswitchd_pidfile if program == SWITCH else slot.ovsdb_pidfile
    pid = live_pid(pidfile, program)
    if pid is None:
        raise HostError(
            "SLOT_START_FAILED",
            f"{program} of slot {slot.name} ended right after its start",
            state=f"slot {slot.name} is down, the other slot was not touched",
            next=f"tail {slot.rundir / program}.log",
        )
    if program == SWITCH:
        with suppress(OSError):  # sched(7): where sessions are scheduled as groups, a nice value counts within its own
            Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
    return pid


def _stop(slot: Slot, pidfile: Path, program: str) -> None:
    """End one daemon and wait until it has gone.

    A daemon of this slot is told to exit, and killed when it does not listen. One that was adopted is killed at once:
    in the end it would unlink the pid file and sockets it was started with, and those names are another's by now.
    """
    pid = live_pid(pidfile, program)
    if pid is not None and not started_with(pid, f"--pidfile={pidfile}"):
        _end(pid, 0.0)
    elif pid is not None:
        ctl = control_socket(slot, program)
        argv = [str(slot.prefix / "bin/ovs-appctl"), "--timeout=5", "-t", str(ctl), "exit"]
        gate.run(argv, env=slot_env(slot), check=False)
        _end(pid, _STOP_S)
    end_commands(program, f"--pidfile={pidfile}")


def end_commands(program: str, *arguments: str) -> None:
    """Kill every process that runs a program with these arguments, or is on its way to, and wait until it is gone.

    For commands that were begun by somebody who may be dead. One that starts a daemon has no pid file for a while: it is
    nsenter(1), nice(1), prlimit(1), then the program, then that one's child, under the same arguments. Idempotent.
    """
    while pids := _commands(os.fsencode(program), {os.fsencode(a) for a in arguments}):
        for pid in pids:
            _end(pid, 0.0)


def _commands(program: bytes, arguments: set[bytes]) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if arguments <= set(words) and any(word.rpartition(b"/")[2] == program for word in words):
            found.append(int(folder.name))
    return found


def _end(pid: int, grace_s: float) -> None:
    """Wait for a process to end; kill it after `grace_s`, and wait until it is gone (pidfd_open(2))."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if select.select([handle], [], [], grace_s)[0]:
            return
        log.info("killing", pid=pid)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], _KILL_S)[0]:
            raise HostError(
                "PROCESS_STAYS",
                f"process {pid} was killed and is not gone after {_KILL_S:g} s (unmapping much memory takes long)",
                state="it serves nobody any more",
                next=f"tail --pid={pid} -f /dev/null   (returns when it is gone), then the same command again",
            )
    finally:
        os.close(handle)
