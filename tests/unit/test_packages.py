"""The packages' source: what is laid out for debhelper, versions that sort after the distribution's, words that are refused."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from upgrader.core.errors import HostError, UsageError
from upgrader.lab import packages
from upgrader.lab.stack import PARTS, REPOSITORY
from upgrader.lab.stack_build import Built
from upgrader.lab.stack_recipe import read_recipe

DEBIAN = REPOSITORY / "packaging/debian"


def built(part: str, version: str, prefix: Path = Path("/none")) -> Built:
    return Built(part, True, "key", prefix, prefix, packages.PLACES[part], version)


@pytest.mark.parametrize("revision", ["", "x", "1-2", "1 2", "-1", "1_2"])
def test_a_revision_that_debian_would_not_take_is_refused(revision: str) -> None:
    with pytest.raises(UsageError) as refused:
        packages.make(revision, progress=print)
    assert refused.value.state == "nothing was built"


def test_versions_are_newer_than_what_they_are_built_from_and_than_a_lower_revision() -> None:
    first = packages._own_version(built("ovs", "3.1.0-2+deb12u1"), "0.1.0-1")
    later = packages._own_version(built("ovs", "3.1.0-2+deb12u1"), "0.1.0-2")
    for lower, higher in (("3.1.0-2+deb12u1", first), (first, later), (first, "3.1.0-2+deb12u2+hot0.1.0-1")):
        assert subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=False).returncode == 0
    with pytest.raises(HostError):
        packages._own_version(built("ovs", "3.2.0-1"), "0.1.0-1")


def test_the_source_of_the_coordinator_alone_names_no_other_package(tmp_path: Path) -> None:
    assert packages._fill(tmp_path / "tree", {}, "0.1.0-1") == {}
    control = (tmp_path / "tree/debian/control").read_text()
    assert re.findall(r"^Package: (.*)$", control, re.MULTILINE) == ["ovs-hot-upgrade"]
    assert "@" not in control.replace("root@localhost", "")
    assert (tmp_path / "tree/debian/changelog").read_text().startswith("ovs-hot-upgrade (0.1.0-1) ")
    assert "_upgrade_completion" in (tmp_path / "tree/completions/upgrade").read_text()


def test_a_package_is_built_for_its_place_and_a_host_with_kvm() -> None:
    flags = {part: read_recipe(part, REPOSITORY / PARTS[part].recipe, packaged=True).configure_flags for part in PARTS}
    assert "--enable-kvm" in flags["qemu"]
    assert "--disable-kvm" not in flags["qemu"]
    assert [f for f in flags["ovs"] if f.startswith("CFLAGS=")] == [f for f in flags["ovs"] if "_FORTIFY_SOURCE" in f]
    assert sum(f.startswith("LDFLAGS=") for f in flags["ovs"]) == 1
    assert flags["dpdk"] == read_recipe("dpdk", REPOSITORY / PARTS["dpdk"].recipe).configure_flags


def test_what_is_installed_is_named_once() -> None:
    """The example names the prefix that the package has, and every file of debhelper's belongs to a package there is."""
    example = tomllib.loads((REPOSITORY / "docs/examples/host.toml").read_text())
    assert {slot["prefix"] for slot in example["slots"].values()} == {str(packages.PLACES["ovs"])}
    names = re.findall(r"^Package: (.*)$", (DEBIAN / "control.in").read_text(), re.MULTILINE)
    assert {file.name.removesuffix(file.suffix) for file in DEBIAN.glob("ovs-hot-upgrade*")} == set(names)
    scripts = [f for f in DEBIAN.iterdir() if f.suffix in (".prerm", ".postinst", ".postrm")]
    assert len(scripts) == 5
    for script in scripts:
        assert "#DEBHELPER#" in script.read_text()
        subprocess.run(["sh", "-n", str(script)], check=True)
