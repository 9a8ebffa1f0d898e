"""The one place that names concrete adapters."""

from __future__ import annotations

from upgrader.adapters.clock import SystemClock
from upgrader.adapters.ethtool import Ethtool
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.libvirt_qmp import LibvirtQmp
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.tc_flower import TcFlower
from upgrader.adapters.tc_u32 import TcU32
from upgrader.adapters.vf import Vfs
from upgrader.config import Config
from upgrader.core.errors import UsageError
from upgrader.core.model import SLOTS, Slot, SlotName
from upgrader.ports import Host, Steering


def host(config: Config) -> Host:
    """The real host, as the configuration describes it."""
    return Host(
        processes=SlotProcesses(),
        database=Ovsdb(),
        openflow=Ofctl(),
        hypervisor=LibvirtQmp(config.host.libvirt_uri),
        steering=steering(config),
        resources=HostResources(),
        clock=SystemClock(),
        ready_timeout_s=config.policy.ready_timeout_s,
    )


def slots(config: Config) -> dict[SlotName, Slot]:
    return {name: config.slot(name) for name in SLOTS}


def steering(config: Config) -> Steering:
    """The steering adapter for the configured NIC."""
    nic = config.nic
    if nic.adapter == "tc_u32":
        return _software(config)
    if nic.adapter == "tc_flower":
        named = _representors(config)
        return TcFlower(nic.pf, nic.netns, named, nic.vxlan_port, hardware=True, mirror=nic.mirror)
    return Ethtool(
        EthtoolDevice(nic.pf, nic.netns),
        Vfs(nic.pf, nic.netns),
        nic.vfs,
        nic.vxlan_port,
        nic.location,
        catch=_software(config) if nic.catch else None,
        detour=nic.catch == "window",
    )


def _software(config: Config) -> TcU32:
    return TcU32(config.nic.pf, config.nic.netns, _representors(config), config.nic.vxlan_port)


def _representors(config: Config) -> dict[SlotName, str]:
    representors = {name: slot.representor for name, slot in config.slots.items()}
    named = {name: r for name, r in representors.items() if r is not None}
    if len(named) != len(representors):
        missing = ", ".join(f"slots.{n}.representor" for n in representors if n not in named)
        raise UsageError(
            "CONFIG_INVALID",
            f"steering by tc needs {missing}: the netdev beside the PF that leads to that switch",
            state="nothing was changed",
            next="add it to the configuration and run the same command again",
        )
    return named
