"""A machine of its own: Debian with systemd, booted by QEMU's emulation from a folder of debootstrap's, reached by ssh."""

from __future__ import annotations

import socket
import subprocess

from tests.support import nic_guest
from tests.support.systemd_host import SystemdHost
from upgrader.adapters import gate

_INIT = f"""{nic_guest.ROOT_OF_GUEST}
exec switch_root -c /dev/console /new /lib/systemd/systemd
"""
_NETWORK = """\
[Unit]
Description=The one network device of this guest
DefaultDependencies=no
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set lo up; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up'
[Install]
WantedBy=multi-user.target
"""


class SystemdGuest(SystemdHost):
    """One of them; what it writes is in its memory, and gone with it."""

    _port = 0

    def start(self) -> subprocess.Popen[bytes]:
        """QEMU, with nothing of the machine but the folder, read-only, and one port of its loopback."""
        (self.root.folder / "etc/systemd/system/guest-network.service").write_text(_NETWORK)
        self.root.sh("systemctl enable guest-network")
        release, modules = nic_guest.kernel()
        image = nic_guest.initramfs(release, modules, ("virtio_net",), "", init=_INIT, work=self.folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        share = f"local,path={self.root.folder},mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        argv = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
            *("-m", "1536", "-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{self.folder}/console"),
            *("-kernel", str(modules / f"boot/vmlinuz-{release}"), "-initrd", str(image), "-virtfs", share),
            # nothing outside can be reached from inside; ssh goes in
            *("-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", "virtio-net-pci,netdev=n,romfile="),
            *("-append", "console=ttyS0 quiet mitigations=off panic=-1 net.ifnames=0 systemd.show_status=no"),
        ]
        (self.folder / "console").touch()
        return gate.spawn(argv, output=self.folder / "qemu.log")

    def reached(self) -> tuple[list[str], int]:
        """By the port that QEMU forwards."""
        return [], self._port
