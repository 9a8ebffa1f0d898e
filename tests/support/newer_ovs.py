"""OVS-DPDK of a newer release of the distribution, unpacked with all that it runs on, so that it runs here beside ours.

Not installed: its programs are told where their own C library and loader are. What it asks of the archive is in a private
apt configuration, made from the machine's own; downloaded once a version.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from upgrader.adapters import gate
from upgrader.lab.stack_apt import APT_ENV, install_missing, source_entries

ROOT = Path(__file__).resolve().parents[2]
SUITE = "sid"
PACKAGE = "openvswitch-switch-dpdk"
#: What DPDK loads by itself where it is installed: the buses that OVS names to it, pools, and the driver of the lab's VFs.
_PLUGINS = (
    "bus-auxiliary",
    "bus-cdx",
    "bus-fslmc",
    "bus-uacce",
    "bus-vdev",
    "bus-vmbus",
    "mempool-ring",
    "net-af-packet",
)
_APT_S = 600.0
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def newer_ovs(suite: str = SUITE, build: Path = ROOT / "build/newer") -> Path:
    """The prefix of that release's OVS-DPDK. Raises CommandError where the archive does not have it."""
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix=".apt-") as folder:
        apt = _apt(Path(folder), suite)
        gate.run(["apt-get", *apt, "update", "-q"], env=APT_ENV, timeout_s=_APT_S)
        shown = gate.run(["apt-cache", *apt, "show", "--no-all-versions", PACKAGE], env=APT_ENV).stdout
        version = re.search(r"^Version: (\S+)$", shown, re.M)
        abi = re.search(r"\blibrte-eal(\d+)\b", shown)
        assert version and abi, shown
        target = build / ("ovs-" + re.sub(r"[^\w.+~-]", "_", version[1]))
        if not (target / "prefix/sbin/ovs-vswitchd").exists():
            install_missing(["patchelf"], lambda _text: None)
            plugins = [f"librte-{name}{abi[1]}" for name in _PLUGINS]
            wanted = ["install", "-y", "-q", "--no-install-recommends", "--download-only", PACKAGE, *plugins]
            gate.run(["apt-get", *apt, *wanted], env=APT_ENV, timeout_s=_APT_S)
            shutil.rmtree(target, ignore_errors=True)
            (target / "root").mkdir(parents=True)
            for package in (Path(folder) / "cache/archives").glob("*.deb"):
                gate.run(["dpkg-deb", "-x", str(package), str(target / "root")])
            _install(target / "root/usr", target / "prefix", abi[1])
    return target / "prefix"


def _apt(folder: Path, suite: str) -> list[str]:
    """Options of apt that make it see that release alone, and nothing as installed."""
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "parts/newer.sources").write_text(_entries(suite))
    options = [
        "Dir::Etc::sourcelist=/dev/null",
        f"Dir::Etc::sourceparts={folder / 'parts'}",
        f"Dir::State::lists={folder / 'lists'}",
        f"Dir::State::status={folder / 'status'}",
        f"Dir::Cache={folder / 'cache'}",
        "APT::Sandbox::User=root",
    ]
    return [word for option in options for word in ("-o", option)]


def _entries(suite: str, etc_apt: Path = Path("/etc/apt")) -> str:
    """The entry of this machine's own release, for another one: the same mirror, the same keys."""
    found = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.M)
    assert found
    for file in sorted(etc_apt.glob("sources.list.d/*.sources")):
        entries = source_entries(file.read_text(), deb822=True, codename=found[1]).split("\n\n")
        for entry in entries:
            fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line)
            if found[1] in fields.get("Suites", "").split():
                return "\n".join(f"{k}: {v}" for k, v in {**fields, "Types": "deb", "Suites": suite}.items()) + "\n"
    raise FileNotFoundError(f"{etc_apt}/sources.list.d has no entry of {found[1]}")


def _install(usr: Path, prefix: Path, abi: str) -> None:
    """Programs and schema as `make install` would lay them, with the release's own loader and libraries."""
    libraries = usr.parent / _LIBRARIES
    for folder in ("bin", "sbin", "share"):
        (prefix / folder).mkdir(parents=True)
    for name in (
        "bin/ovs-appctl",
        "bin/ovs-ofctl",
        "bin/ovs-vsctl",
        "bin/ovsdb-client",
        "bin/ovsdb-tool",
        "sbin/ovsdb-server",
    ):
        shutil.copy2(usr / name, prefix / name)
    shutil.copy2(usr / "lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk", prefix / "sbin/ovs-vswitchd")
    shutil.copytree(usr / "share/openvswitch", prefix / "share/openvswitch", symlinks=True)
    (plugins,) = (libraries / "dpdk").glob("pmds-*")
    paths = f"{libraries}:{plugins}"
    for program in (*(prefix / "bin").iterdir(), *(prefix / "sbin").iterdir()):
        loader = str(libraries / "ld-linux-x86-64.so.2")
        gate.run(["patchelf", "--set-interpreter", loader, "--force-rpath", "--set-rpath", paths, str(program)])
    needed = [f"librte_{name.replace('-', '_')}.so.{abi}" for name in _PLUGINS]
    add = [word for library in needed for word in ("--add-needed", library)]
    gate.run(["patchelf", *add, str(prefix / "sbin/ovs-vswitchd")])
