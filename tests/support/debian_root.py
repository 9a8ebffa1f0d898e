"""A fresh Debian 12 in a folder: debootstrap's minimal one, in which commands run with namespaces of their own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upgrader.adapters import gate
from upgrader.lab.stack_apt import install_missing

SUITE = "bookworm"
_TIMEOUT_S = 900.0
# Everything that is started inside ends with the command; services are not started at all (policy-rc.d).
_NAMESPACES = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]
_ENTER = """\
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs run "$1/run"
mount -t tmpfs tmp "$1/tmp"
mount --rbind /dev "$1/dev"
exec chroot "$1" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$2"
"""
_STATE_OF_DPKG = ("./var/lib/dpkg/", "./var/log/", "./var/cache/", "./var/lib/apt/")


class DebianRoot:
    """One such folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sh(self, script: str, *, check: bool = True, timeout_s: float = _TIMEOUT_S) -> gate.Completed:
        """Run a shell script inside, as root; raises CommandError where it fails, and `check`."""
        argv = [*_NAMESPACES, "sh", "-ec", _ENTER, "sh", str(self.folder), script]
        return gate.run(argv, check=check, timeout_s=timeout_s)

    def files(self) -> dict[str, str]:
        """Every path with kind, mode, size and target, dpkg's and apt's own records and logs aside."""
        listing = subprocess.run(
            ["find", ".", "-xdev", "-printf", "%p\t%y %m %s %l\n"], cwd=self.folder, check=True, capture_output=True,
            text=True,
        ).stdout  # fmt: skip
        found = dict(line.split("\t", 1) for line in listing.splitlines())
        # the size of a folder says what was once in it
        told = {p: " ".join(s.split()[:2]) if s.startswith("d") else s for p, s in found.items()}
        return {p: s for p, s in told.items() if not p.startswith(_STATE_OF_DPKG)}


@contextmanager
def debian_root(cache: Path, folder: Path) -> Iterator[DebianRoot]:
    """A fresh one in `folder`, gone afterwards; debootstrap runs once, and its result is kept in `cache`."""
    kept = cache / f"{SUITE}-minbase.tar"
    if not kept.exists():
        install_missing(["debootstrap"], lambda _: None)
        cache.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        gate.run(["debootstrap", "--variant=minbase", SUITE, str(folder), _mirror()], timeout_s=_TIMEOUT_S)
        gate.run(["tar", "-C", str(folder), "-cf", f"{kept}.new", "."], timeout_s=_TIMEOUT_S)
        Path(f"{kept}.new").replace(kept)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        gate.run(["tar", "-C", str(folder), "-xf", str(kept)], timeout_s=_TIMEOUT_S)
        for name in ("sources.list", "sources.list.d", "apt.conf.d"):  # this machine's way to Debian's archive
            source, target = Path("/etc/apt") / name, folder / "etc/apt" / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy2(source, target)
        shutil.copy2("/etc/resolv.conf", folder / "etc/resolv.conf")
        (folder / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (folder / "usr/sbin/policy-rc.d").chmod(0o755)
        yield DebianRoot(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _mirror() -> str:
    """Where this machine has Debian itself from."""
    told = gate.run(["apt-get", "indextargets", "--format", "$(SUITE) $(CODENAME) $(REPO_URI)", "Created-By: Packages"])
    lines = [line.split() for line in told.stdout.splitlines()]
    return next(words[-1] for words in lines if words[1:2] == [SUITE] or words[0] == SUITE)
