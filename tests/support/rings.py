"""A look at guests' rings from outside, through the memory that QEMU shares: whoever writes to them, only one may.

DPDK gives used descriptors back in the order in which they were made available (split rings, VIRTIO 1.1, 2.6). Two
writers at a time would set `used->idx` back or beyond `avail->idx`, or give a descriptor back twice or out of turn.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upgrader.lab import domains
from upgrader.lab.libvirtd import virsh
from upgrader.lab.up import Lab

_EVERY_S = 0.0005
_HALF = 0x8000
_NICE = -10  # what the switch has: looks that come too late see nothing


@dataclass
class Ring:
    """One split ring at `avail` and `used`, byte offsets in the guest's memory, of `num` descriptors."""

    name: str
    memory: mmap.mmap | bytearray
    num: int
    avail: int
    used: int
    seen: int | None = None
    checked: int = 0
    missed: int = 0
    wrong: list[str] = field(default_factory=list)
    doubtful: list[tuple[int, str]] = field(default_factory=list)

    def look(self) -> None:
        """Check what was given back since the last look."""
        now, made = self._indexes()
        self._settle(made)
        if self.seen is None:
            self.seen = now
        new = (now - self.seen) & 0xFFFF
        if new > self.num:
            # forward, and no further than what was made available: the whole ring was used anew before this look
            if new < _HALF and ((made - now) & 0xFFFF) <= self.num:
                self.missed += new
            else:
                self._wrong(f"used->idx went from {self.seen} to {now}, avail->idx is {made}")
            self.seen = now
            return
        for index in range(self.seen, self.seen + new):
            (head,) = struct.unpack_from("<H", self.memory, self.avail + 4 + 2 * (index % self.num))
            (used,) = struct.unpack_from("<I", self.memory, self.used + 4 + 8 * (index % self.num))
            (made,) = struct.unpack_from("<H", self.memory, self.avail + 2)
            if ((made - index) & 0xFFFF) > self.num:
                self.missed += 1  # the guest has used the entry anew: this look came too late
            elif head != used:
                what = f"entry {index & 0xFFFF}: descriptor {used} was given back, {head} was its turn"
                if ((made - index) & 0xFFFF) == self.num:
                    self.doubtful.append((index, what))  # the next to be used anew: the guest may be about to say so
                else:
                    self._wrong(what)
            self.checked += 1
        self.seen = now

    def end(self) -> None:
        """What was in doubt, and still is, was wrong."""
        for _, what in self.doubtful:
            self._wrong(what)
        self.doubtful = []

    def _settle(self, made: int) -> None:
        """A guest writes an entry of `avail` first, and then the index; on a busy machine other things come between."""
        for index, what in self.doubtful[:]:
            if ((made - index) & 0xFFFF) > self.num:
                self.doubtful.remove((index, what))
                self.missed += 1

    def _indexes(self) -> tuple[int, int]:
        """`used->idx` and `avail->idx` of one moment."""
        while True:
            (now,) = struct.unpack_from("<H", self.memory, self.used + 2)
            (made,) = struct.unpack_from("<H", self.memory, self.avail + 2)
            if struct.unpack_from("<H", self.memory, self.used + 2) == (now,):
                return now, made

    def _wrong(self, what: str) -> None:
        if len(self.wrong) < 10:
            self.wrong.append(f"{self.name}: {what}")


def rings_of(lab: Lab) -> list[dict[str, Any]]:
    """Where the rings of each guest's network device lie, as QEMU has it, and in which of its descriptors the memory is."""
    found = []
    for vm in lab.guests:
        process = domains.qemu_process(lab.spec, vm)
        assert process is not None
        memory = max(
            (fd for fd in Path(f"/proc/{process.pid}/fd").iterdir() if "memfd:memory-backend" in _target(fd)),
            key=lambda fd: fd.stat().st_size,
        )
        (nic,) = [d["path"] for d in _qmp(lab, vm.name, "x-query-virtio") if d["name"] == "virtio-net"]
        for queue in range(2 * lab.spec.queues):
            # not x-query-virtio-queue-status: of a vhost device it asks the backend, by GET_VRING_BASE, which stops the ring
            at = _qmp(lab, vm.name, "x-query-virtio-vhost-queue-status", path=nic, queue=queue)
            found.append(
                {
                    "name": f"{vm.name} ring {queue}",
                    "memory": str(memory),
                    "num": at["num"],
                    "avail": at["avail-phys"],
                    "used": at["used-phys"],
                }
            )
    return found


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:
        return ""


def _qmp(lab: Lab, vm: str, command: str, **arguments: object) -> Any:
    message = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(virsh(lab.spec, "qemu-monitor-command", vm, message))["return"]


@dataclass
class Watched:
    checked: int = 0
    missed: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def watched_rings(lab: Lab) -> Iterator[Watched]:
    """All rings of all guests are watched by a process of their own; what it found stands in the value afterwards."""
    result = Watched()
    argv = [sys.executable, "-m", "tests.support.rings"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(rings_of(lab)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "watching\n"
        yield result
        told = json.loads(process.communicate("stop\n", timeout=30)[0])
        result.checked, result.missed, result.wrong = told["checked"], told["missed"], told["wrong"]
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Watch the rings that stdin names until there is another line."""
    rings = []
    for found in json.loads(sys.stdin.readline()):
        with open(found.pop("memory"), "rb") as file:  # noqa: PTH123 - a link in /proc that leads nowhere by name
            memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        rings.append(Ring(memory=memory, **found))
    os.set_blocking(sys.stdin.fileno(), False)
    os.nice(_NICE)
    with suppress(OSError):  # sched(7): a nice value counts within its session's group
        Path("/proc/self/autogroup").write_text(str(_NICE))
    print("watching", flush=True)
    while not sys.stdin.readline():
        for ring in rings:
            ring.look()
        time.sleep(_EVERY_S)
    for ring in rings:
        ring.end()
    told = {"checked": sum(r.checked for r in rings), "missed": sum(r.missed for r in rings)}
    print(json.dumps({**told, "wrong": [w for r in rings for w in r.wrong]}))


if __name__ == "__main__":
    main()
