"""The lab as one object: up, status, down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from upgrader import wiring
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.errors import HostError, UsageError
from upgrader.core.model import SLOTS, SlotName
from upgrader.lab import domains, guest, host, libvirtd, overlay, settings, state, teardown, topology, vintage
from upgrader.lab import spec as names
from upgrader.lab.host import Hugepages, look_up
from upgrader.lab.spec import LabSpec, Vm
from upgrader.lab.state import LabState, Phase

#: Says what is being done, one line each, for a person who waits.
Say = Callable[[str], None]

_FIRST_SLOT: Final[SlotName] = "a"


def _silent(_: str) -> None:
    """Nobody waits."""


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise UsageError(
            "NOT_ROOT",
            "namespaces, hugepages and guests need root",
            state="nothing was changed",
            next=f"sudo upgrade lab {verb}",
        )


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """One guest as it is now. `qemu_pid` is None when it does not run."""

    vm: Vm
    qemu_pid: int | None
    ready: bool


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as it is now."""

    name: SlotName
    netns: str
    vswitchd_pid: int | None
    ovsdb_pid: int | None
    version: str | None


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab as it is now. `phase` is None when there is none of this name; `problems` is empty when it is healthy."""

    spec: LabSpec
    phase: Phase | None
    libvirtd_pid: int | None
    slots: tuple[SlotView, ...]
    guests: tuple[GuestStatus, ...]
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return self.phase is Phase.UP and not self.problems


class Lab:
    """One lab, known by its name; `spec` says how to build it."""

    def __init__(self, spec: LabSpec | None = None, say: Say = _silent) -> None:
        self.spec = spec or LabSpec()
        self._say = say

    @classmethod
    def existing(cls, name: str = "lab", say: Say = _silent) -> Lab:
        """The lab of this name with the options it was built with, or the default ones where there is none."""
        spec = LabSpec(name=name)
        found = state.read(spec)
        return cls(found.spec if found else spec, say)

    @property
    def config_path(self) -> Path:
        """The coordinator's configuration of this lab's host."""
        return self.spec.config_path

    @property
    def guests(self) -> tuple[Vm, ...]:
        return self.spec.guests

    def up(self) -> bool:
        """Build the lab; returns False where it was up and healthy already and was left alone.

        A half-built or broken one is taken down first. When building fails or is interrupted, what was made is taken
        down again. Raises UpgradeError.
        """
        _require_root("up")
        with self._lock():
            status = self.status()
            if status.healthy:
                self._refuse_other_options(status.spec)
                return False
            self._check_stack()
            if teardown.anything_left(self.spec):
                why = "; ".join(status.problems) or "it was left half built"
                self._say(f"a lab {self.spec.name!r} is there but not whole ({why}): taking it down first")
                self._down()
            owner = os.getpid()
            try:
                self._build()
            except BaseException:
                # Ctrl-C as much as an error: a half-built lab is of no use to anybody. But a helper process that a
                # library has forked may come by here with a copy of our stack, where a caller has its own handlers.
                if os.getpid() != owner:
                    os._exit(1)
                self._say("not finished: taking down what was made")
                self._down()
                raise
        return True

    def down(self) -> bool:
        """Take the lab down; returns False where there was nothing of it. Raises HostError, LockedError."""
        _require_root("down")
        with self._lock():
            if not teardown.anything_left(self.spec):
                return False
            self._down()
        return True

    def status(self) -> LabStatus:
        """Look at the lab. Changes nothing and never fails for a lab that is broken."""
        found = state.read(self.spec)
        lab = found.spec if found else self.spec
        daemon = found.process("libvirtd") if found else None
        config = settings.config(lab)
        processes = SlotProcesses()
        slots = []
        for name in SLOTS:
            slot = config.slot(name)
            seen, version = processes.status(slot), processes.running_version(slot)
            view = SlotView(name, slot.netns or "", seen.vswitchd_pid, seen.ovsdb_pid, version)
            slots.append(view)
        guests = []
        for vm in lab.guests:
            qemu = domains.qemu_process(lab, vm)
            guests.append(GuestStatus(vm, qemu.pid if qemu else None, domains.ready(vm)))
        problems = []
        if found:
            if found.phase is not Phase.UP:
                problems.append(f"it was stopped while {found.phase}")
            problems += [f"namespace {n} is gone" for n in topology.missing(lab)]
            if not (daemon and daemon.alive()):
                problems.append("its libvirtd is gone")
            if not any(s.vswitchd_pid and s.ovsdb_pid for s in slots):
                problems.append("no slot has a running switch")
            problems += [f"guest {g.vm.name} does not run" for g in guests if g.qemu_pid is None]
            problems += [f"guest {g.vm.name} is not ready" for g in guests if g.qemu_pid and not g.ready]
        return LabStatus(
            lab,
            found.phase if found else None,
            daemon.pid if daemon and daemon.alive() else None,
            tuple(slots),
            tuple(guests),
            tuple(problems),
        )

    def _build(self) -> None:
        lab = self.spec
        image = guest.build()
        now = LabState(lab, Phase.BUILDING)
        state.write(now)  # intent before effect: from here on `down` knows what to look for
        for part in ("guests", "vhost", "log", "slot-a", "slot-b"):
            (lab.directory / part).mkdir()
        lab.config_path.write_text(settings.render(lab))
        self._say(f"reserving {lab.hugepages} hugepages of 2 MiB")
        Hugepages().reserve(lab.name, lab.hugepages)
        for slot_name in SLOTS:
            vintage.mount(lab, slot_name)
        self._say(f"namespaces and links: {', '.join(lab.namespaces.all())}")
        topology.build(lab)
        config = settings.config(lab)
        slot = config.slot(_FIRST_SLOT)
        self._say(f"slot {slot.name}: OVS-DPDK on {slot.vf}")
        overlay.start_switch(lab, slot)
        pids = SlotProcesses().status(slot)
        for name, pid in (("ovsdb-server", pids.ovsdb_pid), ("ovs-vswitchd", pids.vswitchd_pid)):
            if pid and (process := look_up(pid)):
                now = now.with_process(f"{name} {slot.name}", process)
        wiring.steering(config).steady(_FIRST_SLOT)
        wiring.well_known(config).point_to(_FIRST_SLOT, (names.BR_PHY, names.BR_INT))
        state.write(now)
        self._say("libvirtd")
        daemon = libvirtd.start(lab)
        now = now.with_process("libvirtd", daemon)
        state.write(now)
        self._say(f"{lab.vms} guests, {lab.queues} queue pairs each, on {lab.pages} pages")
        domains.start_all(lab, image)
        libvirtd.schedule(daemon)
        for vm in lab.guests:
            if qemu := domains.qemu_process(lab, vm):
                now = now.with_process(f"qemu {vm.name}", qemu)
        state.write(LabState(lab, Phase.UP, now.processes))

    def _down(self) -> None:
        found = state.read(self.spec)
        teardown.take_down(found or LabState(self.spec, Phase.GOING_DOWN))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        root = self.spec.directory.parent
        path = root / f".{self.spec.name}.lock"
        with host.locked(path, f"another `upgrade lab` is building or taking down the lab {self.spec.name!r}"):
            try:
                yield
            finally:
                if not self.spec.directory.exists():
                    path.unlink(missing_ok=True)
                    with suppress(OSError):
                        root.rmdir()

    def _refuse_other_options(self, built: LabSpec) -> None:
        if built != self.spec:
            different = [k for k, v in self.spec.to_json().items() if built.to_json()[k] != v]
            raise UsageError(
                "LAB_OTHER_OPTIONS",
                f"the lab {built.name!r} is up with other options ("
                + ", ".join(f"{k}: {built.to_json()[k]}, asked for {self.spec.to_json()[k]}" for k in different)
                + ")",
                state="nothing was changed",
                next=f"upgrade lab down --name {built.name}",
            )

    def _check_stack(self) -> None:
        lab = self.spec
        switches = {lab.prefix(n) / "sbin/ovs-vswitchd" for n in SLOTS}
        for what, path in (*(("OVS", s) for s in switches), ("QEMU", lab.qemu_binary)):
            if not path.exists():
                raise HostError(
                    "STACK_MISSING",
                    f"{what} is not built: there is no {path}",
                    state="nothing was changed",
                    next="make stack",
                )
