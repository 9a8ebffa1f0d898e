"""The one place that names concrete adapters."""

from __future__ import annotations

from upgrader.adapters.tc_u32 import TcU32
from upgrader.config import Config
from upgrader.core.errors import UsageError
from upgrader.ports import Steering


def steering(config: Config) -> Steering:
    """The steering adapter for the configured NIC."""
    representors = {name: slot.representor for name, slot in config.slots.items()}
    named = {name: r for name, r in representors.items() if r is not None}
    if len(named) != len(representors):
        missing = ", ".join(f"slots.{n}.representor" for n in representors if n not in named)
        raise UsageError(
            "CONFIG_INVALID",
            f"steering by {config.nic.adapter} needs {missing}: the netdev through which that VF is reached",
            state="nothing was changed",
            next="add it to the configuration and run the same command again",
        )
    return TcU32(config.nic.pf, config.nic.netns, named, config.nic.vxlan_port)
