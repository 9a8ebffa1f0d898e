"""The one place that names concrete adapters."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from upgrader.adapters.clock import SystemClock
from upgrader.adapters.ethtool import Ethtool
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.journal import SqliteJournal
from upgrader.adapters.libvirt_qmp import LibvirtQmp
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.overlay_probe import OverlayProbe
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.pf_neighbours import PfNeighbours
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.slot_systemd import SlotSystemd
from upgrader.adapters.tc_flower import TcFlower
from upgrader.adapters.tc_u32 import TcU32
from upgrader.adapters.vf import Vfs
from upgrader.adapters.well_known import WellKnownDirectory
from upgrader.config import Config, SimulatedConfig, load
from upgrader.core.errors import UsageError
from upgrader.core.model import SLOTS, Slot, SlotName
from upgrader.core.tc import Underlay
from upgrader.engine.coordinator import Coordinator, Setup
from upgrader.ports import Host, Processes, Steering, WellKnown

_SUPERVISOR_VARIABLE = "OVS_UPGRADE_SUPERVISOR"  # set by ovs-upgraded.service


def host(config: Config) -> Host:
    """The host that the configuration describes: a real one, or a simulated one in a file."""
    if config.simulated:
        return _simulated(config.simulated, config.policy.ready_timeout_s)
    return Host(
        processes=processes(config),
        database=Ovsdb(),
        openflow=Ofctl(),
        hypervisor=LibvirtQmp(config.host.libvirt_uri),
        steering=steering(config),
        resources=HostResources(),
        well_known=well_known(config),
        clock=SystemClock(),
        ready_timeout_s=config.policy.ready_timeout_s,
        vni_key=config.host.vni_external_id,
    )


def _simulated(chosen: SimulatedConfig, ready_timeout_s: float) -> Host:
    from upgrader.sim.stored import StoredWorld, stored_host  # noqa: PLC0415 - no part of a real run

    return stored_host(
        StoredWorld(chosen.state, chosen.vms),
        SystemClock(),
        effect_s=chosen.effect_s,
        fail_at=chosen.fail_at,
        dies_at=chosen.dies_at,
        dual=chosen.dual_delivery,
        ready_timeout_s=ready_timeout_s,
    )


def setup(config: Config) -> Setup:
    """The host, its slots and the limits a run keeps, for the coordinator."""
    return Setup(
        name="simulated" if config.simulated else socket.gethostname(),
        host=host(config),
        slots=slots(config),
        accept=config.policy.accept,
        policy=config.run_policy(),
        adapter="simulated" if config.simulated else config.nic.adapter,
        takeover=config.takeover_policy(),
    )


def coordinator(path: Path) -> tuple[Coordinator, SqliteJournal]:
    """The coordinator of this host; it reads its configuration anew for each plan. It has not claimed the journal yet."""
    config = load(path)
    processes(config)  # a unit that wants another supervisor is refused here, and not in the middle of a plan
    journal = SqliteJournal(config.host.journal)
    return Coordinator(lambda: setup(load(path)), journal), journal


def slots(config: Config) -> dict[SlotName, Slot]:
    return {name: config.slot(name) for name in SLOTS}


def processes(config: Config) -> Processes:
    """How the slots' daemons are run. Raises UsageError where our own unit says that it must be otherwise."""
    chosen, must = config.host.supervisor, os.environ.get(_SUPERVISOR_VARIABLE)
    if must and must != chosen:
        raise UsageError(
            "SUPERVISOR_NOT_AS_UNIT",
            f'host.supervisor is "{chosen}", but the unit that started this coordinator wants "{must}": '
            "a switch that is its child would live in its sandbox",
            state="nothing was changed",
            next=f'set host.supervisor = "{must}" in the configuration, then: systemctl restart ovs-upgraded',
        )
    return SlotSystemd() if config.host.supervisor == "systemd" else SlotProcesses()


def well_known(config: Config) -> WellKnown:
    return WellKnownDirectory(config.host.well_known, slots(config), config.adopted())


def steering(config: Config) -> Steering:
    """The steering adapter for the configured NIC."""
    nic = config.nic
    if nic.adapter == "tc_u32":
        return _software(config)
    if nic.adapter == "tc_flower":
        named = _representors(config)
        return TcFlower(
            nic.pf, nic.netns, named, nic.vxlan_port, hardware=True, mirror=nic.mirror, underlay=_underlay(config)
        )
    return Ethtool(
        EthtoolDevice(nic.pf, nic.netns),
        Vfs(nic.pf, nic.netns),
        PfNeighbours(nic.pf, nic.netns),
        nic.vfs,
        nic.vxlan_port,
        nic.location,
        catch=_software(config) if nic.catch else None,
        detour=nic.catch == "window",
        probe=probe(config),
    )


def probe(config: Config) -> OverlayProbe | None:
    """Who sends packets of the overlay to this host when asked; None where nobody was named."""
    nic = config.nic
    if not nic.probe_from:
        return None
    return OverlayProbe(nic.probe_from, nic.pf, nic.netns, nic.vxlan_port, _underlay(config))


def _software(config: Config) -> TcU32:
    nic = config.nic
    return TcU32(nic.pf, nic.netns, _representors(config), nic.vxlan_port, _underlay(config))


def _underlay(config: Config) -> Underlay:
    return Underlay[config.nic.underlay.upper()]


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
