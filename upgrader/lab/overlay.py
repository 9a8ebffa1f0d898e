"""What the switch that already runs is told: two bridges, and an overlay made of flow tables only.

No NORMAL, no learning, no connection tracking: any switch given the same tables forwards in the same way at once.

br-phy   uplink0 (the VF) <-> LOCAL (the VTEP address, where OVS looks its tunnels up)
br-int   0  who is speaking: a guest with its own addresses, or the overlay with the lab's VNI
         10 from a guest: ARP is answered here, another guest of this host is near, the rest goes by the tunnel
         20 from the overlay: to the guest with this VNI and address
"""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from typing import Final

from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses, slot_env
from upgrader.core.errors import HostError
from upgrader.core.model import Slot
from upgrader.lab import spec as names
from upgrader.lab import vintage
from upgrader.lab.spec import LabSpec, Vm

_TUNNEL_OFPORT: Final = 1
_UPLINK_OFPORT: Final = 1
_FROM_GUEST: Final = 10
_FROM_OVERLAY: Final = 20
_UPLINK_UP_S: Final = 10.0


def phy_flows() -> str:
    """Flows of br-phy, one a line, as ovs-ofctl(8) takes them."""
    return f"""\
table=0,priority=100,in_port={_UPLINK_OFPORT},actions=LOCAL
table=0,priority=100,in_port=LOCAL,actions=output:{_UPLINK_OFPORT}
table=0,priority=0,actions=drop
"""


def int_flows(lab: LabSpec) -> str:
    """Flows of br-int, one a line, as ovs-ofctl(8) takes them."""
    vni = names.VNI
    flows = [
        f"table=0,priority=100,in_port={_TUNNEL_OFPORT},tun_id={vni},actions=resubmit(,{_FROM_OVERLAY})",
        "table=0,priority=0,actions=drop",
        f"table={_FROM_GUEST},priority=0,actions=drop",
        f"table={_FROM_OVERLAY},priority=0,actions=drop",
        _arp_answer(names.REMOTE_OVERLAY_IP, names.REMOTE_OVERLAY_MAC),
        f"table={_FROM_GUEST},priority=100,tun_id={vni},dl_dst={names.REMOTE_OVERLAY_MAC},"
        f"actions=set_field:{names.REMOTE_VTEP}->tun_dst,output:{_TUNNEL_OFPORT}",
    ]
    for vm in lab.guests:
        on = f"actions=set_field:{vni}->tun_id,resubmit(,{_FROM_GUEST})"
        flows += [
            # A guest speaks with its own addresses or not at all.
            f"table=0,priority=100,in_port={vm.ofport},arp,dl_src={vm.mac},arp_sha={vm.mac},arp_spa={vm.ip},{on}",
            f"table=0,priority=100,in_port={vm.ofport},ip,dl_src={vm.mac},nw_src={vm.ip},{on}",
            _arp_answer(vm.ip, vm.mac),
            f"table={_FROM_GUEST},priority=100,tun_id={vni},dl_dst={vm.mac},actions=output:{vm.ofport}",
            f"table={_FROM_OVERLAY},priority=100,tun_id={vni},dl_dst={vm.mac},actions=output:{vm.ofport}",
        ]
    return "\n".join(flows) + "\n"


def _arp_answer(ip: str, mac: str) -> str:
    """Turn a guest's request for `ip` into the answer and send it back where it came from (RFC 826)."""
    mac_hex = f"0x{mac.replace(':', '')}"
    ip_hex = f"0x{int(IPv4Address(ip)):08x}"
    return (
        f"table={_FROM_GUEST},priority=200,tun_id={names.VNI},arp,arp_op=1,arp_tpa={ip},actions="
        f"move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:{mac}->eth_src,load:2->NXM_OF_ARP_OP[],"
        "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[],"
        f"load:{mac_hex}->NXM_NX_ARP_SHA[],load:{ip_hex}->NXM_OF_ARP_SPA[],IN_PORT"
    )


def daemon_options(lab: LabSpec, slot: Slot) -> list[str]:
    """ovs-vsctl(8) arguments that have to stand in the database before ovs-vswitchd starts."""
    return [
        "set",
        "Open_vSwitch",
        ".",
        "other_config:dpdk-init=true",
        f'other_config:dpdk-extra="{slot.dpdk_extra}"',
        f'other_config:dpdk-socket-mem="{slot.socket_mem_mib}"',
        f'other_config:dpdk-socket-limit="{slot.socket_mem_mib}"',
        f"other_config:pmd-cpu-mask={slot.pmd_cpu_mask}",
        # A PMD that finds nothing to do sleeps up to 500 us: two slots, the guests and the traffic share two cores here.
        # At 50 us it woke 12,000 times a second, and interrupted its guests for every single packet.
        "other_config:pmd-maxsleep=500",
        # A rebalance of queues in the middle of a measurement would be felt and not be the upgrade's doing.
        "other_config:pmd-auto-lb=false",
        "other_config:userspace-tso-enable=false",
        *(["other_config:vhost-iommu-support=true"] if vintage.hides_answers(lab) else []),
    ]


