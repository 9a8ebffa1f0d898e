"""What a simulated host is made of: its VMs, switches, rules and sockets, and what happens to them when a switch dies.

It keeps the promises that QEMU's patches and the kernel keep (tests/support/contracts holds it and the real ones to
them): rings have one owner, a dead owner's rings go to a ready standby. `World.trouble` lists every broken promise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from upgrader.core.errors import CommandError, HostError
from upgrader.core.inventory import origin
from upgrader.core.model import (
    CHARDEV_PREFIX,
    SLOTS,
    Interface,
    RingOwnership,
    Slot,
    SlotName,
    Standby,
    SwitchFacts,
    VmInterface,
    VmPort,
    listener,
)
from upgrader.sim.facts import ovs_interface, ownership


def refused(what: str, code: str = "SIMULATED") -> HostError:
    return HostError(code, what, state="simulated", next="nothing")


def key(of: VmInterface | VmPort) -> str:
    """Of a VM's interface in the world: the VM's name for its first one."""
    return of.domain if of.netdev == "hostnet0" else f"{of.domain}/{of.netdev}"


def dialled(interface: Interface) -> Path:
    """The socket that a switch with this vhost interface connects to."""
    return Path(interface.option("vhost-server-path") or "")


def taken_over(own: RingOwnership) -> RingOwnership:
    """The owner is gone: QEMU gives the rings to whoever stands by."""
    if own.standby is None:
        raise ValueError("nobody stands by")
    lost = Standby(own.owner, False, False, "lost", None, own.owner_pid)
    to = own.standby
    return replace(
        own,
        owner=to.chardev,
        owner_connected=True,
        owner_pid=to.pid,
        generation=own.generation + 1,
        standby=lost,
        in_doubt=False,
        fence=no_fence(own),
    )


def no_fence(own: RingOwnership) -> str | None:
    """Owner or standby is another: what a fence said of them is void."""
    return None if own.fence is None else ""


@dataclass(frozen=True, slots=True)
class Database:
    """What a slot's database holds.

    switch  its configuration, with the controllers, managers and fail modes that it exerts or keeps
    note    why it does not exert them: they are kept for the day it has to, or were handed over (core/control.py)
    taken   whether a switch has taken it up; until then no interface has a number or a link
    """

    switch: SwitchFacts
    note: Literal["kept", "handed over"] | None = None
    taken: bool = False


class Hang(StrEnum):
    """How a switch lives and does not work: all of it is stopped, a PMD thread is in a loop, the main thread is stuck."""

    STOPPED = "stopped"
    PMD = "pmd"
    MAIN = "main"


PASSING = {"kept": False}  # metadata of what is no part of the host's state: it goes with the process


@dataclass
class World:
    """The host's state, and the log of every call with an effect."""

    vms: dict[str, VmInterface]  # by `key`
    pids: dict[SlotName, int | None]  # of the switches
    database_pids: dict[SlotName, int | None]
    databases: dict[SlotName, Database]  # the files; not there: an empty one is made
    removed: set[Path] = field(default_factory=set)  # files of databases that are to be made anew
    # by slot and bridge, in the words of ovs-ofctl
    flows: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    groups: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    meters: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    tlvs: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    learned: dict[tuple[SlotName, str, str, str], str] = field(default_factory=dict)  # slot, kind, where, what
    steady: tuple[SlotName, ...] = ("a",)
    rules: dict[tuple[int | None, str], tuple[SlotName, ...]] = field(default_factory=dict)
    listeners: set[Path] = field(default_factory=set)
    links: dict[Path, Path] = field(default_factory=dict)
    dual: bool = field(default=True, metadata=PASSING)
    control: SlotName | None = "a"  # to whom the well-known names lead
    named: set[str] = field(default_factory=set)  # bridges that have one
    # of the netdevs of bridges, by slot and bridge; OVS leaves a netdev behind when it ends
    addresses: dict[tuple[SlotName, str], tuple[str, ...]] = field(default_factory=dict)
    next_pid: int = 5000
    now: float = 0.0
    chardevs: set[tuple[str, str]] = field(default_factory=set)  # ours, by domain
    fences: int = 0  # that were given
    calls: list[str] = field(default_factory=list, metadata=PASSING)
    looks: int = field(default=0, metadata=PASSING)
    look_fault: Callable[[str, int], BaseException | None] = field(default=lambda name, count: None, metadata=PASSING)
    fault: Callable[[str, int], BaseException | None] = field(default=lambda name, count: None, metadata=PASSING)
    trouble: list[str] = field(default_factory=list)
    fails_over: bool = field(default=True, metadata=PASSING)  # QEMU brings rings over by itself
    watchable: bool = field(default=False, metadata=PASSING)  # a thread may wait for a switch to die
    silent: set[tuple[SlotName, str]] = field(default_factory=set, metadata=PASSING)  # ports that have no device
    # switches that live and do not work, and how; while somebody waits for one, `waiting` is called
    hung: dict[SlotName, Hang] = field(default_factory=dict, metadata=PASSING)
    waiting: Callable[[], None] = field(default=lambda: None, metadata=PASSING)
    migrating: set[str] = field(default_factory=set, metadata=PASSING)  # VMs on their way to another host
    in_line: set[tuple[SlotName, str]] = field(default_factory=set, metadata=PASSING)  # at a VM that is served
    watchers: dict[SlotName, list[int]] = field(default_factory=dict, metadata=PASSING)
    # by slot, the paths in a database that was looked into last, by the VM's socket
    _paths: dict[SlotName, tuple[SwitchFacts, dict[str, Path]]] = field(default_factory=dict, metadata=PASSING)

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

    @property
    def in_control(self) -> SlotName | None:
        """Whose database says that controllers and managers are with it; of two, the one whose switch lives."""
        leaders = [n for n in SLOTS if n in self.databases and self.databases[n].note is None]
        return next((n for n in leaders if self.pids[n] is not None), leaders[0] if leaders else None)

    @property
    def switch(self) -> SwitchFacts:
        """What the slot in control is configured to do; where neither is, the one that keeps control."""
        return self.databases[self._leader].switch

    @switch.setter
    def switch(self, switch: SwitchFacts) -> None:
        self.databases[self._leader] = replace(self.databases[self._leader], switch=switch)

    @property
    def _leader(self) -> SlotName:
        kept = [n for n, d in self.databases.items() if d.note == "kept"]
        return self.in_control or (kept or list(self.databases))[0]

    def spawn(self) -> int:
        """Pid of a new process."""
        self.next_pid += 10
        return self.next_pid

    def linked(self, name: SlotName) -> set[Path]:
        """Sockets of the VMs that are connected to that slot's switch, as libvirt knows them."""
        pid = self.pids[name]
        found = set()
        for vm in self.vms.values():
            own = vm.ownership
            peers = {own.owner_pid, own.standby.pid if own.standby else None} if own else set()
            if pid is not None and (pid in peers or (own is None and self.dials(name, vm) == vm.socket)):
                found.add(vm.socket)
        return found

    def ask(self, name: SlotName) -> None:
        """Something that the slot's switch has to answer: one whose main thread does not run lets everybody wait."""
        if self.hung.get(name) in (Hang.STOPPED, Hang.MAIN):
            self.waiting()
            raise refused(f"slot {name} does not answer")

    def require_running(self, slot: Slot) -> None:
        """A switch is asked something. Raises CommandError where none runs, HostError where it hangs."""
        if self.pids[slot.name] is None:
            raise CommandError(f"ovs-appctl -t {slot.vswitchd_ctl}", "exited with 1", "no switch runs")
        self.ask(slot.name)

    def moves_rings(self, pid: int | None) -> bool:
        """Whether that process acknowledges what QEMU tells it about rings. A stuck PMD may hold one of them."""
        name = self.slot_of(pid)
        return name is None or self.hung.get(name) not in (Hang.STOPPED, Hang.PMD)

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

    def path_to(self, name: SlotName, vm: VmInterface) -> Path | None:
        """The path in that slot's database for the VM's port, None where it has none."""
        if name not in self.databases:
            return None
        switch = self.databases[name].switch
        known = self._paths.get(name)
        if known is None or known[0] is not switch:
            known = switch, {origin(i): dialled(i) for i in switch.vhost_interfaces()}
            self._paths[name] = known
        return known[1].get(str(vm.socket))

    def dials(self, name: SlotName, vm: VmInterface) -> Path | None:
        """The socket that slot's switch connects to for the VM, None where it does not run."""
        path = self.path_to(name, vm) if self.pids[name] is not None else None
        return self.links.get(path, path) if path is not None else None

    def behind(self, vm: VmInterface, chardev: str) -> Path | None:
        """The socket of one of QEMU's connections: libvirt's, or one that we made."""
        if chardev == vm.chardev:
            return vm.socket
        for name in self.databases:
            path = self.path_to(name, vm)
            if path is not None and chardev == f"{CHARDEV_PREFIX}-{name}-{vm.netdev}":
                return listener(path) if listener(path) in self.listeners else None
        return None

    def start(self, vm: VmInterface) -> None:
        """A VM's QEMU comes up and listens on libvirt's socket: the switch that dials it serves the VM, if one does."""
        pid = next((pid for name, pid in self.pids.items() if self.dials(name, vm) == vm.socket), None)
        new = replace(ownership(vm.chardev, 0), owner_connected=pid is not None, owner_pid=pid)
        self.vms[key(vm)] = replace(vm, ownership=new)
        self.reconnect(key(vm))

    def reconnect(self, one: str | None = None) -> None:
        """A VM that nobody serves gets the switch that dials libvirt's socket by now, a standby that waits its peer."""
        for which, vm in [(one, self.vms[one])] if one else list(self.vms.items()):
            own = vm.ownership
            if own is None:
                continue
            dials = [n for n in self.pids if (n, which) in self.in_line or self.dials(n, vm) == vm.socket]
            name = dials[0] if dials else None
            if own.owner_pid is None and own.owner == vm.chardev and name is not None:
                own = replace(own, owner_connected=True, owner_pid=self.pids[name], fence=no_fence(own))
            waits = own.standby
            peer = self.slot_of(waits.expected_pid) if waits and not waits.ready else None
            free = peer is not None and (peer, which) not in self.in_line
            if waits and peer and free and self.dials(peer, vm) == self.behind(vm, waits.chardev):
                pid = self.pids[peer]
                own = replace(own, standby=Standby(waits.chardev, True, True, None, pid, pid))
                if own.owner_pid is None:
                    own = taken_over(own)
            self.vms[which] = replace(vm, ownership=own)
            # libvirt's socket takes one peer; the next one's connect(2) succeeds, and waits until that has gone
            inside = {own.owner_pid, own.standby.pid if own.standby else None}
            taken = own.owner == vm.chardev and own.owner_pid is not None
            self.in_line |= {(n, which) for n in dials if taken and self.pids[n] not in inside}
            self.in_line -= {(n, which) for n in dials if self.pids[n] in inside}

    def end(self, which: str) -> None:
        """A VM ends, or loses an interface: its QEMU unlinks the sockets it was bound to."""
        vm = self.vms.pop(which)
        self.migrating.discard(which)
        self.in_line = {(n, d) for n, d in self.in_line if d != which}
        self.chardevs = {(d, c) for d, c in self.chardevs if d != vm.domain or not c.endswith(f"-{vm.netdev}")}
        for database in self.databases.values():
            paths = {dialled(i) for i in database.switch.vhost_interfaces() if origin(i) == str(vm.socket)}
            self.listeners -= {listener(p) for p in paths}

    def migrate(self, domain: str) -> None:
        """A migration begins: QEMU takes the standby away, and takes none until it is over."""
        self.migrating.add(domain)
        vm = self.vms[domain]
        if vm.ownership:
            self.vms[domain] = replace(vm, ownership=replace(vm.ownership, standby=None))

    def migrated(self, domain: str, *, stays: bool) -> None:
        """It is over: the VM has gone, or stays for good."""
        self.migrating.discard(domain)
        if not stays and domain in self.vms:
            self.end(domain)

    def restart(self, domain: str) -> None:
        """End a VM and start it again."""
        vm = self.vms[domain]
        self.end(domain)
        self.start(vm)

    def die(self, name: SlotName) -> None:
        """Kill a slot's switch: QEMU brings its rings to a ready standby by itself."""
        pid, self.pids[name] = self.pids[name], None
        self.hung.pop(name, None)
        self.in_line = {(n, d) for n, d in self.in_line if n != name}
        for domain, vm in self.vms.items():
            o = vm.ownership
            if o is None or pid is None:
                continue
            if o.owner_pid == pid and o.standby and o.standby.ready and self.fails_over:
                new = taken_over(o)
            elif o.owner_pid == pid:
                new = replace(o, owner_connected=False, owner_pid=None)
            elif o.standby and o.standby.pid == pid:
                lost = replace(o.standby, connected=False, ready=False, reason="lost", pid=None)
                new = replace(o, standby=lost, in_doubt=False)
            else:
                continue
            self.vms[domain] = replace(vm, ownership=new)
        for end in self.watchers.pop(name, []):
            os.close(end)
