"""A host with Debian and systemd to install on, from a folder of debootstrap's, reached by its own sshd: in a guest or not."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.collection import Fleet
from tests.support.debian_root import DebianRoot
from upgrader.adapters import gate

PACKAGES = ("systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "iproute2", "kmod", "procps")
_PLAY_S = 900
_ANSWER_S = 300.0


class SystemdHost(ABC):
    """`with … as host`; whatever runs in it ends with it. `boot_s`: until systemd has started everything."""

    limit_s = 300.0

    def __init__(self, root: DebianRoot, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.boot_s = 0.0
        self.process: subprocess.Popen[bytes] | None = None
        self.ansible = _Inventory(folder, {"host": Path("/etc/ovs-upgrade/config.toml")}, reached=self.reached)

    @abstractmethod
    def start(self) -> subprocess.Popen[bytes]:
        """Begin to boot; what it says goes to the file `console`."""

    @abstractmethod
    def reached(self) -> tuple[list[str], int]:
        """What a command that connects to it is run by, and the port of its sshd on 127.0.0.1 there."""

    def __enter__(self) -> SystemdHost:
        self._prepare()
        began = time.monotonic()
        self.process = self.start()
        try:
            while not self._answers():
                said = (self.folder / "console").read_text(errors="replace")[-3000:]
                assert self.process.poll() is None and time.monotonic() - began < self.limit_s, said
                time.sleep(0.5)
        except BaseException:
            self._end()
            raise
        self.boot_s = time.monotonic() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def sh(self, script: str, *, check: bool = True) -> gate.Completed:
        """Run a shell script inside, as root, over ssh."""
        before, _ = self.reached()
        argv = [*before, "ssh", *self.ansible.ssh(), "root@127.0.0.1", f"set -e; {script}"]
        return gate.run(argv, check=check, timeout_s=_ANSWER_S)

    def play(self, playbook: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """A playbook of the collection on it."""
        return self.ansible.play(playbook, before=self.reached()[0], timeout_s=_PLAY_S, **variables)

    def _answers(self) -> bool:
        try:
            said = self.sh("systemctl is-system-running --wait", check=False).stdout.strip()
        except OSError:  # it is not yet there to be reached
            return False
        return said in ("running", "degraded")

    def _end(self) -> None:
        assert self.process is not None
        before, _ = self.reached()
        gate.run([*before, "ssh", *self.ansible.ssh(), "-O", "exit", "127.0.0.1"], check=False)
        self.process.kill()
        self.process.wait()

    def _prepare(self) -> None:
        """What a host needs that a folder does not."""
        root = self.root.folder
        gate.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "client")])
        self.root.sh(f"apt-get update -qq; apt-get install -y -qq --no-install-recommends {' '.join(PACKAGES)}")
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (root / "root/.ssh/authorized_keys").write_text((self.folder / "client.pub").read_text())
        (root / "etc/hostname").write_text("host\n")
        (root / "usr/sbin/policy-rc.d").unlink()
        self.root.sh(
            "systemctl mask apt-daily.timer apt-daily-upgrade.timer console-getty getty@tty1 systemd-udevd systemd-logind"
        )
        known = "".join(f"host {p.read_text()}" for p in (root / "etc/ssh").glob("ssh_host_*_key.pub"))
        (self.folder / "known").write_text(known)


class _Inventory(Fleet):
    """Of this one host."""

    def __init__(self, folder: Path, hosts: dict[str, Path], *, reached: Callable[[], tuple[list[str], int]]) -> None:
        super().__init__(folder, hosts)
        self._reached = reached

    def ssh(self) -> list[str]:
        """Options by which it is reached, by Ansible's connections, too; its key is known from its folder."""
        told = (
            f"Port={self._reached()[1]}",
            f"IdentityFile={self.folder}/client",
            f"UserKnownHostsFile={self.folder}/known",
            f"ControlPath={self.folder}/ssh-%p",
            "HostKeyAlias=host",
            "IdentitiesOnly=yes",
            "ConnectTimeout=20",
        )
        return [word for option in told for word in ("-o", option)]

    def inventory(self) -> dict[str, Any]:
        return {
            "vars": {
                "ansible_host": "127.0.0.1",
                "ansible_user": "root",
                "ansible_ssh_args": " ".join([*self.ssh(), "-o ControlMaster=auto -o ControlPersist=60s"]),
                "ansible_python_interpreter": "/usr/bin/python3",
                "rollout_become": False,
                "rollout_report_dir": str(self.folder / "report"),
            },
            "hosts": {"host": {}},
        }
