"""Namespaces, links and the rules that stand for the wires and for the switch inside the NIC.

    remote                 fabric                host                          slot a / slot b
    vx (VXLAN) -- eth0 ==== bridge ==== pf0  <- VTEP address, ARP              vf1 / vf2
                                         |`-- overlay ------------> vf1r ==== vf1
                                         |    (the coordinator's rule) vf2r ==== vf2
                                         <--- everything a VF sends ---'

What goes from the PF to a VF is the coordinator's business (`upgrader.adapters.tc_u32`, filter priorities 1 to 49).
What a NIC does by itself stands here, at priority 100: what a VF sends leaves by the wire.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from upgrader.adapters import gate
from upgrader.lab import spec as names
from upgrader.lab.spec import LabSpec

_NETNS: Final = Path("/run/netns")
_WIRING_PRIO: Final = 100
#: netdevs on the path of a packet, by namespace; on all of them a packet has to be what was on the wire.
_VFS: Final = (("vf1r", "vf1", "slot_a"), ("vf2r", "vf2", "slot_b"))


def links_batch(lab: LabSpec) -> dict[str, str]:
    """`ip -batch` input by namespace, in the order in which it has to be run."""
    ns = lab.namespaces
    fabric = f"""\
link set lo up
link add fabric type bridge stp_state 0 mcast_snooping 0 ageing_time 30000
link add to-host type veth peer name {names.PF} address {names.PF_MAC} netns {ns.host}
link add to-remote type veth peer name eth0 address {names.REMOTE_UNDERLAY_MAC} netns {ns.remote}
link set to-host master fabric up
link set to-remote master fabric up
link set fabric up
"""
    host = f"""\
link set lo up
link add vf1r type veth peer name vf1 netns {ns.slot_a}
link add vf2r type veth peer name vf2 netns {ns.slot_b}
link set vf1r up
link set vf2r up
link set {names.PF} up
addr add {names.HOST_VTEP}/24 dev {names.PF}
"""
    remote = f"""\
link set lo up
link set eth0 up
addr add {names.REMOTE_VTEP}/24 dev eth0
link add vx address {names.REMOTE_OVERLAY_MAC} type vxlan id {names.VNI} local {names.REMOTE_VTEP} dev eth0 \
dstport {names.VXLAN_PORT} nolearning
link set vx mtu {names.OVERLAY_MTU} up
addr add {names.REMOTE_OVERLAY_IP}/24 dev vx
"""
    return {
        ns.fabric: fabric,
        ns.host: host,
        ns.remote: remote,
        ns.slot_a: "link set lo up\nlink set vf1 up\n",
        ns.slot_b: "link set lo up\nlink set vf2 up\n",
    }


def remote_forwarding(lab: LabSpec) -> tuple[str, str]:
    """What a controller would push to the remote hypervisor: `ip -batch` neighbours and `bridge -batch` entries."""
    neighbours = "".join(f"neigh add {vm.ip} lladdr {vm.mac} nud permanent dev vx\n" for vm in lab.guests)
    entries = "".join(f"fdb add {vm.mac} dev vx dst {names.HOST_VTEP} self permanent\n" for vm in lab.guests)
    return neighbours, entries


def wiring_batch() -> str:
    """`tc -batch` input for the host's namespace."""
    lines = [f"qdisc add dev {dev} ingress" for dev in (names.PF, "vf1r", "vf2r")]
    lines += [
        f"filter add dev {rep} parent ffff: protocol all prio {_WIRING_PRIO} u32 match u32 0 0 "
        f"action mirred egress redirect dev {names.PF}"
        for rep, _, _ in _VFS
    ]
    return "\n".join(lines) + "\n"


def build(lab: LabSpec) -> None:
    """Make the namespaces, links and wiring. Raises CommandError; what was made by then is `destroy`'s to remove."""
    ns = lab.namespaces
    for name in ns.all():
        gate.run(["ip", "netns", "add", name])
        # Router solicitations and multicast reports would be noise in every capture and every counter.
        gate.run(
            ["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"],
            netns=name,
        )
    for name, batch in links_batch(lab).items():
        gate.run(["ip", "-n", name, "-batch", "-"], stdin=batch)
    neighbours, entries = remote_forwarding(lab)
    gate.run(["ip", "-n", ns.remote, "-batch", "-"], stdin=neighbours)
    gate.run(["bridge", "-n", ns.remote, "-batch", "-"], stdin=entries)
    gate.run(["tc", "-n", ns.host, "-batch", "-"], stdin=wiring_batch())
    for name, netdevs in (
        (ns.fabric, ("to-host", "to-remote")),
        (ns.host, (names.PF, "vf1r", "vf2r")),
        (ns.remote, ("eth0", "vx")),
        (ns.slot_a, ("vf1",)),
        (ns.slot_b, ("vf2",)),
    ):
        for netdev in netdevs:
            # A veth passes a checksum on unfinished, trusting that its peer is the same machine; a switch that reads
            # the raw frame would send it out as it is.
            gate.run(
                ["ethtool", "-K", netdev, "tx", "off", "rx", "off", "gro", "off", "gso", "off", "tso", "off"],
                netns=name,
            )


def missing(lab: LabSpec) -> tuple[str, ...]:
    """Namespaces of the lab that are not there."""
    return tuple(n for n in lab.namespaces.all() if not (_NETNS / n).exists())


def present(lab: LabSpec) -> tuple[str, ...]:
    """Namespaces of the lab that are there, half-made ones (a file nobody has mounted on) among them."""
    return tuple(n for n in lab.namespaces.all() if (_NETNS / n).exists())


def destroy(lab: LabSpec) -> None:
    """Remove the namespaces, and with them every link, tap and rule. Idempotent."""
    for name in present(lab):
        gate.run(["ip", "netns", "del", name], check=False)
        # `ip netns del` of a name whose mount is gone already leaves the file.
        (_NETNS / name).unlink(missing_ok=True)
