"""Configuration: what is accepted, and that every error names file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from upgrader import wiring
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.slot_systemd import SlotSystemd
from upgrader.config import DEFAULT_PATH, PATH_VARIABLE, config_path, load
from upgrader.core.errors import Exit, UsageError
from upgrader.core.takeover import TakeoverPolicy

SOUND = """
[nic]
pf = "eth0"
[slots.a]
prefix = "/usr"
rundir = "/run/openvswitch"
vf = "vf1"
representor = "vf1r"
devargs = "0000:01:02.0"
pmd_cpu_mask = "0x6"
[slots.b]
prefix = "/opt/ovs"
rundir = "/run/ovs-b"
netns = "ovs-b"
vf = "vf2"
representor = "vf2r"
devargs = "0000:01:02.1"
pmd_cpu_mask = "0x18"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_a_sound_file(tmp_path: Path) -> None:
    config = load(written(tmp_path, SOUND))
    assert config.nic.vxlan_port == 4789
    slot = config.slot("b")
    assert (slot.name, slot.netns, slot.uplink) == ("b", "ovs-b", "uplink0")
    assert slot.db_socket == Path("/run/ovs-b/db.sock")


def test_a_slot_started_under_the_well_known_names_has_a_folder_of_its_own(tmp_path: Path) -> None:
    config = load(written(tmp_path, SOUND))
    assert (config.host.well_known, config.adopted()) == (Path("/run/openvswitch"), "a")
    assert config.slot("a").rundir == Path("/run/openvswitch/slot-a")
    assert config.slot("b").rundir == Path("/run/ovs-b")
    elsewhere = load(written(tmp_path, SOUND + '[host]\nwell_known = "/run/names"\n'))
    assert elsewhere.adopted() is None
    assert elsewhere.slot("a").rundir == Path("/run/openvswitch")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('pmd_cpu_mask = "0x6"', 'pmd_cpu_mask = "6"', "slots.a.pmd_cpu_mask"),
        ('pf = "eth0"', "", "nic.pf"),
        ('pf = "eth0"', 'pf = "eth0"\nport = 5', "nic.port"),
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "magic"', "'tc_u32' or 'ethtool'"),
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "ethtool"', "nic.vfs"),
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "ethtool"\nvfs = {a = 1, b = 1}', "nic.vfs"),
        ('pf = "eth0"', 'pf = "eth0"\ncatch = "all"', "'gap' or 'window'"),
        ('pf = "eth0"', 'pf = "eth0"\nvxlan_port = 70000', "less than or equal to 65535"),
        ('rundir = "/run/ovs-b"', 'rundir = "/run/openvswitch"', "two switches would collide"),
        ('rundir = "/run/ovs-b"', 'rundir = "/run/openvswitch/slot-a"', "two switches would collide"),
        ('pf = "eth0"', 'pf = "eth0"\n[host]\nsupervisor = "runit"', "'process' or 'systemd'"),
        ('netns = "ovs-b"', "", "collide on the ovs-netdev tap"),
        ('vf = "vf2"', 'vf = "vf1"', "each slot needs a VF of its own"),
        ("[slots.b]", "[slots.c]", "slots.c"),
    ],
)
def test_every_error_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = written(tmp_path, SOUND.replace(old, new))
    with pytest.raises(UsageError) as raised:
        load(path)
    assert raised.value.code == "CONFIG_INVALID"
    assert raised.value.exit_code == Exit.USAGE
    assert str(path) in raised.value.what
    assert said in raised.value.what


def test_a_missing_file_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load(tmp_path / "none.toml")
    assert raised.value.code == "CONFIG_MISSING"
    assert "upgrade lab up" in raised.value.next


@pytest.mark.parametrize("text", ["[nic", "\x00", 'a = "\\x"'])
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(written(tmp_path, text))
    assert raised.value.code == "CONFIG_UNREADABLE"


def test_where_the_file_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    assert config_path(None) == DEFAULT_PATH
    monkeypatch.setenv(PATH_VARIABLE, "/run/x.toml")
    assert config_path(None) == Path("/run/x.toml")
    assert config_path(Path("/y.toml")) == Path("/y.toml")


def test_a_unit_that_wants_systemd_refuses_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(written(tmp_path, SOUND))
    assert isinstance(wiring.processes(config), SlotProcesses)
    monkeypatch.setenv("OVS_UPGRADE_SUPERVISOR", "systemd")
    with pytest.raises(UsageError) as raised:
        wiring.processes(config)
    assert raised.value.code == "SUPERVISOR_NOT_AS_UNIT"
    units = load(written(tmp_path, SOUND + '[host]\nsupervisor = "systemd"\n'))
    assert isinstance(wiring.processes(units), SlotSystemd)


def test_takeover_is_manual_unless_somebody_says_so(tmp_path: Path) -> None:
    assert load(written(tmp_path, SOUND)).takeover_policy() == TakeoverPolicy("manual", 3, True, False)
    text = SOUND + '[takeover]\npolicy = "automatic"\nmax_per_hour = 1\nrearm = false\nmaintenance = true\n'
    assert load(written(tmp_path, text)).takeover_policy() == TakeoverPolicy("automatic", 1, False, True)
    assert wiring.setup(load(written(tmp_path, text))).takeover.policy == "automatic"


@pytest.mark.parametrize("line", ['policy = "always"', "max_per_hour = 0", "standby = true"])
def test_takeover_refuses_what_it_does_not_know(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError) as error:
        load(written(tmp_path, f"{SOUND}[takeover]\n{line}\n"))
    assert "takeover" in error.value.what
