"""The role `install`, into a folder: the environment, the commands, the units, a configuration that is valid or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.collection import ROOT, Fleet

CONFIG = {
    "host": {"supervisor": "systemd"},
    "nic": {"pf": "eth0"},
    "slots": {
        name: {"prefix": f"/opt/ovs-{name}", "rundir": f"/run/ovs-{name}", "netns": f"slot-{name}", "vf": f"vf{name}",
               "representor": f"rep{name}", "devargs": "0000:3b:02.1", "pmd_cpu_mask": mask,
               "env": {"PATH": 'a"b\\c'}}
        for name, mask in (("a", "0x2"), ("b", "0x4"))
    },
    "policy": {"soak_s": 60, "accept": ["PMD_CORES_SHARED"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coordinator as it is released."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    tar = subprocess.run(
        ["tar", "-c", "pyproject.toml", "README.md", "upgrader"], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(source)], input=tar.stdout, check=True)
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(argv, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_it_installs_once_and_refuses_a_bad_configuration(tmp_path: Path, wheel: Path) -> None:
    root = tmp_path / "host"
    for name in ("bin", "units"):
        (root / name).mkdir(parents=True)
    fleet = Fleet(
        tmp_path,
        {"h1": root / "etc" / "config.toml"},
        {
            "install_wheel": str(wheel),
            "install_prefix": str(root / "opt"),
            "install_bin_dir": str(root / "bin"),
            "install_unit_dir": str(root / "units"),
            "install_config_path": str(root / "etc" / "config.toml"),
            "install_python": "/usr/bin/python3",
            "install_daemon": False,
        },
    )
    done = fleet.play("install", install_config=CONFIG)
    assert done.returncode == 0, done.stdout
    assert {p.name for p in (root / "units").iterdir()} == {
        "ovs-slot-db@.service", "ovs-slot@.service", "ovs-upgraded.service",
    }  # fmt: skip
    said = subprocess.run(
        [str(root / "bin" / "upgrade"), "--config", str(root / "etc" / "config.toml"), "config", "show"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert '"soak_s": 60.0' in said
    assert r"a\"b\\c" in said

    before = (root / "etc" / "config.toml").read_text()
    again = fleet.play("install", install_config=CONFIG)
    assert again.returncode == 0, again.stdout
    assert "changed=0 " in again.stdout

    bad = fleet.play("install", install_config={**CONFIG, "nic": {"pf": "eth0", "vxlan_port": 0}})
    assert bad.returncode != 0
    assert "vxlan_port" in bad.stdout
    assert (root / "etc" / "config.toml").read_text() == before
