"""The playbooks over hosts that are reached by a real sshd, each in network, mount and UTS namespaces of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.lab_fleet import LabFleet, SimulatedLab, owners

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


def test_two_hosts_behind_sshd_are_upgraded_and_leave_nothing(tmp_path: Path) -> None:
    with LabFleet(tmp_path, 2, kind=SimulatedLab) as fleet:
        for name, lab in fleet.labs.items():
            told = fleet.ssh(name, "hostname; ls /run/ovs-upgrade-lab; ls /run/netns").split()
            assert told == [name, lab.spec.name, lab.spec.namespaces.host], "a host that sees another one"
        done = fleet.play("rolling_upgrade", rollout_slot="b", rollout_batches=[1, 1])
        assert done.returncode == 0, done.stdout
        assert fleet.ansible.kinds() == {"hv1": "done", "hv2": "done"}
        assert dict(owners(fleet)) == {"hv1": "slot b serves", "hv2": "slot b serves"}
        assert all(len(h["moves"]) == 2 for h in fleet.ansible.report["hosts"])
        names = [fleet.netns, *(lab.spec.namespaces.host for lab in fleet.labs.values())]
        folders = [lab.spec.directory for lab in fleet.labs.values()]
    assert not [n for n in names if (Path("/run/netns") / n).exists()]
    assert not [f for f in folders if f.exists()]
