"""A fleet of real hosts on this machine: labs behind sshd in namespaces, upgraded and rolled back by the playbooks under traffic."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.show.items import Item
from tests.show.machine import left_on_machine
from tests.support.lab_fleet import LabFleet
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.traffic.session import TrafficRun, TrafficSession

HOSTS = int(os.environ.get("HOSTS", "6"))
RATE_PPS = 50  # each VM and direction; a packet costs an emulated guest some 50 us, and twelve of them share two cores
LOST = 5  # a move and direction, as in the demo
BLACKOUT_US = 20_000  # policy.blackout_budget_us
_LONGEST_S = 600.0
BATCHES = [1, 2, 3]
WANTED = {"rollout_slot": "b", "rollout_keep_old": True, "rollout_batches": BATCHES}


def hosts() -> Iterator[Item]:
    """Two hosts fail on purpose, the rest is untouched, a second run finishes the job, all go back; packets counted."""
    before = left_on_machine()
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        began = time.monotonic()
        with LabFleet(Path(name), HOSTS) as fleet:
            took_s = time.monotonic() - began
            yield Item(f"{HOSTS} hosts, 2 VMs each", f"up in {took_s:.0f} s", "all up", True)
            time.sleep(5)
            idle = _idle_ticks()
            time.sleep(5)
            busy = 100 - (_idle_ticks() - idle) / (os.sysconf("SC_CLK_TCK") * 5 * (os.cpu_count() or 1)) * 100
            yield Item("CPUs that they take at rest", f"{busy:.0f} %", "below 80 %", busy < 80)
            yield from _seen_apart(fleet)
            yield from _two_fail(fleet)
            yield from _all(
                fleet, "upgraded", "rolling_upgrade", {**dict.fromkeys(fleet.labs, "done"), "hv1": "already"}, WANTED
            )
            back = {"rollout_slot": "a", "rollout_batches": BATCHES}
            yield from _all(fleet, "rolled back", "rollback", dict.fromkeys(fleet.labs, "done"), back)
    after = left_on_machine()
    left = {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]}
    yield Item("what the fleet left on the machine", str(left or "nothing"), "nothing", not left)


def _seen_apart(fleet: LabFleet) -> Iterator[Item]:
    """Each host has its own name, network devices, configuration and run directory, and no other's."""
    told = {
        name: fleet.ssh(
            name, "hostname; ls /run/ovs-upgrade-lab; ls /run/netns | grep -vc ^$(ls /run/ovs-upgrade-lab)- || true"
        ).split()
        for name in fleet.labs
    }
    wanted = {name: [name, lab.spec.name, "0"] for name, lab in fleet.labs.items()}
    yield Item(
        "hosts that see themselves only", f"{sum(told[n] == wanted[n] for n in told)}", str(len(told)), told == wanted
    )


def _two_fail(fleet: LabFleet) -> Iterator[Item]:
    """hv2 has a budget that no hand-over keeps, hv3 wants more hugepages than there are: the run stops after their batch."""
    budget, pages = fleet.labs["hv2"].config_path, fleet.labs["hv3"].config_path
    kept = {path: path.read_text() for path in (budget, pages)}
    budget.write_text(kept[budget].replace("[policy]", "[policy]\nblackout_budget_us = 1"))
    pages.write_text(kept[pages].replace('socket_mem_mib = "64"', 'socket_mem_mib = "65536"'))
    done = fleet.play("rolling_upgrade", **WANTED)
    kinds, report = fleet.ansible.kinds(), fleet.ansible.report
    rest = [n for n in fleet.labs if n not in ("hv1", "hv2", "hv3")]
    wanted = {"hv1": "done", "hv2": "failed", "hv3": "failed", **dict.fromkeys(rest, "untouched")}
    why = "; ".join(f"{s['host']}: {s['code']}, {s['what']}" for s in report["stopped_by"])
    yield Item(
        "a rollout in which two hosts fail stops there",
        f"{_counts(kinds)}; {why}"[:400],
        _counts(wanted),
        done.returncode != 0 and kinds == wanted,
    )
    codes = {s["host"]: s["code"] for s in report["stopped_by"]}
    yield Item("their reasons", str(codes), "OVER_BUDGET, BLOCKED", codes == {"hv2": "OVER_BUDGET", "hv3": "BLOCKED"})
    found = next((h["findings"] for h in report["hosts"] if h["host"] == "hv3"), [])
    yield Item(
        "the finding of hv3",
        ", ".join(f["code"] for f in found),
        "HUGEPAGES_SHORT",
        "HUGEPAGES_SHORT" in {f["code"] for f in found},
    )
    for path, text in kept.items():
        path.write_text(text)
    back = fleet.play("rollback", "--limit", "hv2", rollout_slot="a", rollout_resume=True)
    yield Item("hv2 taken back", f"exit code {back.returncode}", "0", back.returncode == 0)


def _all(
    fleet: LabFleet, what: str, playbook: str, wanted: Mapping[str, str], variables: Mapping[str, Any]
) -> Iterator[Item]:
    """A playbook over all of them under traffic: how each host ended, each VM's blackout, and what it lost."""
    began = time.monotonic()
    with _traffic(fleet) as runs:
        done = fleet.play(playbook, **variables)
    took_s = time.monotonic() - began
    kinds, report = fleet.ansible.kinds(), fleet.ansible.report
    good = done.returncode == 0 and kinds == wanted
    yield Item(
        f"the fleet {what} under traffic",
        f"{_counts(kinds)} in {took_s:.0f} s{'' if good else done.stdout[-1500:]}",
        _counts(wanted),
        good,
    )
    moves = {
        f"{h['host']} {m['vm']}": m["blackout_us"] for h in report["hosts"] if h["kind"] == "done" for m in h["moves"]
    }
    shown = ", ".join(f"{vm} {us / 1000:.1f}" for vm, us in moves.items())
    expected = 2 * sum(kind == "done" for kind in kinds.values())
    yield Item(
        f"blackouts, ms, of VMs {what}",
        shown,
        f"below {BLACKOUT_US // 1000}, {expected} or more VMs",
        len(moves) >= expected and max(moves.values(), default=0) < BLACKOUT_US,
    )
    lost = {
        f"{host} {f.vm} {f.direction}": f.lost
        for host, run in runs.items()
        for f in run.figures()
        if f.direction is not Direction.VM_TO_VM
    }
    worst = max(lost, key=lambda k: lost[k])
    yield Item(
        f"packets lost while {what}, to and from the fabric",
        f"{sum(lost.values())} in {len(lost)} flows, most {lost[worst]} ({worst})",
        f"{LOST} a flow",
        lost[worst] <= LOST,
    )


@contextmanager
def _traffic(fleet: LabFleet) -> Iterator[dict[str, TrafficRun]]:
    """Traffic on every host meanwhile; the measurements are there afterwards."""
    runs: dict[str, TrafficRun] = {}
    with ExitStack() as stack:
        sessions: dict[str, TrafficSession] = {}
        for name, lab in fleet.labs.items():
            options = ("--memory-mib", "64")
            sessions[name] = stack.enter_context(lab_session(lab.spec, rate_pps=RATE_PPS, fabric_options=options))
            sessions[name].start(_LONGEST_S)
        yield runs
        for name, session in sessions.items():
            runs[name] = session.finish(stop=True)


def _counts(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{list(kinds.values()).count(k)} {k}" for k in dict.fromkeys(kinds.values()))


def _idle_ticks() -> int:
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return fields[3] + fields[4]
