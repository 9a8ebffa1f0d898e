"""The whole thing on the real stack: VMs under traffic moved there and back, crashes, cuts, and input that is refused."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.killing import coordinator_pid, running_upgrade, settled, wait_until
from tests.support.lab_host import LabHost, reachable, report, upgrade
from upgrader.adapters import gate
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.model import other_slot
from upgrader.core.plan import StepKind
from upgrader.lab import stock
from upgrader.lab.exercise import Exercise, disturbances
from upgrader.lab.figures import FABRIC, LOST
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab
from upgrader.steps import STEPS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SHAPES = [{"vms": 4}, {"vms": 2, "queues": 2, "pages": "2m"}]
one_lab = pytest.mark.parametrize("lab", [SHAPES[0]], indirect=True)


def all_reachable(lab: Lab) -> bool:
    return len(reachable(lab)) == len(lab.guests)


@pytest.mark.parametrize("lab", SHAPES, indirect=True)
def test_there_and_back_under_traffic(lab: Lab) -> None:
    with lab_session(lab.spec, rate_pps=500) as session:
        exercise = Exercise(lab.spec, session)
        control = exercise.control(4)
        for _ in range(2):
            source = LabHost(lab).active()
            moved = exercise.upgrade(control)
            assert LabHost(lab).served_by(other_slot(source))
            assert LabHost(lab).pid(source) is None
            assert [f.vm for f in moved.felt] == [vm.name for vm in lab.guests]
            assert moved.disturbed == {}
            for felt in moved.felt:
                assert felt.blackout_us > 0
                for direction in FABRIC:
                    figures = felt.directions[direction]
                    assert figures.sent > 100, figures
                    # what arrives while nobody serves the rings is lost, and little more; how long that is on a busy
                    # machine is for `make show-upgrade` to judge
                    bound = LOST + 2 * felt.blackout_us / 1e6 * figures.rate_pps
                    assert figures.lost <= bound, (felt.blackout_us, figures)
    assert all_reachable(lab)


@one_lab
def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    host = LabHost(lab)
    before = host.see()
    done = upgrade(lab.config_path, "--dry-run", "--json")
    assert done.returncode == Exit.DONE, done.stderr
    plan = report(done)
    assert (plan["schema_version"], plan["kind"], plan["blocked"]) == (1, "plan", False)
    assert plan["vms"] == [f"{vm.name}/{vm.port}" for vm in lab.guests]
    assert host.see() == before


@one_lab
def test_when_the_active_is_killed_qemu_alone_brings_the_rings_over(lab: Lab) -> None:
    """Traffic to the fabric goes on without a coordinator; steering to the VM follows when one brings it."""
    host = LabHost(lab)
    source = host.active()
    target = other_slot(source)
    host.steps_until(StepKind.ATTACH_STANDBY)
    old, new = host.pid(source), host.pid(target)
    assert old is not None
    generations = {p.label: p.ownership.generation for p in host.facts().ports if p.ownership}
    with lab_session(lab.spec, rate_pps=500, directions=[Direction.TO_FABRIC]) as session:
        session.start(30)
        time.sleep(1)
        with session.window("kill"):
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: {p.ownership.owner_pid for p in host.facts().ports if p.ownership} == {new}, "failover")
        time.sleep(2)
        run = session.finish(stop=True)
    for port in host.facts().ports:
        assert port.ownership is not None
        assert port.ownership.generation == generations[port.label] + 1
    for figures in run.figures():
        # what the dead process had taken up is lost; the rest waits in the guest's ring for the new one
        assert figures.lost < figures.sent * 0.2, figures
    for figures in run.figures(run.window("kill"), lead_ms=0, settle_ms=2500):
        assert figures.received > 500, figures
    assert disturbances(run.links) == {}
    done = upgrade(lab.config_path, "--restore", target, "--yes", "--json")
    assert done.returncode == Exit.DONE, done.stderr
    assert host.served_by(target)
    assert all_reachable(lab)


@one_lab
def test_half_way_is_said_and_can_be_finished(lab: Lab) -> None:
    """Two of the VMs moved, then nobody is there any more: the other way out is forward."""
    host = LabHost(lab)
    source = host.active()
    plan, context = host.steps_until(StepKind.OPEN_WINDOW)
    for step in [s for s in plan.steps if s.kind is StepKind.MOVE_VM][:2]:
        STEPS[step.kind].do(context, step)
    assert all_reachable(lab)
    blocked = upgrade(lab.config_path, "--yes")
    assert blocked.returncode == Exit.BLOCKED
    for words in ("BOTH_SLOTS_OWN_VMS", "slot a serves", "slot b serves", "--restore"):
        assert words in blocked.stderr
    done = upgrade(lab.config_path, "--restore", other_slot(source), "--yes", "--json")
    assert done.returncode == Exit.DONE, done.stderr
    assert host.served_by(other_slot(source))
    assert host.pid(source) is None
    assert all_reachable(lab)
    assert settled(host, other_slot(source)) == []


@one_lab
def test_ctrl_c_undoes_the_run(lab: Lab) -> None:
    host = LabHost(lab)
    source = host.active()
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.OUTCOME, "move-vm")
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGINT)  # and once more, while it undoes
        code = run.process.wait(60)
    assert code == Exit.STOPPED, run.text
    assert "stopping after the step in hand" in run.text
    assert settled(host, source) == []
    assert all_reachable(lab)


@one_lab
def test_a_standby_that_dies_in_the_middle_is_a_run_undone(lab: Lab) -> None:
    host = LabHost(lab)
    source = host.active()
    with running_upgrade(lab) as run:
        run.wait_for(EventKind.OUTCOME, "move-vm")
        victim = host.pid(other_slot(source))
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        code = run.process.wait(60)
    assert code == Exit.RESTORED, run.text
    assert settled(host, source) == []
    assert all_reachable(lab)


@one_lab
def test_after_an_upgrade_switch_and_vm_may_restart(lab: Lab) -> None:
    """The second socket's path leads to libvirt's: a restarted switch and a restarted VM find each other."""
    host = LabHost(lab)
    if host.active() == "a":
        assert upgrade(lab.config_path, "--yes").returncode == Exit.DONE
    slot = host.slots["b"]
    stock.restart(slot, slot.prefix)
    wait_until(
        lambda: {p.ownership.owner_pid for p in host.facts().ports if p.ownership} == {host.pid("b")}, "reconnect"
    )
    wait_until(lambda: all_reachable(lab), "the restarted switch has learned its neighbours", 30)
    vm = lab.guests[0]
    virsh = ["virsh", "-c", lab.spec.libvirt_uri]
    xml = lab.spec.directory / "vm.xml"
    xml.write_text(gate.run([*virsh, "dumpxml", vm.name]).stdout)
    gate.run([*virsh, "destroy", vm.name])
    gate.run([*virsh, "create", str(xml)], timeout_s=60)
    wait_until(lambda: len(host.facts().ports) == len(lab.guests), "the VM's port")
    owners = {p.domain: p.ownership.owner_pid for p in host.facts().ports if p.ownership}
    assert owners[vm.name] == host.pid("b")
    wait_until(lambda: all_reachable(lab), "the restarted VM answers", 60)


class TestRefused:
    """Each of these ends with a clear error, the next command, and nothing changed."""

    def refused(self, lab: Lab, done: gate.Completed, code: int, *said: str) -> None:
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        for words in (*said, "state: nothing was changed", "next:"):
            assert words in done.stderr, done.stderr
        assert LabHost(lab).see() == self.before

    @pytest.fixture(autouse=True)
    def _look(self, lab: Lab) -> None:
        self.before = LabHost(lab).see()

    def changed(self, lab: Lab, old: str, new: str) -> Path:
        text = lab.config_path.read_text()
        assert re.search(old, text, re.M), old
        path = lab.spec.directory / "changed.toml"
        path.write_text(re.sub(old, new, text, flags=re.M))
        return path

    @one_lab
    def test_an_unknown_host(self, lab: Lab) -> None:
        done = upgrade(lab.config_path, "--yes", host="no-such-host")
        self.refused(lab, done, Exit.UNEXPECTED, "HOST_UNREACHABLE", "no-such-host")

    @one_lab
    def test_no_libvirt(self, lab: Lab) -> None:
        config = self.changed(lab, r"libvirt-sock", "no-such-sock")
        self.refused(lab, upgrade(config, "--yes"), Exit.UNEXPECTED, "LIBVIRT_UNREACHABLE", "virsh -c")

    @one_lab
    def test_too_few_hugepages(self, lab: Lab) -> None:
        config = self.changed(lab, r'^socket_mem_mib = "\d+"', 'socket_mem_mib = "900000"')
        self.refused(lab, upgrade(config, "--yes"), Exit.BLOCKED, "HUGEPAGES_SHORT", "nr_hugepages")

    @one_lab
    def test_no_configuration(self, lab: Lab) -> None:
        missing = lab.spec.directory / "missing.toml"
        self.refused(lab, upgrade(missing, "--yes"), Exit.USAGE, "CONFIG_MISSING", "upgrade lab up")

    @one_lab
    def test_a_vf_that_is_not_there(self, lab: Lab) -> None:
        config = self.changed(lab, r'^vf = "vf(\d)"', r'vf = "vf9\1"')
        self.refused(lab, upgrade(config, "--yes"), Exit.BLOCKED, "VF_MISSING")

    @one_lab
    def test_nobody_to_ask(self, lab: Lab) -> None:
        self.refused(lab, upgrade(lab.config_path), Exit.USAGE, "NOT_CONFIRMED", "--yes")

    @one_lab
    def test_a_second_run(self, lab: Lab) -> None:
        from upgrader.engine.lock import host_lock

        wait_until(lambda: coordinator_pid(LabHost(lab)) is None, "the end of a coordinator that lingers", 30)
        with host_lock(LabHost(lab).config.host.lock):
            self.refused(lab, upgrade(lab.config_path, "--yes"), Exit.LOCKED, "HOST_LOCKED", str(os.getpid()))

    @one_lab
    def test_conntrack_in_the_flows(self, lab: Lab) -> None:
        host = LabHost(lab)
        slot = host.slots[host.active()]
        bridge = f"unix:{slot.rundir}/br-int.mgmt"
        ofctl = [str(slot.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14"]
        gate.run([*ofctl, "add-flow", bridge, "table=99,ip actions=ct(commit)"])
        try:
            self.refused(lab, upgrade(lab.config_path, "--yes"), Exit.BLOCKED, "CONNTRACK_IN_USE", "ct(commit)")
        finally:
            gate.run([*ofctl, "del-flows", bridge, "table=99"])

    @one_lab
    def test_a_vm_on_an_unpatched_qemu(self, lab: Lab) -> None:
        """The distribution's QEMU, whose guest stays in its firmware: it need not run to be in the way."""
        host = LabHost(lab)
        slot = host.slots[host.active()]
        socket = lab.spec.directory / "vhost/stock.sock"
        xml = lab.spec.directory / "stock.xml"
        xml.write_text(STOCK_DOMAIN.format(socket=socket))
        virsh = ["virsh", "-c", lab.spec.libvirt_uri]
        vsctl = [str(slot.prefix / "bin/ovs-vsctl"), "--timeout=10", f"--db=unix:{slot.db_socket}"]
        port = ["add-port", "br-int", "stock0", "--", "set", "Interface", "stock0", "type=dpdkvhostuserclient"]
        gate.run([*vsctl, *port, f"options:vhost-server-path={socket}", "external_ids:vni=100"])
        try:
            gate.run([*virsh, "create", str(xml)], timeout_s=60)
            self.before = host.see()
            self.refused(
                lab, upgrade(lab.config_path, "--yes"), Exit.BLOCKED, "QEMU_UNPATCHED", "stock", "qemu-patches"
            )
        finally:
            gate.run([*virsh, "destroy", "stock"], check=False)
            gate.run([*vsctl, "del-port", "stock0"])
            xml.unlink()


STOCK_DOMAIN = """
<domain type='qemu'>
  <name>stock</name>
  <memory unit='MiB'>64</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='vhostuser'>
      <mac address='52:54:00:99:00:01'/>
      <source type='unix' path='{socket}' mode='server'/>
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def test_the_lab_is_not_up() -> None:
    done = gate.run([sys.executable, "-m", "upgrader.cli.app", "lab", "traffic", "--name", "nobody"], check=False)
    assert done.returncode == Exit.USAGE
    assert "LAB_NOT_UP" in done.stderr
    assert "upgrade lab up --name nobody" in done.stderr
