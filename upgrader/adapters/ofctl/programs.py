"""How a running switch is asked and told: by ovs-ofctl, and by the socket that ovs-appctl uses."""

from __future__ import annotations

import json
import socket

from upgrader.adapters import gate
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot
from upgrader.core.versions import Ovs, can

# ovs-ofctl negotiates the highest version that the bridge allows
_VERSIONS = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14"
_TIMEOUT_S = 60.0
_APPCTL_S = 10
_CHUNK = 1 << 16


def ofctl(
    reader: Slot,
    slot: Slot,
    bridge: str,
    command: str,
    *arguments: str,
    stdin: str | None = None,
    peer: Slot | None = None,
) -> str:
    """One ovs-ofctl command on a bridge of `slot`, by the program of `reader`: both sides are read by the same one.

    Where there is a `peer`, no version of OpenFlow is spoken that its switch would not speak.
    """
    both = (slot, peer) if peer else ()
    old = any(can(Ovs.OPENFLOW15, asked(it, "version")) is False for it in both)
    versions = _VERSIONS if old else f"{_VERSIONS},OpenFlow15"
    argv = [str(reader.prefix / "bin/ovs-ofctl"), "-O", versions, "--no-names", *command.split()]
    return gate.run([*argv, f"unix:{slot.rundir}/{bridge}.mgmt", *arguments], stdin=stdin, timeout_s=_TIMEOUT_S).stdout


def speaks_none_of(error: CommandError) -> bool:
    """Whether ovs-ofctl failed since the bridge may speak no version of OpenFlow that has what was asked for."""
    return "any of the usable flow formats" in error.output


def appctl(slot: Slot, command: str, *arguments: str) -> str:
    """What `ovs-appctl` prints for one command to the slot's switch (ovs-appctl(8)), without a process for it.

    python-ovs' client of this socket waits without a limit. Raises CommandError as the program would fail.
    """
    argv = [str(slot.prefix / "bin/ovs-appctl"), f"--timeout={_APPCTL_S}", "-t", str(slot.vswitchd_ctl)]
    line = gate.paste([*argv, command, *arguments])
    request = json.dumps({"id": 0, "method": command, "params": arguments})
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as switch:
            switch.settimeout(_APPCTL_S)
            switch.connect(str(slot.vswitchd_ctl))
            switch.sendall(request.encode())
            while (answer := _whole(said)) is None:
                if not (more := switch.recv(_CHUNK)):
                    raise CommandError(line, "was hung up on", "")
                said += more
    except OSError as error:
        raise CommandError(line, f"got no answer ({error})", "") from error
    if answer.get("error") is not None:
        raise CommandError(line, "was refused", str(answer["error"]))
    return str(answer["result"])


def _whole(said: bytes) -> dict[str, object] | None:
    """The answer, None while the end of it is still to come: nothing but its syntax says where it ends."""
    if not said.endswith(b"}"):
        return None
    try:
        return dict(json.loads(said))
    except ValueError:
        return None


def asked(slot: Slot, command: str, *arguments: str) -> str | None:
    """As `appctl`, None where the switch does not know that or says no."""
    try:
        return appctl(slot, command, *arguments)
    except CommandError:
        return None
