"""Running VMs in memory, and the two connections of their QEMU."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from upgrader.core.errors import HostError
from upgrader.core.model import CHARDEV_PREFIX, Ring, RingOwnership, Standby, SwitchResult, VmInterface, VmPort
from upgrader.ports import Fence
from upgrader.sim.world import World, key, no_fence, refused

_UNTOUCHED = (Ring(1, 256, 1, 0, True),)  # the guest has sent, and nobody took it


class SimFence:
    def __init__(self, qemu: SimHypervisor, port: VmPort, name: str, pid: int) -> None:
        self._qemu = qemu
        self._port = port
        self.name = name
        self.pid = pid

    def say(self) -> None:
        self._qemu.fenced(self._port, self.name)

    def close(self) -> None: ...


class SimHypervisor:
    def __init__(self, world: World) -> None:
        self._w = world

    def vm_interfaces(self) -> tuple[VmInterface, ...]:
        return tuple(self._w.vms[d] for d in sorted(self._w.vms))

    def ownership(self, port: VmPort) -> RingOwnership | None:
        self._w.look(f"ownership {port.domain}")
        vm = self._vm(port)
        if vm and vm.ownership and vm.ownership.in_doubt:
            self._w.waiting()
            vm = self._vm(port)
        if vm is None or vm.ownership is None or vm.netdev != port.netdev:
            return None
        works = self._w.moves_rings(vm.ownership.owner_pid)
        return vm.ownership if works else replace(vm.ownership, rings=_UNTOUCHED)

    def migrating(self, port: VmPort) -> bool:
        self._w.look(f"migrating {port.domain}")
        return self._vm(port) is not None and key(port) in self._w.migrating

    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None:
        self._w.call(f"attach {port.domain}")
        if self._w.slot_of(peer_pid) is None:
            raise refused(f"there is no process {peer_pid}", "PEER_GONE")
        self._own(port)
        if listener_fd is not None and (port.domain, chardev) in self._w.chardevs:
            raise refused(f"duplicate ID '{chardev}' for chardev")
        now = self._own(port)
        if now.standby and now.standby.chardev != chardev:
            raise refused(f"netdev '{port.netdev}' has a standby, '{now.standby.chardev}'; detach it first")
        if now.standby and now.standby.ready:
            if now.standby.pid == peer_pid:
                return
            raise refused(f"standby '{chardev}' of netdev '{port.netdev}' is ready, with another peer")
        if now.owner == chardev:
            raise refused(f"chardev '{chardev}' is in use")
        if key(port) in self._w.migrating:
            raise refused(f"netdev '{port.netdev}' can have no standby during a migration")
        ours = chardev.startswith(CHARDEV_PREFIX) and listener_fd is not None
        if not ours and chardev != self._w.vms[key(port)].chardev and (port.domain, chardev) not in self._w.chardevs:
            raise refused(f"there is no chardev '{chardev}'")
        if ours:
            self._w.chardevs.add((port.domain, chardev))
        standby = Standby(chardev, False, False, "not connected", None, peer_pid)
        self._set(port, replace(now, standby=standby, fence=no_fence(now)))
        self._w.reconnect(key(port))

    def drop_connection(self, port: VmPort, chardev: str) -> None:
        self._w.call(f"drop {port.domain} {chardev}")
        if self._vm(port) is not None:
            self._drop(port, chardev)

    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult:
        self._w.call(f"switch {port.domain}")
        now = self._own(port)
        if (now.owner, now.generation) != (owner, generation):
            raise refused("owner or generation is another")
        return self._switch(port, now, fenced=fenced)

    def give_fence(self, port: VmPort, pid: int) -> Fence | None:
        self._w.call(f"give_fence {port.domain}")
        now = self._own(port)
        if now.fence is None:
            return None
        if now.standby is None:
            raise refused(f"netdev '{port.netdev}' has no standby")
        if now.owner_pid != pid:
            raise refused(f"the owner of netdev '{port.netdev}' is process {now.owner_pid}, not {pid}")
        self._w.fences += 1
        fence = SimFence(self, port, f"fence-{self._w.fences}", pid)
        self._set(port, replace(now, fence=fence.name))
        return fence

    def fenced(self, port: VmPort, name: str) -> None:
        """QEMU reads what was written, if that is what it waits for."""
        self._w.call(f"say_fenced {port.domain}")
        vm = self._vm(port)
        if vm is None or vm.ownership is None or vm.ownership.fence != name:
            return
        now = replace(vm.ownership, fence="")
        self._set(port, now)
        with suppress(HostError):  # it has nobody to tell that to
            self._switch(port, now, fenced=True)

    def _switch(self, port: VmPort, now: RingOwnership, *, fenced: bool) -> SwitchResult:
        if now.standby is None or not now.standby.ready:
            raise refused("the standby is not ready")
        if fenced and self._w.slot_of(now.owner_pid) is not None:
            self._w.trouble.append(f"{port.domain}: a switch without asking an owner that lives: two writers")
        if not fenced and now.owner_pid is None:
            raise refused("the owner does not answer")
        if not self._w.moves_rings(now.standby.pid) or not (fenced or self._w.moves_rings(now.owner_pid)):
            self._set(port, replace(now, in_doubt=True))
            raise refused("no answer in time")
        lives = now.owner_pid is not None and not fenced
        old = Standby(now.owner, lives, lives, None, now.owner_pid, now.owner_pid)
        new = replace(
            now,
            owner=now.standby.chardev,
            owner_pid=now.standby.pid,
            owner_connected=True,
            generation=now.generation + 1,
            standby=old,
            fence=no_fence(now),
        )
        self._set(port, new)
        return SwitchResult(
            old.chardev, new.owner, new.generation, "command", fenced, 300_000, 3_000, 400_000, 10_000, 713_000
        )

    def _drop(self, port: VmPort, chardev: str) -> None:
        now = self._w.vms[key(port)].ownership
        if now is None:
            return
        if now.standby and now.standby.chardev == chardev:
            self._set(port, replace(now, standby=None, fence=no_fence(now)))
        if not chardev.startswith(CHARDEV_PREFIX):
            return  # libvirt's own
        if now.owner == chardev:
            raise refused(f"Chardev '{chardev}' is busy")
        self._w.chardevs.discard((port.domain, chardev))

    def _vm(self, port: VmPort) -> VmInterface | None:
        vm = self._w.vms.get(key(port))
        return vm if vm and vm.domain_uuid == port.domain_uuid else None

    def _own(self, port: VmPort) -> RingOwnership:
        vm = self._vm(port)
        if vm is None:
            raise refused(f"{port.domain} is gone")
        if vm.ownership is None or vm.netdev != port.netdev:
            raise refused(f"there is no vhost-user netdev '{port.netdev}'")
        return vm.ownership

    def _set(self, port: VmPort, new: RingOwnership) -> None:
        self._w.vms[key(port)] = replace(self._w.vms[key(port)], ownership=new)
