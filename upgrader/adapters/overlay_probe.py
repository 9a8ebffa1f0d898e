"""Packets of the overlay that another host of the fabric sends to this one, so that counters show where they arrive.

Only what comes by the wire passes the NIC's rules, so this machine cannot send them itself. They are VXLAN in UDP, which
takes no privilege there, and carry an Ethernet type that is nobody's (IEEE 802, local experimental).
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from upgrader.adapters import gate
from upgrader.adapters.netlink import netlink
from upgrader.core.errors import HostError
from upgrader.core.tc import Underlay

RATE_PPS = 1000
_LIVES_S = 30  # it ends by itself should nobody end it; and at once when nobody reads what it says
_START_S = 15.0
# A network and an address of nobody: a bridge keeps what goes to this one to itself (IEEE 802.1Q, 8.6.3).
NOBODYS_VNI, NOBODYS_MAC = 2**24 - 1, "01:80:c2:00:00:0e"
_SCRIPT = """
import os, socket, time
to, vni, mac = ({to!r}, {port}), {vni}, bytes.fromhex({mac!r})
frame = bytes([8, 0, 0, 0]) + (vni << 8).to_bytes(4, "big") + mac + bytes.fromhex("02000000000188b5") + bytes(46)
s = socket.socket(socket.{family}, socket.SOCK_DGRAM)
end = time.monotonic() + {lives}
while time.monotonic() < end:
    s.sendto(frame, to)
    os.write(1, b".")
    time.sleep(1 / {rate})
"""


class OverlayProbe:
    """Sends to the first address of the PF, in the network namespace `netns` (None: the host's), which has the VTEP's.

    command  words behind which a command runs on the other host, e.g. ``("ssh", "-o", "BatchMode=yes", "hv2")``
    """

    def __init__(self, command: Sequence[str], pf: str, netns: str | None, vxlan_port: int, underlay: Underlay) -> None:
        self._command = tuple(command)
        self._pf = pf
        self._netns = netns
        self._port = vxlan_port
        self._underlay = underlay

    @contextmanager
    def sending(self, vni: int = NOBODYS_VNI, mac: str = NOBODYS_MAC) -> Iterator[None]:
        """Meanwhile they come, about `RATE_PPS`. Raises HostError where the other host cannot be made to send."""
        script = _SCRIPT.format(
            to=self._vtep(),
            port=self._port,
            vni=vni,
            mac=mac.replace(":", ""),
            family="AF_INET6" if self._underlay is Underlay.IPV6 else "AF_INET",
            lives=_LIVES_S,
            rate=RATE_PPS,
        )
        argv = [*self._command, "python3", "-"]
        process = gate.spawn(argv, stdin_pipe=True, stdout_pipe=True)
        assert process.stdin and process.stdout
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(script.encode())
                process.stdin.close()
            readable, _, _ = select.select([process.stdout], [], [], _START_S)
            if not readable or not os.read(process.stdout.fileno(), 1):
                raise self._error(
                    f"{gate.paste(argv)} sends nothing", f"{gate.paste(argv)} </dev/null   (it has to end well)"
                )
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def _vtep(self) -> str:
        family = socket.AF_INET6 if self._underlay is Underlay.IPV6 else socket.AF_INET
        with netlink(self._netns) as ipr:
            (index,) = ipr.link_lookup(ifname=self._pf) or (0,)
            found = [str(a.get_attr("IFA_ADDRESS")) for a in ipr.get_addr(family=family, index=index)] if index else []
        usable = [a for a in found if not ip_address(a).is_link_local]
        if not usable:
            raise self._error(f"{self._pf} has no address that a probe could be sent to", f"ip addr show {self._pf}")
        return usable[0]

    def _error(self, what: str, next: str) -> HostError:  # noqa: A002 - the operator's word
        return HostError("PROBE_FAILED", what, state="steering was not changed", next=f"{next}; see nic.probe_from")
