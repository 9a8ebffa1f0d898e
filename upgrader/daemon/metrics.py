"""What Prometheus is told: a file for node_exporter's textfile collector, so that the daemon has no port of its own."""

from __future__ import annotations

from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Enum, Gauge, write_to_textfile

from upgrader.core.errors import UpgradeError
from upgrader.core.journal import RunView
from upgrader.core.lifecycle import RunState
from upgrader.core.takeover import Protection
from upgrader.daemon.server import Runner

log = structlog.get_logger(__name__)

PARTS = ("fence", "steer", "rings")


class Metrics:
    """Gauges, all read anew for each `write`: a daemon that is started again goes on where the last one was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._registry = registry = CollectorRegistry()
        states = [str(state) for state in Protection]
        self._protection = Enum(
            "ovs_upgrade_protection", "how well the host is protected", states=states, registry=registry
        )
        self._vms = Gauge("ovs_upgrade_standby_ports", "VM ports on which the standby stands by", registry=registry)
        self._sentry = Gauge(
            "ovs_upgrade_sentry_ready", "1: a process waits for the active's death, and acts", registry=registry
        )
        self._hour = Gauge("ovs_upgrade_takeovers_last_hour", "takeovers that were recorded", registry=registry)
        self._part = Gauge(
            "ovs_upgrade_takeover_seconds", "what each part of the last takeover took", ["part"], registry=registry
        )
        self._run = Enum(
            "ovs_upgrade_run", "state of the latest run", states=[str(s) for s in RunState], registry=registry
        )
        self._seen = Gauge("ovs_upgrade_seen_timestamp_seconds", "when the daemon last looked", registry=registry)
        self._said = ""

    def write(self, runner: Runner) -> None:
        """Never raises: a full disk must not end what protects the host."""
        guard = runner.guard
        try:
            self._protection.state(str(guard.standing.state))
            self._vms.set(guard.standing.vms)
            self._sentry.set(guard.sentry_ready)
            recent, last, taken = runner.past()
            self._hour.set(recent)
            if last:
                self._run.state(str(last.state))
            self._parts(taken)
            self._seen.set_to_current_time()
            write_to_textfile(str(self._path), self._registry)
            self._said = ""
        except (OSError, UpgradeError) as error:
            if str(error) != self._said:
                self._said = str(error)
                log.warning("no metrics", file=str(self._path), error=self._said)

    def _parts(self, taken: RunView | None) -> None:
        data = taken.steps[0].data if taken and taken.steps else {}
        for part in PARTS:
            us = data.get(f"{part}_us")
            if isinstance(us, (int, float)):
                self._part.labels(part).set(us / 1e6)
