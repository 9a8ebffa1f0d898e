"""Logs that never hold a run up: lines go into a bounded queue, and a thread of their own writes them."""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
from pathlib import Path

import structlog

_LINES = 10_000


class _Bounded(logging.handlers.QueueHandler):
    """A full queue, because the disk or the journal does not keep up, loses lines and counts them."""

    lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


def set_up(file: Path | None, *, verbose: bool) -> logging.handlers.QueueListener:
    """structlog by way of the queue: JSON to stderr under journald, else to `file`. The caller stops what is returned."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_LINES)
    sink: logging.Handler
    if file is None or os.environ.get("JOURNAL_STREAM"):
        sink = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sink = logging.handlers.RotatingFileHandler(file, maxBytes=10_000_000, backupCount=3)
    root = logging.getLogger()
    root.handlers = [_Bounded(lines)]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    structlog.configure(
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    listener = logging.handlers.QueueListener(lines, sink)
    listener.start()
    return listener
