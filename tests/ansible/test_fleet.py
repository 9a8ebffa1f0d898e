"""The playbooks over six hosts, each a simulated one with the real CLI, daemon and journal, under a real ansible-playbook."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.collection import Fleet
from tests.support.sim_host import SimHost
from upgrader.adapters.journal import SqliteJournal
from upgrader.sim.stored import StoredWorld

NAMES = tuple(f"hv{n}" for n in range(1, 7))
BATCHES = [1, 2, 3]


class SimFleet:
    """Six of them; a host's VMs are those of `StoredWorld(…, 2)`."""

    def __init__(self, folder: Path) -> None:
        self.hosts = {}
        for name in NAMES:
            (folder / name).mkdir()
            self.hosts[name] = SimHost(folder / name)
            self.configure(name)
        self.fleet = Fleet(folder, {n: h.config for n, h in self.hosts.items()}, {"rollout_batches": BATCHES})

    def configure(self, name: str, **keys: object) -> None:
        self.hosts[name].configure(**{"vms": 2, "effect_s": 0, "soak_s": 0.1, "keep_old": True, **keys})

    def served_by(self) -> dict[str, set[str | None]]:
        """By host, the slots that serve its VMs; empty where nobody has looked at that host yet."""
        found = {}
        for name, host in self.hosts.items():
            found[name] = set()
            if (host.state / "world.db").exists():
                with host.world().opened() as world:
                    found[name] = set(world.owners().values())
        return found

    def runs(self) -> dict[str, int]:
        """How many runs each host's journal has."""
        return {n: self._runs(h) for n, h in self.hosts.items()}

    def _runs(self, host: SimHost) -> int:
        if not (host.state / "journal.db").exists():
            return 0
        journal = SqliteJournal(host.state / "journal.db", read_only=True)
        try:
            return len(journal.headings(10))
        finally:
            journal.close()


@pytest.fixture
def six(tmp_path: Path) -> Iterator[SimFleet]:
    made = SimFleet(tmp_path)
    try:
        yield made
    finally:
        for host in made.hosts.values():
            host.end_coordinator(signal.SIGKILL)


def break_vm(host: SimHost, *, mend: bool = False) -> None:
    """A VM whose QEMU is not the patched one; or it is restarted with the patched one."""
    with StoredWorld(host.state, 2).opened() as world:
        if mend:
            world.restart("vm1")
        else:
            world.vms["vm1"] = replace(world.vms["vm1"], ownership=None)


def test_two_hosts_fail_and_the_rest_is_untouched_until_they_are_mended(six: SimFleet) -> None:
    fleet = six.fleet
    six.configure("hv2", blackout_budget_us=500)
    break_vm(six.hosts["hv3"])

    first = fleet.play("rolling_upgrade", rollout_slot="b")
    assert first.returncode != 0
    assert fleet.kinds() == {
        "hv1": "done", "hv2": "failed", "hv3": "failed", "hv4": "untouched", "hv5": "untouched", "hv6": "untouched",
    }, first.stdout  # fmt: skip
    report = fleet.report
    assert (report["outcome"], report["counts"]["hosts"]) == ("stopped", 6)
    why = {stop["host"]: stop for stop in report["stopped_by"]}
    assert {n: s["code"] for n, s in why.items()} == {"hv2": "OVER_BUDGET", "hv3": "BLOCKED"}
    assert why["hv3"]["state"] == "nothing was changed"
    for stop in report["stopped_by"]:
        assert stop["next"]
        assert stop["what"] in first.stdout
    assert six.runs() == {"hv1": 1, "hv2": 1, "hv3": 0, "hv4": 0, "hv5": 0, "hv6": 0}
    served = six.served_by()
    assert (served["hv1"], served["hv2"]) == ({"b"}, {"a", "b"})
    assert not any((six.hosts[n].state / "world.db").exists() for n in ("hv4", "hv5", "hv6")), "a host was looked at"
    page = (fleet.folder / "report" / "report.html").read_text()
    assert "OVER_BUDGET" in page
    assert "QEMU_UNPATCHED" in page

    six.configure("hv2")
    break_vm(six.hosts["hv3"], mend=True)
    assert fleet.play("rollback", "--limit", "hv2", rollout_slot="a").returncode == 0
    assert six.served_by()["hv2"] == {"a"}

    second = fleet.play("rolling_upgrade", rollout_slot="b")
    assert second.returncode == 0, second.stdout
    assert fleet.kinds() == {"hv1": "already", **dict.fromkeys(NAMES[1:], "done")}
    assert fleet.report["outcome"] == "done"
    assert six.runs() == {"hv1": 1, "hv2": 2, "hv3": 1, "hv4": 1, "hv5": 1, "hv6": 1}
    assert set(map(frozenset, six.served_by().values())) == {frozenset({"b"})}

    back = fleet.play("rollback", rollout_slot="a")
    assert back.returncode == 0, back.stdout
    assert fleet.kinds() == dict.fromkeys(NAMES, "done")
    assert set(map(frozenset, six.served_by().values())) == {frozenset({"a"})}


def test_preflight_and_status_change_nothing_and_name_every_host(six: SimFleet) -> None:
    break_vm(six.hosts["hv5"])
    six.configure("hv4", soak_s=0)
    looked = six.fleet.play("preflight")
    assert looked.returncode != 0
    bad = {stop["host"]: stop["what"] for stop in six.fleet.report["stopped_by"]}
    assert set(bad) == {"hv4", "hv5"}
    assert "policy.soak_s" in bad["hv4"]
    assert "QEMU_UNPATCHED" in bad["hv5"]

    planned = six.fleet.play("rolling_upgrade", "--check", "--limit", "hv1", rollout_slot="b")
    assert planned.returncode == 0, planned.stdout
    assert six.fleet.kinds() == {"hv1": "planned"}

    told = six.fleet.play("status")
    assert told.returncode == 0, told.stdout
    assert set(six.fleet.kinds().values()) == {"already"}
    assert set(six.runs().values()) == {0}


def test_an_unreachable_host_stops_the_rollout_and_is_in_the_report(six: SimFleet) -> None:
    ssh = shutil.which("ssh")
    nobody = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    assert ssh, "the playbooks reach hosts by OpenSSH"
    (six.fleet.folder / "host_vars").mkdir()
    (six.fleet.folder / "host_vars" / "hv1.json").write_text(json.dumps(nobody))
    played = six.fleet.play("rolling_upgrade", rollout_slot="b")
    assert played.returncode != 0
    assert [(s["host"], s["code"]) for s in six.fleet.report["stopped_by"]] == [("hv1", "HOST_UNREACHABLE")]
    assert six.runs() == dict.fromkeys(NAMES, 0)


def test_a_rollback_says_what_shall_serve_again(six: SimFleet) -> None:
    played = six.fleet.play("rollback")
    assert played.returncode != 0
    assert "Nothing was changed. Say which hosts take part" in played.stdout
