"""What neighbours answer to a PF, as its kernel keeps it, for switches whose VFs see none of it."""

from __future__ import annotations

from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters import gate
from upgrader.adapters.netlink import netlink
from upgrader.core.errors import HostError

# NUD_* of an entry that has an address: reachable, stale, delay, probe, permanent (linux/neighbour.h)
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x80


class PfNeighbours:
    """One PF by name, in the network namespace `netns` (None: the host's)."""

    def __init__(self, pf: str, netns: str | None) -> None:
        self._pf = pf
        self._netns = netns

    def accept(self) -> None:
        """Have the kernel keep answers to what it did not ask: a switch asks by its VF, and the answer comes to the PF.

        ip-sysctl, arp_accept. Idempotent; raises CommandError.
        """
        gate.run(["sysctl", "-q", "-w", f"net/ipv4/conf/{self._pf}/arp_accept=1"], netns=self._netns)

    def known(self) -> dict[str, str]:
        """MAC by IPv4 address. Raises HostError where the PF cannot be asked."""
        try:
            with netlink(self._netns) as ipr:
                (index,) = ipr.link_lookup(ifname=self._pf) or (None,)
                entries = ipr.get_neighbours(family=2, ifindex=index) if index else ()
                return {
                    str(e.get_attr("NDA_DST")): str(e.get_attr("NDA_LLADDR"))
                    for e in entries
                    if e["state"] & _KNOWN and e.get_attr("NDA_LLADDR")
                }
        except (NetlinkError, OSError) as error:
            raise HostError(
                "NEIGHBOURS_UNKNOWN",
                f"the neighbours of {self._pf} cannot be read: {error}",
                state="nothing was changed; the switches know those that they knew",
                next=f"ip neigh show dev {self._pf}",
            ) from error
