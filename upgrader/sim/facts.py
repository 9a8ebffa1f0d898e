"""Facts of a host that nothing stands against; tests change one thing and look at what follows."""

from __future__ import annotations

from pathlib import Path

from upgrader.core.model import (
    Bridge,
    HostFacts,
    HugepagePool,
    Interface,
    Ring,
    RingOwnership,
    Slot,
    SlotFacts,
    SlotName,
    SlotStatus,
    Standby,
    SwitchFacts,
    VmInterface,
    VmPort,
)

PID: dict[SlotName, int] = {"a": 1001, "b": 2002}


def slot(name: SlotName, **changes: object) -> Slot:
    fields: dict[str, object] = {
        "name": name,
        "prefix": Path(f"/opt/ovs-{name}"),
        "rundir": Path(f"/run/slot-{name}"),
        "netns": f"slot-{name}",
        "vf": "vf1" if name == "a" else "vf2",
        "representor": "vf1r" if name == "a" else "vf2r",
        "uplink": "uplink0",
        "devargs": "net_af_packet0,iface=vf",
        "pmd_cpu_mask": "0x1" if name == "a" else "0x2",
        "socket_mem_mib": "64",
        "dpdk_extra": "",
    }
    return Slot(**{**fields, **changes})  # type: ignore[arg-type]


def slot_facts(name: SlotName, *, runs: bool, **changes: object) -> SlotFacts:
    status = SlotStatus(PID[name], PID[name] + 1) if runs else SlotStatus(None, None)
    fields: dict[str, object] = {
        "slot": slot(name),
        "status": status,
        "running_version": "3.1.0" if runs else None,
        "binaries_present": True,
        "netns_present": True,
        "vf_present": True,
        "installed_version": "3.1.0",
        "switch": switch_facts(2) if runs else None,
    }
    return SlotFacts(**{**fields, **changes})  # type: ignore[arg-type]


def ownership(
    owner: str, pid: int, *, generation: int = 0, standby: Standby | None = None, rings: int = 2
) -> RingOwnership:
    return RingOwnership(
        owner=owner,
        owner_connected=True,
        owner_pid=pid,
        generation=generation,
        standby=standby,
        in_doubt=False,
        rings=tuple(Ring(i, 256, 10, 10, True) for i in range(rings)),
        fence="",
    )


def vm_interface(number: int, **changes: object) -> VmInterface:
    fields: dict[str, object] = {
        "domain": f"vm{number}",
        "domain_uuid": f"00000000-0000-0000-0000-{number:012d}",
        "mac": f"52:54:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
        "socket": Path(f"/run/vm{number}.sock"),
        "netdev": "hostnet0",
        "chardev": "charnet0",
        "ownership": ownership("charnet0", PID["a"]),
        "qemu": "7.2.19",
    }
    return VmInterface(**{**fields, **changes})  # type: ignore[arg-type]


def ovs_interface(number: int, **changes: object) -> Interface:
    fields: dict[str, object] = {
        "name": f"vhu{number}",
        "bridge": "br-int",
        "type": "dpdkvhostuserclient",
        "options": (("vhost-server-path", f"/run/vm{number}.sock"),),
        "external_ids": (("vni", "100"),),
        "ofport": 10 + number,
        "link_state": "up",
        "error": None,
    }
    return Interface(**{**fields, **changes})  # type: ignore[arg-type]


def switch_facts(ports: int, **changes: object) -> SwitchFacts:
    devargs = (("dpdk-devargs", "net_af_packet0,iface=vf"),)
    uplink = Interface("uplink0", "br-phy", "dpdk", devargs, (), 1, "up", None)
    fields: dict[str, object] = {
        "version": "3.1.0",
        "bridges": (
            Bridge("br-int", "netdev", "secure", (), flows=("priority=10,in_port=1 actions=output:2",)),
            Bridge("br-phy", "netdev", "secure", ()),
        ),
        "interfaces": (*(ovs_interface(i) for i in range(ports)), uplink),
    }
    return SwitchFacts(**{**fields, **changes})  # type: ignore[arg-type]


def vm_port(number: int, **changes: object) -> VmPort:
    vm = vm_interface(number)
    fields: dict[str, object] = {
        "domain": vm.domain,
        "domain_uuid": vm.domain_uuid,
        "mac": vm.mac,
        "socket": vm.socket,
        "netdev": vm.netdev,
        "chardev": vm.chardev,
        "interface": f"vhu{number}",
        "ofport": 10 + number,
        "vni": 100,
        "ownership": vm.ownership,
    }
    return VmPort(**{**fields, **changes})  # type: ignore[arg-type]


def host_facts(vms: int = 2, **changes: object) -> HostFacts:
    fields: dict[str, object] = {
        "host": "h1",
        "slots": (slot_facts("a", runs=True, switch=switch_facts(vms)), slot_facts("b", runs=False)),
        "active": "a",
        "ports": tuple(vm_port(i) for i in range(vms)),
        "orphans": (),
        "hugepages": (HugepagePool(0, 2048, 256, 128),),
        "steering_adapter": "tc_u32",
        "steering_problem": None,
    }
    if "switch" in changes:  # what the active switch is configured to do
        switch = changes.pop("switch")
        fields["slots"] = (slot_facts("a", runs=True, switch=switch), slot_facts("b", runs=False))
    return HostFacts(**{**fields, **changes})  # type: ignore[arg-type]
