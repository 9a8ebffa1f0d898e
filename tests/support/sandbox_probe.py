"""Run by systemd in the sandbox of ovs-upgraded.service: does what a coordinator does, then what it must not be able to.

Arguments: a configuration, and a file for what was found, one line each; the file is made when all is done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from upgrader import wiring
from upgrader.adapters import gate
from upgrader.adapters.slot_control import slot_env
from upgrader.config import load
from upgrader.core.errors import CommandError

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000


def work(config: Path, stranger: int) -> Iterator[str]:
    """Every kind of effect a coordinator has, through the adapters of the configuration."""
    settings = load(config)
    host, slots = wiring.host(settings), wiring.slots(settings)
    a, b = slots["a"], slots["b"]
    for slot in (a, b):
        host.processes.start_database(slot)
        pid = host.processes.start_switch(slot)
        vsctl = [str(slot.prefix / "bin/ovs-vsctl"), "--timeout=10", "add-br", "br0", "--", "set", "bridge", "br0"]
        gate.run([*vsctl, "datapath_type=netdev"], env=slot_env(slot))
        autogroup = Path(f"/proc/{pid}/autogroup")
        yield f"started {slot.name} {host.processes.running_version(slot)} {not autogroup.exists() or 'nice -10' in autogroup.read_text()}"
    gate.run(["ip", "address", "add", "10.1.1.1/24", "dev", "br0"], netns=a.netns)
    gate.run(["ip", "link", "set", "br0", "up"], netns=a.netns)
    host.resources.copy_addresses(a, b, ["br0"])
    yield f"address {'10.1.1.1' in gate.run(['ip', 'address', 'show', 'br0'], netns=b.netns).stdout}"
    host.steering.steady("a")
    yield f"steering {[r.targets for r in host.steering.rules()]}"
    yield f"flows {len(host.openflow.flows(a, 'br0'))} bridges {[x.name for x in host.database.read(a).bridges]}"
    host.well_known.point_to("b", ["br0"])
    host.processes.start_at_boot(b)
    yield f"names {host.well_known.current()} {host.well_known.drop_clients('a')}"
    os.close(host.resources.listen(a.vhost_dir / "probe"))
    (settings.host.journal.parent / "journal-probe").write_text("x")
    handle = os.pidfd_open(stranger)
    signal.pidfd_send_signal(handle, signal.SIGTERM)
    yield "killed a stranger"
    host.processes.stop(a)
    yield f"stopped {host.processes.status(a).vswitchd_pid}"


def forbidden() -> Iterator[tuple[str, Callable[[], object]]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def unshare(flag: int) -> None:
        if libc.unshare(flag) != 0:
            raise OSError(ctypes.get_errno(), "unshare")

    yield "write /usr", lambda: Path("/usr/probe").write_text("x")
    yield "write /etc", lambda: Path("/etc/probe").write_text("x")
    yield "write a tunable", lambda: Path("/proc/sys/kernel/hostname").write_text("x")
    yield "a mount namespace", lambda: unshare(_CLONE_NEWNS)
    yield "a user namespace", lambda: unshare(_CLONE_NEWUSER)
    yield "mount", lambda: gate.run(["mount", "-t", "tmpfs", "tmpfs", "/run/probe"])
    yield "another process's memory", lambda: Path("/proc/1/mem").open("rb").close()
    yield "a device", lambda: os.open("/dev/mem", os.O_RDONLY)


def main() -> None:
    config, found = Path(sys.argv[1]), Path(sys.argv[2])
    stranger = int(sys.argv[3])
    lines = list(work(config, stranger))
    for what, attempt in forbidden():
        try:
            attempt()
            lines.append(f"NOT PREVENTED {what}")
        except (OSError, CommandError, subprocess.SubprocessError) as error:
            lines.append(f"prevented {what}: {type(error).__name__}")
    found.with_suffix(".new").write_text("\n".join(lines) + "\n")
    found.with_suffix(".new").replace(found)


main()
