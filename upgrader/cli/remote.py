"""The same command on another host, over OpenSSH, as the person's own ssh is set up to reach it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from upgrader.core.errors import HostError

_SSH_FAILED = 255  # ssh(1): an error of its own, or of the connection
_NO_COMMAND = (126, 127)  # POSIX shells: found and not executable, not found
COMMAND_VARIABLE = "OVS_UPGRADE_REMOTE_COMMAND"  # how that host calls the command, where it is not in its PATH
SSH_VARIABLE = "OVS_UPGRADE_SSH"  # further arguments of ssh


def there(arguments: list[str]) -> list[str]:
    """What that host is told to do: the same; and that it is the one that is meant."""
    return ["--here", *arguments]


def run_there(host: str, arguments: list[str]) -> int:
    """Run it, with our terminal where we have one; returns its exit code. Raises HostError where ssh fails."""
    ssh = shutil.which("ssh")
    # a terminal there merges stdout and stderr: only where they go to the same place here
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()
    # without a terminal nobody can answer a question of ssh's
    options = ["-t"] if terminal else ["-o", "BatchMode=yes"]
    if ssh is None or host.startswith("-"):
        why = "there is no ssh on this machine" if ssh is None else "that is no host's name"
        raise _failed(host, why, reached=False)
    plain = "env NO_COLOR=1 " if os.environ.get("NO_COLOR") else ""
    command = f"{plain}{os.environ.get(COMMAND_VARIABLE, 'upgrade')} {shlex.join(there(arguments))}"
    with tempfile.TemporaryDirectory(prefix="upgrade-") as folder:
        # ssh_config(5): run here once the connection stands, so that we know whether anything can have happened there
        mark = Path(folder) / "reached"
        options += ["-o", "PermitLocalCommand=yes", "-o", f"LocalCommand=: >{shlex.quote(str(mark))}"]
        argv = [ssh, *options, *shlex.split(os.environ.get(SSH_VARIABLE, "")), "--", host, command]
        try:
            code = subprocess.run(argv, check=False).returncode
        except KeyboardInterrupt:  # without a terminal there, the command there does not hear of it
            raise _failed(host, "interrupted here, and the connection closed", reached=mark.exists()) from None
        if code == _SSH_FAILED or code < 0:
            how = "ssh lost it" if mark.exists() else "ssh could not reach it"
            raise _failed(host, f"{how}; what it said stands above", reached=mark.exists())
    if code in _NO_COMMAND:
        raise HostError(
            "NOT_INSTALLED_THERE",
            f"{host}: its shell finds no command to run ({code}): {os.environ.get(COMMAND_VARIABLE, 'upgrade')}",
            state="nothing was changed",
            next=f"install this package there, or name the command: {COMMAND_VARIABLE}=/path/to/upgrade",
        )
    return code


def _failed(host: str, why: str, *, reached: bool) -> HostError:
    return HostError(
        "HOST_UNREACHABLE",
        f"{host}: {why}",
        state="if a run had begun there it goes on: its coordinator does not depend on this connection"
        if reached
        else "nothing was changed",
        next=f"upgrade --host {shlex.quote(host)} status" if reached else f"ssh {shlex.quote(host)} true",
    )
