"""A lab's host put through upgrades and a stock restart under traffic, by the same command an operator types."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upgrader.adapters import gate
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.config import load
from upgrader.core.errors import HostError
from upgrader.core.model import SLOTS, Slot
from upgrader.lab import stock
from upgrader.lab.figures import FABRIC, Felt
from upgrader.lab.qemu_events import qemu_events
from upgrader.lab.spec import LabSpec
from upgrader.lab.traffic.protocol import LinkState
from upgrader.lab.traffic.session import TrafficRun, TrafficSession

# In a session of its own whose group (sched(7), autogroup) has a third of the weight of a guest's or a switch's, which
# are at -10: it does not take a CPU from them for long, and is not starved by them, nor by what else the machine does.
_AT_LEISURE = ("setsid", "--wait", "sh", "-c", 'echo -5 >/proc/self/autogroup; exec "$@"', "at-leisure")

LONGEST_S = 180.0
BEFORE_S = 2.0  # traffic runs for so long before an event,
AFTER_S = 2.0  # and after it
RESTART_SETTLE_MS = 5000  # what comes after a restart belongs to it for so long


@dataclass(frozen=True, slots=True)
class Exercised:
    """An upgrade or a restart under traffic: what each VM felt, and what guests saw of their NICs (empty: nothing)."""

    felt: tuple[Felt, ...]
    disturbed: Mapping[str, str]


class Exercise:
    """Drives one lab. `control` is the run in which nothing happened, for the gaps to stand beside."""

    def __init__(self, lab: LabSpec, session: TrafficSession) -> None:
        self._lab = lab
        self._session = session
        self._slots: dict[str, Slot] = {n: load(lab.config_path).slot(n) for n in SLOTS}

    def control(self, seconds: float) -> TrafficRun:
        return self._session.control(seconds)

    def upgrade(self, control: TrafficRun, times: int = 1) -> Exercised:
        """Run `upgrade --host localhost` so often in one run of traffic. Raises HostError when it fails."""
        self._session.start(LONGEST_S)
        time.sleep(BEFORE_S)
        reports = [self._command() for _ in range(times)]
        time.sleep(AFTER_S)
        offset = time.monotonic_ns() - time.time_ns()  # the reports' moments are CLOCK_REALTIME
        moves = [(f"{number} {m['vm']}", m) for number, report in enumerate(reports) for m in report["moves"]]
        for window, move in moves:
            self._session.add_window(window, move["started_at_ns"] + offset, move["ended_at_ns"] + offset)
        run = self._session.finish(stop=True)
        felt = []
        for number, report in enumerate(reports):
            event = f"{report['from_slot']} -> {report['to_slot']}"
            ended = [move["ended_at_ns"] for move in report["moves"]]
            for place, move in enumerate(report["moves"]):
                domain = str(move["vm"]).split("/", maxsplit=1)[0]
                figures = run.figures(run.window(f"{number} {move['vm']}"), control=control)
                mine = {f.direction: f for f in figures if f.vm == domain}
                others = tuple(f for f in figures if f.vm != domain and f.direction in FABRIC)
                apart_s = (ended[place] - ended[place - 1]) / 1e9 if place > 1 else None
                felt.append(Felt(event, domain, move["blackout_us"], mine, others, apart_s))
        return Exercised(tuple(felt), disturbances(run.links))

    def stock_restart(self, control: TrafficRun, prefix: Path) -> Exercised:
        """Restart the running switch the packaged way, under traffic, with the distribution's own binaries.

        `prefix` is theirs (`stock.stock_prefix`). Raises HostError when QEMU's events do not tell how long it took.
        """
        slot = self._active()
        with qemu_events(self._lab) as events:
            self._session.start(LONGEST_S)
            time.sleep(BEFORE_S)
            with self._session.window("restart"):
                stock.restart(slot, prefix)
            time.sleep(RESTART_SETTLE_MS / 1000)
            run = self._session.finish(stop=True)
            outages = events.outages_us([vm.name for vm in self._lab.guests])
        figures = run.figures(run.window("restart"), control=control, settle_ms=RESTART_SETTLE_MS)
        felt = tuple(
            Felt("stock restart", vm.name, outages[vm.name], {f.direction: f for f in figures if f.vm == vm.name})
            for vm in self._lab.guests
        )
        return Exercised(felt, disturbances(run.links))

    def _active(self) -> Slot:
        running = [s for s in self._slots.values() if SlotProcesses().status(s).vswitchd_pid]
        if len(running) != 1:
            raise HostError(
                "LAB_NOT_STEADY",
                f"{len(running)} slots of the lab run a switch, where one should",
                state="the lab is left as it is",
                next=f"upgrade lab status --name {self._lab.name}",
            )
        return running[0]

    def _command(self) -> Any:
        # On a real host the coordinator runs beside the guests' cores, not on them; its pace does not matter to a VM
        argv = [*_AT_LEISURE, sys.executable, "-m", "upgrader.cli.app", "--config", str(self._lab.config_path)]
        done = gate.run(
            [*argv, "--host", "localhost", "--yes", "--json"], timeout_s=LONGEST_S, check=False, show_stderr=True
        )
        if done.returncode != 0:
            raise HostError(
                "UPGRADE_FAILED",
                f"`upgrade --host localhost` exited with {done.returncode} in the lab",
                state="the lab is left as that command left it; its report stands above",
                next=f"upgrade --config {self._lab.config_path} --host localhost --dry-run",
            )
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise HostError(
                "REPORT_UNREADABLE",
                f"`upgrade --json` succeeded in the lab and printed no JSON ({error}): {done.stdout[:200]!r}",
                state="the VMs were moved; what each of them felt is not known",
                next=f"upgrade lab status --name {self._lab.name}",
            ) from error


def disturbances(links: Mapping[str, tuple[LinkState, LinkState]]) -> dict[str, str]:
    """What guests noticed of their NIC between the two looks: a flap of the carrier, a new probe, a reboot."""
    found = {}
    for vm, (before, after) in links.items():
        what = []
        if not after.carrier or after.carrier_changes != before.carrier_changes:
            what.append(f"carrier changed {after.carrier_changes - before.carrier_changes} times")
        if after.ifindex != before.ifindex or after.mac != before.mac:
            what.append("the NIC was probed anew")
        if after.uptime_ns < before.uptime_ns or after.rx_packets < before.rx_packets:
            what.append("the guest was reset")
        if what:
            found[vm] = ", ".join(what)
    return found
