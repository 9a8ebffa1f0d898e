"""The package's units under a real systemd, which runs as PID 1 of a box of its own."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slots import PREFIX
from tests.support.systemd_box import SystemdBox, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="needs root, unshare(1) and the machine's systemd"),
]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdBox]:
    with SystemdBox(tmp_path_factory.mktemp("box")) as it:
        yield it


def passed(output: str) -> int:
    """Tests that passed, by pytest's last line; none of them may have been skipped."""
    last = output.strip().splitlines()[-1]
    found = re.search(r"(\d+) passed", last)
    assert found, output[-6000:]
    assert not re.search(r"failed|error|skipped", last), output[-6000:]
    return int(found[1])


def test_slots_as_units_keep_the_contract(box: SystemdBox) -> None:
    assert passed(box.pytest(str(HERE / "test_processes.py"), "-k", "SlotSystemd").stdout) >= 10


def test_a_distributions_units_do_no_harm(box: SystemdBox) -> None:
    assert passed(box.pytest(str(HERE / "test_distribution_units.py")).stdout) == 1


CONFIG = """\
[host]
supervisor = "systemd"
well_known = "{run}/openvswitch"
lock = "{run}/lock"
socket = "{run}/upgraded.sock"
journal = "/var/lib/ovs-upgrade/journal.db"
[nic]
pf = "pf0"
netns = "probe-host"
[slots.a]
prefix = "{prefix}"
rundir = "{run}/a"
netns = "probe-a"
vf = "vf1"
representor = "vf1r"
devargs = "net_null0"
pmd_cpu_mask = "0x1"
[slots.b]
prefix = "{prefix}"
rundir = "{run}/b"
netns = "probe-b"
vf = "vf2"
representor = "vf2r"
devargs = "net_null0"
pmd_cpu_mask = "0x2"
"""


