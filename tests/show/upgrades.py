"""Deaths and hangs of either switch while an upgrade is at each of its steps. A part of `make show-takeover`.

tests/unit/test_deaths_in_runs.py has all of them at every call of a simulated host; here the processes are real, the rings
are watched from outside, and traffic flows.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from tests.integration.test_upgrade import all_reachable
from tests.show.items import Item
from tests.support import deaths
from tests.support.killing import latest, running_upgrade, verb, wait_until
from tests.support.lab_host import LabHost, upgrade
from tests.support.labs import lab_spec
from tests.support.protection import takeover_policy
from tests.support.rings import watched_rings
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.lifecycle import UNFINISHED, RunState
from upgrader.core.model import SlotName, other_slot
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab

VMS = 3
RATE_PPS = 200
TRAFFIC_S = 60.0  # at most: a run that takes longer goes on without
KINDS = shlex.split(os.environ.get("KINDS", "")) or list(deaths.KINDS)
SIDES = shlex.split(os.environ.get("SIDES", "source target"))
_END_S = 120.0
_BACK_S = 30.0

# an event of the journal, the step's kind, and which of that kind
POINTS = (
    (EventKind.INTENT, "start-standby", 0),
    (EventKind.OUTCOME, "start-standby", 0),
    (EventKind.INTENT, "replicate", 0),
    (EventKind.INTENT, "prove", 0),
    (EventKind.INTENT, "attach-standby", 1),
    (EventKind.OUTCOME, "attach-standby", 2),
    (EventKind.INTENT, "open-window", 0),
    (EventKind.INTENT, "move-vm", 0),
    (EventKind.INTENT, "move-vm", 1),
    (EventKind.OUTCOME, "move-vm", 2),
    (EventKind.INTENT, "catch-up", 0),
    (EventKind.INTENT, "close-window", 0),
    (EventKind.INTENT, "move-control", 0),
    (EventKind.INTENT, "promote", 0),
    (EventKind.INTENT, "soak", 0),
)
STEPS = shlex.split(os.environ.get("STEPS", "")) or sorted({step for _, step, _ in POINTS})


@dataclass
class _Seen:
    """Of one kind: how runs ended, and what was wrong."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    bare: int = 0


def upgrades() -> Iterator[Item]:
    """Each kind to each of the two switches at each step, one after the other, on one host."""
    lab = Lab(lab_spec("u", vms=VMS), say=lambda text: print(text, file=sys.stderr))
    try:
        lab.up()
        with takeover_policy(lab, "automatic"), lab_session(lab.spec, rate_pps=RATE_PPS) as session:
            for kind in KINDS:
                seen = _Seen()
                with watched_rings(lab) as rings:
                    for side, point in product(SIDES, POINTS):
                        if point[1] in STEPS:
                            session.start(TRAFFIC_S)
                            _one(lab, kind, side, point, seen)
                            session.finish(stop=True)
                if rings.wrong or not rings.checked:
                    seen.wrong.append(f"{rings.checked} descriptors checked; {'; '.join(rings.wrong[:3])}")
                ended = ", ".join(f"{n} {end}" for end, n in sorted(seen.ends.items()))
                figure = f"{ended}; {seen.bare} times a VM had no standby yet; {rings.checked} descriptors in turn"
                yield Item(
                    f"{kind} during an upgrade, of {' or '.join(SIDES)}, at {len(STEPS)} steps",
                    figure + (f"; {'; '.join(seen.wrong)}" if seen.wrong else ""),
                    "every VM with a standby is served by one switch, the host comes to rest",
                    not seen.wrong and bool(seen.ends),
                )
    finally:
        lab.down()


def _one(lab: Lab, kind: str, side: str, point: tuple[EventKind, str, int], seen: _Seen) -> None:
    host = LabHost(lab)
    source = host.active()
    slot = source if side == "source" else other_slot(source)
    what = f"{side} at the {point[0]} of {point[1]} {point[2]}"
    with running_upgrade(lab) as run:
        run.wait_for(*point)
        if host.pid(slot) is None or run.process.poll() is not None:
            seen.ends["not started"] += 1  # there is no such switch yet: the run goes to its end
            run.process.wait(_END_S)
            _rest(lab, host, source)
            return
        before = _bare(host, slot)
        deaths.KINDS[kind](host, slot)
        run.process.wait(_END_S)
    view = latest(host)
    state = str(view.state) if view else "none"
    seen.ends[state] += 1
    seen.bare += bool(before)
    hangs = host.pid(slot) if kind in ("SIGSTOP", "PMD stuck") else None
    living = {host.pid("a"), host.pid("b")} - {None, hangs}
    left = {vm for vm, owner in _owners(host).items() if owner not in living}
    if left - before:
        seen.wrong.append(f"{what}: {state}, and {', '.join(sorted(left))} have no switch that works")
    if view and view.state not in (RunState.DONE, RunState.RESTORED) and not before and kind != "ovsdb-server dies":
        seen.wrong.append(f"{what}: {state} ({run.text[-300:]})")
    if trouble := _rest(lab, host, slot if hangs or before else source):
        seen.wrong.append(f"{what}: {trouble}")


def _owners(host: LabHost) -> dict[str, int | None]:
    return {v.domain: v.ownership.owner_pid for v in host.host.hypervisor.vm_interfaces() if v.ownership}


def _bare(host: LabHost, slot: SlotName) -> set[str]:
    """VMs that slot serves and nobody else could."""
    pid = host.pid(slot)
    owned = ((v.domain, v.ownership) for v in host.host.hypervisor.vm_interfaces() if v.ownership)
    return {vm for vm, own in owned if own.owner_pid == pid and not (own.standby and own.standby.ready)}


def _rest(lab: Lab, host: LabHost, broken: SlotName) -> str:
    """What an operator does to have a host at rest again; in words what is still wrong then."""
    view = latest(host)
    served = set(_owners(host).values())
    if served & {None} or (view and view.state in UNFINISHED) or _stopped(host, broken):
        pid = host.pid(broken)
        if pid is not None and _stopped(host, broken):
            host.host.processes.kill_switch(host.slots[broken])
        status = host.host.processes.status(host.slots[broken])
        if status.ovsdb_pid is None:
            host.host.processes.start_database(host.slots[broken])
        if None in set(_owners(host).values()) and status.vswitchd_pid is None:
            host.host.processes.start_switch(host.slots[broken])
        if view and view.state in UNFINISHED:
            for way in ("resume", "rollback"):
                if verb(lab, way, "--yes").returncode == Exit.DONE:
                    break
    for name in ("a", "b"):
        if host.pid(name) is not None and host.host.processes.status(host.slots[name]).ovsdb_pid is None:
            host.host.processes.start_database(host.slots[name])
    active = host.facts().active
    if active is None or not host.served_by(active) or host.pid(other_slot(active)) is not None:
        back = upgrade(lab.config_path, "--yes", "--restore", active or "a")
        if back.returncode != Exit.DONE:
            return f"does not come to rest: {back.stderr[-300:]}"
    try:
        wait_until(lambda: all_reachable(lab), "every VM reachable", _BACK_S, 0.5)
    except AssertionError as error:
        return str(error)
    return ""


def _stopped(host: LabHost, slot: SlotName) -> bool:
    pid = host.pid(slot)
    if pid is None:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0] in ("T", "t")
