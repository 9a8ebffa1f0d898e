"""Where commands print: data on stdout, everything else on stderr."""

from __future__ import annotations

import sys

from rich.console import Console

# Off a terminal nobody wraps or cuts: a table is as wide as it needs.
_WIDE = 160


def consoles() -> tuple[Console, Console]:
    """stdout and stderr; plain and wide where they are no terminal."""
    return (
        Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False),
        Console(stderr=True, width=None if sys.stderr.isatty() else _WIDE, highlight=False),
    )