@pytest.fixture(scope="module")
def host_in_box(box: SystemdBox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host's namespaces and netdevs, for which the machine's own are not needed, and its configuration."""
    for netns in ("probe-a", "probe-b", "probe-host"):
        box.run("ip", "netns", "add", netns)
    for link, peer, netns in (("pf0", "wire", "probe-host"), ("vf1r", "vf1", "probe-a"), ("vf2r", "vf2", "probe-b")):
        box.run("ip", "-n", "probe-host", "link", "add", link, "type", "veth", "peer", "name", peer, "netns", netns)
        box.run("ip", "-n", "probe-host", "link", "set", link, "up")
    config = tmp_path_factory.mktemp("probe") / "config.toml"
    config.write_text(CONFIG.format(run="/run/probe", prefix=PREFIX))
    box.run("mkdir", "-p", "/run/probe")
    return config


def drop_in(box: SystemdBox, folder: Path, exec_start: str, more: str = "") -> None:
    """Point ovs-upgraded.service to this checkout's code, which may lie where the sandbox sees nothing."""
    text = folder / "drop-in.conf"
    text.write_text(
        # the machine has no configuration of its own: each test brings one
        "[Unit]\nConditionPathExists=\n"
        f"[Service]\nExecStart=\nExecStart={exec_start}\nPrivateTmp=no\nProtectHome=no\nReadWritePaths={folder}\n{more}"
    )
    box.run("mkdir", "-p", "/etc/systemd/system/ovs-upgraded.service.d")
    box.run("cp", str(text), "/etc/systemd/system/ovs-upgraded.service.d/test.conf")
    box.run("systemctl", "daemon-reload")


def test_the_coordinators_sandbox_lets_it_work_and_no_more(box: SystemdBox, host_in_box: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    stranger = box.run("sh", "-c", "setpriv --reuid=65534 sleep 100 >/dev/null 2>&1 & echo $!").stdout.strip()
    probe = f"{sys.executable} -m tests.support.sandbox_probe {host_in_box} {found} {stranger}"
    drop_in(box, tmp_path, probe, f"Type=oneshot\nWatchdogSec=0\nRestart=no\nWorkingDirectory={ROOT}\n"
            f"StandardError=append:{tmp_path / 'errors'}\n")  # fmt: skip
    box.run("systemctl", "start", "ovs-upgraded", timeout_s=60, check=False)
    assert found.exists(), (tmp_path / "errors").read_text()[-3000:]
    lines = found.read_text().splitlines()
    assert lines[:8] == [
        "started a 3.1.0 True",
        "started b 3.1.0 True",
        "address True",
        "steering [('a',)]",
        "flows 1 bridges ['br0']",
        "names b True",
        "killed a stranger",
        "stopped None",
    ]
    assert len(lines) == 16
    assert all(line.startswith("prevented ") for line in lines[8:]), lines
    assert box.run("systemctl", "is-enabled", "ovs-slot@b", "ovs-slot@a", check=False).stdout.split() == [
        "enabled",
        "disabled",
    ]
    # the switch is no part of whoever started it
    pid = box.run("cat", "/run/probe/openvswitch/ovs-vswitchd.pid").stdout.strip()
    assert box.run("systemctl", "show", "-P", "MainPID", "ovs-slot@b").stdout.strip() == pid
    assert box.run("systemctl", "is-active", "ovs-slot@b").stdout.strip() == "active"
    box.run("systemctl", "stop", "ovs-slot@b", "ovs-slot-db@b")


def test_the_coordinator_runs_as_its_unit_says(box: SystemdBox, host_in_box: Path, tmp_path: Path) -> None:
    """Ready by notification, alive by its watchdog, started again when it is killed; and ended by a stop in order."""
    daemon = Path(sys.executable).with_name("ovs-upgraded")
    drop_in(box, tmp_path, f"{daemon} --config {host_in_box}", f"StandardError=append:{tmp_path / 'errors'}\n")
    box.run("systemctl", "start", "ovs-upgraded", timeout_s=30, check=False)

    def show(what: str) -> str:
        return box.run("systemctl", "show", "-P", what, "ovs-upgraded").stdout.strip()

    assert show("ActiveState") == "active", (tmp_path / "errors").read_text()[-3000:]
    first = show("MainPID")
    assert show("WatchdogTimestampMonotonic") != "0"
    assert box.run("stat", "-c", "%a", "/var/lib/ovs-upgrade").stdout.strip() == "700"
    box.run("kill", "-9", first)
    deadline = time.monotonic() + 20
    while (again := show("MainPID")) in (first, "0") or show("ActiveState") != "active":
        assert time.monotonic() < deadline, (tmp_path / "errors").read_text()[-3000:]
        time.sleep(0.1)
    assert again != first
    box.run("systemctl", "stop", "ovs-upgraded")
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")


def test_a_coordinator_that_hangs_is_ended_by_its_watchdog_and_started_again(
    box: SystemdBox, host_in_box: Path, tmp_path: Path
) -> None:
    daemon = Path(sys.executable).with_name("ovs-upgraded")
    quick = f"WatchdogSec=2s\nTimeoutAbortSec=1s\nStandardError=append:{tmp_path / 'errors'}\n"
    drop_in(box, tmp_path, f"{daemon} --config {host_in_box}", quick)
    box.run("systemctl", "start", "ovs-upgraded", timeout_s=30)

    def show(what: str) -> str:
        return box.run("systemctl", "show", "-P", what, "ovs-upgraded").stdout.strip()

    first = show("MainPID")
    time.sleep(4)
    assert show("MainPID") == first, "as long as it beats it is left alone"
    box.run("kill", "-STOP", first)
    deadline = time.monotonic() + 20
    while (again := show("MainPID")) in (first, "0") or show("ActiveState") != "active":
        assert time.monotonic() < deadline, (tmp_path / "errors").read_text()[-3000:]
        time.sleep(0.1)
    assert again != first
    assert show("NRestarts") != "0"
    box.run("systemctl", "stop", "ovs-upgraded")


def test_a_coordinator_whose_switches_would_be_its_children_refuses(
    box: SystemdBox, host_in_box: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(host_in_box.read_text().replace('supervisor = "systemd"', 'supervisor = "process"'))
    daemon = Path(sys.executable).with_name("ovs-upgraded")
    drop_in(box, tmp_path, f"{daemon} --config {config}", f"Restart=no\nStandardError=append:{tmp_path / 'errors'}\n")
    assert box.run("systemctl", "start", "ovs-upgraded", check=False).returncode != 0
    assert "SUPERVISOR_NOT_AS_UNIT" in (tmp_path / "errors").read_text()
