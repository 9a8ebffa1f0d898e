"""Records what a real QEMU with its series and a real switch say to each other while a guest's rings are handed over.

    python -m tests.support.vhost_recorder QEMU OVS_PREFIX OUT     # a transcript of the whole scenario

A guest boots on that QEMU. Between QEMU and the switch stands a process a connection that passes everything on and
writes it down first; to QEMU it is the switch, and its death the switch's death.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from tests.support.switch import Switch, eventually, running
from tests.support.transcript import Mark, Message, Side, Transcript, decode, save
from upgrader.adapters import gate
from upgrader.core.versions import Qemu, can
from upgrader.lab import guest
from upgrader.lab.spec import Vm

_HEADER = struct.Struct("<III")
_MEMORY_MIB = 128
_BOOT_S = 120.0
_READY_S = 20.0
_MAX_FDS = 8


#: Has the switch of that name dial a path, for as long as it lives.
Dial = Callable[[str, Path], None]


class Monitor:
    """A QMP connection, commands only."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()  # the greeting
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: object) -> Any:
        """Execute a command and return what it returns; AssertionError with QEMU's words where it fails."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise AssertionError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@dataclass
class Machine:
    """A guest on some QEMU, whose one NIC has its backend behind a socket of ours."""

    directory: Path
    monitor: Monitor
    process: subprocess.Popen[bytes]

    @property
    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace")

    def state(self) -> Any:
        """The NIC's entry in query-netdev-vhost-user."""
        (entry,) = self.monitor.do("query-netdev-vhost-user")
        return entry

    def attach(self, chardev: str, path: Path, peer: int) -> None:
        """Give the NIC a standby: a socket of QEMU's own at `path`, for that process only."""
        backend = {"addr": {"type": "unix", "data": {"path": str(path)}}, "server": True, "wait": False}
        self.monitor.do("chardev-add", id=chardev, backend={"type": "socket", "data": backend})
        arguments = {"id": "n0", "chardev": chardev, "peer-pid": peer, "peer-uid": os.getuid()}
        self.monitor.do("netdev-vhost-user-standby-attach", **arguments)

    def switch(self) -> Any:
        """Hand the rings over to the standby."""
        now = self.state()
        return self.monitor.do("netdev-vhost-user-switch", id="n0", owner=now["owner"], generation=now["generation"])

    def await_standby(self) -> None:
        """Wait until the standby is parked."""

        def ready() -> bool:
            standby = self.state().get("standby")
            return bool(standby and standby["ready"])

        eventually(ready, f"the standby to be ready: {self.state().get('standby')}", _READY_S)


