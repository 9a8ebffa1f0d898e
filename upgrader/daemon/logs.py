"""Logs that never hold a run up: lines go into a bounded queue, and a thread of their own writes them.

Whoever should take the lines, a disk or the journal, may stand still for ever: then the thread does, and nobody else.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
from pathlib import Path

import structlog

_LINES = 10_000
_LAST_LINES_S = 2.0
_STDERR = 2


class _Bounded(logging.handlers.QueueHandler):
    """A full queue, because the disk or the journal does not keep up, loses lines and counts them."""

    lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


class _Stderr(logging.Handler):
    """Without a buffer and without a lock, which a thread that stands still would hold when the process ends."""

    def createLock(self) -> None:  # noqa: N802 - logging's name
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        left = f"{self.format(record)}\n".encode()
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(_STDERR, left) :]


class Writer(logging.handlers.QueueListener):
    """Takes lines from the queue; where some were lost it says how many, once it writes again."""

    def __init__(self, lines: queue.Queue[logging.LogRecord], sink: logging.Handler, bounded: _Bounded) -> None:
        super().__init__(lines, sink)
        self._bounded = bounded
        self._said = 0

    def handle(self, record: logging.LogRecord) -> None:
        super().handle(record)
        if lost := self._bounded.lost - self._said:
            self._said += lost
            said = f'{{"event": "log lines were lost", "lines": {lost}, "level": "warning"}}'
            super().handle(logging.makeLogRecord({"msg": said}))

    def stop(self) -> None:
        """Write what is left, and wait for that only so long."""
        thread = self._thread
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self.enqueue_sentinel()
            thread.join(_LAST_LINES_S)
            self._thread = None


def set_up(file: Path | None, *, verbose: bool) -> Writer:
    """structlog by way of the queue: JSON to stderr under journald, else to `file`. The caller stops what is returned."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(_LINES)
    sink: logging.Handler
    if file is None or os.environ.get("JOURNAL_STREAM"):
        sink = _Stderr()
    else:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sink = logging.handlers.RotatingFileHandler(file, maxBytes=10_000_000, backupCount=3)
    bounded = _Bounded(lines)
    root = logging.getLogger()
    root.handlers = [bounded]
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
    writer = Writer(lines, sink, bounded)
    writer.start()
    return writer
