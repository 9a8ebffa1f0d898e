"""VMs of a lab that reboot, stop, start, gain or lose a port, or migrate while a run is half-way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.test_upgrade import all_reachable
from tests.support.killing import coordinator_pid, latest, running_upgrade, settled, verb, wait_until
from tests.support.lab_host import LabHost, reachable
from tests.support.migration import migrating
from tests.support.protection import restart_vm
from tests.support.slots import vsctl
from upgrader.adapters import gate
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.lifecycle import RunState
from upgrader.core.model import other_slot
from upgrader.lab.libvirtd import virsh
from upgrader.lab.up import Lab

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("lab", [{"tag": "v", "vms": 2}], indirect=True),
]

NIC = """<interface type='vhostuser'><mac address='52:54:00:1f:77:01'/>
<source type='unix' path='{socket}' mode='server'/><model type='virtio'/><rom enabled='no'/></interface>"""


def gains_a_port(lab: Lab, host: LabHost, domain: str) -> None:
    """One more port in the active's OVSDB, and the interface behind it in the running guest."""
    socket, xml = lab.spec.directory / "vhost/more.sock", lab.spec.directory / "more.xml"
    xml.write_text(NIC.format(socket=socket))
    slot = host.slots[host.active()]
    port = ["add-port", "br-int", "more0", "--", "set", "Interface", "more0", "type=dpdkvhostuserclient"]
    vsctl(slot, *port, f"options:vhost-server-path={socket}", "external_ids:vni=100")
    virsh(lab.spec, "attach-device", domain, str(xml), "--live")
    wait_until(lambda: has_second_port(host, domain), "the new port to be served", 30)


def loses_a_port(lab: Lab, host: LabHost, domain: str) -> None:
    virsh(lab.spec, "detach-device", domain, str(lab.spec.directory / "more.xml"), "--live")
    wait_until(lambda: not has_second_port(host, domain), "the guest to let its device go", 30)


def has_second_port(host: LabHost, domain: str) -> bool:
    mine = [v for v in host.host.hypervisor.vm_interfaces() if v.domain == domain]
    return sum(1 for v in mine if v.ownership and v.ownership.owner_connected) == 2


@contextmanager
def half_way(lab: Lab, kind: EventKind, step: str) -> Iterator[None]:
    """A run that was paused there; while inside it is nobody's."""
    host = LabHost(lab)
    with running_upgrade(lab) as run:
        run.wait_for(kind, step)
        assert verb(lab, "pause").returncode == Exit.DONE
        assert run.process.wait(60) == Exit.STOPPED, run.read()
    view = latest(host)
    assert view is not None
    assert view.state is RunState.PAUSED
    wait_until(lambda: coordinator_pid(host) is None, "the coordinator's end", 30)
    yield


def test_vms_that_reboot_stop_start_gain_and_lose_ports_are_followed(lab: Lab) -> None:
    host = LabHost(lab)
    one, other = (vm.name for vm in lab.guests)
    source = host.active()
    with half_way(lab, EventKind.INTENT, "attach-standby"):
        restart_vm(lab, one)
        gains_a_port(lab, host, other)
    resumed = verb(lab, "resume", "--yes")
    assert resumed.returncode == Exit.DONE, resumed.stderr
    assert settled(host, other_slot(source)) == []
    assert len(host.facts().ports) == 3
    wait_until(lambda: all_reachable(lab), "every VM", 60)

    source = host.active()
    with half_way(lab, EventKind.OUTCOME, "move-vm"):
        kept = lab.spec.directory / "stopped.xml"
        kept.write_text(gate.run(["virsh", "-c", lab.spec.libvirt_uri, "dumpxml", one]).stdout)
        virsh(lab.spec, "destroy", one)
        loses_a_port(lab, host, other)
    resumed = verb(lab, "resume", "--yes")
    assert resumed.returncode == Exit.DONE, resumed.stderr
    assert settled(host, other_slot(source)) == []
    assert {p.domain for p in host.facts().ports} == {other}
    assert other in reachable(lab)
    virsh(lab.spec, "create", str(kept), timeout_s=60)
    wait_until(lambda: len(host.facts().ports) == 2, "the VM's port")
    assert host.served_by(other_slot(source))
    vsctl(host.slots[host.active()], "del-port", "more0")
    wait_until(lambda: all_reachable(lab), "every VM", 60)


def test_a_vm_that_migrates_is_waited_for_and_served_meanwhile(lab: Lab) -> None:
    host = LabHost(lab)
    other = lab.guests[1]
    source = host.active()
    with running_upgrade(lab) as run:
        with migrating(lab, other.name):
            run.wait_for(EventKind.INTENT, "catch-up")
            owners = {p.domain: p.ownership.owner_pid for p in host.facts().ports if p.ownership}
            assert owners == {lab.guests[0].name: host.pid(other_slot(source)), other.name: host.pid(source)}
            assert len(reachable(lab)) == 2, "each by its switch"
            assert run.process.poll() is None, run.read()
        assert run.process.wait(60) == Exit.DONE, run.read()
    assert settled(host, other_slot(source)) == []
    wait_until(lambda: all_reachable(lab), "every VM", 20)
