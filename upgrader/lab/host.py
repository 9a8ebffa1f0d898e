"""The machine under the lab: hugepages, locks, and which of its processes are the lab's."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from upgrader.core.errors import HostError, LockedError
from upgrader.lab.spec import HUGEPAGE_KIB, RUN_ROOT, LabSpec

_NR_HUGEPAGES: Final = Path(f"/sys/kernel/mm/hugepages/hugepages-{HUGEPAGE_KIB}kB/nr_hugepages")
_RESERVATIONS: Final = RUN_ROOT / ".hugepages.json"
_TERM_GRACE_S: Final = 3.0
_KILL_GRACE_S: Final = 10.0
_COORDINATOR: Final = b"upgrader.daemon.service"
#: Programs of a lab. A person's editor or the coordinator may name the lab's directory too: those are not ended.
_PROGRAMS: Final = frozenset(
    {
        "ovs-vswitchd",
        "ovsdb-server",
        "ovsdb-tool",
        "ovs-vsctl",
        "ovs-ofctl",
        "ovs-appctl",
        "libvirtd",
        "virtlogd",
        "virsh",
        "pktflow",
    }
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told from a later one with the same pid by its start time in clock ticks since boot (proc(5))."""

    pid: int
    start_ticks: int

    def alive(self) -> bool:
        """Whether it still runs; one that has ended and waits to be reaped does not."""
        found = look_up(self.pid)
        return found is not None and found.start_ticks == self.start_ticks


def look_up(pid: int) -> Process | None:
    """The running process with this pid, None where there is none or it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in ("Z", "X") else Process(pid, int(after_name[19]))


def program(pid: int) -> str:
    """Base name of what a process was started as, empty where it has gone."""
    try:
        argv0 = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return ""
    return Path(os.fsdecode(argv0)).name


def lab_processes(lab: LabSpec) -> list[Process]:
    """Every process of the lab, ourselves and our ancestors aside.

    Those in one of its network namespaces, and the lab's programs whose command line names its directory (a namespace
    may have lost its name already).
    """
    inodes = set()
    for name in lab.namespaces.all():
        try:
            inodes.add((Path("/run/netns") / name).stat().st_ino)
        except OSError:
            continue
    spared = _ancestors()
    needle = os.fsencode(str(lab.directory)) + b"/"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        pid = int(entry.name)
        try:
            ours = (entry / "ns/net").stat().st_ino in inodes
            if not ours:
                name = program(pid)
                ours = (name in _PROGRAMS or name.startswith("qemu-system-")) and needle in (
                    entry / "cmdline"
                ).read_bytes()
        except OSError:
            continue  # it has gone, or is a kernel thread
        if ours and (process := look_up(pid)):
            found.append(process)
    return found


def coordinators(lab: LabSpec) -> list[Process]:
    """The daemons that a configuration of the lab's was given to, ourselves and our ancestors aside."""
    spared = _ancestors()
    needle = os.fsencode(str(lab.directory)) + b"/"
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if _COORDINATOR in arguments.split(b"\0") and needle in arguments and (process := look_up(int(entry.name))):
            found.append(process)
    return found


def _ancestors() -> set[int]:
    spared = set()
    pid = os.getpid()
    while pid > 1:
        spared.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return spared


def end(processes: Iterable[Process]) -> list[Process]:
    """Ask all of them to end, then make them; returns those that are left. Each by its pid, none by its name."""
    left = [p for p in processes if p.alive()]
    for number, grace_s in ((signal.SIGTERM, _TERM_GRACE_S), (signal.SIGKILL, _KILL_GRACE_S)):
        for process in left:
            _signal(process, number)
        deadline = time.monotonic() + grace_s
        while left and time.monotonic() < deadline:
            left = [p for p in left if p.alive()]
            if left:
                time.sleep(0.02)
    return left


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to this process and to no later one with its pid: the pidfd is taken before it is recognised."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.alive():
            signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock file, made where it is not there. Raises LockedError with `busy` when another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = _lock(path, wait=False, busy=busy)
    try:
        yield
    finally:
        os.close(fd)


def _lock(path: Path, *, wait: bool, busy: str) -> int:
    """Take the lock on the file that now bears this name: whoever ended the last lab may have removed the one we opened."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            raise LockedError(
                "LAB_BUSY", busy, state="nothing was changed", next="wait for it to end, then try again"
            ) from None
        except FileNotFoundError:
            pass
        os.close(fd)


class Hugepages:
    """The machine's 2 MiB pages, shared by all labs on it.

    The file names the number there was before the first lab, and what each lab asked for, and is written before the
    kernel is told: whenever the tool is killed, `release` finds what there is to give back, and gives it back once.
    """

    def __init__(self, knob: Path = _NR_HUGEPAGES, reservations: Path = _RESERVATIONS) -> None:
        self._knob = knob
        self._file = reservations

    def reserve(self, owner: str, pages: int) -> None:
        """Add `pages` for a lab. Raises HostError, after giving them back, where the machine has not that many."""
        with self._exclusive():
            book = self._read()
            total = self._total()
            if not book["labs"]:
                book["before"] = total
            earlier = book["labs"].pop(owner, 0)
            wanted = max(total - earlier, book["before"] + sum(book["labs"].values())) + pages
            book["labs"][owner] = pages
            self._write(book)
            self._set(wanted)
            got = self._total()
        if got < wanted:
            self.release(owner)
            raise HostError(
                "HUGEPAGES_SHORT",
                f"{pages} more 2 MiB hugepages are needed, the kernel gave {max(0, got - wanted + pages)}",
                state="they were given back; nothing else was made",
                next="sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory, or fewer guests: --vms 2",
            )

    def release(self, owner: str) -> None:
        """Take a lab's pages away again, never below what there was before the first lab. Idempotent."""
        if not self._file.exists():
            return
        with self._exclusive():
            book = self._read()
            pages = book["labs"].get(owner)
            if pages is not None:
                total = self._total()
                rest = sum(n for lab, n in book["labs"].items() if lab != owner)
                self._set(min(total, max(total - pages, book["before"] + rest)))
                del book["labs"][owner]
                self._write(book)
            if not book["labs"]:
                self._file.unlink(missing_ok=True)

    def reserved(self, owner: str) -> int:
        """2 MiB pages that are noted for a lab."""
        return int(self._read()["labs"].get(owner, 0))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        lock = self._file.with_suffix(".lock")
        fd = _lock(lock, wait=True, busy="")
        try:
            yield
        finally:
            if not self._file.exists():
                lock.unlink(missing_ok=True)
            os.close(fd)

    def _read(self) -> dict[str, Any]:
        try:
            book: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {"before": 0, "labs": {}}
        return book

    def _write(self, book: dict[str, Any]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(book))
        new.replace(self._file)

    def _total(self) -> int:
        try:
            return int(self._knob.read_text())
        except OSError as error:
            raise self._unusable(error) from error

    def _set(self, pages: int) -> None:
        if pages == self._total():
            return
        try:
            self._knob.write_text(str(pages))
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> HostError:
        return HostError(
            "HUGEPAGES_UNUSABLE",
            f"2 MiB hugepages cannot be reserved here: {error}",
            state="their number is as it was",
            next=f"ls -l {self._knob}; grep -i hugepage /proc/meminfo   (a container needs the host's /sys, writable)",
        )
