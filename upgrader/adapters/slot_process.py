"""The two daemons of a slot, as plain processes in the slot's network namespace that outlive whoever started them."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
from contextlib import suppress
from pathlib import Path

import structlog

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError
from upgrader.core.model import Slot, SlotStatus

log = structlog.get_logger(__name__)

_STOP_S = 10.0  # a daemon may take for its exit,
_KILL_S = 120.0  # and the kernel for its memory: 12 to 42 ms per GB of 4 KiB pages
_NICE = -10  # of ovs-vswitchd, whatever that of who starts it is


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


class SlotProcesses:
    """Starts, stops and looks at the daemons of slots."""

    def status(self, slot: Slot) -> SlotStatus:
        """What runs now, by the pid files; starts no process and never raises."""
        return SlotStatus(live_pid(slot.vswitchd_pidfile, "ovs-vswitchd"), live_pid(slot.ovsdb_pidfile, "ovsdb-server"))

    def running_version(self, slot: Slot) -> str | None:
        """Version of the vswitchd that runs, None where none does or it does not answer."""
        if live_pid(slot.vswitchd_pidfile, "ovs-vswitchd") is None:
            return None
        try:
            return self.appctl(slot, "version").split("\n")[0].split()[-1]
        except CommandError:
            return None

    def installed_version(self, slot: Slot) -> str | None:
        """Version of the slot's binaries, None where they are not installed or do not start."""
        try:
            out = gate.run([str(slot.prefix / "sbin/ovs-vswitchd"), "--version"], env=slot_env(slot)).stdout
        except CommandError:
            return None
        found = re.search(r"\(Open vSwitch\) (\S+)", out)
        return found.group(1) if found else None

    def start_database(self, slot: Slot, image: Path | None = None) -> int:
        """Start ovsdb-server and return its pid. `image`: a standalone database file to start from (moved in place).

        Without an image an existing conf.db is used, or an empty one is made from the slot's schema.
        """
        if pid := live_pid(slot.ovsdb_pidfile, "ovsdb-server"):
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
        gate.run(
            [
                str(slot.prefix / "sbin/ovsdb-server"),
                str(slot.db_file),
                f"--remote=punix:{slot.db_socket}",
                f"--pidfile={slot.ovsdb_pidfile}",
                f"--unixctl={slot.ovsdb_ctl}",
                f"--log-file={slot.rundir / 'ovsdb-server.log'}",
                "-vconsole:off",
                "--detach",
                "--no-chdir",
            ],
            netns=slot.netns,
            env=slot_env(slot),
        )
        pid = live_pid(slot.ovsdb_pidfile, "ovsdb-server")
        if pid is None:
            raise HostError(
                "SLOT_START_FAILED",
                f"ovsdb-server of slot {slot.name} ended right after its start",
                state=f"slot {slot.name} is down, the other slot was not touched",
                next=f"tail {slot.rundir / 'ovsdb-server.log'}",
            )
        return pid

    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
        """Start ovs-vswitchd on the slot's database and return its pid, once it has applied the configuration.

        The niceness is what ovs-ctl(8) gives it. No monitor process (its fork would hide a crash) and no core of guest
        memory (it delays the hang-up by which QEMU learns of a crash by seconds).
        """
        gate.run(
            [
                "nice",
                "-n",
                str(_NICE - os.nice(0)),
                "prlimit",
                "--core=0:0",
                f"--nofile={_descriptors()}",
                "--",
                str(slot.prefix / "sbin/ovs-vswitchd"),
                f"unix:{slot.db_socket}",
                f"--pidfile={slot.vswitchd_pidfile}",
                f"--unixctl={slot.vswitchd_ctl}",
                f"--log-file={slot.rundir / 'ovs-vswitchd.log'}",
                "-vconsole:off",
                "--detach",
                "--no-chdir",
            ],
            netns=slot.netns,
            env=slot_env(slot),
            timeout_s=timeout_s,
        )
        pid = live_pid(slot.vswitchd_pidfile, "ovs-vswitchd")
        if pid is None:
            raise HostError(
                "SLOT_START_FAILED",
                f"ovs-vswitchd of slot {slot.name} ended right after its start",
                state=f"slot {slot.name} is down, the other slot was not touched",
                next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
            )
        with suppress(OSError):  # sched(7): where sessions are scheduled as groups, a nice value counts within its own
            Path(f"/proc/{pid}/autogroup").write_text(str(_NICE))
        return pid

    def appctl(self, slot: Slot, *command: str, timeout_s: float = 10.0) -> str:
        """Run one ovs-appctl command against the slot's vswitchd and return what it prints."""
        return gate.run(
            [
                str(slot.prefix / "bin/ovs-appctl"),
                f"--timeout={int(timeout_s)}",
                "-t",
                str(slot.vswitchd_ctl),
                *command,
            ],
            env=slot_env(slot),
            timeout_s=timeout_s + 2,
        ).stdout

    def polled_queues(self, slot: Slot) -> dict[str, int]:
        """Receive queues by port that a PMD thread polls and the peer has enabled (`dpif-netdev/pmd-rxq-show`)."""
        queues: dict[str, int] = {}
        for line in self.appctl(slot, "dpif-netdev/pmd-rxq-show").splitlines():
            if found := re.search(r"port:\s+(\S+)\s+queue-id:\s+\d+\s+\(enabled\)", line):
                queues[found[1]] = queues.get(found[1], 0) + 1
        return queues

    def log_vhost_messages(self, slot: Slot, *, on: bool) -> None:
        """By DPDK's log level for them (`dpdk/log-set`, ovs-vswitchd(8)); warnings are written either way."""
        self.appctl(slot, "dpdk/log-set", f"lib.vhost.config:{'info' if on else 'notice'}")

    def stop(self, slot: Slot) -> None:
        """End both daemons in order, the switch first; a daemon that ignores the command is killed. Idempotent."""
        self.stop_switch(slot)
        _stop(slot, slot.ovsdb_pidfile, slot.ovsdb_ctl, "ovsdb-server")

    def stop_switch(self, slot: Slot) -> None:
        """End ovs-vswitchd alone; the database goes on. Idempotent."""
        _stop(slot, slot.vswitchd_pidfile, slot.vswitchd_ctl, "ovs-vswitchd")

    def kill_switch(self, slot: Slot) -> None:
        """SIGKILL the slot's vswitchd and wait until it is gone. For a switch that hangs or must not act again."""
        pid = live_pid(slot.vswitchd_pidfile, "ovs-vswitchd")
        if pid is not None:
            _end(pid, 0.0)


def _stop(slot: Slot, pidfile: Path, ctl: Path, program: str) -> None:
    """Tell one daemon to exit and wait until it has; kill it when it does not listen."""
    pid = live_pid(pidfile, program)
    if pid is None:
        return
    argv = [str(slot.prefix / "bin/ovs-appctl"), "--timeout=5", "-t", str(ctl), "exit"]
    gate.run(argv, env=slot_env(slot), check=False)
    _end(pid, _STOP_S)


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


def _descriptors() -> str:
    """Limit on open files as prlimit(1) takes it: many, for vhost sockets, but no more than we may ask for.

    Raising the hard limit needs CAP_SYS_RESOURCE, which root in a container may lack.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    return f"{limit}:{limit}"
