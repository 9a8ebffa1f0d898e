"""Virtual functions of a PF, over rtnetlink: what a switch on them needs, what they were given, and a fence.

Trust and link state reset a VF (10 to 300 ms on an i40e), and with it every rule that points to it; so what is as it
should be is left alone, and the rest is set before a switch opens the VF.
"""

from __future__ import annotations

from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import netlink
from upgrader.core.errors import HostError

_EXT_VF = 1  # RTEXT_FILTER_VF (linux/rtnetlink.h): tell of the VFs, too
_AUTO, _DISABLE = 0, 2  # IFLA_VF_LINK_STATE_*
# The VF sends with the PF's MAC, the address of the VTEP, which the NIC would take for a forgery.
WANTED = {"spoofchk": 0, "trust": 1, "link_state": _AUTO}


class Vfs:
    """The VFs of one PF, in the network namespace `netns` (None: ours), by their numbers."""

    def __init__(self, pf: str, netns: str | None) -> None:
        self._pf = pf
        self._netns = netns

    def prepare(self, vf: int) -> tuple[str, ...]:
        """Make the VF as a switch needs it; returns what was not so, e.g. ``("trust",)``. Idempotent."""
        now = self._read(vf)
        changes = {key: value for key, value in WANTED.items() if now.get(key) != value}
        for key, value in changes.items():
            self._set({"vf": vf, key: value})
        return tuple(changes)

    def fence(self, vf: int) -> None:
        """Stop the VF's rings, for an owner that is dead or hangs. `prepare` lifts it."""
        self._set({"vf": vf, "link_state": _DISABLE})

    def received(self, vf: int) -> int:
        """Packets the VF was given, as the PF's driver counts them."""
        return int(self._read(vf).get("rx_packets", 0))

    def _set(self, change: dict[str, int]) -> None:
        try:
            with netlink(self._netns) as ipr:
                ipr.link("set", index=self._index(ipr), vf=dict(change))  # it empties what it is given
        except (NetlinkError, OSError) as error:
            raise self._error(f"the driver refused {change} on {self._pf}: {error}", change["vf"]) from error

    def _read(self, number: int) -> dict[str, Any]:
        """Trust, spoofchk, link_state and rx_packets of a VF, as far as the driver tells."""
        try:
            with netlink(self._netns) as ipr:
                (link,) = ipr.get_links(self._index(ipr), ext_mask=_EXT_VF)
        except (NetlinkError, OSError) as error:
            raise self._error(f"{self._pf} cannot be read: {error}", number) from error
        listed = link.get_attr("IFLA_VFINFO_LIST")
        for _, info in listed["attrs"] if listed else ():
            found: dict[str, Any] = {}
            number_of = None
            for name, value in info["attrs"]:
                key = name.removeprefix("IFLA_VF_").lower()
                if key in WANTED:
                    number_of, found[key] = value["vf"], value[key]
                elif key == "stats":
                    found["rx_packets"] = value.get_attr("IFLA_VF_STATS_RX_PACKETS") or 0
            if number_of == number:
                return found
        raise self._error(f"{self._pf} has no VF {number}", number)

    def _index(self, ipr: Any) -> int:
        found = ipr.link_lookup(ifname=self._pf)
        if not found:
            raise self._error(f"there is no netdev {self._pf} in {self._netns or 'the host'}", None)
        return int(found[0])

    def _error(self, what: str, vf: int | None) -> HostError:
        inside = f"ip netns exec {self._netns} " if self._netns else ""
        show = f"{inside}ip link show {self._pf}"
        return HostError(
            "VF_UNUSABLE",
            what,
            state="steering was not changed" if vf is None else f"steering was not changed; VF {vf} is as it was",
            next=show,
        )
