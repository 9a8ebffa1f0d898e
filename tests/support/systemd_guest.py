"""A machine of its own: Debian with systemd, booted by QEMU's emulation from a folder of debootstrap's, reached by ssh."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import nic_guest
from tests.support.collection import Fleet
from tests.support.debian_root import DebianRoot
from upgrader.adapters import gate

PACKAGES = ("systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "iproute2", "kmod", "procps")
_BOOT_S = 300.0
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


class SystemdGuest:
    """`with SystemdGuest(root, folder) as guest`; what it writes is in its memory, and gone with it."""

    def __init__(self, root: DebianRoot, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.ansible = _Guest(folder, {"guest": Path("/etc/ovs-upgrade/config.toml")})
        self._process: subprocess.Popen[bytes] | None = None
        self.boot_s = 0.0

    def __enter__(self) -> SystemdGuest:
        self._prepare()
        release, modules = nic_guest.kernel()
        image = nic_guest.initramfs(release, modules, ("virtio_net",), "", init=_INIT, work=self.folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.ansible.port = free.getsockname()[1]
        argv = [
            *(
                "qemu-system-x86_64",
                "-M",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "1536",
            ),
            *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{self.folder}/console"),
            *("-kernel", str(modules / f"boot/vmlinuz-{release}"), "-initrd", str(image)),
            *(
                "-virtfs",
                f"local,path={self.root.folder},mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            ),
            # nothing outside can be reached from inside; ssh goes in
            *("-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self.ansible.port}-:22"),
            *("-device", "virtio-net-pci,netdev=n,romfile="),
            *("-append", "console=ttyS0 quiet mitigations=off panic=-1 net.ifnames=0 systemd.show_status=no"),
        ]
        began = time.monotonic()
        self._process = gate.spawn(argv, output=self.folder / "qemu.log")
        try:
            while self.sh("systemctl is-system-running --wait", check=False).stdout.strip() not in (
                "running",
                "degraded",
            ):
                assert self._process.poll() is None, (self.folder / "qemu.log").read_text()
                assert time.monotonic() - began < _BOOT_S, (self.folder / "console").read_text()[-2000:]
                time.sleep(1)
        except BaseException:
            self._end()
            raise
        self.boot_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        subprocess.run(["ssh", *self.ansible.ssh(), "-O", "exit", "127.0.0.1"], capture_output=True, check=False)
        self._process.kill()
        self._process.wait()

    def sh(self, script: str, *, check: bool = True) -> gate.Completed:
        """Run a shell script inside, as root."""
        argv = ["ssh", *self.ansible.ssh(), "root@127.0.0.1", f"set -e; {script}"]
        return gate.run(argv, check=check, timeout_s=_BOOT_S)

    def play(self, playbook: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """A playbook of the collection on it."""
        return self.ansible.play(playbook, timeout_s=600, **variables)

    def _prepare(self) -> None:
        """What a guest needs that a folder does not."""
        root = self.root.folder
        gate.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "client")])
        self.root.sh(f"apt-get update -qq; apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES)}")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (root / "root/.ssh/authorized_keys").write_text((self.folder / "client.pub").read_text())
        (root / "etc/systemd/system/guest-network.service").write_text(_NETWORK)
        (root / "etc/hostname").write_text("guest\n")
        (root / "usr/sbin/policy-rc.d").unlink()
        self.root.sh(
            "systemctl enable guest-network; systemctl mask apt-daily.timer apt-daily-upgrade.timer getty@tty1"
        )
        known = "".join(f"guest {p.read_text()}" for p in (root / "etc/ssh").glob("ssh_host_*_key.pub"))
        (self.folder / "known").write_text(known)


class _Guest(Fleet):
    """An inventory of this one host."""

    port = 0

    def ssh(self) -> list[str]:
        """Options by which it is reached; its key is known from its folder."""
        told = (
            f"UserKnownHostsFile={self.folder}/known",
            "HostKeyAlias=guest",
            "IdentitiesOnly=yes",
            "ConnectTimeout=20",
        )
        return ["-p", str(self.port), "-i", str(self.folder / "client"), *(w for o in told for w in ("-o", o))]

    def inventory(self) -> dict[str, Any]:
        return {
            "vars": {
                "ansible_host": "127.0.0.1",
                "ansible_port": self.port,
                "ansible_user": "root",
                "ansible_ssh_common_args": " ".join(self.ssh()[2:]),
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_remote_tmp": "/tmp/ansible",
                "rollout_become": False,
                "rollout_report_dir": str(self.folder / "report"),
            },
            "hosts": {"guest": {}},
        }
