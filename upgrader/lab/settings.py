"""The coordinator's configuration of a lab's host: what an operator would write for a real one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from upgrader.config import Config
from upgrader.core.model import SlotName
from upgrader.lab import spec as names
from upgrader.lab import vintage
from upgrader.lab.spec import LabSpec

_PMD_CPU_MASK: Final[dict[SlotName, str]] = {"a": "0x1", "b": "0x2"}


def settings(lab: LabSpec) -> dict[str, Any]:
    """The file's tables and keys, as plain values (schema: `upgrader.config`)."""
    slots = {}
    places: tuple[tuple[SlotName, str, str], ...] = (
        ("a", lab.namespaces.slot_a, "vf1"),
        ("b", lab.namespaces.slot_b, "vf2"),
    )
    for name, netns, vf in places:
        slots[name] = {
            "prefix": str(lab.prefix(name)),
            "rundir": str(lab.directory / f"slot-{name}"),
            "netns": netns,
            "vf": vf,
            "representor": f"{vf}r",
            "devargs": f"net_af_packet0,iface={vf}",
            "pmd_cpu_mask": _PMD_CPU_MASK[name],
            "socket_mem_mib": str(names.SLOT_MEMORY_MIB),
            "dpdk_extra": f"--no-pci --file-prefix={lab.name}-{name} " + _memory(lab, name),
            # Where DPDK keeps its run-time directory (systemd.exec(5)), else /run/dpdk: nothing of a lab stands there.
            "env": {"RUNTIME_DIRECTORY": str(lab.directory / f"slot-{name}")},
        }
    return {
        "host": {
            "libvirt_uri": lab.libvirt_uri,
            "uplink": names.UPLINK,
            "lock": str(lab.directory / "run.lock"),
            "journal": str(lab.directory / "coordinator/journal.db"),
            "socket": str(lab.directory / "upgraded.sock"),
            "well_known": str(lab.well_known),
        },
        "nic": {"pf": names.PF, "netns": lab.namespaces.host, "vxlan_port": names.VXLAN_PORT},
        "slots": slots,
        # a person watches, and a test waits: shorter than on a host
        "policy": {"canary_check_s": 0.5, "soak_s": 1.0},
    }


def _memory(lab: LabSpec, name: SlotName) -> str:
    if vintage.keeps_files(lab.prefix(name)):
        return f"--huge-dir={lab.hugetlbfs(name)}"
    return "--in-memory --no-telemetry"


def config(lab: LabSpec) -> Config:
    """The validated configuration."""
    return Config.model_validate(settings(lab))


def render(lab: LabSpec) -> str:
    """The file's text."""
    lines = [f"# Host of the lab {lab.name!r}, written by `upgrade lab up`."]
    _table(lines, (), settings(lab))
    return "\n".join(lines) + "\n"


def _table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
    if plain:
        lines += ["", f"[{'.'.join(path)}]"]
        lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            _table(lines, (*path, key), value)


def _value(value: str | float) -> str:
    """A TOML value; a basic string takes the two escapes that our values could need."""
    if isinstance(value, (int, float)):
        return str(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
