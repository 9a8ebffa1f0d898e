"""What takeover must show so far, run for real: a line an item with figure and limit, non-zero if one fails.

make show-takeover                                        # 20 kills, each kind of death 10 times, 4 VMs: an hour
make show-takeover PARTS=kills KILLS=100 VMS=8            # what the limits are meant for
make show-takeover PARTS=deaths DEATHS=3 KINDS="SIGSTOP"
make show-takeover PARTS=upgrades KINDS="SIGKILL SIGSTOP" STEPS="move-vm soak" SIDES=source
make show-takeover PARTS=alarms MINUTES=60                # a bench

Nothing else may run on the machine meanwhile: it would be felt by the VMs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from tests.show import armed, upgrades
from tests.show.items import OUT, Item, show, tested
from tests.support import deaths as ways
from tests.support.killing import latest, verb, wait_until
from tests.support.lab_host import LabHost
from tests.support.labs import lab_spec
from tests.support.protection import await_state, protection, takeover_policy
from tests.support.rings import Watched, watched_rings
from upgrader.core.model import SlotName, other_slot
from upgrader.lab import stock
from upgrader.lab.exercise import Exercise
from upgrader.lab.figures import FABRIC
from upgrader.lab.qemu_events import qemu_events
from upgrader.lab.spec import BUILD_DIR
from upgrader.lab.traffic.analysis import percentile
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.traffic.session import TrafficRun, TrafficSession
from upgrader.lab.up import Lab

KILLS, VMS = int(os.environ.get("KILLS", "20")), int(os.environ.get("VMS", "4"))
RATE_PPS = 1000
CONTROL_S = 10.0
DEATHS = int(os.environ.get("DEATHS", "10"))
KINDS = shlex.split(os.environ.get("KINDS", "")) or [kind for kind in ways.KINDS if kind != "SIGKILL"]
BEFORE_S, AFTER_S = 1.5, 3.0
NEAR_MS = 200  # the first packet after a death comes within; a gap that reaches out counts whole
MEDIAN_US, P99_US = 10_000, 50_000  # beyond the control run's gap
TIMES_BETTER = 50
REARM_S = 30.0
_BY_FENCE = re.compile(r'^event NETDEV_VHOST_USER_SWITCHED .*"reason":"fence"', re.M)
_SWITCHED = re.compile(r"^event NETDEV_VHOST_USER_SWITCHED at (\d+)\.(\d+) for domain '([^']+)'", re.M)


@dataclass(frozen=True)
class Kill:
    """One death of the active. Times in us from it, or of a part; by VM, and by VM and direction.

    detect   until the sentry began; fence, steer, rings: what its parts took
    by_us    VMs that were brought over by command; by_fence: by the descriptor that their QEMU had been given
    moved    until QEMU said that the VM's rings are at the standby
    gap      the longest one within 200 ms of the death: to the first packet
    beyond   the same minus the control run's longest of that VM and direction
    later    the longest one in the 3 s after: names change, and a new standby starts
    """

    active: SlotName
    detect_us: float
    fence_us: float
    steer_us: float
    rings_us: float
    by_us: int
    by_fence: int
    moved_us: dict[str, float]
    gap_us: dict[str, int]
    beyond_us: dict[str, int]
    later_us: dict[str, int]
    lost: dict[str, int]
    armed_again_s: float
    whole: bool


def simulated() -> Iterator[Item]:
    """The table, arming, and a coordinator killed at every point of a takeover."""
    yield from tested("tests/unit/test_takeover.py")


def tests() -> Iterator[Item]:
    """By hand, by itself, with the daemon dead, refused."""
    yield from tested("tests/integration/test_takeover.py")


def kills() -> Iterator[Item]:
    """SIGKILLs under traffic, alternating sides, and a stock restart in the same run."""
    prefix = stock.stock_prefix(BUILD_DIR / "stack")
    lab = Lab(lab_spec("k", vms=VMS), say=lambda text: print(text, file=sys.stderr))
    try:
        lab.up()
        with lab_session(lab.spec, rate_pps=RATE_PPS) as session, takeover_policy(lab, "automatic"):
            exercise = Exercise(lab.spec, session)
            control = exercise.control(CONTROL_S)
            done = verb(lab, "arm", "--yes")
            yield Item("upgrade arm, exit code", str(done.returncode), "0", done.returncode == 0)
            await_state(lab, "armed")
            # the daemon's other thread is at work in the control run of an armed host, too
            control = exercise.control(CONTROL_S)
            log = lab.spec.directory / "events.log"
            with qemu_events(lab.spec), watched_rings(lab) as rings:
                found = [one_death(lab, session, control, log, "SIGKILL") for _ in range(KILLS)]
            verb(lab, "disarm", "--yes")
            restart = exercise.stock_restart(control, prefix)
    finally:
        lab.down()
    yield one_writer(rings)
    report = {"rate_pps": RATE_PPS, "vms": VMS, "kills": [asdict(k) for k in found]}
    (OUT / "takeover.json").write_text(json.dumps(report, indent=2) + "\n")
    beyond = [us for k in found for us in k.beyond_us.values()]
    gaps = [us for k in found for us in k.gap_us.values()]
    yield Item(
        "takeovers that ended whole", f"{sum(k.whole for k in found)} of {KILLS}", "all", all(k.whole for k in found)
    )
    for what, q, limit in (("median", 50, MEDIAN_US), ("p99", 99, P99_US)):
        us = percentile(beyond, q)
        figure = f"{us / 1000:.1f} ms of {len(beyond)} flows ({percentile(gaps, q) / 1000:.1f} ms whole)"
        yield Item(
            f"kill to first packet beyond the control run's gap, {what}", figure, f"{limit / 1000:g} ms", us <= limit
        )
    for name, values in (
        ("detect", [k.detect_us for k in found]),
        ("fence", [k.fence_us for k in found]),
        ("steer", [k.steer_us for k in found]),
        ("rings, as the daemon found or moved them", [k.rings_us for k in found]),
        ("rings, from the kill, by QEMU's clock", [us for k in found for us in k.moved_us.values()]),
    ):
        figure = (
            f"median {median(values) / 1000:.2f} ms, p99 {percentile(values, 99) / 1000:.2f} ms" if values else "none"
        )
        yield Item(name, figure, "told", bool(values))
    later = [us for k in found for us in k.later_us.values()]
    figure = f"median {median(later) / 1000:.1f} ms, p99 {percentile(later, 99) / 1000:.1f} ms"
    yield Item("longest gap of the 3 s after, in which a new standby starts", figure, "told", True)
    lost = [n for k in found for n in k.lost.values()]
    yield Item("lost per kill, VM and direction", f"median {median(lost):g}, worst {max(lost)}", "told", bool(lost))
    ours, fences = sum(k.by_us for k in found), sum(k.by_fence for k in found)
    figure = f"{fences} by fence, {ours} by command, of {KILLS * VMS}; QEMU the others"
    yield Item("rings that the sentry had moved", figure, "told", True)
    again = [k.armed_again_s for k in found]
    yield Item(
        "armed again",
        f"median {median(again):.1f} s, worst {max(again):.1f} s",
        f"{REARM_S:g} s",
        max(again) <= REARM_S,
    )
    stock_us = median(f.gap_us() for f in restart.felt)
    times = stock_us / max(1, median(gaps))
    figure = f"{times:.0f} times ({stock_us / 1000:.0f} ms against {median(gaps) / 1000:.1f} ms)"
    yield Item(
        "a stock restart is worse by (longest gap, medians)", figure, f"{TIMES_BETTER} times", times >= TIMES_BETTER
    )


def one_writer(rings: Watched) -> Item:
    figure = f"{rings.checked} descriptors in turn, {rings.missed} seen too late" + (
        f"; {'; '.join(rings.wrong[:3])}" if rings.wrong else ""
    )
    return Item("guests' rings, from outside", figure, "one writer", rings.checked > 0 and not rings.wrong)


def deaths() -> Iterator[Item]:
    """Every way to die or to hang, under traffic, alternating sides; a database server's death, which moves nobody."""
    lab = Lab(lab_spec("d", vms=VMS), say=lambda text: print(text, file=sys.stderr))
    try:
        lab.up()
        with lab_session(lab.spec, rate_pps=RATE_PPS) as session, takeover_policy(lab, "automatic"):
            done = verb(lab, "arm", "--yes")
            yield Item("upgrade arm, exit code", str(done.returncode), "0", done.returncode == 0)
            await_state(lab, "armed")
            control = Exercise(lab.spec, session).control(CONTROL_S)
            log = lab.spec.directory / "events.log"
            for kind in KINDS:
                with qemu_events(lab.spec), watched_rings(lab) as rings:
                    if kind == "ovsdb-server dies":
                        yield database_dies(lab)
                        continue
                    found = [one_death(lab, session, control, log, kind) for _ in range(DEATHS)]
                gaps = [us for k in found for us in k.gap_us.values()]
                figure = f"{sum(k.whole for k in found)} of {DEATHS}, longest gap median {median(gaps) / 1000:.1f} ms"
                yield Item(f"{kind}: taken over", figure, "all", all(k.whole for k in found))
                yield one_writer(rings)
    finally:
        lab.down()


