"""Where commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from rich.console import Console

# Off a terminal nobody wraps or cuts: a table is as wide as it needs.
_WIDE = 160


def consoles() -> tuple[Console, Console]:
    """stdout and stderr; plain and wide where they are no terminal."""
    return (
        Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False),
        Console(stderr=True, width=None if sys.stderr.isatty() else _WIDE, highlight=False),
    )


def print_json(document: Any) -> None:
    """A document on stdout, as JSON."""
    data = document if isinstance(document, Mapping) else asdict(document)
    sys.stdout.write(json.dumps(data, indent=2, default=os.fspath) + "\n")  # what is no value of JSON's is a path


class Stderr:
    """stderr as it is now, for logs: a terminal that is gone takes nothing down with it."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
