"""The rest of what takeover must show: big switches, a daemon that is killed, false alarms, what a standby costs.

Parts of `make show-takeover` (tests/show/takeover.py).
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

from tests.show.items import Item
from tests.support import deaths
from tests.support.killing import latest, verb, wait_until
from tests.support.lab_host import LabHost
from tests.support.labs import lab_spec
from tests.support.protection import await_state, daemon, kill_active, kill_coordinator, takeover_policy
from tests.support.slots import vsctl
from upgrader.adapters import gate
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.errors import Exit
from upgrader.core.model import other_slot
from upgrader.core.plan import PlanKind
from upgrader.lab import spec as names
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.traffic.session import TrafficSession
from upgrader.lab.up import Lab

BIG_GIB, BIG = int(os.environ.get("BIG_GIB", "8")), int(os.environ.get("BIG", "5"))
TIMES_SLOWER = 2.0
#: After the kill of the active the daemon is killed, s.
DELAYS_S = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 5.0)
ALARM_S = 60 * float(os.environ.get("MINUTES", "5"))
FLOWS = 50_000
ROUNDS, ROUND_S, FULL_PPS = 5, 8.0, 60_000
SHARE, FULL = 0.98, 0.95


@contextmanager
def _armed(tag: str, vms: int) -> Iterator[Lab]:
    lab = Lab(lab_spec(tag, vms=vms), say=lambda text: print(text, file=sys.stderr))
    try:
        lab.up()
        with takeover_policy(lab, "automatic"):
            done = verb(lab, "arm", "--yes")
            assert done.returncode == Exit.DONE, done.stderr
            await_state(lab, "armed")
            yield lab
            verb(lab, "disarm", "--yes")
    finally:
        lab.down()


def _owners(host: LabHost) -> set[int | None]:
    return {vm.ownership.owner_pid for vm in host.host.hypervisor.vm_interfaces() if vm.ownership}


def _until_moved_ms(host: LabHost, how: str) -> float:
    """Until the last VM's rings are at the standby, as its QEMU says when it is asked again and again."""
    active = host.active()
    pid, new = host.pid(active), host.pid(other_slot(active))
    assert pid is not None
    cwd = Path(f"/proc/{pid}/cwd").resolve()
    if how != "plain":
        deaths.make_big(pid, BIG_GIB)
        time.sleep(1)
    number = signal.SIGKILL
    if how == "core":
        hard = resource.prlimit(pid, resource.RLIMIT_CORE)[1]
        resource.prlimit(pid, resource.RLIMIT_CORE, (hard, hard))
        Path(f"/proc/{pid}/coredump_filter").write_text("0x31")  # what it shares stays out: the disk has no room for it
        number = signal.SIGSEGV
    started = time.monotonic()
    os.kill(pid, number)
    wait_until(lambda: _owners(host) == {new}, "the standby", 60, 0.0005)
    took = (time.monotonic() - started) * 1e3
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end", 120)
    for core in (cwd / "core", cwd / f"core.{pid}"):
        core.unlink(missing_ok=True)
    await_state(host.lab, "armed", 120)
    return took


@contextmanager
def _cores_allowed() -> Iterator[None]:
    """Switches that are started meanwhile may be allowed to dump core: their hard limit is not lowered.

    To raise it later takes a capability that root in a container may lack.
    """
    real, path = shutil.which("prlimit"), os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "prlimit"
        shim.write_text(
            '#!/bin/sh\nfor a; do shift; [ "$a" = --core=0:0 ] && a=--core=0:; set -- "$@" "$a"; done\n'
            f'exec {real} "$@"\n'
        )
        shim.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{path}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


def big() -> Iterator[Item]:
    """A switch with GiBs of touched 4 KiB pages, and one that dumps core, are taken over from about as fast as a small one."""
    with _cores_allowed(), _armed("b", 2) as lab:
        host = LabHost(lab)
        took = {how: [_until_moved_ms(host, how) for _ in range(BIG)] for how in ("plain", "big", "core")}
    plain = median(took["plain"])
    for how, what in (
        ("big", f"{BIG_GIB} GiB of touched 4 KiB pages"),
        ("core", f"{BIG_GIB} GiB, and a core is dumped"),
    ):
        times = median(took[how]) / plain
        figure = f"{times:.2f} times ({median(took[how]):.1f} ms against {plain:.1f} ms, {BIG} each)"
        yield Item(f"taken over from a switch with {what}", figure, f"{TIMES_SLOWER:g} times", times <= TIMES_SLOWER)


