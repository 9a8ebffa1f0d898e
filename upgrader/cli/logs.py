"""Logs of a command: warnings to stderr, with --verbose every command that is run. Late: structlog takes its time to load."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO, cast

import structlog

from upgrader.terminal import Stderr


def set_up(*, verbose: bool) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", Stderr())),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if sys.stderr.isatty() or not os.environ.get("JOURNAL_STREAM")
            else structlog.processors.JSONRenderer(),
        ],
    )
