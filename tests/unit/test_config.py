"""Configuration: what is accepted, and that every error names file, key and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.support.configs import SOUND
from upgrader import wiring
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.adapters.slot_systemd import SlotSystemd
from upgrader.config import (
    DEFAULT_PATH,
    PATH_VARIABLE,
    Config,
    HostConfig,
    NicConfig,
    PolicyConfig,
    SimulatedConfig,
    SlotConfig,
    config_path,
    load,
)
from upgrader.core.errors import Exit, UsageError
from upgrader.core.takeover import TakeoverPolicy


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
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "magic"', "'tc_u32', 'ethtool' or 'tc_flower'"),
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "ethtool"', "nic.vfs"),
        ('pf = "eth0"', 'pf = "eth0"\nunderlay = "ipv5"', "'ipv4' or 'ipv6'"),
        ('pf = "eth0"', 'pf = "eth0"\nunderlay = "ipv6"\nadapter = "ethtool"\nvfs = {a = 0, b = 1}', "in IPv4 only"),
        ('pf = "eth0"', 'pf = "eth0"\nadapter = "ethtool"\nvfs = {a = 1, b = 1}', "nic.vfs"),
        ('pf = "eth0"', 'pf = "eth0"\ncatch = "all"', "'gap' or 'window'"),
        ('pf = "eth0"', 'pf = "eth0"\ncatch = "gap"', "host.catch_port"),
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


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Every key of the model, those of a slot as docs/config.md writes them."""
    for name, field in model.model_fields.items():
        kind = SlotConfig if name == "slots" else field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, "." if name == "slots" else f"{before}{name}.")
        else:
            yield f"{before}{name}"


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("| key |", [*(k for k in keys(Config) if k != "simulated"), "slots.a.*"]),
        ("| key of `[simulated]` |", list(SimulatedConfig.model_fields)),
    ],
)
def test_every_key_is_documented_and_nothing_else(heading: str, expected: list[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/config.md").read_text()
    table = text.split(heading)[1].split("\n\n")[0]
    documented = [key for line in table.splitlines() for key in re.findall(r"^\| `([^`]+)`", line)]
    assert sorted(documented) == sorted(expected)


def test_every_key_says_what_it_means() -> None:
    for section in (HostConfig, NicConfig, SlotConfig, PolicyConfig, SimulatedConfig):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def conf_d(tmp_path: Path, **files: str) -> Path:
    path = written(tmp_path, SOUND)
    (tmp_path / "conf.d").mkdir()
    for name, text in files.items():
        (tmp_path / "conf.d" / f"{name}.toml").write_text(text)
    (tmp_path / "conf.d" / "ignored.txt").write_text("[nonsense")
    return path


def test_conf_d_is_merged_in_order(tmp_path: Path) -> None:
    config = load(
        conf_d(
            tmp_path,
            b='[nic]\nvxlan_port = 2\n[policy]\naccept = ["LEARNING_IN_USE"]',
            a='[nic]\nvxlan_port = 1\npf = "eth9"\n[policy]\naccept = ["PMD_CORES_SHARED"]\nsoak_s = 3',
        )
    )
    assert (config.nic.pf, config.nic.vxlan_port) == ("eth9", 2)
    assert (config.policy.accept, config.policy.soak_s) == (("LEARNING_IN_USE",), 3)
    assert config.slots["a"].vf == "vf1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nic]\nport = 5", "nic.port: there is no such key; here may stand: pf, netns, adapter, vxlan_port"),
        ("[policy]\nsoak_s = -1", "policy.soak_s: Input should be greater than or equal to 0, not -1"),
        ('[slots.a]\npmd_cpu_mask = "6"', "slots.a.pmd_cpu_mask: '6' will not do: cores of its PMD threads"),
        ("[polcy]\nsoak_s = 1", "polcy: there is no such key; here may stand: host, nic, slots, policy"),
        ("[slots.a]\nvff = 1", "slots.a.vff: there is no such key; here may stand: prefix, rundir, netns, vf"),
        ("nic = 5", "nic: "),
    ],
)
def test_an_error_names_the_file_of_conf_d_it_is_in(tmp_path: Path, text: str, said: str) -> None:
    path = conf_d(tmp_path, **{"10-fine": "[nic]\nvxlan_port = 1", "20-wrong": text})
    with pytest.raises(UsageError) as raised:
        load(path)
    assert f"{tmp_path}/conf.d/20-wrong.toml: {said}" in raised.value.what
    assert str(path) not in raised.value.what
    assert "upgrade config validate" in raised.value.next


def test_each_of_several_errors_has_its_line(tmp_path: Path) -> None:
    path = conf_d(tmp_path, **{"10-wrong": "[nic]\nvxlan_port = 0"})
    path.write_text(SOUND.replace('pf = "eth0"', ""))
    with pytest.raises(UsageError) as raised:
        load(path)
    lines = [line.strip() for line in raised.value.what.splitlines() if line]
    assert len(lines) == 2
    assert any(line.endswith("nic.pf: it has to be there: netdev of the physical function") for line in lines)
    assert any(line.startswith(f"{tmp_path}/conf.d/10-wrong.toml: nic.vxlan_port") for line in lines)


def test_a_broken_file_of_conf_d(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load(conf_d(tmp_path, broken="[nic"))
    assert raised.value.code == "CONFIG_UNREADABLE"
    assert "conf.d/broken.toml" in raised.value.what


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
