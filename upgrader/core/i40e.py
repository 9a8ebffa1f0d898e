"""What the two drivers of Intel's X710 family (i40e) make of a rule, and the one rule an overlay needs. Pure.

In the kernel's tree, n-tuple rules choose a queue of the function that the NIC's internal switch has already chosen;
its documentation (i40e.rst) says that they do not route to a VF what was not for it anyway. Intel's own driver takes
*cloud filters* by the same interface, told by the highest bit of `user-def`, and those do. The in-tree driver does not
know that bit and installs something else, so it never gets such a rule. Sources: the two drivers' README and
i40e_ethtool.c. None of this has been run on hardware.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from upgrader.core.nfc import Flow, RxRule, rule, to_vf

CLOUD = 1 << 63  # user-def: this is a cloud filter
_OUTER_IP = 1 << 62
_TUNNEL_SHIFT = 24
_VNI = (1 << 24) - 1
_ANY_QUEUE = 0xFFFF  # a cloud filter spreads over the VF's queues (RSS) instead of naming one
_CLOUD_FILTERS = 400  # what DPDK allows itself; the hardware holds "a few hundred"


class Flavour(StrEnum):
    """Which driver a PF has."""

    IN_TREE = "i40e of the kernel's tree"
    OUT_OF_TREE = "i40e from Intel, out of tree"
    OTHER = "not i40e"


class Tunnel(StrEnum):
    """Encapsulations a cloud filter tells apart; the number is their place here."""

    VXLAN = "vxlan"
    NVGRE = "nvgre"
    GENEVE = "geneve"


@dataclass(frozen=True, slots=True)
class Driver:
    """ETHTOOL_GDRVINFO, as `ethtool -i` prints it."""

    name: str
    version: str
    firmware: str
    bus: str

    def flavour(self, kernel_release: str) -> Flavour:
        """By the version: in the tree it is the kernel's release, or ends in -k on older ones; Intel's is all numbers.

        What cannot be told counts as in-tree: that is the driver which must not get a cloud filter.
        """
        if self.name != "i40e":
            return Flavour.OTHER
        numbers = re.fullmatch(r"\d+\.\d+\.\d+(\.\d+)?(_rc\d+)?", self.version)
        if numbers and self.version != kernel_release:
            return Flavour.OUT_OF_TREE
        return Flavour.IN_TREE


UNPROVEN = (
    "rules of this driver ({flavour}, version {version}) choose a queue after the NIC has chosen the function: by its "
    "documentation they do not bring overlay traffic addressed to the PF into a VF"
)


def cloud(*, vni: int | None = None, tunnel: Tunnel = Tunnel.VXLAN, outer_ip: bool = False) -> int:
    """The user-def number of a cloud filter. Raises ValueError for a VNI beyond 24 bits."""
    if vni is not None and not 0 <= vni <= _VNI:
        raise ValueError(f"a VNI has 24 bits: {vni}")
    return CLOUD | (_OUTER_IP if outer_ip else 0) | list(Tunnel).index(tunnel) << _TUNNEL_SHIFT | (vni or 0)


def inner_mac(mac: str, vni: int, vf: int, location: int) -> RxRule:
    """One VM's overlay traffic to a VF: inner MAC (in `src`, as the driver has it) and VNI.

    Not what a run uses: broadcast misses it, and the NIC does not take it beside a rule for a port.
    """
    address = int(mac.replace(":", ""), 16)
    return rule(Flow.ETHER, to_vf(vf, _ANY_QUEUE), location, src=address, user_def=cloud(vni=vni))


def whole_port(flavour: Flavour, port: int, vf: int, location: int) -> RxRule:
    """All of the overlay (IPv4, UDP to `port`) to a VF, in the form that the driver has for it."""
    if flavour is Flavour.OUT_OF_TREE:
        return rule(Flow.UDP4, to_vf(vf, _ANY_QUEUE), location, dst_port=port, user_def=cloud())
    return rule(Flow.UDP4, to_vf(vf, 0), location, dst_port=port)


def is_cloud(r: RxRule) -> bool:
    user = r.get("user-def")
    return user is not None and bool(user.value & user.mask & CLOUD)


def same_match(r: RxRule, flavour: Flavour, port: int) -> bool:
    """Whether a rule, as read back, takes what `whole_port` takes. The out-of-tree driver gives a port back unmasked."""
    wanted = r.get("dst-port")
    others = {name for name, _ in r.matches} - {"dst-port", "user-def"}
    return (
        r.flow is Flow.UDP4
        and wanted is not None
        and wanted.value == port
        and not others
        and is_cloud(r) == (flavour is Flavour.OUT_OF_TREE)
        and (is_cloud(r) or r.get("user-def") is None)
    )


def excludes(r: RxRule) -> bool:
    """Whether a rule is of the other family of cloud filters: a port filter beside it makes it invalid until a reset."""
    return is_cloud(r) and r.flow is Flow.ETHER


def capacity(flavour: Flavour, table: int, present: tuple[RxRule, ...]) -> int:
    """Rules that may be added to a table of that size, whoever's they are."""
    if flavour is Flavour.OUT_OF_TREE:
        return max(0, _CLOUD_FILTERS - sum(is_cloud(r) for r in present))
    return max(0, table - len(present))
