"""`ovs-upgraded`: the coordinator of one host. Started by systemd, or by the CLI where none runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

import structlog

from upgrader.config import config_path, load
from upgrader.core.errors import UpgradeError
from upgrader.daemon.logs import set_up
from upgrader.daemon.metrics import Metrics
from upgrader.daemon.notify import notify, watchdog_s
from upgrader.daemon.protocol import error_fields
from upgrader.daemon.sentry import post
from upgrader.daemon.server import Runner, Server
from upgrader.daemon.vm_events import VmEvents
from upgrader.engine.control import Request
from upgrader.engine.lock import host_lock
from upgrader.wiring import coordinator

log = structlog.get_logger(__name__)

LINGER_S = 5.0  # one that the CLI started stays for so long after its last client
_KEEP_S = 2.0  # between two looks at what has to be kept right while no run is on
_LAST_STEP_S = 120.0  # the step in hand may take to end


def serve(config: Path, *, linger: bool, tell: int | None) -> None:
    """Hold the host until a signal, or, with `linger`, until there is nothing to do. Raises UpgradeError at the start."""
    settings = load(config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with host_lock(settings.host.lock):
        one, journal = coordinator(config)
        settled = one.start()
        server = Server(settings.host.socket, config, one, lambda: post(config))
        serving = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="serve", daemon=True
        )
        serving.start()
        log.info("ready", socket=str(settings.host.socket), run=settled.heading.run_id if settled else None)
        _tell(tell, {"ready": True})
        notify("READY=1")
        beat_s = watchdog_s()
        metrics = Metrics(settings.host.metrics) if settings.host.metrics else None
        keeper = threading.Thread(target=_keep, args=(server.runner, stop, metrics), name="keep", daemon=True)
        keeper.start()
        events = None if settings.simulated else VmEvents(settings.host.libvirt_uri, server.runner.news.set)
        try:
            while not stop.wait(min(beat_s or 1.0, 1.0)):
                if beat_s and server.answers:
                    notify("WATCHDOG=1")
                if server.runner.superseded or (linger and server.close_if_idle(LINGER_S)):
                    break
        finally:
            notify("STOPPING=1")
            stop.set()
            if events:
                events.close()
            server.shutdown()
            server.server_close()
            server.runner.news.set()
            keeper.join(_LAST_STEP_S)
            server.runner.guard.suspend()
            if server.runner.busy:
                server.runner.ask(Request.PAUSE)
                server.runner.join(_LAST_STEP_S)
            journal.close()


def _keep(runner: Runner, stop: threading.Event, metrics: Metrics | None) -> None:
    """Now and then, and at once when there is news; in a thread of its own, since it may wait for parts of the host."""
    while not stop.is_set():
        try:
            runner.keep()
        except Exception:
            log.exception("keeping failed by a fault of ours")
        if metrics:
            metrics.write(runner)
        runner.news.wait(_KEEP_S)
        runner.news.clear()


def _tell(tell: int | None, words: dict[str, object]) -> None:
    """Say to whoever started us how it went, once."""
    if tell is not None:
        os.write(tell, json.dumps(words).encode())
        os.close(tell)


def main() -> None:
    """Entry point of `ovs-upgraded`."""
    parser = argparse.ArgumentParser(prog="ovs-upgraded", description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="configuration (default: $OVS_UPGRADE_CONFIG, /etc/ovs-upgrade/config.toml)"
    )
    parser.add_argument("--linger", action="store_true", help="end when there has been nothing to do for a while")
    parser.add_argument("--verbose", action="store_true", help="log every command that is run")
    parser.add_argument("--tell", type=int, help=argparse.SUPPRESS)  # a descriptor, for whoever started us
    options = parser.parse_args()
    config = config_path(options.config).absolute()
    listener = None
    try:
        listener = set_up(load(config).host.journal.with_suffix(".log"), verbose=options.verbose)
        serve(config, linger=options.linger, tell=options.tell)
    except UpgradeError as error:
        _tell(options.tell, {"error": error_fields(error)})
        sys.stderr.write(f"error {error}\n  state: {error.state}\n  next:  {error.next}\n")
        sys.exit(int(error.exit_code))
    finally:
        if listener is not None:
            listener.stop()


if __name__ == "__main__":
    main()