@contextmanager
def machine(qemu: Path, directory: Path) -> Iterator[Machine]:
    """Boot a guest, which waits for its first backend at `directory`/a.qemu; the guest may still be booting then."""
    directory.mkdir(parents=True, exist_ok=True)
    image = guest.build()
    vm = Vm(0, directory)
    memory = "memory-backend-memfd" if can(Qemu.MEMFD, gate.run([str(qemu), "--version"]).stdout) else None
    backing = memory or f"memory-backend-file,mem-path={directory}"
    log = directory / "qemu.log"
    argv = [
        *(str(qemu), "-nodefaults", "-nographic", "-machine", "pc,accel=tcg", "-cpu", "qemu64", "-m", str(_MEMORY_MIB)),
        *("-object", f"{backing},id=m0,size={_MEMORY_MIB}M,share=on", "-numa", "node,memdev=m0"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", guest.kernel_command_line(vm)),
        *("-serial", f"file:{directory}/console", "-qmp", f"unix:{directory}/qmp,server,nowait"),
        *("-chardev", f"socket,id=a,path={directory}/a.qemu,server", "-netdev", "vhost-user,id=n0,chardev=a"),
        *("-device", f"virtio-net-pci,netdev=n0,mac={vm.mac},romfile="),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv], stdout=output, stderr=output)
    monitor = None
    try:
        eventually(lambda: _listens(directory / "a.qemu") or process.poll() is not None, "QEMU to listen", 30)
        eventually(lambda: _listens(directory / "qmp") or process.poll() is not None, "QEMU's monitor", 60)
        if process.poll() is not None:
            raise AssertionError(f"QEMU ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        monitor = Monitor(directory / "qmp")
        yield Machine(directory, monitor, process)
    finally:
        if monitor:
            monitor.close()
        process.kill()
        process.wait(timeout=30)


def _listens(path: Path) -> bool:
    return path.is_socket()


class Tap:
    """A process between a switch, which dials `directory`/NAME.tap, and QEMU, which listens at NAME.qemu."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name, self._out = name, directory / f"{name}.raw"
        argv = [sys.executable, "-m", "tests.support.vhost_recorder", "--tap", name, str(directory)]
        self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *argv])
        eventually((directory / f"{name}.tap").exists, "the tap")

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=10)

    def messages(self, since_ns: int) -> Iterator[Message | Mark]:
        """What it has seen so far."""
        for line in self._out.read_text().splitlines():
            raw = json.loads(line)
            at_s = (raw["at"] - since_ns) / 1e9
            if "mark" in raw:
                yield Mark(at_s, raw["mark"])
            else:
                yield decode(at_s, self.name, raw["from"], bytes.fromhex(raw["data"]), raw["fds"])


def tap(name: str, directory: Path) -> None:
    """Serve one connection after the other, for ever."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / f"{name}.new"))
    listener.listen(1)
    out = os.open(directory / f"{name}.raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    (directory / f"{name}.new").rename(directory / f"{name}.tap")  # there once it listens
    while True:
        switch, _ = listener.accept()
        try:
            _pass_on(name, switch, directory, out)
        finally:
            switch.close()


def _pass_on(name: str, switch: socket.socket, directory: Path, out: int) -> None:
    with socket.socket(socket.AF_UNIX) as qemu, selectors.DefaultSelector() as ready:
        while qemu.connect_ex(str(directory / f"{name}.qemu")) != 0:
            time.sleep(0.02)  # a switch that is hung up on comes again at once, and again
        for pid in (os.getpid(), _peer(switch), _peer(qemu)):
            _at_once(pid)
        ends: dict[socket.socket, tuple[Side, socket.socket]] = {qemu: ("qemu", switch), switch: ("switch", qemu)}
        for end in ends:
            ready.register(end, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                sender, target = ends[source]
                data, fds = _receive(source)
                now = {"at": time.monotonic_ns()}
                if not data:
                    _write(out, {**now, "mark": f"hang-up of {name}"})
                    return
                _write(out, {**now, "from": sender, "data": data.hex(), "fds": len(fds)})
                try:
                    socket.send_fds(target, [data], fds)
                except OSError:
                    return
                finally:
                    for fd in fds:
                        os.close(fd)


def _peer(of: socket.socket) -> int:
    """Pid of the process at the other end (SO_PEERCRED, unix(7))."""
    credentials = struct.Struct("3i")
    return int(credentials.unpack(of.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))[0])


def _at_once(pid: int) -> None:
    """Whatever of a process speaks runs as soon as it has something to say: QEMU waits 20 ms, also on a busy machine.

    Not what computes: a guest's CPUs (made later, and so reset on fork) and PMDs.
    """
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            if not (task / "comm").read_text().startswith(("CPU ", "pmd")):
                policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
                os.sched_setscheduler(int(task.name), policy, os.sched_param(1))


def _receive(source: socket.socket) -> tuple[bytes, list[int]]:
    """One whole message and its descriptors; no bytes where the peer is gone."""
    try:
        data, fds, _, _ = socket.recv_fds(source, _HEADER.size, _MAX_FDS)
        while data and len(data) < _HEADER.size + (_HEADER.unpack_from(data)[2] if len(data) >= _HEADER.size else 0):
            wanted = _HEADER.size if len(data) < _HEADER.size else _HEADER.size + _HEADER.unpack_from(data)[2]
            more = source.recv(wanted - len(data))
            if not more:
                return b"", fds
            data += more
    except ConnectionError:
        return b"", []
    return data, fds


def _write(out: int, line: dict[str, Any]) -> None:
    os.write(out, json.dumps(line).encode() + b"\n")


class Recording:
    """The scenario, step by step; each step leaves a mark."""

    def __init__(self, qemu: Path, dial: Dial, directory: Path) -> None:
        self._stack = ExitStack()
        self._qemu, self._dial, self.directory = qemu, dial, directory
        self._since_ns = time.monotonic_ns()
        self._marks: list[Mark] = []
        self._taps: dict[str, Tap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def mark(self, what: str) -> None:
        self._marks.append(Mark((time.monotonic_ns() - self._since_ns) / 1e9, what))

    def boot(self) -> None:
        for name in "ab":
            self._taps[name] = Tap(self.directory, name)
            self._stack.callback(self._taps[name].kill)
            if name == "a":
                self.mark("boot on a")
            self._dial(name, self.directory / f"{name}.tap")
        self.machine = self._stack.enter_context(machine(self._qemu, self.directory))
        eventually(lambda: guest.READY_LINE in self.machine.console, "the guest to boot", _BOOT_S)
        time.sleep(0.5)  # its driver masks and unmasks interrupts until it is up

    def attach(self, *, ready: bool = True) -> None:
        self.mark("attach b")
        self.machine.attach("b", self.directory / "b.qemu", self._taps["b"].pid)
        if ready:
            self.machine.await_standby()

    def switch(self, to: str) -> None:
        self.mark(f"switch to {to}")
        assert self.machine.switch()["to"] == to
        self.machine.await_standby()

    def pause(self) -> None:
        """Stop the guest and let it go on: a device that stops and starts with both connections there."""
        self.mark("stop")
        self.machine.monitor.do("stop")
        time.sleep(0.2)
        self.mark("cont")
        self.machine.monitor.do("cont")
        self.machine.await_standby()

    def kill(self, name: str) -> None:
        """The process at the end of the owner's connection dies; QEMU goes over to the standby by itself."""
        self.mark(f"death of {name}")
        before = self.machine.state()["generation"]
        self._taps[name].kill()
        eventually(lambda: self.machine.state()["generation"] > before, "the failover")
        eventually(lambda: self.machine.state()["owner"] != name, "another owner")
        time.sleep(0.2)

    def transcript(self, about: Mapping[str, str] | None = None) -> Transcript:
        lines = [*self._marks, *(line for t in self._taps.values() for line in t.messages(self._since_ns))]
        lines.sort(key=lambda line: line.at_s)  # stable: a mark comes before what followed from it
        return Transcript(about or {}, tuple(lines))


def ports(switch: Switch) -> Dial:
    """Each connection is a port of that switch."""
    return lambda name, path: switch.add_client_port(f"v{name}", path, number=1 + "ab".index(name))


def record(qemu: Path, dial: Dial, directory: Path, about: Mapping[str, str] | None = None) -> Transcript:
    """The whole scenario: boot, a standby, there and back, stop and cont, there again, and the owner's death."""
    with Recording(qemu, dial, directory) as recording:
        recording.boot()
        recording.attach()
        recording.switch("b")
        recording.switch("a")
        recording.pause()
        recording.switch("b")
        recording.kill("b")
        return recording.transcript(about)


def record_to(qemu: Path, prefix: Path, out: Path) -> Transcript:
    """Record the scenario with that QEMU and that OVS, and keep it in a file, too."""
    with tempfile.TemporaryDirectory(prefix="vhost-") as folder:
        versions = gate.run([str(prefix / "sbin/ovs-vswitchd"), "--version"]).stdout.splitlines()
        about = {
            "qemu": gate.run([str(qemu), "--version"]).stdout.splitlines()[0],
            "switch": ", ".join(line for line in versions if line.startswith(("ovs-vswitchd", "DPDK"))),
            "recorded": time.strftime("%Y-%m-%d"),
        }
        with running(prefix, Path(folder) / "switch") as switch:
            transcript = record(qemu, ports(switch), Path(folder), about)
    save(transcript, out)
    return transcript


def main(argv: list[str]) -> None:
    if argv[0] == "--tap":
        tap(argv[1], Path(argv[2]))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    qemu, prefix, out = map(Path, argv)
    record_to(qemu, prefix, out)


if __name__ == "__main__":
    main(sys.argv[1:])
