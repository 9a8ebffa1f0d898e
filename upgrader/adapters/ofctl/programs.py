"""The two programs by which a running switch is asked and told: ovs-ofctl and ovs-appctl."""

from __future__ import annotations

from upgrader.adapters import gate
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot

# ovs-ofctl negotiates the highest version that the bridge allows
_VERSIONS = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15"
_TIMEOUT_S = 60.0
_APPCTL_S = 10


def ofctl(reader: Slot, slot: Slot, bridge: str, command: str, *arguments: str, stdin: str | None = None) -> str:
    """One ovs-ofctl command on a bridge of `slot`, by the program of `reader`: both sides are read by the same one."""
    argv = [str(reader.prefix / "bin/ovs-ofctl"), "-O", _VERSIONS, "--no-names", *command.split()]
    return gate.run([*argv, f"unix:{slot.rundir}/{bridge}.mgmt", *arguments], stdin=stdin, timeout_s=_TIMEOUT_S).stdout


def appctl(slot: Slot, *command: str) -> str:
    """One ovs-appctl command on the slot's switch."""
    argv = [str(slot.prefix / "bin/ovs-appctl"), f"--timeout={_APPCTL_S}", "-t", str(slot.vswitchd_ctl)]
    return gate.run([*argv, *command], timeout_s=_APPCTL_S + 2).stdout


def asked(slot: Slot, *command: str) -> str | None:
    """As `appctl`, None where the switch does not know that or says no."""
    try:
        return appctl(slot, *command)
    except CommandError:
        return None
