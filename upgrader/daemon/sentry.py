"""The sentry's process: started by the daemon, and ends with it."""

from __future__ import annotations

import gc
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from upgrader.config import load
from upgrader.daemon.logs import set_up
from upgrader.engine.sentry import serve
from upgrader.wiring import setup

log = structlog.get_logger(__name__)

_posted: list[subprocess.Popen[bytes]] = []  # so that those that have ended are reaped


def post(config: Path) -> Connection:
    """Start a sentry for this host, and return the connection over which it takes orders."""
    _posted[:] = [p for p in _posted if p.poll() is None]
    ours, theirs = Pipe()
    argv = [sys.executable, "-m", "upgrader.daemon.sentry", str(config), str(theirs.fileno())]
    with theirs:
        _posted.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)))
    return ours


def main() -> None:
    """Entry point; the arguments are those that `post` gives."""
    config, orders = Path(sys.argv[1]), Connection(int(sys.argv[2]))
    settings = load(config)
    listener = set_up(settings.host.journal.with_suffix(".sentry.log"), verbose=False)
    try:
        made = setup(settings)
        gc.collect()
        gc.freeze()
        gc.disable()  # it collects when it is given an order, and not in the middle of a takeover
        serve(orders, made)
    except Exception:
        log.exception("the sentry ends by a fault of ours; the guard posts another one")
    finally:
        listener.stop()


if __name__ == "__main__":
    main()