def database_dies(lab: Lab) -> Item:
    """Its switch forwards as before; the server is started again, and nobody is moved."""
    host, well = LabHost(lab), 0
    for _ in range(DEATHS):
        active, before = host.active(), host.see()
        pid = host.host.processes.status(host.slots[active]).ovsdb_pid
        ways.KINDS["ovsdb-server dies"](host, active)
        wait_until(
            lambda: host.host.processes.status(host.slots[active]).ovsdb_pid not in (None, pid),  # noqa: B023
            "another ovsdb-server",
            30,
        )
        await_state(lab, "armed", 60)
        well += host.see().owners == before.owners and protection(lab)["active"] == active
    return Item("ovsdb-server dies: started again, no VM moved", f"{well} of {DEATHS}", "all", well == DEATHS)


def one_death(lab: Lab, session: TrafficSession, control: TrafficRun, log: Path, kind: str) -> Kill:
    """Let the active of an armed host die under traffic, and wait until the host is armed again."""
    host = LabHost(lab)
    active = host.active()
    standby = other_slot(active)
    new = host.pid(standby)
    before = latest(host)
    run_id = before.heading.run_id if before else 0
    seen = len(log.read_text())
    session.start(150)
    time.sleep(BEFORE_S)
    with session.window("kill"):
        killed_ns, killed_s = ways.KINDS[kind](host, active), time.monotonic()
        # by their events: QEMUs and libvirtd that are asked all the time would have no time for the takeover
        wait_until(lambda: len(_SWITCHED.findall(log.read_text()[seen:])) >= len(lab.guests), "the standby", 60, 0.01)
    time.sleep(AFTER_S)
    run = session.finish(stop=True)
    await_state(lab, "armed", 120)
    armed_again_s = time.monotonic() - killed_s
    views = [v for v in (latest_takeover(host, run_id),) if v is not None]
    data = dict(views[0]) if views else {}
    moved: dict[str, float] = {}
    for seconds, micros, domain in _SWITCHED.findall(log.read_text()[seen:]):
        moved.setdefault(domain, (int(seconds) * 1_000_000 + int(micros)) - killed_ns / 1000)
    window = run.window("kill")
    figures, later = (
        [f for f in run.figures(w, control=control, lead_ms=0, settle_ms=settle_ms) if f.direction in FABRIC]
        for w, settle_ms in ((window, NEAR_MS), (replace(window, start_ns=window.end_ns + NEAR_MS * 10**6), 2500))
    )
    name = {id(f): f"{f.vm} {f.direction}" for f in (*figures, *later)}
    owners = {p.ownership.owner_pid for p in host.facts().ports if p.ownership}
    return Kill(
        active=active,
        detect_us=(float(data.get("began_at_ns", 0)) - killed_ns) / 1000,
        fence_us=float(data.get("fence_us", 0)),
        steer_us=float(data.get("steer_us", 0)),
        rings_us=float(data.get("rings_us", 0)),
        by_us=int(data.get("switched by us", 0)),
        by_fence=len(_BY_FENCE.findall(log.read_text()[seen:])),
        moved_us=moved,
        gap_us={name[id(f)]: f.gap_us for f in figures},
        beyond_us={name[id(f)]: max(0, f.gap_us - (f.control_gap_us or 0)) for f in figures},
        later_us={name[id(f)]: f.gap_us for f in later},
        lost={name[id(f)]: f.lost for f in figures},
        armed_again_s=armed_again_s,
        whole=bool(data) and owners == {new} and host.served_by(standby) and host.host.well_known.current() == standby,
    )


def latest_takeover(host: LabHost, after: int) -> dict[str, float] | None:
    """What the first step of the takeover after that run recorded."""
    from upgrader.adapters.journal import SqliteJournal

    journal = SqliteJournal(host.config.host.journal, read_only=True)
    try:
        for head, _, _ in journal.headings(20):
            if head.kind == "takeover" and head.run_id > after:
                view = journal.view(head.run_id)
                return dict(view.steps[0].data) if view else None  # type: ignore[arg-type]
    finally:
        journal.close()
    return None


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "simulated": simulated,
    "tests": tests,
    "kills": kills,
    "deaths": deaths,
    "upgrades": upgrades.upgrades,
    "big": armed.big,
    "daemon": armed.daemon_dies,
    "alarms": armed.alarms,
    "cost": armed.cost,
}


if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
