"""Hugepages, network namespaces, netdevs, addresses and socket files of this machine."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import netlink
from upgrader.core.errors import HostError
from upgrader.core.model import HugepagePool, Slot

_NODES = Path("/sys/devices/system/node")
_NETNS = Path("/run/netns")
_PCI = Path("/sys/bus/pci/devices")
_RT_TABLE_MAIN = 254
_RTPROT_KERNEL = 2
_EEXIST = 17


class HostResources:
    """Looks at, and sets up, what a slot needs of the machine."""

    def hugepages(self) -> tuple[HugepagePool, ...]:
        """Pools of every page size on every NUMA node."""
        pools = []
        for folder in sorted(_NODES.glob("node[0-9]*/hugepages/hugepages-*kB")):
            pools.append(
                HugepagePool(
                    node=int(folder.parent.parent.name.removeprefix("node")),
                    size_kib=int(folder.name.removeprefix("hugepages-").removesuffix("kB")),
                    total=int((folder / "nr_hugepages").read_text()),
                    free=int((folder / "free_hugepages").read_text()),
                )
            )
        return tuple(pools)

    def netns_exists(self, netns: str | None) -> bool:
        return netns is None or (_NETNS / netns).exists()

    def vf_exists(self, netns: str | None, vf: str) -> bool:
        if ":" in vf:  # no netdev has that in its name
            return (_PCI / vf / "driver").resolve().name == "vfio-pci"
        if not self.netns_exists(netns):
            return False
        with netlink(netns) as ipr:
            return bool(ipr.link_lookup(ifname=vf))

    def listen(self, path: Path) -> int:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise HostError(
                "SOCKET_FAILED",
                f"could not listen on {path}: {error}",
                state="nothing was changed",
                next=f"ls -la {path.parent}",
            ) from error
        return listener.detach()

    def redirect(self, path: Path, target: Path) -> None:
        if path.is_symlink() and path.readlink() == target:
            return
        link = path.with_name(f".{path.name}.new")
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        link.replace(path)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def copy_addresses(self, source: Slot, target: Slot, netdevs: Sequence[str]) -> None:
        try:
            with netlink(source.netns) as old, netlink(target.netns) as new:
                if lo := new.link_lookup(ifname="lo"):
                    new.link("set", index=lo[0], state="up")
                for name in netdevs:
                    _copy_netdev(old, new, name, source, target)
        except (OSError, NetlinkError) as error:
            raise HostError(
                "ADDRESSES_FAILED",
                f"could not give the bridges of slot {target.name} the addresses of slot {source.name}: {error}",
                state=f"slot {target.name} is incomplete, slot {source.name} was not touched",
                next=f"ip -n {target.netns} address" if target.netns else "ip address",
            ) from error


def _copy_netdev(old: IPRoute, new: IPRoute, name: str, source: Slot, target: Slot) -> None:
    """State, MTU, addresses and main-table routes of one netdev, from one namespace to another. Idempotent."""
    from_, to = old.link_lookup(ifname=name), new.link_lookup(ifname=name)
    if not from_:
        return
    link = old.get_links(from_[0])[0]
    if not link["flags"] & 1:  # IFF_UP: a LOCAL port that is down takes no part
        return
    if not to:
        raise HostError(
            "NETDEV_MISSING",
            f"slot {target.name} has no netdev {name}, which slot {source.name} has",
            state=f"slot {target.name} is incomplete, the other slot was not touched",
            next=f"tail {target.rundir / 'ovs-vswitchd.log'}",
        )
    new.link("set", index=to[0], state="up", mtu=link.get_attr("IFLA_MTU"))
    for address in old.get_addr(index=from_[0]):
        local = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
        if address["scope"] == 253:  # link-local: the kernel makes its own
            continue
        new.addr("replace", index=to[0], address=local, prefixlen=address["prefixlen"], family=address["family"])
    for route in old.get_routes(oif=from_[0], table=_RT_TABLE_MAIN):
        if route["proto"] == _RTPROT_KERNEL:
            continue  # comes with the address
        try:
            new.route(
                "replace",
                oif=to[0],
                dst=f"{route.get_attr('RTA_DST')}/{route['dst_len']}" if route.get_attr("RTA_DST") else "default",
                gateway=route.get_attr("RTA_GATEWAY"),
                family=route["family"],
            )
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
