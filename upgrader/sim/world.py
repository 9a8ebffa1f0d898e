"""What a simulated host is made of: its VMs, switches, rules and sockets, and what happens to them when a switch dies.

It keeps the promises that QEMU's patches and the kernel keep (tests/integration holds the real ones to them): rings
have one owner, a dead owner's rings go to a ready standby. `World.trouble` lists every broken promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from upgrader.core.errors import HostError
from upgrader.core.model import CHARDEV_PREFIX, PortBinding, SlotName, Standby, SwitchFacts, VmInterface
from upgrader.sim.facts import ovs_interface, ownership


def refused(what: str) -> HostError:
    return HostError("SIMULATED", what, state="simulated", next="nothing")


PASSING = {"kept": False}  # metadata of what is no part of the host's state: it goes with the process


@dataclass
class World:
    """The host's state, and the log of every call with an effect."""

    vms: dict[str, VmInterface]
    pids: dict[SlotName, int | None]
    switch: SwitchFacts
    flows: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    bound: dict[SlotName, tuple[PortBinding, ...]] = field(default_factory=dict)
    steady: tuple[SlotName, ...] = ("a",)
    in_control: SlotName | None = "a"  # whose database has controllers and managers
    rules: dict[tuple[int | None, str], tuple[SlotName, ...]] = field(default_factory=dict)
    listeners: set[Path] = field(default_factory=set)
    links: dict[Path, Path] = field(default_factory=dict)
    dual: bool = field(default=True, metadata=PASSING)
    control: SlotName | None = "a"  # to whom the well-known names lead
    next_pid: int = 5000
    now: float = 0.0
    chardevs: set[tuple[str, str]] = field(default_factory=set)  # ours, by domain
    calls: list[str] = field(default_factory=list, metadata=PASSING)
    looks: int = field(default=0, metadata=PASSING)
    look_fault: Callable[[str, int], BaseException | None] = field(default=lambda name, count: None, metadata=PASSING)
    fault: Callable[[str, int], BaseException | None] = field(default=lambda name, count: None, metadata=PASSING)
    trouble: list[str] = field(default_factory=list)
    fails_over: bool = field(default=True, metadata=PASSING)  # QEMU brings rings over by itself
    watchable: bool = field(default=False, metadata=PASSING)  # a thread may wait for a switch to die
    waiting: set[tuple[SlotName, str]] = field(default_factory=set, metadata=PASSING)  # in line at a VM that is served
    databases_down: set[SlotName] = field(default_factory=set, metadata=PASSING)  # whose switch lives
    stopped: set[SlotName] = field(default_factory=set, metadata=PASSING)  # switches that were sent SIGSTOP
    watchers: dict[SlotName, list[int]] = field(default_factory=dict, metadata=PASSING)

    def call(self, name: str) -> None:
        """Record an effect, or let it fail before it has any."""
        self.calls.append(name)
        error = self.fault(name, len(self.calls))
        if error is not None:
            raise error

    def look(self, name: str) -> None:
        """Let a look at the host fail."""
        self.looks += 1
        error = self.look_fault(name, self.looks)
        if error is not None:
            raise error

    def slot_of(self, pid: int | None) -> SlotName | None:
        return next((n for n, p in self.pids.items() if p is not None and p == pid), None)

    def owners(self) -> dict[str, SlotName | None]:
        """By domain, the slot that serves it."""
        return {d: self.slot_of(v.ownership.owner_pid) if v.ownership else None for d, v in self.vms.items()}

    def reached(self, vm: VmInterface) -> tuple[SlotName, ...]:
        return self.rules.get((100, vm.mac), self.steady)

    def unreached(self) -> list[str]:
        """Domains whose overlay traffic goes only to a switch that does not serve them."""
        return [d for d, owner in self.owners().items() if owner not in self.reached(self.vms[d])]

    def idle_port(self, number: int) -> None:
        """The switch has a port for a VM that does not run."""
        self.switch = replace(self.switch, interfaces=(*self.switch.interfaces, ovs_interface(number)))

    def dials(self, name: SlotName, vm: VmInterface) -> Path | None:
        """The socket that slot's switch connects to for the VM, None where it does not run."""
        path = next((b.socket for b in self.bound.get(name, ()) if b.origin == vm.socket), vm.socket)
        return self.links.get(path, path) if self.pids[name] is not None else None

    def behind(self, vm: VmInterface, chardev: str) -> Path | None:
        """The socket of one of QEMU's connections: libvirt's, or one that we made."""
        if chardev == vm.chardev:
            return vm.socket
        for name, bound in self.bound.items():
            if chardev == f"{CHARDEV_PREFIX}-{name}-{vm.netdev}":
                return next((b.listener for b in bound if b.origin == vm.socket and b.listener in self.listeners), None)
        return None

    def start(self, vm: VmInterface) -> None:
        """A VM's QEMU comes up and listens on libvirt's socket: the switch that dials it serves the VM, if one does."""
        pid = next((pid for name, pid in self.pids.items() if self.dials(name, vm) == vm.socket), None)
        new = replace(ownership(vm.chardev, 0), owner_connected=pid is not None, owner_pid=pid)
        self.vms[vm.domain] = replace(vm, ownership=new)
        self.reconnect()

    def reconnect(self) -> None:
        """A VM that nobody serves gets the switch that dials libvirt's socket by now, a standby that waits its peer."""
        for vm in list(self.vms.values()):
            own = vm.ownership
            if own is None:
                continue
            dials = [n for n in self.pids if (n, vm.domain) in self.waiting or self.dials(n, vm) == vm.socket]
            name = dials[0] if dials else None
            if own.owner_pid is None and own.owner == vm.chardev and name is not None:
                own = replace(own, owner_connected=True, owner_pid=self.pids[name])
            waits = own.standby
            peer = self.slot_of(waits.expected_pid) if waits and not waits.ready else None
            free = peer is not None and (peer, vm.domain) not in self.waiting
            if waits and peer and free and self.dials(peer, vm) == self.behind(vm, waits.chardev):
                pid = self.pids[peer]
                own = replace(own, standby=Standby(waits.chardev, True, True, None, pid, pid))
            self.vms[vm.domain] = replace(vm, ownership=own)
            # libvirt's socket takes one peer; the next one's connect(2) succeeds, and waits until that has gone
            inside = {own.owner_pid, own.standby.pid if own.standby else None}
            taken = own.owner == vm.chardev and own.owner_pid is not None
            self.waiting |= {(n, vm.domain) for n in dials if taken and self.pids[n] not in inside}
            self.waiting -= {(n, vm.domain) for n in dials if self.pids[n] in inside}

    def end(self, domain: str) -> None:
        """A VM ends: its QEMU unlinks the sockets it was bound to."""
        vm = self.vms.pop(domain)
        self.waiting = {(n, d) for n, d in self.waiting if d != domain}
        self.chardevs = {(d, c) for d, c in self.chardevs if d != domain}
        for bound in self.bound.values():
            self.listeners -= {b.listener for b in bound if b.origin == vm.socket}

    def restart(self, domain: str) -> None:
        """End a VM and start it again."""
        vm = self.vms[domain]
        self.end(domain)
        self.start(vm)

    def die(self, name: SlotName) -> None:
        """Kill a slot's switch: QEMU brings its rings to a ready standby by itself."""
        pid, self.pids[name] = self.pids[name], None
        self.waiting = {(n, d) for n, d in self.waiting if n != name}
        for domain, vm in self.vms.items():
            o = vm.ownership
            if o is None or pid is None:
                continue
            if o.owner_pid == pid and o.standby and o.standby.ready and self.fails_over:
                new = replace(
                    o,
                    owner=o.standby.chardev,
                    owner_pid=o.standby.pid,
                    generation=o.generation + 1,
                    standby=Standby(o.owner, False, False, "lost", None, pid),
                )
            elif o.owner_pid == pid:
                new = replace(o, owner_connected=False, owner_pid=None)
            elif o.standby and o.standby.pid == pid:
                new = replace(o, standby=replace(o.standby, connected=False, ready=False, reason="lost", pid=None))
            else:
                continue
            self.vms[domain] = replace(vm, ownership=new)
        for end in self.watchers.pop(name, []):
            os.close(end)
