"""A libvirtd of the lab's own, which neither sees nor touches the machine's."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError
from upgrader.lab.host import Process, look_up
from upgrader.lab.spec import LabSpec

_START_S: Final = 20.0
_AUTOGROUP_NICE: Final = -10
_HOST_FOLDERS: Final = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")

# stdio_handler=file: QEMU writes its own log and no virtlogd is needed.
# The rest: everything runs as root and nothing is labelled, confined or put into cgroups that the machine may not have.
_QEMU_CONF: Final = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
max_core = 0
"""
_LIBVIRTD_CONF: Final = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
unix_sock_dir = "/run/libvirt"
min_workers = 16
"""

# Runs in a mount namespace of its own, which ends with libvirtd. /run is replaced as a whole: there a libvirtd finds
# its twin's pid file, systemd and D-Bus. Slots' hugepages go: libvirt wants every mount of them to be in reach.
# Guests are emulated, and libvirt must not see a usable /dev/kvm: for a QEMU built without KVM it would take its list of
# the QEMU's abilities for outdated each time and ask anew, seconds a guest. $1 is the root of all labs, $2 this lab's
# libvirt folder.
_MOUNTS: Final = """\
set -e
for huge in "$1"/*/huge-?; do
  ! mountpoint -q "$huge" || umount "$huge"
done
mount -t tmpfs -o mode=0755 lab-run "$2/run-root"
mkdir "$2/run-root/libvirt" "$2/run-root/hugepages" "$2/run-root/${1##*/}"
mount --bind "$2/run" "$2/run-root/libvirt"
mount --rbind "$1" "$2/run-root/${1##*/}"
mount --bind "$2/etc" /etc/libvirt
mount --bind "$2/lib" /var/lib/libvirt
mount --bind "$2/log" /var/log/libvirt
mount --bind "$2/cache" /var/cache/libvirt
mount --rbind "$2/run-root" /run
mount -t hugetlbfs -o pagesize=2M lab-hugepages /run/hugepages
if [ -e /dev/kvm ]; then
  : >"$2/no-kvm"
  mount --bind "$2/no-kvm" /dev/kvm
  mount -o remount,bind,ro /dev/kvm
fi
shift 2
exec "$@"
"""


def unmount(lab: LabSpec) -> None:
    """Take away what `start` mounted. Idempotent."""
    run = lab.libvirt_directory / "run"
    if run.is_mount():
        gate.run(["umount", str(run)])


def start(lab: LabSpec) -> Process:
    """Start libvirtd and return it once it answers. Raises HostError.

    It lives in the host's network namespace of the lab, so that a driver of it that sets up networks or firewall rules
    cannot reach the machine's.
    """
    absent = [f for f in _HOST_FOLDERS if not Path(f).is_dir()]
    if absent:
        raise HostError(
            "LIBVIRT_MISSING",
            f"libvirt is not installed: there is no {', '.join(absent)}",
            state="the lab is half built and is taken down",
            next="apt-get install -y libvirt-daemon-system libvirt-clients",
        )
    root = lab.libvirt_directory
    for part in ("run", "run-root", "etc", "lib", "log", "cache"):
        (root / part).mkdir(parents=True, exist_ok=True)
    # As /run of a host is: libvirt writes a VM's state there, and waits for the disk, at each monitor command passed through.
    gate.run(["mount", "-t", "tmpfs", "-o", "mode=0755,size=64M", f"{lab.name}-libvirt", str(root / "run")])
    (root / "etc/qemu.conf").write_text(_QEMU_CONF)
    (root / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF)
    log = root / "libvirtd.log"
    mounts = ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-c", _MOUNTS, "sh"]
    daemon = [str(lab.libvirtd), "--config", "/etc/libvirt/libvirtd.conf"]
    child = gate.spawn([*mounts, str(lab.directory.parent), str(root), *daemon], netns=lab.namespaces.host, output=log)
    process = look_up(child.pid)
    with suppress(
        OSError
    ):  # sched(7), autogroup: it stands between the coordinator and QEMU, and has the guests' share
        Path(f"/proc/{child.pid}/autogroup").write_text(str(_AUTOGROUP_NICE))
    deadline = time.monotonic() + _START_S
    while child.poll() is None and time.monotonic() < deadline and process:
        if lab.libvirt_socket.exists() and _answers(lab):
            return process
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
    raise HostError(
        "LIBVIRTD_FAILED",
        f"the lab's libvirtd {'ended at once' if child.poll() is not None else f'did not answer in {_START_S:g} s'}:\n{tail}",
        state="the lab is half built and is taken down",
        next="upgrade lab up",
    )


def schedule(process: Process) -> None:
    """Let libvirtd pass monitor commands on before whatever else the machine does, as it does QEMU's main threads.

    On a host it has cores that no guest and no PMD uses. Here a command to QEMU goes through four of its threads, each of
    which waited up to some ms for one of two cores: 20 ms of 25 of a takeover with four guests. Threads and guests that it
    starts later are as any other.
    """
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with suppress(OSError):  # it has ended, or a container without real-time priorities
            os.sched_setscheduler(int(task.name), os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def virsh(lab: LabSpec, *args: str, timeout_s: float = 30.0) -> str:
    """Run one virsh command against the lab's libvirtd and return what it prints."""
    return gate.run(["virsh", "--quiet", "-c", lab.libvirt_uri, *args], timeout_s=timeout_s).stdout


def running_domains(lab: LabSpec) -> tuple[str, ...]:
    """Names of the guests that run, none where libvirtd does not answer."""
    try:
        return tuple(virsh(lab, "list", "--name", timeout_s=10).split())
    except CommandError:
        return ()


def _answers(lab: LabSpec) -> bool:
    try:
        virsh(lab, "list", timeout_s=10)
    except CommandError:
        return False
    return True
