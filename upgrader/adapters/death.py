"""The death of a process, from its first sign: the kernel tells of each thread that ends, and of a core that is being written.

The pidfd of a big process becomes readable when its memory is unmapped, 12 to 42 ms per GB of 4 KiB pages after the
signal, and its sockets are closed no sooner. But all its threads save the last end at once, and of each the kernel
sends a process event (connector, linux/cn_proc.h), in which stands what it died of.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

# linux/sched.h. Set before anything is released, by a thread that never returns to user space: it ends; it waits for the
# end of a core that another one writes; it was killed by a signal (that is also the one that writes).
_OUT = 0x4 | 0x8 | 0x400  # PF_EXITING, PF_POSTCOREDUMP, PF_SIGNALED

# linux/connector.h, linux/cn_proc.h
_NETLINK_CONNECTOR, _CN_IDX_PROC, _CN_VAL_PROC = 11, 1, 1
_LISTEN, _IGNORE = 1, 2
_EXIT, _COREDUMP = 0x80000000, 0x40000000
_WHAT_AT, _TGID_AT, _CODE_AT = 36, 56, 60  # behind struct nlmsghdr (16) and struct cn_msg (20)

_SO_ATTACH_FILTER = 26
_TOGETHER_S = 0.005  # threads of a process that exits by itself end within this, one after the other
_POLL_S = 0.0002


def threads_are_out(pid: int) -> bool:
    """Whether no thread of a process that was killed, or dumps core, will ever run in user space again.

    Such a process makes no new threads (clone(2) fails with a fatal signal pending).
    """
    return _threads(pid)[1] == 0


def is_dying(pid: int) -> bool:
    """Whether a thread of it was killed already."""
    return _threads(pid)[0] > 0


def _threads(pid: int) -> tuple[int, int]:
    """How many threads of a process are out of user space for good, and how many are not."""
    out = left = 0
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - on the way of a takeover
    except OSError:
        return 1, 0
    for thread in threads:
        try:
            fields = Path(f"/proc/{pid}/task/{thread}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # it ended between the list and the look
        state, flags = fields[0], int(fields[6])  # the third and the ninth of the line (proc_pid_stat(5))
        if state in (b"Z", b"X") or flags & _OUT:
            out += 1
        else:
            left += 1
    return out, left


class DeathWatch:
    """Readable (`fileno`) when there is a sign of that process's death; `died` says what it is worth."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError when there is no such process."""
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._epoll = select.epoll()
        self._epoll.register(self._pidfd, select.EPOLLIN)
        self._events = _process_events(pid)
        if self._events is not None:
            self._epoll.register(self._events, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def early(self) -> bool:
        """Whether the first sign is waited for, and not only the end."""
        return self._events is not None

    def died(self) -> bool:
        """Whether it is dead, or no thread of it will come back; takes up the sign. A thread that just ended is none."""
        if select.select([self._pidfd], [], [], 0)[0]:
            return True
        killed, some = self._read()
        if killed:
            return True
        deadline = time.monotonic() + _TOGETHER_S
        while some and time.monotonic() < deadline:
            if threads_are_out(self._pid):
                return True
            time.sleep(_POLL_S)
        return False

    def _read(self) -> tuple[bool, bool]:
        """Whether the kernel told of a thread that a signal killed, or of a core; and whether it told of anything."""
        some = False
        while self._events is not None:
            try:
                message = self._events.recv(4096)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost
                return is_dying(self._pid), True
            some = True
            what, code = struct.unpack_from("=I", message, _WHAT_AT)[0], 0
            if what == _EXIT:
                code = struct.unpack_from("=I", message, _CODE_AT)[0]
            if what == _COREDUMP or code & 0x7F:  # as wait(2) gives it: the signal in the lower bits
                return True, True
        return False, some

    def close(self) -> None:
        if self._events is not None:
            with suppress(OSError):
                _ask(self._events, _IGNORE)
            self._events.close()
        self._epoll.close()
        os.close(self._pidfd)


def _process_events(pid: int) -> socket.socket | None:
    """The kernel's process events of that process's threads alone; None where it sends none (CONFIG_PROC_EVENTS, root)."""
    made = None
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_CONNECTOR)
        _attach_filter(made, pid)
        made.bind((0, _CN_IDX_PROC))
        _ask(made, _LISTEN)
    except OSError as error:
        log.warning("no process events: a death is seen when the kernel has cleared the process away", error=str(error))
        if made is not None:
            made.close()
        return None
    return made


def _ask(events: socket.socket, what: int) -> None:
    body = struct.pack("=IIIIHHI", _CN_IDX_PROC, _CN_VAL_PROC, 0, 0, 4, 0, what)
    events.send(struct.pack("=IHHII", 16 + len(body), 3, 0, 0, 0) + body)  # NLMSG_DONE


def _attach_filter(events: socket.socket, pid: int) -> None:
    """A filter in the kernel (classic BPF, which loads in network order): whatever else happens on the host wakes nobody."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K (linux/filter.h)
    program = [
        (load, 0, 0, _WHAT_AT),
        (equal, 1, 0, socket.htonl(_EXIT)),
        (equal, 0, 3, socket.htonl(_COREDUMP)),
        (load, 0, 0, _TGID_AT),
        (equal, 0, 1, socket.htonl(pid)),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
