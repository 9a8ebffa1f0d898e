"""A real systemd for tests: the machine's own binary as PID 1 of namespaces of its own, gone without a trace.

It sees this machine's files, but knows no unit of it and has its own /run, /etc, /var and control group, so that nothing of
the machine is started, stopped or changed. Tests run inside, by `run`: pids are those of the box.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest

from upgrader.adapters import gate
from upgrader.core.errors import CommandError

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = Path(__file__).resolve().parents[2] / "upgrader/systemd"
#: Set for whatever runs in a box: only there may a test give orders to systemd.
MARK = "OVS_UPGRADE_TEST_BOX"
in_a_box = pytest.mark.skipif(MARK not in os.environ, reason="run in a box by test_systemd.py")

_START_S = 20.0
_INIT = """\
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
for folder in etc var; do
  mkdir -p /run/box/$folder/upper /run/box/$folder/work
  mount -t overlay overlay -o lowerdir=/$folder,upperdir=/run/box/$folder/upper,workdir=/run/box/$folder/work /$folder
done
mkdir /run/cgroup
for folder in /etc/systemd/system /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
  mkdir -p $folder; mount -t tmpfs tmpfs $folder
done
for target in box basic sysinit shutdown multi-user local-fs network-pre; do
  printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' $target >/usr/lib/systemd/system/$target.target
done
cp {units}/*.service /etc/systemd/system/
mount -t cgroup2 cgroup2 /run/cgroup
mkdir /run/cgroup/{name}
echo 0 >/run/cgroup/{name}/cgroup.procs
exec unshare --cgroup sh -c 'umount /run/cgroup; umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
  exec env container=box SYSTEMD_LOG_TARGET=console {systemd} --system --unit=box.target'
"""


class SystemdBox:
    """One systemd, from `with` to its end."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "systemd.log"
        self._name = f"box-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> SystemdBox:
        script = _INIT.format(units=UNITS, name=self._name, systemd=SYSTEMD)
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        self._process = gate.spawn(["unshare", *namespaces, "sh", "-c", script], output=self._log)
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, *argv: str, timeout_s: float = 30.0, check: bool = True) -> gate.Completed:
        """Run a command in the box."""
        enter = ["nsenter", f"--target={self._init}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--"]
        return gate.run([*enter, *argv], env={MARK: "1"}, timeout_s=timeout_s, check=check)

    def pytest(self, *arguments: str, timeout_s: float = 240.0) -> gate.Completed:
        return self.run(
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, timeout_s=timeout_s, check=False
        )

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while True:
            with suppress(OSError, IndexError, CommandError):
                self._init = int(children.read_text().split()[0])
                if self.run("systemctl", "is-active", "box.target", check=False).stdout.strip() == "active":
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"systemd did not come up in its box:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _end(self) -> None:
        """With PID 1 goes everything in its namespaces; `--kill-child` sends it the signal."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for mount in _cgroup2_mounts():
            _remove_group(mount / self._name)


def available() -> bool:
    return SYSTEMD.exists() and shutil.which("unshare") is not None and os.geteuid() == 0


def _cgroup2_mounts() -> list[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in lines if fields[2] == "cgroup2"]


def _remove_group(group: Path) -> None:
    """Remove an ended box's control groups, from the leaves up; its processes may take a moment to go."""
    deadline = time.monotonic() + 5
    while group.exists() and time.monotonic() < deadline:
        for folder in sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        with suppress(OSError):
            group.rmdir()
        time.sleep(0.02)
