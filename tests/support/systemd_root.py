"""Debian with its own systemd as PID 1 of namespaces, in a folder of debootstrap's: a host at this machine's speed.

What it shares with the machine is the kernel. It has its own file system, pids, network (loopback only), control group and
host name, and is reached from inside its network namespace.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.systemd_host import SystemdHost
from upgrader.adapters import gate

# $1 the folder, $2 a name for the control group
_INIT = """\
set -e
hostname host
ip link set lo up
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t tmpfs -o mode=755 run "$1/run"
mount -t tmpfs -o mode=755 dev "$1/dev"
mkdir "$1/dev/pts" "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
for node in null zero full random urandom tty; do : >"$1/dev/$node"; mount --bind /dev/$node "$1/dev/$node"; done
mount -t cgroup2 cgroup2 "$1/mnt"
mkdir "$1/mnt/$2"
echo 0 >"$1/mnt/$2/cgroup.procs"
exec unshare --cgroup sh -c 'umount "$1/mnt"; mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
  exec env -i container=box SYSTEMD_LOG_TARGET=console PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$1" /lib/systemd/systemd' sh "$1"
"""


class SystemdRoot(SystemdHost):
    """One of them."""

    def start(self) -> subprocess.Popen[bytes]:
        """PID 1 of its own, whose end is the end of all that runs in it."""
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"]
        argv = ["unshare", *namespaces, "--propagation", "private", "sh", "-c", _INIT, "sh", str(self.root.folder)]
        return gate.spawn([*argv, f"box-{os.getpid()}"], output=self.folder / "console")

    def reached(self) -> tuple[list[str], int]:
        """By its network namespace: that of the only child of `unshare`."""
        pid, children = self.process.pid if self.process else 0, ""
        with suppress(OSError):  # it has ended
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
        return ["nsenter", f"--net=/proc/{children or 'none'}/ns/net", "--"], 22
