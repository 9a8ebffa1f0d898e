"""The same command on another host, over OpenSSH, as the person's own ssh is set up to reach it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

from upgrader.core.errors import HostError

_SSH_FAILED = 255  # ssh(1): an error of its own, or of the connection
COMMAND_VARIABLE = "OVS_UPGRADE_REMOTE_COMMAND"  # how that host calls the command, where it is not in its PATH
SSH_VARIABLE = "OVS_UPGRADE_SSH"  # further arguments of ssh


def there(arguments: list[str]) -> list[str]:
    """What that host is told to do: the same, to itself."""
    rest = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--host":
            skip = True
        elif not argument.startswith("--host="):
            rest.append(argument)
    return ["--host", "localhost", *rest]


def run_there(host: str, arguments: list[str]) -> int:
    """Run it, with our terminal where we have one; returns its exit code. Raises HostError where ssh fails."""
    ssh = shutil.which("ssh")
    command = f"{os.environ.get(COMMAND_VARIABLE, 'upgrade')} {shlex.join(there(arguments))}"
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    # without a terminal nobody can answer a question of ssh's
    options = ["-t"] if terminal else ["-o", "BatchMode=yes"]
    if ssh is None or host.startswith("-"):
        raise _failed(host, "there is no ssh on this machine" if ssh is None else "that is no host's name")
    argv = [ssh, *options, *shlex.split(os.environ.get(SSH_VARIABLE, "")), "--", host, command]
    code = subprocess.run(argv, check=False).returncode
    if code == _SSH_FAILED:
        raise _failed(host, "ssh could not reach it; what it said stands above")
    return code


def _failed(host: str, why: str) -> HostError:
    return HostError(
        "HOST_UNREACHABLE",
        f"{host}: {why}",
        state="if a run had begun there it goes on: its coordinator does not depend on this connection",
        next=f"ssh {host} upgrade status",
    )
