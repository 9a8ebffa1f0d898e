"""A real Open vSwitch with DPDK in a private run directory and an anonymous network namespace, for one test.

DPDK runs without hugepages (``--no-huge``) unless asked: nothing is reserved on the machine, and its memory has a
fixed size, which makes its exhaustion testable.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from upgrader.adapters import gate
from upgrader.lab import vintage
from upgrader.lab.host import Hugepages

SYS_PIDFD_GETFD = 438
READY_S = 30.0
# For a DPDK that keeps its hugepages in files.
_OLD_MIB, _OLD_SLACK_MIB = 64, 32
_MOUNT = 'mkdir {directory} && mount -t hugetlbfs -o pagesize=2M,size={size}M none {directory} && exec "$@"'


def eventually(condition: Callable[[], object], what: str, timeout_s: float = READY_S) -> None:
    """Wait until a condition holds; fails with `what` was waited for."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


class Switch:
    """One ovsdb-server and one ovs-vswitchd of an installed build."""

    def __init__(
        self,
        prefix: Path,
        directory: Path,
        *,
        memory_mb: int = 256,
        small_pools: bool = False,
        hugepages: bool = False,
        open_files: int | None = None,
    ) -> None:
        directory.mkdir(parents=True)
        self.prefix, self.directory = prefix, directory
        self.env = {f"OVS_{name}": str(directory) for name in ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")}
        self._memory_mb, self._small_pools, self._hugepages = memory_mb, small_pools, hugepages
        self._open_files = open_files
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reservation = f"switch {directory}"

    @property
    def pid(self) -> int:
        """Return the pid of ovs-vswitchd."""
        return self._processes[-1].pid

    def start(self) -> None:
        """Start both daemons and wait until the switch has taken its configuration."""
        database = self.directory / "conf.db"
        schema = self.prefix / "share/openvswitch/vswitch.ovsschema"
        gate.run([str(self.prefix / "bin/ovsdb-tool"), "create", str(database), str(schema)], env=self.env)
        remote = f"--remote=punix:{self.directory}/db.sock"
        self._spawn([str(self.prefix / "sbin/ovsdb-server"), str(database), remote])
        eventually((self.directory / "db.sock").exists, "the database's socket")
        self.vsctl("--no-wait", "init")
        # A PMD that never sleeps would take half of a small machine from whatever it is compared with.
        config = {"dpdk-init": "true", "pmd-maxsleep": "200"}
        own: list[str] = []
        if self._hugepages:
            config |= dict.fromkeys(("dpdk-socket-mem", "dpdk-socket-limit"), str(self._memory_mb))
            memory = "--in-memory --no-telemetry"
        elif vintage.keeps_files(self.prefix):
            # Its mempools do not work without hugepages; it gets some of its own, in a mount of its own.
            config["dpdk-socket-mem"] = str(_OLD_MIB)
            memory = f"--huge-dir={self.directory}/huge --no-shconf --huge-unlink"
            mount = _MOUNT.format(directory=f"{self.directory}/huge", size=_OLD_MIB + _OLD_SLACK_MIB)
            own = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", mount, "sh"]
            Hugepages().reserve(self._reservation, (_OLD_MIB + _OLD_SLACK_MIB) // 2)
        else:
            # Without --legacy-mem the switch adds --in-memory, which does not go with --no-huge.
            memory = f"--no-huge --legacy-mem --no-shconf -m {self._memory_mb} --no-telemetry"
        config["dpdk-extra"] = f"{memory} --no-pci"
        if self._small_pools:
            config["per-port-memory"] = "true"
        settings = [f'other_config:{key}="{value}"' for key, value in config.items()]
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)
        # unshare and prlimit become the switch by exec: the pid is the switch's own.
        limit = ["prlimit", f"--nofile={self._open_files}", "--"] if self._open_files else []
        log = f"--log-file={self.directory}/ovs-vswitchd.log"
        binary = str(self.prefix / "sbin/ovs-vswitchd")
        place = ["unshare", "--net", "--", *own, *limit]
        self._spawn([*place, binary, f"unix:{self.directory}/db.sock", log, "--pidfile"])
        eventually(self._is_ready, "the switch to start")
        self.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure")

    def add_client_port(self, name: str, path: Path, *, number: int) -> None:
        """Add a port whose switch side connects to a front-end's socket."""
        options = f"options:vhost-server-path={path}"
        kind = ["type=dpdkvhostuserclient", options, f"ofport_request={number}"]
        self.vsctl("add-port", "br0", name, "--", "set", "interface", name, *kind)

    def add_server_port(self, name: str, *, number: int) -> Path:
        """Add a port whose switch side listens; returns its socket."""
        kind = ["type=dpdkvhostuser", f"ofport_request={number}"]
        self.vsctl("add-port", "br0", name, "--", "set", "interface", name, *kind)
        return self.directory / name

    def join_ports(self, one: int, other: int) -> None:
        """Forward all from each port to the other."""
        for source, target in ((one, other), (other, one)):
            flow = f"in_port={source},actions=output:{target}"
            self._tool("ovs-ofctl", "add-flow", f"unix:{self.directory}/br0.mgmt", flow)

    def vsctl(self, *words: str) -> str:
        """Run ovs-vsctl."""
        return self._tool("ovs-vsctl", f"--db=unix:{self.directory}/db.sock", "--timeout=30", *words)

    def appctl(self, *words: str) -> str:
        """Run ovs-appctl on the switch."""
        return self._tool("ovs-appctl", "-t", str(self._control()), *words)

    def interface(self, name: str, column: str) -> str:
        """Return a column of an interface."""
        return self.vsctl("get", "interface", name, column).strip()

    def received(self, name: str) -> int:
        """Packets that a port has taken so far; in the database they are some seconds old."""
        shown = self._tool("ovs-ofctl", "dump-ports", f"unix:{self.directory}/br0.mgmt", name)
        count = shown.partition("rx pkts=")[2].partition(",")[0]
        return 0 if count == "?" else int(count)  # "?": it has no device yet, and nothing was counted

    def log(self) -> str:
        """Return what the switch has logged so far."""
        return (self.directory / "ovs-vswitchd.log").read_text()

    def mapped_libraries(self) -> set[Path]:
        """Return the files of DPDK that the switch has mapped."""
        lines = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return {Path(line.split(maxsplit=5)[5]) for line in lines if "librte_" in line}

    def sockets_to(self, path: Path) -> list[int]:
        """Return the descriptors of the switch that are sockets at or connected to a path."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            if str(_target(entry)).startswith("socket:"):
                with _copied_socket(self.pid, int(entry.name)) as copy:
                    if copy and str(path) in (_name(copy.getsockname), _name(copy.getpeername)):
                        found.append(int(entry.name))
        return sorted(found)

    def in_namespace(self, *words: str) -> None:
        """Run a command in the switch's network namespace."""
        gate.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *words])

    def kill(self) -> float:
        """Kill the switch, do not wait; returns when (monotonic, seconds)."""
        now = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        return now

    def stop(self) -> None:
        """End both daemons; safe to call twice."""
        for process in reversed(self._processes):
            process.kill()
            process.wait(timeout=30)
        Hugepages().release(self._reservation)

    def _is_ready(self) -> bool:
        code = self._processes[-1].poll()
        if code is not None:
            raise AssertionError(f"the switch ended with {code}:\n{self.log()[-2000:]}")
        if vintage.keeps_files(self.prefix):
            return bool(self._control().exists())  # it has no column for that; ovs-vsctl waits for what is configured
        return "true" in self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized")

    def _control(self) -> Path:
        return self.directory / f"ovs-vswitchd.{self.pid}.ctl"

    def _tool(self, name: str, *words: str) -> str:
        return gate.run([str(self.prefix / "bin" / name), *words], env=self.env).stdout

    def _spawn(self, words: list[str]) -> None:
        # They must not outlive a test run that is killed.
        bound = ["setpriv", "--pdeathsig", "KILL", "--", *words]
        self._processes.append(gate.spawn(bound, env=self.env, output=self.directory / "stderr"))


@contextmanager
def running(
    prefix: Path,
    directory: Path,
    *,
    memory_mb: int = 256,
    small_pools: bool = False,
    hugepages: bool = False,
    open_files: int | None = None,
) -> Iterator[Switch]:
    """Run a switch for the length of a block.

    small_pools  a mempool per port instead of a shared one. A shared one is tried at 262,144 mbufs first, and an
                 unpatched switch that lacks memory for so many now and then gives up instead of halving (ENOBUFS).
    """
    switch = Switch(
        prefix,
        directory,
        memory_mb=memory_mb,
        small_pools=small_pools,
        hugepages=hugepages,
        open_files=open_files,
    )
    try:
        switch.start()
        yield switch
    finally:
        switch.stop()


@contextmanager
def _copied_socket(pid: int, number: int) -> Iterator[socket.socket | None]:
    """Hold a copy of another process's socket, nothing where it is gone already (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        copied = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if copied < 0:
        yield None
        return
    with socket.socket(fileno=copied) as copy:
        yield copy


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except FileNotFoundError:
        return None


def _name(ask: Callable[[], object]) -> str:
    try:
        name = ask()
    except OSError:
        return ""
    return name if isinstance(name, str) else ""
