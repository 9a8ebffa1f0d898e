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
from typing import Any

from tests.support.killing import wait_until
from tests.support.lab_host import LabHost
from upgrader.adapters import gate
from upgrader.core.model import SlotName
from upgrader.lab import spec as names

# sys/ptrace.h, x86-64: struct user_regs_struct is 27 words, of which `orig_rax` is the 16th and `rip` the 17th
_ATTACH, _DETACH, _GETREGS, _SETREGS, _STEP = 16, 17, 12, 13, 9
_WORDS, _ORIG_RAX, _RIP, _RAX = 27, 15, 16, 10
_ARGUMENTS = (14, 13, 12, 7, 9, 8)  # rdi, rsi, rdx, r10, r8, r9
_WALL = 0x40000000  # __WALL (wait(2)): threads as well
_LOOP, _SYSCALL = b"\xeb\xfe", b"\x0f\x05"  # a jump to itself; a system call
_MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


def _thread(pid: int, name: str) -> int:
    """The thread of that name (a pattern). Raises ValueError where there is none."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if re.match(name, (task / "comm").read_text()):
            return int(task.name)
    raise ValueError(f"process {pid} has no thread {name}")


def _find(pid: int, code: bytes) -> int:
    """An address in the process's program at which these bytes stand. Raises ValueError where there is none."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, rights, offset, _, _, *path = line.split()
        if "x" in rights and path and path[0].startswith("/"):
            start, end = (int(part, 16) for part in area.split("-"))
            with open(path[0], "rb") as program:  # noqa: PTH123
                program.seek(int(offset, 16))
                found = program.read(end - start).find(code)
            if found >= 0:
                return start + found
    raise ValueError(f"process {pid} has no such instruction")


class _Traced:
    """A thread that is held (ptrace(2)), and goes on afterwards."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def __enter__(self) -> _Traced:
        self._ask(_ATTACH)
        os.waitpid(self._thread, _WALL)
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(_DETACH)

    def _ask(self, request: int, data: object = None) -> None:
        if self._libc.ptrace(request, self._thread, None, data) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def registers(self) -> Any:
        found = (ctypes.c_ulonglong * _WORDS)()
        self._ask(_GETREGS, ctypes.cast(found, ctypes.c_void_p))
        return found

    def set(self, registers: Any) -> None:
        self._ask(_SETREGS, ctypes.cast(registers, ctypes.c_void_p))

    def step(self) -> None:
        self._ask(_STEP)
        os.waitpid(self._thread, _WALL)


def stick(pid: int, name: str) -> None:
    """Let that thread run in a circle for ever, as a loop without an end does."""
    loop = _find(pid, _LOOP)
    with _Traced(_thread(pid, name)) as thread:
        registers = thread.registers()
        registers[_ORIG_RAX] = 2**64 - 1  # a system call it was in is not begun again
        registers[_RIP] = loop
        thread.set(registers)


def make_big(pid: int, gib: int) -> None:
    """Let the process map so much memory on 4 KiB pages, touched, as that of guests: its main thread calls mmap(2)."""
    call = _find(pid, _SYSCALL)
    shared, anonymous, populate = 0x01, 0x20, 0x8000
    with _Traced(_thread(pid, "ovs-vswitchd")) as thread:
        before, registers = thread.registers(), thread.registers()
        registers[_ORIG_RAX], registers[_RIP], registers[_RAX] = 2**64 - 1, call, 9
        for register, value in zip(
            _ARGUMENTS, (0, gib << 30, 3, shared | anonymous | populate, 2**64 - 1, 0), strict=True
        ):
            registers[register] = value
        thread.set(registers)
        thread.step()
        result = ctypes.c_longlong(thread.registers()[_RAX]).value
        thread.set(before)  # and a system call it was in is begun again
    if -4096 < result < 0:
        raise OSError(-result, "mmap")


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


def _signals(number: signal.Signals) -> Callable[[LabHost, SlotName], int]:
    def send(host: LabHost, slot: SlotName) -> int:
        pid = _pid(host, slot)
        at_ns = time.time_ns()
        os.kill(pid, number)
        return at_ns

    return send


def _pid(host: LabHost, slot: SlotName) -> int:
    pid = host.pid(slot)
    assert pid is not None
    return pid


def _pmd(host: LabHost, slot: SlotName) -> int:
    stick(_pid(host, slot), "pmd-c")
    return time.time_ns()


def _main(host: LabHost, slot: SlotName) -> int:
    stick(_pid(host, slot), "ovs-vswitchd")
    return time.time_ns()


def _oom(host: LabHost, slot: SlotName) -> int:
    pid, where = _pid(host, slot), host.slots[slot]
    flows = where.rundir / "many.flows"
    flows.write_text("".join(f"table=99,priority={n},actions=drop\n" for n in range(1, 20001)))
    with little_memory(pid, f"{os.getpid()}-{pid}"):
        argv = [str(where.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14", "add-flows"]
        gate.run([*argv, f"unix:{where.rundir}/{names.BR_INT}.mgmt", str(flows)], check=False, timeout_s=30)
        wait_until(lambda: host.pid(slot) != pid, "the kernel's kill", 20, 0.001)
        return time.time_ns()


def _exit(host: LabHost, slot: SlotName) -> int:
    at_ns = time.time_ns()
    host.host.processes.appctl(host.slots[slot], "exit")  # type: ignore[attr-defined]
    return at_ns


def _database(host: LabHost, slot: SlotName) -> int:
    pid = host.host.processes.status(host.slots[slot]).ovsdb_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return time.time_ns()


#: What is done to the active, and when (CLOCK_REALTIME, ns); after all but the last one the standby serves every VM.
KINDS: dict[str, Callable[[LabHost, SlotName], int]] = {
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
