"""Running VMs, and the two connections of their QEMU."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.support.contracts.rig import Rig, a_pid_that_is_none, refused
from tests.support.switch import eventually
from upgrader.core.model import CHARDEV_PREFIX, VmPort
from upgrader.ports import Fence

_ACTED_S = 0.1  # a QEMU that was told something has long done it by then


def attached(rig: Rig, port: VmPort) -> str:
    """A standby on this VM, which has come to be ready."""
    chardev = rig.attach(port)

    def ready() -> bool:
        standby = rig.own(port).standby
        return standby is not None and standby.ready

    eventually(ready, "the standby to be ready")
    return chardev


class HypervisorContract:
    @pytest.fixture
    def port(self, rig: Rig) -> Iterator[VmPort]:
        """A VM that the active serves, and a switch that may stand by."""
        rig.start()
        port = rig.vm_ports()[0]
        yield port
        own = rig.host.hypervisor.ownership(port)
        if own and own.standby and own.owner != port.chardev and own.standby.ready:
            rig.host.hypervisor.switch(port, own.owner, own.generation)
        if own and rig.host.processes.status(rig.active).vswitchd_pid is not None:
            rig.host.hypervisor.drop_connection(port, f"{CHARDEV_PREFIX}-{rig.standby.name}-{port.netdev}")

    def test_running_vms(self, rig: Rig) -> None:
        vms = rig.host.hypervisor.vm_interfaces()
        assert len(vms) > 1
        assert [(v.domain, v.netdev) for v in vms] == sorted((v.domain, v.netdev) for v in vms)
        assert len({v.socket for v in vms}) == len({v.domain_uuid for v in vms}) == len(vms)
        for vm in vms:
            assert re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", vm.mac)
            assert re.fullmatch(r"\d+\.\d+\.\d+", vm.qemu or "")
            own = vm.ownership
            assert own is not None
            assert (own.owner, own.owner_connected, own.owner_pid) == (vm.chardev, True, rig.pid(rig.active))
            assert own.standby is None
            assert not own.in_doubt
            assert [r.index for r in own.rings] == list(range(len(own.rings)))
            assert all(r.size > 0 and r.enabled for r in own.rings)

    def test_one_vm_is_asked_and_one_that_is_unknown(self, rig: Rig) -> None:
        hypervisor = rig.host.hypervisor
        for port in rig.vm_ports():
            own = hypervisor.ownership(port)
            assert own is not None
            assert own.owner == port.chardev
        port = rig.vm_ports()[0]
        for unknown in (
            replace(port, domain="no-such-vm", domain_uuid="00000000-0000-4000-8000-00000000dead"),
            replace(port, netdev="hostnet9"),
        ):
            assert hypervisor.ownership(unknown) is None
            assert not hypervisor.migrating(unknown)
            hypervisor.drop_connection(unknown, f"{CHARDEV_PREFIX}-x")
            with refused():
                hypervisor.switch(unknown, port.chardev, 0)
            with refused():
                hypervisor.attach_standby(unknown, port.chardev, None, rig.pid(rig.active))
            with refused():
                hypervisor.give_fence(unknown, rig.pid(rig.active))

    def test_a_standby_comes_and_goes_and_the_owner_stays(self, rig: Rig, port: VmPort) -> None:
        before = rig.own(port)
        for _again in range(2):  # one that is there already is left over: it goes first, and its path with it
            chardev = attached(rig, port)
            now = rig.own(port)
            assert (now.owner, now.owner_pid, now.generation) == (before.owner, before.owner_pid, before.generation)
            assert now.standby is not None
            assert (now.standby.chardev, now.standby.connected, now.standby.reason) == (chardev, True, None)
            assert now.standby.pid == now.standby.expected_pid == rig.pid(rig.standby)
            assert rig.chardevs(port) == {chardev}
            (seen,) = (v for v in rig.host.hypervisor.vm_interfaces() if v.domain == port.domain)
            assert seen.ownership is not None
            assert seen.ownership.standby == now.standby
        for _again in range(2):
            rig.host.hypervisor.drop_connection(port, chardev)
            assert rig.own(port).standby is None
            assert rig.chardevs(port) == set()
        assert rig.own(port).owner_pid == before.owner_pid

    def test_attachments_that_are_refused_change_nothing(self, rig: Rig, port: VmPort) -> None:
        hypervisor, peer = rig.host.hypervisor, rig.pid(rig.standby)
        listener = rig.host.resources.listen(rig.standby.vhost_dir / "refused.sock")
        chardev = f"{CHARDEV_PREFIX}-test"
        asked: list[Callable[[], None]] = [
            lambda: hypervisor.attach_standby(port, "no-such-chardev", None, peer),
            lambda: hypervisor.attach_standby(port, port.chardev, None, peer),  # which is the owner
            lambda: hypervisor.attach_standby(port, chardev, listener, a_pid_that_is_none()),
        ]
        try:
            for ask in asked:
                with refused():
                    ask()
                assert rig.own(port).standby is None
                assert rig.chardevs(port) == set()
            there = attached(rig, port)
            with refused():
                hypervisor.attach_standby(port, chardev, listener, peer)
            assert rig.chardevs(port) == {there}
            standby = rig.own(port).standby
            assert standby is not None
            assert (standby.chardev, standby.ready) == (there, True)
        finally:
            os.close(listener)
            rig.host.resources.remove(rig.standby.vhost_dir / "refused.sock")

    def test_switches_that_are_refused_change_nothing(self, rig: Rig, port: VmPort) -> None:
        hypervisor = rig.host.hypervisor
        now = rig.own(port)
        with refused():
            hypervisor.switch(port, now.owner, now.generation)  # nobody stands by
        chardev = attached(rig, port)
        before = rig.own(port)
        for owner, generation in (
            (now.owner, now.generation + 1),
            (now.owner, max(0, now.generation - 1) if now.generation else 7),
            (chardev, now.generation),
            ("no-such-chardev", now.generation),
        ):
            with refused():
                hypervisor.switch(port, owner, generation)
        after = rig.own(port)
        assert (after.owner, after.generation, after.standby) == (before.owner, before.generation, before.standby)

    def test_rings_go_over_and_back(self, rig: Rig, port: VmPort) -> None:
        hypervisor = rig.host.hypervisor
        before, chardev = rig.own(port), attached(rig, port)
        pids = rig.pid(rig.active), rig.pid(rig.standby)
        sides = (port.chardev, chardev)
        for number, (source, target) in enumerate((sides, sides[::-1])):
            result = hypervisor.switch(port, source, before.generation + number)
            assert (result.from_chardev, result.to_chardev) == (source, target)
            assert (result.generation, result.reason, result.fenced) == (
                before.generation + number + 1,
                "command",
                False,
            )
            parts = result.quiesce_ns, result.index_ns, result.activate_ns, result.notify_ns
            assert all(ns >= 0 for ns in parts)
            assert result.blackout_ns == sum(parts) > 0
            now = rig.own(port)
            assert (now.owner, now.owner_connected, now.generation) == (target, True, result.generation)
            assert now.owner_pid == pids[1 - number]
            assert not now.in_doubt
            assert now.standby is not None
            assert (now.standby.chardev, now.standby.pid) == (source, pids[number])
            if number == 0:
                with refused():  # the owner's connection is nobody's to take away
                    hypervisor.drop_connection(port, chardev)
                with refused():  # said again, it is no second change
                    hypervisor.switch(port, source, before.generation)
                assert rig.own(port).owner == chardev

            def ready() -> bool:
                standby = rig.own(port).standby
                return standby is not None and standby.ready

            eventually(ready, "the one that gave them away to stand by")
        hypervisor.drop_connection(port, port.chardev)  # libvirt's own, and the owner
        assert rig.own(port).owner == port.chardev

    def test_fences_that_are_refused_change_nothing(self, rig: Rig, port: VmPort) -> None:
        hypervisor, active = rig.host.hypervisor, rig.pid(rig.active)
        assert rig.own(port).fence == ""
        with refused():
            hypervisor.give_fence(port, active)  # nobody stands by
        chardev = attached(rig, port)
        given = hypervisor.give_fence(port, active)
        assert given is not None
        for other in (rig.pid(rig.standby), a_pid_that_is_none()):
            with refused():
                hypervisor.give_fence(port, other)
            assert rig.own(port).fence == given.name
        hypervisor.drop_connection(port, chardev)
        given.close()

    def test_a_fence_is_void_once_owner_or_standby_is_another(self, rig: Rig, port: VmPort) -> None:
        hypervisor, active = rig.host.hypervisor, rig.pid(rig.active)

        def fence(pid: int) -> Fence:
            given = hypervisor.give_fence(port, pid)
            assert given is not None
            assert (given.pid, rig.own(port).fence) == (pid, given.name)
            return given

        def said_in_vain(given: Fence, owner: str, generation: int) -> None:
            before = rig.own(port).fence
            given.say()
            given.say()
            time.sleep(_ACTED_S)
            now = rig.own(port)
            assert (now.owner, now.generation, now.fence) == (owner, generation, before)
            given.close()

        chardev = attached(rig, port)
        before = rig.own(port)
        first, second = fence(active), fence(active)
        assert first.name != second.name
        said_in_vain(first, port.chardev, before.generation)
        hypervisor.drop_connection(port, chardev)
        assert rig.own(port).fence == ""
        said_in_vain(second, port.chardev, before.generation)

        attached(rig, port)
        third = fence(active)
        hypervisor.switch(port, port.chardev, before.generation)
        assert rig.own(port).fence == ""
        said_in_vain(third, chardev, before.generation + 1)
        eventually(lambda: (s := rig.own(port).standby) is not None and s.ready, "the former owner to stand by")
        fourth = fence(rig.pid(rig.standby))
        hypervisor.switch(port, chardev, before.generation + 1)
        said_in_vain(fourth, port.chardev, before.generation + 2)

    def test_libvirts_own_socket_is_attached_again(self, rig: Rig, port: VmPort) -> None:
        """As for the way back to a slot that is reached over it."""
        hypervisor = rig.host.hypervisor
        chardev = attached(rig, port)
        generation = rig.own(port).generation
        hypervisor.switch(port, port.chardev, generation)
        hypervisor.drop_connection(port, port.chardev)
        assert rig.own(port).standby is None
        hypervisor.attach_standby(port, port.chardev, None, rig.pid(rig.active))

        def ready() -> bool:
            standby = rig.own(port).standby
            return standby is not None and standby.ready and standby.pid == rig.pid(rig.active)

        eventually(ready, "the active to stand by over libvirt's socket")
        hypervisor.switch(port, chardev, generation + 1)
        assert rig.own(port).owner_pid == rig.pid(rig.active)

    def test_a_vm_that_migrates_has_no_standby(self, rig: Rig, port: VmPort) -> None:
        hypervisor = rig.host.hypervisor
        assert not hypervisor.migrating(port)
        chardev = attached(rig, port)
        before = rig.own(port)
        with rig.migrating(port):
            assert hypervisor.migrating(port)
            now = rig.own(port)
            assert (now.owner, now.owner_pid, now.generation) == (before.owner, before.owner_pid, before.generation)
            assert now.standby is None
            hypervisor.drop_connection(port, chardev)
            with refused():
                rig.attach(port)
            with refused():
                hypervisor.switch(port, now.owner, now.generation)
            assert rig.own(port).standby is None
            assert rig.own(port).owner_pid == before.owner_pid
        assert not hypervisor.migrating(port)
        attached(rig, port)
        assert rig.own(port).generation == before.generation

    def test_a_standby_that_dies(self, rig: Rig, port: VmPort) -> None:
        hypervisor = rig.host.hypervisor
        chardev, pid = attached(rig, port), rig.pid(rig.standby)
        rig.host.processes.kill_switch(rig.standby)

        def lost() -> bool:
            standby = rig.own(port).standby
            return standby is not None and not standby.ready and not standby.connected

        eventually(lost, "QEMU to see that it is gone")
        now = rig.own(port)
        assert now.standby is not None
        assert (now.standby.chardev, now.standby.pid, now.standby.expected_pid) == (chardev, None, pid)
        assert now.standby.reason
        assert now.owner_pid == rig.pid(rig.active)
        with refused():
            hypervisor.switch(port, now.owner, now.generation)
        with refused():  # nobody is there to be let in
            hypervisor.attach_standby(port, chardev, None, pid)
        hypervisor.drop_connection(port, chardev)
        assert rig.own(port).standby is None

    def test_a_vm_that_ends(self, rig: Rig) -> None:
        rig.start()
        hypervisor, port = rig.host.hypervisor, rig.vm_ports()[-1]
        assert hypervisor.ownership(port) is not None
        rig.end_vm(port)
        assert hypervisor.ownership(port) is None
        assert port.domain not in {v.domain for v in hypervisor.vm_interfaces()}
        for _again in range(2):
            hypervisor.drop_connection(port, f"{CHARDEV_PREFIX}-{rig.standby.name}-{port.netdev}")
        with refused():
            hypervisor.attach_standby(port, port.chardev, None, rig.pid(rig.standby))
        with refused():
            hypervisor.switch(port, port.chardev, 0)

    def test_an_owner_that_dies(self, rig: Rig, port: VmPort) -> None:
        """The last of all: it leaves the host with one switch."""
        before, chardev, pid = rig.own(port), attached(rig, port), rig.pid(rig.active)
        other = rig.vm_ports()[1]  # on which nobody stands by
        fence = rig.host.hypervisor.give_fence(port, pid)
        assert fence is not None
        assert pid in rig.host.processes.fence(rig.active)
        fence.say()  # QEMU may have seen it by itself before
        fence.close()
        eventually(lambda: rig.own(port).owner == chardev, "QEMU to bring the rings to the standby")
        now = rig.own(port)
        assert (now.owner_pid, now.owner_connected) == (rig.pid(rig.standby), True)
        assert (now.generation, now.fence) == (before.generation + 1, "")
        eventually(lambda: (s := rig.own(port).standby) is not None and not s.connected, "QEMU to see that it is gone")
        now = rig.own(port)
        assert now.standby is not None
        assert (now.standby.chardev, now.standby.connected, now.standby.ready) == (port.chardev, False, False)
        assert now.standby.pid is None
        for fenced in (False, True):
            with refused():  # nothing is brought over twice
                rig.host.hypervisor.switch(port, before.owner, before.generation, fenced=fenced)
            with refused():
                rig.host.hypervisor.switch(port, now.owner, now.generation, fenced=fenced)
        assert rig.own(port).owner_pid == rig.pid(rig.standby)
        # one that nobody serves is served by whom it is given, once it is there
        assert not rig.own(other).owner_connected
        given = rig.attach(other)
        eventually(lambda: rig.own(other).owner_pid == rig.pid(rig.standby), "the standby to serve it")
        served = rig.own(other)
        assert (served.owner, served.owner_connected, served.in_doubt) == (given, True, False)
        with refused():
            rig.host.hypervisor.switch(other, port.chardev, before.generation)
