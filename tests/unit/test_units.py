"""The units as systemd-analyze(1) sees them: nothing it warns of, and how much of the host the coordinator can reach."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import upgrader
from upgrader.adapters import slot_systemd
from upgrader.core.errors import HostError
from upgrader.sim.facts import slot

UNITS = Path(upgrader.__file__).parent / "systemd"
NAMES = ("ovs-upgraded.service", "ovs-slot@.service", "ovs-slot-db@.service")
#: Of 10; it enters network namespaces, steers NICs and signals processes of others, so that it cannot come near 0.
EXPOSURE = 3.1

needs_systemd_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze(1) is missing")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program in the place of the coordinator, which is not installed where tests run."""
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/bin/ovs-upgraded", shutil.which("true") or "/bin/true"))
    return tmp_path


def analyze(folder: Path, verb: str, *arguments: str) -> str:
    """What it prints; it exits with 0 also when it has something to say."""
    done = subprocess.run(
        ["systemd-analyze", verb, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return (done.stdout if verb == "security" else "") + done.stderr


@needs_systemd_analyze
@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_against_a_unit(installed: Path, name: str) -> None:
    assert analyze(installed, "verify", "--man=no", f"./{name}") == ""
    (installed / name).write_text((installed / name).read_text() + "\n[Service]\nKillMood=process\n")
    assert "KillMood" in analyze(installed, "verify", "--man=no", f"./{name}"), "and it would say it"


@needs_systemd_analyze
def test_the_coordinators_exposure_is_bounded(installed: Path) -> None:
    said = analyze(installed, "security", "--offline=yes", "--no-pager", "./ovs-upgraded.service")
    found = re.search(r"Overall exposure level for ovs-upgraded.service: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= EXPOSURE


def test_a_coordinator_that_ends_takes_nothing_with_it() -> None:
    text = (UNITS / "ovs-upgraded.service").read_text()
    assert "\nKillMode=process\n" in text
    assert "\nType=notify\n" in text
    switch = (UNITS / "ovs-slot@.service").read_text()
    assert "\nRestart=no\n" in switch, "a switch that was replaced must not come back by itself"
    assert "Requires=" not in re.sub(r"#.*", "", switch)


def test_environment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_systemd, "ENVIRONMENT", tmp_path / "slots")
    slot_systemd._write_environment(slot("a", env=(("X", 'a "b" $C \\d `e`'),)))
    file = tmp_path / "slots/a.env"
    assert 'X="a \\"b\\" \\$C \\\\d \\`e\\`"' in file.read_text().splitlines()
    assert 'SLOT_NETNS="/run/netns/slot-a"' in file.read_text()
    assert oct(file.stat().st_mode)[-3:] == "600"
    with pytest.raises(HostError) as raised:
        slot_systemd._write_environment(slot("a", env=(("X", "two\nlines"),)))
    assert raised.value.code == "SLOT_ENVIRONMENT"
    slot_systemd._write_environment(slot("b", netns=None))
    assert 'SLOT_NETNS="/proc/1/ns/net"' in (tmp_path / "slots/b.env").read_text()
