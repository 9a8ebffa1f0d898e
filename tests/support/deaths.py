"""The ways in which a switch dies, or lives and does not work."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.killing import wait_until
from tests.support.lab_host import LabHost
from upgrader.adapters import gate
from upgrader.core.model import SlotName
from upgrader.lab import spec as names

# sys/ptrace.h, x86-64: struct user_regs_struct is 27 words, of which `orig_rax` is the 16th and `rip` the 17th
_ATTACH, _DETACH, _GETREGS, _SETREGS = 16, 17, 12, 13
_WORDS, _ORIG_RAX, _RIP = 27, 15, 16
_WALL = 0x40000000  # __WALL (wait(2)): threads as well
_LOOP = b"\xeb\xfe"  # a jump to itself
_MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


def _thread(pid: int, name: str) -> int:
    """The thread of that name (a pattern). Raises ValueError where there is none."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if re.match(name, (task / "comm").read_text()):
            return int(task.name)
    raise ValueError(f"process {pid} has no thread {name}")


def _loop_in(pid: int) -> int:
    """An address of the process's program at which it would turn in a circle."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, rights, offset, _, _, *path = line.split()
        if "x" in rights and path and path[0].endswith("ovs-vswitchd"):
            start, end = (int(part, 16) for part in area.split("-"))
            with open(path[0], "rb") as program:  # noqa: PTH123
                program.seek(int(offset, 16))
                found = program.read(end - start).find(_LOOP)
            if found >= 0:
                return start + found
    raise ValueError(f"process {pid} has no such instruction")


def stick(pid: int, name: str) -> None:
    """Let that thread run in a circle for ever, as a loop without an end does (ptrace(2))."""
    thread, loop = _thread(pid, name), _loop_in(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def ptrace(request: int, data: object = None) -> None:
        if libc.ptrace(request, thread, None, data) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    registers = (ctypes.c_ulonglong * _WORDS)()
    ptrace(_ATTACH)
    os.waitpid(thread, _WALL)
    try:
        ptrace(_GETREGS, ctypes.cast(registers, ctypes.c_void_p))
        registers[_ORIG_RAX] = 2**64 - 1  # a system call it was in is not begun again
        registers[_RIP] = loop
        ptrace(_SETREGS, ctypes.cast(registers, ctypes.c_void_p))
    finally:
        ptrace(_DETACH)


@contextmanager
def little_memory(pid: int, tag: str) -> Iterator[None]:
    """The process may take no more memory than it has by now: the kernel kills it when it wants more."""
    group = _MEMORY_CGROUPS / f"ovs-upgrade-{tag}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "memory.limit_in_bytes").write_text("65536")
        yield
    finally:
        deadline = time.monotonic() + 30
        while group.exists():
            with suppress(OSError):  # busy until the process is gone
                group.rmdir()
            assert time.monotonic() < deadline, f"{group} stays"
            time.sleep(0.05)


def _signals(number: signal.Signals) -> Callable[[LabHost, SlotName], None]:
    return lambda host, slot: os.kill(_pid(host, slot), number)


def _pid(host: LabHost, slot: SlotName) -> int:
    pid = host.pid(slot)
    assert pid is not None
    return pid


def _pmd(host: LabHost, slot: SlotName) -> None:
    stick(_pid(host, slot), "pmd-c")


def _main(host: LabHost, slot: SlotName) -> None:
    stick(_pid(host, slot), "ovs-vswitchd")


def _oom(host: LabHost, slot: SlotName) -> None:
    pid, where = _pid(host, slot), host.slots[slot]
    flows = where.rundir / "many.flows"
    flows.write_text("".join(f"table=99,priority={n},actions=drop\n" for n in range(1, 20001)))
    with little_memory(pid, f"{os.getpid()}-{pid}"):
        argv = [str(where.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14", "add-flows"]
        gate.run([*argv, f"unix:{where.rundir}/{names.BR_INT}.mgmt", str(flows)], check=False, timeout_s=30)
        wait_until(lambda: host.pid(slot) != pid, "the kernel's kill", 20)


def _exit(host: LabHost, slot: SlotName) -> None:
    host.host.processes.appctl(host.slots[slot], "exit")  # type: ignore[attr-defined]


def _database(host: LabHost, slot: SlotName) -> None:
    pid = host.host.processes.status(host.slots[slot]).ovsdb_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


#: What is done to the active; after all but the last one the standby serves every VM.
KINDS: dict[str, Callable[[LabHost, SlotName], None]] = {
    "SIGKILL": _signals(signal.SIGKILL),
    "SIGSEGV": _signals(signal.SIGSEGV),
    "abort": _signals(signal.SIGABRT),
    "SIGSTOP": _signals(signal.SIGSTOP),
    "PMD stuck": _pmd,
    "main thread stuck": _main,
    "out of memory": _oom,
    "exit on command": _exit,
    "ovsdb-server dies": _database,
}