def daemon_dies() -> Iterator[Item]:
    """The daemon is killed at many points of a takeover and started again."""
    well = 0
    with _armed("x", 2) as lab:
        host = LabHost(lab)
        kill_coordinator(host)
        for delay_s in DELAYS_S:
            with daemon(lab):
                await_state(lab, "armed", 120)
                active = host.active()
                standby, new = other_slot(active), host.pid(other_slot(active))
                kill_active(host, active)
                time.sleep(delay_s)
                kill_coordinator(host)
                wait_until(lambda: _owners(host) == {new}, "the rings at the standby, without a daemon", 20)  # noqa: B023
            with daemon(lab):
                await_state(lab, "armed", 120)
                whole = _owners(host) == {new} and host.served_by(standby)
                well += whole and host.host.well_known.current() == standby
    figure = f"{well} of {len(DELAYS_S)}"
    yield Item(
        "daemon killed 0 to 5 s after the active, and started again", figure, "all end well", well == len(DELAYS_S)
    )


def alarms() -> Iterator[Item]:
    """A hog on each CPU, bundles of 50,000 flows, ports that come and go: nobody is taken over from."""
    with _armed("f", 4) as lab, ExitStack() as stack:
        host = LabHost(lab)
        active = host.active()
        slot, pid = host.slots[active], host.pid(active)
        for _ in range(os.cpu_count() or 1):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(hog.wait)
            stack.callback(hog.kill)
        flows = lab.spec.directory / "flows"
        flows.write_text("".join(f"table=98,priority={n},actions=drop\n" for n in range(1, FLOWS + 1)))
        ofctl = [str(slot.prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14"]
        bridge = f"unix:{slot.rundir}/{names.BR_INT}.mgmt"
        deadline, rounds = time.monotonic() + ALARM_S, 0
        with lab_session(lab.spec, rate_pps=1000) as session:
            while time.monotonic() < deadline:
                session.start(60)
                gate.run([*ofctl, "--bundle", "add-flows", bridge, str(flows)], timeout_s=120)
                for number in range(10):
                    name = f"churn{number}"
                    vsctl(slot, "add-port", names.BR_INT, name, "--", "set", "interface", name, "type=internal")
                for number in range(10):
                    vsctl(slot, "del-port", names.BR_INT, f"churn{number}")
                gate.run([*ofctl, "del-flows", bridge, "table=98"], timeout_s=120)
                session.finish(stop=True)
                rounds += 1
        stack.close()
        takeovers = _takeovers(host)
        same = host.pid(active) == pid and _owners(host) == {pid}
        await_state(lab, "armed", 120)
        figure = f"{takeovers} takeovers in {ALARM_S / 60:g} minutes, {rounds} rounds of bundles and ports"
        yield Item("CPU hogs, 50k-flow bundles, port churn", figure, "none", takeovers == 0 and same and rounds > 0)


def _takeovers(host: LabHost) -> int:
    journal = SqliteJournal(host.config.host.journal, read_only=True)
    try:
        return sum(head.kind == PlanKind.TAKEOVER for head, _, _ in journal.headings(200))
    finally:
        journal.close()


def cost() -> Iterator[Item]:
    """What the active forwards at full load, with and without an armed standby, in turn."""
    counts: dict[str, list[int]] = {"disarmed": [], "armed": []}
    lost = 0.0
    lab = Lab(lab_spec("c", vms=2), say=lambda text: print(text, file=sys.stderr))
    try:
        lab.up()
        with (
            takeover_policy(lab, "manual"),
            lab_session(lab.spec, rate_pps=FULL_PPS, directions=(Direction.FROM_FABRIC,)) as session,
        ):
            for _ in range(ROUNDS):
                for state, command in (("disarmed", "disarm"), ("armed", "arm")):
                    if state == "armed" or latest(LabHost(lab)):
                        assert verb(lab, command, "--yes").returncode == Exit.DONE
                        await_state(lab, state)
                    time.sleep(3)
                    got, sent = _received(session)
                    counts[state].append(got)
                    lost = max(lost, 1 - got / sent)
            with suppress(AssertionError):
                verb(lab, "disarm", "--yes")
    finally:
        lab.down()
    share = sum(counts["armed"]) / sum(counts["disarmed"])
    rate = sum(counts["disarmed"]) / ROUNDS / ROUND_S
    figure = f"{share:.3f} of {rate:.0f} packets/s, {ROUNDS} rounds of {ROUND_S:g} s each; most lost {lost:.0%}"
    yield Item("throughput with an armed standby against without", figure, f"{SHARE:g}", share >= SHARE)
    yield Item("the load was more than could be forwarded", f"{1 - lost:.2f} came", f"below {FULL:g}", 1 - lost < FULL)


def _received(session: TrafficSession) -> tuple[int, int]:
    session.start(ROUND_S)
    figures = session.finish().figures()
    return sum(f.received for f in figures), sum(f.sent for f in figures)
