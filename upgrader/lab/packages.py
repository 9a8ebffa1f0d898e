"""Make the .deb packages: the coordinator in an environment of its own, the patched switch and QEMU beside the distribution's.

``python -m upgrader.lab.packages [--revision N] [--only-coordinator]`` leaves them in ``build/packages`` and prints
their paths. debhelper and dh-virtualenv do the packing (packaging/debian), lintian judges: one finding that no override
there gives a reason for, and the command fails.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Final

import structlog

from upgrader.adapters import gate
from upgrader.core.errors import HostError, UpgradeError, UsageError
from upgrader.lab.stack import BUILD_DIR, REPOSITORY, build_stack
from upgrader.lab.stack_apt import Progress, install_missing
from upgrader.lab.stack_build import BUILD_ENV, Built

ROOT: Final = Path("/usr/lib/ovs-hot-upgrade")
SWITCH: Final = "openvswitch-3.1.0"
#: Where the packages put what the stack builds.
PLACES: Final[Mapping[str, Path]] = {"ovs": ROOT / SWITCH, "dpdk": ROOT / SWITCH, "qemu": ROOT / "qemu"}
TOOLS: Final = ("debhelper", "dh-virtualenv", "lintian", "fakeroot", "python3-venv", "python3-dev", "gcc", "libc6-dev", "libvirt-dev", "pkg-config")  # fmt: skip
#: Of the repository, what the packages are made of.
SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "upgrader", "docs", "packaging")
#: Of an installed OVS, what a slot needs and a person who looks at it; its scripts are for a host with one switch.
SWITCH_FILES: Final = (
    *(f"bin/{name}" for name in ("ovs-appctl", "ovs-dpctl", "ovs-ofctl", "ovs-vsctl", "ovsdb-client", "ovsdb-tool")),
    "sbin/ovs-vswitchd",
    "sbin/ovsdb-server",
    "lib/dpdk/librte_vhost.so.23",
    "share/openvswitch/vswitch.ovsschema",
    "share/openvswitch/local-config.ovsschema",
    "manifest.json",
)
QEMU_FILES: Final = ("bin/qemu-system-x86_64", "share/qemu/trace-events-all", "manifest.json")
_TIMEOUT_S: Final = 900.0
_REVISION = re.compile(r"[0-9][0-9a-z.+~]*")


def make(revision: str, *, only_coordinator: bool = False, progress: Progress) -> list[Path]:
    """Build the packages and judge them; returns their files. Raises UpgradeError.

    revision  Debian's, behind the project's version: a higher one is an upgrade
    """
    if not _REVISION.fullmatch(revision):
        raise UsageError(
            "PACKAGE_REVISION",
            f"--revision {revision}: a digit, then digits, small letters, dots, + or ~",
            state="nothing was built",
            next="make packages REVISION=1",
        )
    install_missing(TOOLS, progress)
    version = f"{tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']['version']}-{revision}"
    built = [] if only_coordinator else build_stack(parts=("ovs", "qemu"), places=PLACES, progress=progress)
    out = BUILD_DIR / "packages"
    tree = out / "work" / "ovs-hot-upgrade"
    shutil.rmtree(out / "work", ignore_errors=True)
    versions = _fill(tree, {b.part: b for b in built}, version)
    progress(f"packing ovs-hot-upgrade {version}")
    only = ["-povs-hot-upgrade"] if only_coordinator else []
    env = {"PATH": BUILD_ENV["PATH"], **versions, "DH_OPTIONS": " ".join(only)}
    _run(["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps"], tree, env, out / "build.log")
    packages = sorted(tree.parent.glob("*.deb"))
    progress("lintian")
    judge = ["lintian", "--fail-on", "error,warning", "--allow-root", *map(str, packages)]
    _run(judge, tree, {}, out / "lintian.log")
    made = [file.replace(out / file.name) for file in packages]
    shutil.rmtree(out / "work")
    return made


def _fill(tree: Path, built: Mapping[str, Built], version: str) -> dict[str, str]:
    """Lay the source package out in `tree`; returns the versions of the packages that have one of their own."""
    tree.mkdir(parents=True)
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree / name)
    debian = (tree / "packaging/debian").replace(tree / "debian")
    maintainer = _maintainer()
    control = (debian / "control.in").read_text().replace("@MAINTAINER@", maintainer)
    if not built:
        control = "\n\n".join(control.split("\n\n")[:2]) + "\n"
    (debian / "control").write_text(control)
    (debian / "control.in").unlink()
    (debian / "changelog").write_text(
        f"ovs-hot-upgrade ({version}) bookworm; urgency=medium\n\n  * Built from the project's source.\n\n"
        f" -- {maintainer}  {formatdate()}\n"
    )
    (tree / "completions").mkdir()
    program = [sys.executable, "-m", "upgrader.cli.app", "--show-completion", "bash"]
    (tree / "completions/upgrade").write_text(gate.run(program).stdout)
    versions = {}
    for part, folder, files in (("ovs", "openvswitch", SWITCH_FILES), ("qemu", "qemu", QEMU_FILES)):
        if part in built:
            _copy(built[part].prefix, tree / "stage" / folder, files)
            versions[f"{part.upper()}_VERSION"] = _own_version(built[part], version)
    return versions


def _own_version(built: Built, version: str) -> str:
    """The distribution's version of the source with ours behind it: newer than what it is built from."""
    if built.part == "ovs" and not built.source_version.startswith(SWITCH.partition("-")[2]):
        raise HostError(
            "PACKAGE_VERSION",
            f"the switch is {built.source_version}, the package says {SWITCH}",
            state="no package was made",
            next="name the package in packaging/debian and upgrader/lab/packages.py after the version",
        )
    return f"{built.source_version}+hot{version}"


def _copy(prefix: Path, to: Path, files: Sequence[str]) -> None:
    for name in files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(prefix / name, to / name)


def _maintainer() -> str:
    """Whoever builds, by Debian's own variables."""
    name = os.environ.get("DEBFULLNAME", "the builder of this package")
    return f"{name} <{os.environ.get('DEBEMAIL', 'root@localhost')}>"


def _run(argv: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path) -> None:
    """Run one command with all it prints in a log, which is the error's last part where it fails."""
    done = gate.run(argv, cwd=cwd, env={"LC_ALL": "C.UTF-8", **env}, timeout_s=_TIMEOUT_S, check=False)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-25:])
        raise HostError(
            "PACKAGE_FAILED",
            f"`{gate.paste(argv)}` exited with {done.returncode}:\n{tail}",
            state="the packages made before, if any, are as they were",
            next=f"less {log}",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m upgrader.lab.packages``; progress on stderr, the packages' paths on stdout."""
    parser = argparse.ArgumentParser("python -m upgrader.lab.packages", description="Make the .deb packages.")
    parser.add_argument("--revision", default="1", help="Debian revision (default: 1)")
    parser.add_argument("--only-coordinator", action="store_true", help="neither switch nor QEMU")
    args = parser.parse_args(argv)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        for file in make(args.revision, only_coordinator=args.only_coordinator, progress=progress):
            print(file)
    except UpgradeError as error:
        print(f"{error}\nstate: {error.state}\nnext: {error.next}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
