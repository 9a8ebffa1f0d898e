"""The lab on the real stack: it comes up, carries traffic, and is gone without a trace, however it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.support.labs import OVS_PREFIX, QEMU_BINARY, Traces, lab_spec, traces
from upgrader import wiring
from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.errors import UsageError
from upgrader.lab import libvirtd, overlay, settings
from upgrader.lab import spec as names
from upgrader.lab.domains import qemu_process
from upgrader.lab.host import end, look_up
from upgrader.lab.spec import LabSpec
from upgrader.lab.traffic.protocol import Agent
from upgrader.lab.up import Lab

pytestmark = pytest.mark.integration

PLAIN = {"vms": 2}
LARGE = {"vms": 2, "pages": "2m", "queues": 2}


def _reaches(netns: str, address: str) -> bool:
    done = gate.run(["ping", "-n", "-c", "5", "-i", "0.2", "-W", "2", address], netns=netns, check=False)
    return " 0 received" not in done.stdout


@pytest.mark.parametrize("lab", [PLAIN, LARGE], indirect=True, ids=["4k-1queue", "2m-2queues"])
class TestUp:
    def test_is_healthy(self, lab: Lab) -> None:
        status = lab.status()
        assert status.healthy, status.problems
        assert [s.vswitchd_pid is not None for s in status.slots] == [True, False]
        assert all(g.ready and g.qemu_pid for g in status.guests)

    def test_the_remote_reaches_every_guest(self, lab: Lab) -> None:
        for vm in lab.guests:
            assert _reaches(lab.spec.namespaces.remote, vm.ip), vm.name

    def test_guests_reach_the_remote_and_each_other(self, lab: Lab) -> None:
        addresses = [names.REMOTE_OVERLAY_IP, *(vm.ip for vm in lab.guests)]
        for vm in lab.guests:
            agent = Agent.connect(vm.name, vm.channel)
            try:
                for address in addresses:
                    answers = [agent.ping(IPv4Address(address)) for _ in range(3)]
                    assert any(a is not None for a in answers), f"{vm.name} to {address}"
            finally:
                agent.close()

    def test_every_queue_is_served(self, lab: Lab) -> None:
        queues = SlotProcesses().polled_queues(settings.config(lab.spec).slot("a"))
        for vm in lab.guests:
            assert queues[vm.port] == lab.spec.queues
            assert f"queues={lab.spec.queues}" in vm.console.read_text()

    def test_guest_memory_is_shared_on_the_pages_asked_for(self, lab: Lab) -> None:
        size_kib = {"4k": 4, "2m": 2048}[lab.spec.pages]
        for vm in lab.guests:
            qemu = qemu_process(lab.spec, vm)
            assert qemu
            smaps = Path(f"/proc/{qemu.pid}/smaps").read_text()
            found = re.search(
                r"^\S+ rw-s .*memory-backend-memfd.*\n(?:\w+:.*\n)*?KernelPageSize: +(\d+) kB", smaps, re.M
            )
            assert found, "no shared memfd"
            assert int(found[1]) == size_kib

    def test_a_guest_cannot_speak_for_another(self, lab: Lab) -> None:
        one, other = lab.guests
        own = f"in_port={one.ofport},dl_src={one.mac},dl_dst={other.mac},ip,nw_src={one.ip},nw_dst={other.ip}"
        slot = settings.config(lab.spec).slot("a")

        def actions(flow: str) -> str:
            return SlotProcesses().appctl(slot, "ofproto/trace", names.BR_INT, flow).splitlines()[-1]

        assert actions(own) != "Datapath actions: drop"
        assert actions(own.replace(one.mac, other.mac)) == "Datapath actions: drop"
        assert actions(own.replace(f"nw_src={one.ip}", f"nw_src={other.ip}")) == "Datapath actions: drop"

    def test_steering_brings_the_overlay_and_nothing_else_to_the_slot(self, lab: Lab) -> None:
        """What is not overlay stays with the host's kernel, which answers on the same address."""
        ns = lab.spec.namespaces
        steering = wiring.steering(settings.config(lab.spec))
        before = steering.rules()[0].packets
        assert _reaches(ns.remote, names.HOST_VTEP)
        assert steering.rules()[0].packets == before
        assert _reaches(ns.remote, lab.guests[0].ip)
        assert steering.rules()[0].packets > before

    def test_up_again_leaves_it_alone(self, lab: Lab) -> None:
        before = lab.status()
        assert lab.up() is False
        assert lab.status() == before

    def test_up_with_other_options_is_refused(self, lab: Lab) -> None:
        before = lab.status()
        other = lab_spec(vms=3, pages=lab.spec.pages, queues=lab.spec.queues)
        with pytest.raises(UsageError) as refused:
            Lab(other).up()
        assert refused.value.code == "LAB_OTHER_OPTIONS"
        assert lab.status() == before


@pytest.fixture
def clean() -> Iterator[tuple[LabSpec, Traces]]:
    """Options of a lab of its own, and what the machine looks like before it; taken down whatever happens."""
    spec = lab_spec("x", vms=2)
    before = traces(spec)
    assert not (before.namespaces or before.processes or before.mounts or before.files)
    yield spec, before
    Lab(spec).down()


