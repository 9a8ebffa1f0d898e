"""The kernel's ethtool ioctl on one netdev: what its driver is, and its receive classification rules.

The ioctl and not `ethtool`, whose exit code is 0 for some of what the kernel refused.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Callable

from upgrader.adapters.netlink import socket_in
from upgrader.core import nfc
from upgrader.core.i40e import Driver
from upgrader.core.nfc import Command, RxRule

SIOCETHTOOL = 0x8946
_GDRVINFO, _GFLAGS = 0x3, 0x25
_FLAG_NTUPLE = 1 << 27
_IFREQ = struct.Struct("=16sQ16x")
_DRVINFO = struct.Struct("=I32s32s32s32s64x")
_ATTEMPTS = 4

# like fcntl.ioctl: descriptor, request, struct ifreq; raises OSError
Ioctl = Callable[[int, int, bytes], object]


class EthtoolDevice:
    """One netdev, in the network namespace `netns` (None: ours). Everything raises OSError as the kernel says."""

    def __init__(self, name: str, netns: str | None, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.name = name
        self.netns = netns
        self._ioctl = ioctl
        self._socket: socket.socket | None = None

    def driver(self) -> Driver:
        """ETHTOOL_GDRVINFO."""
        _, *texts = _DRVINFO.unpack(self._call(_DRVINFO.pack(_GDRVINFO, b"", b"", b"", b"")))
        return Driver(*(text.split(b"\0")[0].decode(errors="replace") for text in texts))

    def ntuple(self) -> bool:
        """Whether rules are switched on (`ethtool -K … ntuple on`); switching them off removes all of them."""
        _, flags = struct.unpack("=II", self._call(struct.pack("=II", _GFLAGS, 0)))
        return bool(flags & _FLAG_NTUPLE)

    def table(self) -> tuple[int, tuple[RxRule, ...]]:
        """Size of the table, and every rule in it.

        A rule that goes while we read is no error; where the table keeps growing, the last answer is raised.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            _, _, count, _ = nfc.answer(self._call(nfc.request(Command.COUNT)))
            request = nfc.request(Command.ALL, count=count)
            try:
                _, size, _, locations = nfc.answer(self._call(request + bytes(4 * count)))
                break
            except OSError as error:
                if error.errno != errno.EMSGSIZE or attempt == _ATTEMPTS:
                    raise
        rules = []
        for location in locations:
            try:
                rules.append(nfc.answer(self._call(nfc.request(Command.RULE, location=location)))[0])
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        return size, tuple(rules)

    def rule(self, location: int) -> RxRule | None:
        """The rule there, None where there is none."""
        try:
            return nfc.answer(self._call(nfc.request(Command.RULE, location=location)))[0]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return None
            raise

    def insert(self, rule: RxRule) -> None:
        """Put a rule at its location; on an i40e, one that is there is deleted first, and gone if this fails."""
        self._call(nfc.request(Command.INSERT, rule=rule))

    def delete(self, location: int) -> None:
        self._call(nfc.request(Command.DELETE, location=location))

    def _call(self, request: bytes) -> bytes:
        if self._socket is None:
            self._socket = socket_in(self.netns, socket.AF_INET, socket.SOCK_DGRAM)
        buffer = ctypes.create_string_buffer(request, len(request))
        self._ioctl(self._socket.fileno(), SIOCETHTOOL, _IFREQ.pack(self.name.encode(), ctypes.addressof(buffer)))
        return buffer.raw
