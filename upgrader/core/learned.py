"""What a switch learned from the network, as ovs-appctl prints it; pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from upgrader.core.proof import Difference, compare

_NEIGHBOUR = re.compile(r"^(\S+)\s+((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\s+(\S+)\s*$", re.M)
_ROUTE = re.compile(r"^(User|Cached): (\S+)(?: MARK (\d+))? dev (\S+)(.*)$", re.M)
_ENTRY = re.compile(r"^\s*(\S+)\s+(\d+)\s+((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\s+(\S+)\s*$", re.M)
# what is another number in each process and says nothing of where a packet goes
_NUMBERS = re.compile(r"\b(recirc\(0x|meter\(|pid=)[0-9a-f]+")
_NO_ADDRESSES = "eth(src=00:00:00:00:00:00,dst=00:00:00:00:00:00)"
_GROUP = re.compile(r"^\s*(\S+)\s+(\d+)\s+(querier|[0-9a-f.:]+)\s+\d+\s*$", re.M)
QUERIER = "querier"


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the tables in the switch, by which it finds a tunnel's way out."""

    user: bool
    prefix: str
    mark: str | None
    netdev: str
    rest: str

    @property
    def gateway(self) -> str | None:
        found = re.search(r"\bGW (\S+)", self.rest)
        return found[1] if found else None

    @property
    def marked(self) -> bool:
        """Whether the switch says that it leads to the host itself."""
        return self.rest.split()[-1:] == ["local"]

    def unmarked(self) -> Route:
        return replace(self, rest=self.rest.removesuffix("local").strip()) if self.marked else self


@dataclass(frozen=True, slots=True)
class Address:
    """One learned MAC address of a bridge: `port` is an OpenFlow number or LOCAL."""

    vlan: int
    mac: str
    port: str


@dataclass(frozen=True, slots=True)
class Group:
    """A multicast group somebody behind a port is in, or the querier behind it: `group` is an address, or ``querier``."""

    vlan: int
    group: str
    port: str


def neighbours(shown: str) -> dict[tuple[str, str], str]:
    """MAC by bridge and IP address, of `tnl/neigh/show`."""
    return {(bridge, ip): mac for ip, mac, bridge in _NEIGHBOUR.findall(shown)}


def routes(shown: str, netdevs: Collection[str]) -> tuple[Route, ...]:
    """Routes over these netdevs, of `ovs/route/show`; others of the namespace concern no bridge.

    Link-local ones (RFC 4291) come and go with the kernel's own addresses, and lead to no VTEP.
    """
    found = [Route(k == "User", p, m or None, d, rest.strip()) for k, p, m, d, rest in _ROUTE.findall(shown)]
    return tuple(r for r in found if r.netdev in netdevs and not r.prefix.startswith("fe80:"))


def reached_by(shown: str, ip: str) -> str | None:
    """The netdev by which an address is reached with no gateway between, of `ovs/route/show`; None where it is not."""
    wanted = ip_address(ip)
    best: tuple[int, str | None] = -1, None
    for _, prefix, mark, netdev, rest in _ROUTE.findall(shown):
        network = ip_network(prefix)
        if wanted in network and not mark and network.prefixlen > best[0]:
            best = network.prefixlen, None if " GW " in rest else netdev
    return best[1]


def as_both_tell(old: tuple[Route, ...], new: tuple[Route, ...]) -> tuple[tuple[Route, ...], tuple[Route, ...]]:
    """Two switches' routes less what one of them never says: OVS 2.9 does not mark those to the host itself."""
    if any(r.marked for r in old) == any(r.marked for r in new):
        return old, new
    return tuple(r.unmarked() for r in old), tuple(r.unmarked() for r in new)


def addresses(shown: str) -> frozenset[Address]:
    """Dynamic entries of `fdb/show`."""
    return frozenset(Address(int(v), mac, port) for port, v, mac, age in _ENTRY.findall(shown) if age != "static")


def groups(shown: str) -> frozenset[Group]:
    """Entries of `mdb/show`. A port with a querier gets every group's packets, and a switch learns no group on it."""
    found = [Group(int(v), group, port) for port, v, group in _GROUP.findall(shown)]
    whole = {(g.vlan, g.port) for g in found if g.group == QUERIER}
    return frozenset(g for g in found if g.group == QUERIER or (g.vlan, g.port) not in whole)


def neighbour_differences(
    old: Mapping[tuple[str, str], str], new: Mapping[tuple[str, str], str]
) -> tuple[Difference, ...]:
    """Neighbours that the standby lacks or has otherwise; one more is what it has seen for itself."""
    return tuple(
        Difference("neighbour", bridge, ip, mac, new.get((bridge, ip)))
        for (bridge, ip), mac in sorted(old.items())
        if new.get((bridge, ip)) != mac
    )


def route_differences(old: Collection[Route], new: Collection[Route]) -> tuple[Difference, ...]:
    """Routes that differ."""

    def told(routes_: Collection[Route]) -> dict[str, str]:
        return {
            f"{'user' if r.user else 'kernel'} {r.prefix}" + (f" mark {r.mark}" if r.mark else ""): (
                f"dev {r.netdev} {r.rest}".strip()
            )
            for r in routes_
        }

    return compare("route", "tunnels", told(old), told(new))


def address_differences(bridge: str, old: Collection[Address], new: Collection[Address]) -> tuple[Difference, ...]:
    """Learned addresses that the standby lacks or has on another port; one more is not yet forgotten."""
    here = {(a.vlan, a.mac): a.port for a in new}
    return tuple(
        Difference("learned address", bridge, f"{a.mac} vlan {a.vlan}", f"port {a.port}", f"port {p}" if p else None)
        for a in sorted(old, key=lambda a: (a.vlan, a.mac))
        if (p := here.get((a.vlan, a.mac))) != a.port
    )


def group_differences(bridge: str, old: Collection[Group], new: Collection[Group]) -> tuple[Difference, ...]:
    """Groups and queriers that the standby does not know of; one more is not yet forgotten."""
    return tuple(
        Difference("multicast group", bridge, f"{g.group} vlan {g.vlan}", f"port {g.port}", None)
        for g in sorted(set(old) - set(new), key=lambda g: (g.vlan, g.group, g.port))
    )


@dataclass(frozen=True, slots=True)
class Megaflow:
    """One flow of a datapath: what it matches, as ofproto/trace takes it, and how many packets did."""

    match: str
    packets: int


def busiest(shown: str, limit: int) -> tuple[Megaflow, ...]:
    """The flows that carry most, of `dpctl/dump-flows --names`; those after a recirculation cannot be traced."""
    found: dict[str, int] = {}
    for line in shown.splitlines():
        match, _, rest = line.strip().partition(", packets:")
        if rest and match.startswith("recirc_id(0)"):
            if "eth(" not in match:  # no table looked at the addresses; a trace without any is one of a bare IP packet
                match = match.replace("eth_type(", f"{_NO_ADDRESSES},eth_type(", 1)
            found[match] = found.get(match, 0) + int(rest.partition(",")[0])  # one of each PMD
    ranked = sorted(found.items(), key=lambda f: (-f[1], f[0]))
    return tuple(Megaflow(match, packets) for match, packets in ranked[:limit])


def outcome(trace: str) -> str | None:
    """Where a traced packet goes: the datapath actions of `ofproto/trace`, numbers of the process aside."""
    found = re.search(r"^Datapath actions: (.*)$", trace, re.M)
    return _NUMBERS.sub(r"\1*", found[1]) if found else None