def bridge_options(lab: LabSpec, slot: Slot) -> list[str]:
    """ovs-vsctl(8) arguments that make both bridges and every port."""
    args = [
        *("add-br", names.BR_PHY, "--", "set", "Bridge", names.BR_PHY, "datapath_type=netdev", "fail_mode=secure"),
        f'other_config:hwaddr="{names.PF_MAC}"',
        *("--", "add-port", names.BR_PHY, slot.uplink),
        *("--", "set", "Interface", slot.uplink, "type=dpdk", f'options:dpdk-devargs="{slot.devargs}"'),
        f"ofport_request={_UPLINK_OFPORT}",
        *(
            "--",
            "add-br",
            names.BR_INT,
            "--",
            "set",
            "Bridge",
            names.BR_INT,
            "datapath_type=netdev",
            "fail_mode=secure",
        ),
        *("--", "add-port", names.BR_INT, names.TUNNEL_PORT),
        *("--", "set", "Interface", names.TUNNEL_PORT, "type=vxlan", "options:remote_ip=flow", "options:key=flow"),
        f"options:dst_port={names.VXLAN_PORT}",
        f"ofport_request={_TUNNEL_OFPORT}",
    ]
    for vm in lab.guests:
        args += _guest_port(vm)
    return args


def _guest_port(vm: Vm) -> list[str]:
    return [
        *("--", "add-port", names.BR_INT, vm.port),
        *("--", "set", "Interface", vm.port, "type=dpdkvhostuserclient"),
        f'options:vhost-server-path="{vm.vhost_socket}"',
        f"ofport_request={vm.ofport}",
        f'external_ids:attached-mac="{vm.mac}"',
        f"external_ids:iface-id={vm.name}-net0",
        f"external_ids:vni={names.VNI}",
        "external_ids:iface-status=active",
    ]


def start_switch(lab: LabSpec, slot: Slot) -> None:
    """Start the slot's daemons and tell them everything. Raises CommandError, HostError."""
    processes = SlotProcesses()
    processes.start_database(slot)
    vsctl(slot, "--no-wait", "init", "--", *daemon_options(lab, slot))
    processes.start_switch(slot)
    vsctl(slot, *bridge_options(lab, slot))
    _wait_for_uplink(slot)
    for bridge, flows in ((names.BR_PHY, phy_flows()), (names.BR_INT, int_flows(lab))):
        ofctl = [str(slot.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14", "--bundle"]
        gate.run([*ofctl, "replace-flows", f"unix:{slot.rundir / bridge}.mgmt", "-"], env=slot_env(slot), stdin=flows)
    # The VTEP address on LOCAL: OVS takes a tunnel's source and next hop from the kernel's routes in its namespace.
    gate.run(["ip", "-n", str(slot.netns), "addr", "add", f"{names.HOST_VTEP}/24", "dev", names.BR_PHY])
    gate.run(["ip", "-n", str(slot.netns), "link", "set", names.BR_PHY, "up"])
    # As the host's agent would from the kernel's table: without it the first packet to the remote VTEP is dropped while
    # OVS asks. Later answers come in by the copy that every VF gets.
    processes.appctl(slot, "tnl/neigh/set", names.BR_PHY, names.REMOTE_VTEP, names.REMOTE_UNDERLAY_MAC)


def vsctl(slot: Slot, *args: str) -> str:
    """Run ovs-vsctl against the slot's database and return what it prints."""
    command = [str(slot.prefix / "bin/ovs-vsctl"), "--timeout=30", f"--db=unix:{slot.db_socket}", *args]
    return gate.run(command, env=slot_env(slot), timeout_s=35).stdout


def _wait_for_uplink(slot: Slot) -> None:
    """A port that DPDK could not open is still a row in the database, with its reason in `error`."""
    deadline = time.monotonic() + _UPLINK_UP_S
    while True:
        ofport = vsctl(slot, "get", "Interface", slot.uplink, "ofport").strip()
        if ofport.isdigit():
            return
        if ofport == "-1" or time.monotonic() > deadline:
            error = vsctl(slot, "get", "Interface", slot.uplink, "error").strip()
            raise HostError(
                "SLOT_UPLINK",
                f"slot {slot.name} could not open its VF {slot.vf} ({slot.devargs}): {error}",
                state="the lab is half built and is taken down",
                next="upgrade lab up",
            )
        time.sleep(0.05)
