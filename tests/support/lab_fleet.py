"""Hosts of a fleet on one machine: a lab each, reached by Ansible over a real sshd in the lab's own namespaces.

Each host has its network namespaces, PF and VFs, libvirtd, run directory and guests by its lab (`upgrader.lab`), and here an
sshd in the host's network namespace, with a mount namespace in which it sees its own lab and its own network namespaces
only, and a host name of its own. They and the controller meet in one more namespace with a bridge. `SimulatedLab` is a host
of the same kind that has all of this but switches and guests.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.collection import Fleet
from tests.support.labs import lab_spec
from upgrader.adapters import gate
from upgrader.lab import guest, host
from upgrader.lab.spec import LabSpec
from upgrader.lab.up import Lab

_NETWORK = "198.51.100"  # RFC 5737: for documentation
_AT_ONCE = 2  # labs that come up at a time: booting guests keep the cores busy
_START_S = 20.0
# $1 lab, $2 its directory, $3 the host's name. What a host sees of the machine's labs and named namespaces is its own; the
# others are let go of, so that they end when their owners say so.
_ISOLATE = """\
set -e
hostname "$3"
mkdir -p "$2/sshd/labs" "$2/sshd/netns"
mount -t tmpfs labs "$2/sshd/labs"
mkdir "$2/sshd/labs/$1"
mount --rbind "$2" "$2/sshd/labs/$1"
mount -t tmpfs netns "$2/sshd/netns"
for one in /run/netns/"$1"-*; do : >"$2/sshd/netns/${one##*/}"; mount --bind "$one" "$2/sshd/netns/${one##*/}"; done
for one in /run/netns/*; do umount -l "$one" 2>/dev/null || true; done
mount --rbind "$2/sshd/netns" /run/netns
mount --rbind "$2/sshd/labs" "${2%/*}"
shift 3
exec "$@"
"""


class SimulatedLab:
    """A host in a file (docs/config.md), where a lab would be."""

    def __init__(self, spec: LabSpec) -> None:
        self.spec = spec
        self.config_path = spec.config_path

    def up(self) -> bool:
        """Its namespace, its folder, its configuration."""
        self.spec.directory.mkdir(parents=True)
        self.config_path.write_text(
            f'[simulated]\nstate = "{self.spec.directory}/host"\nvms = {self.spec.vms}\neffect_s = 0\n'
            "[policy]\nsoak_s = 0.1\ncanary_check_s = 0.1\nkeep_old = true\n"
        )
        gate.run(["ip", "netns", "add", self.spec.namespaces.host])
        return True

    def down(self) -> bool:
        """All of it goes, whatever runs in it among it."""
        host.end([*host.coordinators(self.spec), *host.lab_processes(self.spec)])
        gate.run(["ip", "netns", "delete", self.spec.namespaces.host], check=False)
        shutil.rmtree(self.spec.directory)
        with suppress(OSError):
            self.spec.directory.parent.rmdir()
        return True


class LabFleet:
    """`with LabFleet(folder, 6) as fleet`: hosts hv1 to hv6; all of it goes at the end."""

    def __init__(self, folder: Path, hosts: int, *, kind: type[Lab] | type[SimulatedLab] = Lab) -> None:
        self.folder = folder
        self.labs = {f"hv{n}": kind(lab_spec(f"h{n}", vms=2, tickless=True)) for n in range(1, hosts + 1)}
        self.netns = f"{lab_spec().name}-fleet"
        self.ansible = _Hosts(folder, {name: lab.config_path for name, lab in self.labs.items()})
        self._undo = ExitStack()

    def __enter__(self) -> LabFleet:
        try:
            self._keys()
            self._controller()
            if any(isinstance(lab, Lab) for lab in self.labs.values()):
                guest.build()  # once, not by each of those that come up together
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(self._up, self.labs):
                    pass
            for number, name in enumerate(self.labs, 1):
                self._reachable(number, name)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def play(self, playbook: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """A playbook of the collection, from the controller's namespace."""
        before = ["nsenter", f"--net=/run/netns/{self.netns}", "--"]
        return self.ansible.play(playbook, *arguments, before=before, timeout_s=600, **variables)

    def ssh(self, name: str, command: str) -> str:
        """What a shell command prints on that host."""
        address = f"{_NETWORK}.{list(self.labs).index(name) + 1}"
        argv = ["ssh", "-F", str(self.folder / "ssh.conf"), address, command]
        return gate.run(argv, netns=self.netns).stdout

    def _keys(self) -> None:
        for key in ("server", "client"):
            gate.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)])
        known = (self.folder / "server.pub").read_text()
        (self.folder / "known").write_text("".join(f"{_NETWORK}.{n} {known}" for n in range(1, len(self.labs) + 1)))
        (self.folder / "ssh.conf").write_text(
            f"User root\nIdentityFile {self.folder}/client\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder}/known\n"
            "StrictHostKeyChecking yes\nConnectTimeout 10\n"
        )

    def _controller(self) -> None:
        """The namespace that Ansible runs in, and the network to the hosts."""
        privileged = Path("/run/sshd")  # sshd(8) wants it for its unprivileged child
        if not privileged.exists():
            privileged.mkdir()
            self._undo.callback(privileged.rmdir)
        gate.run(["ip", "netns", "add", self.netns])
        self._undo.callback(gate.run, ["ip", "netns", "delete", self.netns], check=False)
        self._undo.callback(self._end_connections)
        batch = f"link set lo up\nlink add hosts type bridge stp_state 0\naddr add {_NETWORK}.254/24 dev hosts\nlink set hosts up\n"
        gate.run(["ip", "-n", self.netns, "-batch", "-"], stdin=batch)

    def _end_connections(self) -> None:
        """Connections that ssh keeps for the next playbook: they are ours, and in our namespace."""
        for pid in gate.run(["ip", "netns", "pids", self.netns], check=False).stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)

    def _up(self, name: str) -> None:
        lab = self.labs[name]
        self._undo.callback(lab.down)
        lab.up()

    def _reachable(self, number: int, name: str) -> None:
        """A link to the controller, and an sshd at its end."""
        lab = self.labs[name].spec
        netns, folder, address = lab.namespaces.host, lab.directory / "sshd", f"{_NETWORK}.{number}"
        folder.mkdir()
        link = f"link add {name} type veth peer name mgmt0 netns {netns}\nlink set {name} master hosts up\n"
        gate.run(["ip", "-n", self.netns, "-batch", "-"], stdin=link)
        gate.run(["ip", "-n", netns, "-batch", "-"], stdin=f"addr add {address}/24 dev mgmt0\nlink set mgmt0 up\n")
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        (folder / "sshd.conf").write_text(
            f"ListenAddress {address}\nHostKey {self.folder}/server\nPidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/client.pub\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"Subsystem sftp internal-sftp\nSetEnv PATH={path} OVS_UPGRADE_CONFIG={lab.config_path}\n"
        )
        isolate = ["unshare", "--mount", "--uts", "--propagation", "private", "--", "sh", "-c", _ISOLATE, "sh"]
        daemon = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd.conf")]
        argv = [*isolate, lab.name, str(lab.directory), name, *daemon]
        process = gate.spawn(argv, netns=netns, output=folder / "sshd.log")
        self._undo.callback(process.wait)
        self._undo.callback(process.terminate)
        deadline = time.monotonic() + _START_S
        greet = ["ssh", "-F", str(self.folder / "ssh.conf"), address, "true"]
        while gate.run(greet, netns=self.netns, check=False).returncode:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "sshd.log").read_text()
            time.sleep(0.1)


class _Hosts(Fleet):
    """The inventory of such hosts: reached by ssh, as root, each with the configuration that its own environment names."""

    def inventory(self) -> dict[str, Any]:
        return {
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_common_args": f"-F {self.folder}/ssh.conf",
                "ansible_python_interpreter": sys.executable,
                "rollout_become": False,
                "rollout_report_dir": str(self.folder / "report"),
            },
            "hosts": {name: {"ansible_host": f"{_NETWORK}.{n}"} for n, name in enumerate(self.hosts, 1)},
        }


def owners(fleet: LabFleet) -> Iterator[tuple[str, str]]:
    """Each host with the slot that serves it, as the host itself says."""
    for name in fleet.labs:
        yield name, fleet.ssh(name, "upgrade check 2>&1 | grep -o 'slot [ab] serves' | sort -u | tr '\\n' ' '").strip()
