"""The well-known run directory: which slot OVS tools and clients reach when nobody tells them where to look.

Its entries are symbolic links into the folder of one slot, each changed by rename(2), so that at no moment a name is
missing. Why links, and what an adopted installation needs on top: docs/adr/0031-well-known-names.md.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from upgrader.adapters import gate
from upgrader.adapters.slot_control import DATABASE, SWITCH, control_socket, live_pid, slot_env, started_with
from upgrader.adapters.systemd_unit import give_back, leave_alone, unit_of
from upgrader.core.errors import HostError
from upgrader.core.model import Slot, SlotName

_CTL = re.compile(rf"({SWITCH}|{DATABASE})\.(\d+)\.ctl")
_CONNECT_S = 2.0


class WellKnownDirectory:
    """One directory (/run/openvswitch) and the slots its names may lead to.

    adopted   slot whose daemons were started in the directory itself; its folder holds second names of theirs
    """

    def __init__(self, directory: Path, slots: Mapping[SlotName, Slot], adopted: SlotName | None = None) -> None:
        self._directory = directory
        self._slots = slots
        self._adopted = adopted

    def adopt(self) -> None:
        """Give a switch that runs in the directory itself a second name for each of its files, in its slot's folder.

        Hard links: they lead to it also when the first names are another's. Idempotent; to be said again after
        bridges were added or the daemons were started anew.
        """
        if self._adopted is None:
            return
        folder = self._slots[self._adopted].rundir
        for program in (SWITCH, DATABASE):
            pidfile = self._directory / f"{program}.pid"
            if pidfile.is_symlink() or (pid := live_pid(pidfile, program)) is None:
                continue
            own = [self._directory / "db.sock"] if program == DATABASE else self._bridge_sockets()
            with _explained(self._directory):
                _second_name(self._directory / f"{program}.{pid}.ctl", folder / f"{program}.ctl")
                for path in (pidfile, *own):
                    _second_name(path, folder / path.name)

    def mend(self) -> SlotName | None:
        """Bring the names in line with the slot that has them: bridges come and go, a restarted daemon has another pid.

        After a boot there are none: then they go to the slot that runs, where only one does. Returns the slot, None
        where nothing was done. Cheap enough to be said every second; not while a run may change the names.
        """
        self.adopt()
        running = [n for n, s in self._slots.items() if all(live_pid(p, program) for p, program in _pidfiles(s))]
        current = self.current()
        name = current if current in running else running[0] if len(running) == 1 and self._is_free() else None
        if name is None or self.problem():
            return None
        if name == self._adopted and not (self._directory / "db.sock").is_symlink():
            return name  # never promoted yet: its own files are the names
        self.point_to(name, [p.stem for p in sorted(self._slots[name].rundir.glob("*.mgmt"))])
        return name

    def current(self) -> SlotName | None:
        """The slot both of whose daemons the names lead to; None where there is none, or they lead to different ones."""
        found = {self._leads_to("db.sock"), self._leads_to(f"{SWITCH}.pid")}
        return found.pop() if len(found) == 1 else None

    def problem(self) -> str | None:
        """Why the names may not be changed: they are those of a living switch that is neither slot's. None when free."""
        if self._directory.exists() and not self._directory.is_dir():
            return f"{self._directory} is not a directory"
        ours = {live_pid(p, n) for s in self._slots.values() for p, n in _pidfiles(s)}
        for program in (SWITCH, DATABASE):
            pid = live_pid(self._directory / f"{program}.pid", program)
            if pid is not None and pid not in ours:
                return f"{program} (pid {pid}) runs in {self._directory} and belongs to neither slot"
        return None

    def point_to(self, name: SlotName, bridges: Sequence[str]) -> None:
        """Make every name lead to the slot, and remove names that no longer lead to a living switch. Idempotent."""
        slot = self._slots[name]
        if problem := self.problem():
            raise HostError(
                "WELL_KNOWN_TAKEN",
                problem,
                state=f"the names in {self._directory} are as they were",
                next="set host.well_known in the configuration to the directory that the switch of this host may have",
            )
        links = self._links(slot, bridges)
        units = self._units_of_adopted()
        if name != self._adopted:
            leave_alone(units)  # before the names change: from then on its commands would hit the other switch
        with _explained(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            for entry, target in links.items():
                self._link(entry, target)
            for path in self._stale(set(links)):
                path.unlink(missing_ok=True)
        if name == self._adopted:
            give_back(units)

    def drop_clients(self, slot: SlotName) -> bool:
        """Make the clients of the slot's database connect anew, by the well-known name; returns whether it was done.

        Not where the slot's own switch would come to another's database with them: refused the lock there, it would
        take its bridges down (ovs-vswitchd(8)). Such clients follow when the database ends.
        """
        it = self._slots[slot]
        if live_pid(it.ovsdb_pidfile, DATABASE) is None:
            return True
        switch = live_pid(it.vswitchd_pidfile, SWITCH)
        if switch is not None and not started_with(switch, f"unix:{it.db_socket}"):
            return False
        ctl = control_socket(it, DATABASE)
        argv = [str(it.prefix / "bin/ovs-appctl"), "--timeout=5", "-t", str(ctl), "ovsdb-server/reconnect"]
        gate.run(argv, env=slot_env(it))
        return True

    def who_answers(self, bridges: Sequence[str]) -> dict[str, int | None]:
        """Pid that answers each name, found the way the tools find it; None where nobody does.

        Keys: ``ovs-vswitchd`` and ``ovsdb-server`` (their control sockets by way of the pid files), ``db.sock``, and
        ``<bridge>.mgmt``.
        """
        answers: dict[str, int | None] = {}
        for program in (SWITCH, DATABASE):
            try:
                pid = (self._directory / f"{program}.pid").read_text().strip()
            except OSError:
                pid = "-"
            answers[program] = _listener(self._directory / f"{program}.{pid}.ctl")
        names = ["db.sock", *(f"{bridge}.mgmt" for bridge in bridges)]
        return answers | {name: _listener(self._directory / name) for name in names}

    def _links(self, slot: Slot, bridges: Sequence[str]) -> dict[str, Path]:
        """Entry → file of the slot. The control sockets first: who has read a new pid file looks for its socket next."""
        links: dict[str, Path] = {}
        for pidfile, program in _pidfiles(slot):
            pid = live_pid(pidfile, program)
            if pid is None:
                raise HostError(
                    "SLOT_DOWN",
                    f"{program} of slot {slot.name} does not run, so it can be given no names",
                    state=f"the names in {self._directory} are as they were",
                    next=f"tail {slot.rundir / program}.log",
                )
            links[f"{program}.{pid}.ctl"] = control_socket(slot, program)
        for bridge in bridges:
            links |= {f"{bridge}.{kind}": slot.rundir / f"{bridge}.{kind}" for kind in ("mgmt", "snoop")}
        links["db.sock"] = slot.db_socket
        return links | {pidfile.name: pidfile for pidfile, _ in _pidfiles(slot)}

    def _link(self, entry: str, target: Path) -> None:
        """Relative, so that a container that has only this directory can follow it to a slot's folder in it."""
        path, to = self._directory / entry, os.path.relpath(target, self._directory)
        if path.is_symlink() and str(path.readlink()) == to:
            return
        new = self._directory / f".{entry}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(to)
        new.replace(path)

    def _units_of_adopted(self) -> set[str]:
        """Services of a distribution that hold the adopted switch's daemons."""
        if self._adopted is None:
            return set()
        pids = [live_pid(path, program) for path, program in _pidfiles(self._slots[self._adopted])]
        return {unit for pid in pids if pid is not None and (unit := unit_of(pid)) is not None}

    def _stale(self, wanted: set[str]) -> list[Path]:
        """Links into a slot that are not wanted, and what an adopted switch that has ended left."""
        if self._adopted is None or live_pid(self._slots[self._adopted].vswitchd_pidfile, SWITCH) is not None:
            left = set()
        else:
            left = {p.name for p in self._bridge_sockets() if _same(p, self._slots[self._adopted].rundir / p.name)}
        stale = []
        for path in sorted(self._directory.iterdir()):
            if path.name in wanted:
                continue
            ctl = _CTL.fullmatch(path.name)
            dead = ctl is not None and not Path(f"/proc/{ctl[2]}").exists()
            if dead or path.name in left or (path.is_symlink() and self._leads_to(path.name)):
                stale.append(path)
        return stale

    def _leads_to(self, entry: str) -> SlotName | None:
        path = self._directory / entry
        if path.is_symlink():
            folder = Path(os.path.normpath(self._directory / path.readlink())).parent
            return next((n for n, s in self._slots.items() if s.rundir == folder), None)
        if self._adopted and _same(path, self._slots[self._adopted].rundir / entry):
            return self._adopted
        return None

    def _is_free(self) -> bool:
        """Whether the names lead nowhere: not to a slot, and to nobody's daemon."""
        return not any(self._leads_to(name) for name in ("db.sock", f"{SWITCH}.pid"))

    def _bridge_sockets(self) -> list[Path]:
        found = [p for kind in ("mgmt", "snoop") for p in self._directory.glob(f"*.{kind}")]
        return [p for p in found if not p.is_symlink() and p.is_socket()]


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            "NAMES_NOT_CHANGED",
            f"a name in {directory} could not be changed: {error.strerror} ({error.filename2 or error.filename})",
            state="both switches run; the names lead to one of them, or some to either",
            next=f"ls -la {directory}",
        ) from error


def _pidfiles(slot: Slot) -> Iterator[tuple[Path, str]]:
    yield slot.vswitchd_pidfile, SWITCH
    yield slot.ovsdb_pidfile, DATABASE


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _second_name(path: Path, name: Path) -> None:
    """Make `name` a hard link to the socket or file `path`, in one step. Nothing where `path` is a link or gone."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not (stat.S_ISSOCK(mode) or stat.S_ISREG(mode)) or _same(path, name):
        return
    name.parent.mkdir(exist_ok=True, mode=0o755)
    new = name.with_name(f".{name.name}.new")
    new.unlink(missing_ok=True)
    new.hardlink_to(path)
    new.replace(name)


def _listener(path: Path) -> int | None:
    """Pid of the process that listens on a unix stream socket (unix(7), SO_PEERCRED); None where none does."""
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)  # an address has 107 bytes, a path may have more
    except OSError:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_CONNECT_S)
            client.connect(f"/proc/self/fd/{folder}/{path.name}")
            pid: int = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return pid
    except OSError:
        return None
    finally:
        os.close(folder)