def _spawn(spec: LabSpec, *args: str) -> subprocess.Popen[str]:
    options = [
        "--name",
        spec.name,
        "--vms",
        str(spec.vms),
        "--ovs-prefix",
        str(OVS_PREFIX),
        "--qemu-binary",
        str(QEMU_BINARY),
    ]
    command = [sys.executable, "-u", "-m", "upgrader.cli.app", "lab", "up", *options, *args]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _stop_at(spec: LabSpec, stage: str, number: int, after_s: float = 0.0) -> tuple[int, str]:
    """Run `up`, send it a signal once it says that it begins a stage; its exit code and what it said."""
    with _spawn(spec) as child:
        assert child.stderr
        said = []
        for line in child.stderr:
            said.append(line)
            if line.startswith(stage):
                threading.Event().wait(after_s)
                os.kill(child.pid, number)
                break
        said += child.stderr.readlines()
        return child.wait(), "".join(said)


STAGES = [
    ("reserving", 0.0),
    ("namespaces", 0.02),
    ("slot a", 0.0),
    ("slot a", 0.4),
    ("libvirtd", 0.05),
    ("2 guests", 0.3),
    ("2 guests", 2.0),
]


@pytest.mark.parametrize(("stage", "after_s"), STAGES)
def test_killed_while_building_then_down(clean: tuple[LabSpec, Traces], stage: str, after_s: float) -> None:
    spec, before = clean
    code, _ = _stop_at(spec, stage, signal.SIGKILL, after_s)
    assert code == -signal.SIGKILL
    assert not Lab(spec).status().healthy
    assert Lab(spec).down() is True
    assert traces(spec) == before


@pytest.mark.parametrize(
    ("stage", "number"), [("slot a", signal.SIGTERM), ("libvirtd", signal.SIGINT), ("2 guests", signal.SIGINT)]
)
def test_interrupted_it_cleans_up_by_itself(clean: tuple[LabSpec, Traces], stage: str, number: int) -> None:
    spec, before = clean
    code, said = _stop_at(spec, stage, number, 0.2)
    assert code == 6, said
    assert "interrupted: nothing of the lab is left" in said
    assert traces(spec) == before


def test_a_half_built_lab_is_replaced_and_a_broken_one_too(clean: tuple[LabSpec, Traces]) -> None:
    spec, before = clean
    _stop_at(spec, "2 guests", signal.SIGKILL, 0.5)
    with _spawn(spec, "--json") as child:
        out, err = child.communicate()
        assert child.returncode == 0, err
        assert "taking it down first" in err
    first = json.loads(out)
    assert first["built"]
    assert first["healthy"]

    doomed = [look_up(pid) for pid in (first["libvirtd_pid"], first["guests"][0]["qemu_pid"])]
    assert end(p for p in doomed if p) == []
    lab = Lab(spec)
    assert any("vm0 does not run" in p for p in lab.status().problems)
    assert lab.up() is True
    assert lab.status().healthy
    assert lab.down() is True
    assert traces(spec) == before


def test_down_with_the_other_slot_active_and_parts_gone(clean: tuple[LabSpec, Traces]) -> None:
    spec, before = clean
    lab = Lab(spec)
    lab.up()
    config = settings.config(spec)
    SlotProcesses().stop(config.slot("a"))
    overlay.start_switch(spec, config.slot("b"))
    wiring.steering(config).steady("b")
    assert lab.status().healthy
    assert _reaches(spec.namespaces.remote, spec.guests[0].ip)
    # what a person, or a crash, may have removed already
    gate.run(["ip", "netns", "del", spec.namespaces.slot_b])
    gate.run(["ip", "netns", "del", spec.namespaces.remote])
    (spec.directory / "state.json").unlink()
    assert lab.down() is True
    assert traces(spec) == before


def test_down_when_the_lab_has_lost_its_folder(clean: tuple[LabSpec, Traces]) -> None:
    spec, before = clean
    lab = Lab(spec)
    lab.up()
    gate.run(["umount", "--lazy", str(spec.directory / "libvirt/run")])  # a mount keeps its folder
    gate.run(["rm", "-rf", str(spec.directory)])
    assert lab.down() is True
    assert traces(spec) == before


def test_two_at_once_do_not_mix(clean: tuple[LabSpec, Traces]) -> None:
    spec, _ = clean
    with _spawn(spec) as first:
        assert first.stderr
        first.stderr.readline()
        with _spawn(spec) as second:
            _, err = second.communicate()
            assert second.returncode == 7
            assert "LAB_BUSY" in err
        first.communicate()
        assert first.returncode == 0
    assert Lab(spec).status().healthy


def test_the_machines_own_libvirt_is_not_touched(clean: tuple[LabSpec, Traces]) -> None:
    spec, _ = clean
    seen = [p for p in (Path("/run/libvirt"), Path("/var/lib/libvirt"), Path("/etc/libvirt")) if p.exists()]
    before = {str(f): f.stat().st_mtime_ns for p in seen for f in p.rglob("*")}
    Lab(spec).up()
    assert sorted(libvirtd.running_domains(spec)) == [vm.name for vm in spec.guests]
    Lab(spec).down()
    after = {str(f): f.stat().st_mtime_ns for p in seen for f in p.rglob("*")}
    assert after == before
    assert Path("/run/libvirt").exists() == any(p.name == "libvirt" and p.parent.name == "run" for p in seen)
