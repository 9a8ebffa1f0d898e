"""What the demonstration stands on: QEMU's events that surely arrive, guests that get their share, a restart that is felt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.lab_host import LabHost
from upgrader.core.errors import HostError
from upgrader.lab import domains
from upgrader.lab.exercise import Exercise
from upgrader.lab.figures import FABRIC
from upgrader.lab.libvirtd import virsh
from upgrader.lab.qemu_events import qemu_events
from upgrader.lab.spec import LabSpec
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("lab", [{"vms": 4}], indirect=True),
]


def network(lab: Lab) -> str:
    return virsh(lab.spec, "qemu-monitor-command", lab.guests[0].name, "--hmp", "info network")


def test_events_are_proved_to_arrive_and_leave_no_trace(lab: Lab) -> None:
    before = network(lab)
    with qemu_events(lab.spec) as events:
        assert "NETDEV_STREAM_CONNECTED" in events.log.read_text()
        with pytest.raises(HostError) as incomplete:
            events.outages_us([vm.name for vm in lab.guests], timeout_s=0.1)
    assert incomplete.value.code == "EVENTS_INCOMPLETE"
    assert all(vm.name in incomplete.value.what for vm in lab.guests)
    assert f"upgrade lab status --name {lab.spec.name}" in incomplete.value.next
    assert network(lab) == before
    assert not (lab.spec.directory / "events.sock").exists()


def test_a_libvirt_that_does_not_answer_is_said_before_anything_is_restarted(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del lab
    monkeypatch.setattr("upgrader.lab.spec.RUN_ROOT", tmp_path)
    nobody = LabSpec("nobody")
    nobody.directory.mkdir(parents=True)
    with pytest.raises(HostError) as unheard, qemu_events(nobody):
        pass
    assert unheard.value.code == "EVENTS_UNHEARD"
    assert "nothing was restarted" in unheard.value.state


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="a kernel without autogroups")
def test_guests_have_the_share_of_the_switches(lab: Lab) -> None:
    host = LabHost(lab)
    switch = Path(f"/proc/{host.pid(host.active())}/autogroup").read_text().split()
    for vm in lab.guests:
        qemu = domains.qemu_process(lab.spec, vm)
        assert qemu is not None
        group, *niceness = Path(f"/proc/{qemu.pid}/autogroup").read_text().split()
        assert niceness == switch[1:]
        assert group != switch[0]
        for task in Path(f"/proc/{qemu.pid}/task").iterdir():
            policy = os.sched_getscheduler(int(task.name)) & ~os.SCHED_RESET_ON_FORK
            if (task / "comm").read_text().startswith("CPU "):
                assert policy == os.SCHED_BATCH
            elif int(task.name) == qemu.pid:
                assert policy == os.SCHED_RR


def test_a_restart_is_felt_by_every_vm_and_every_figure_is_there(lab: Lab) -> None:
    host = LabHost(lab)
    with lab_session(lab.spec, rate_pps=200) as session:
        exercise = Exercise(lab.spec, session)
        control = exercise.control(3)
        done = exercise.stock_restart(control, host.slots[host.active()].prefix)
    assert [f.vm for f in done.felt] == [vm.name for vm in lab.guests]
    assert set(done.disturbed) == {vm.name for vm in lab.guests}  # its QEMU takes the link down while nobody serves it
    for felt in done.felt:
        assert felt.blackout_us > 0
        for direction in FABRIC:
            figures = felt.directions[direction]
            assert figures.lost > 0, figures
            assert figures.gap_us >= felt.blackout_us / 2, figures
            assert figures.control_network_gap_us is not None
