"""Compile `pktflow`, the traffic agent, cached by a hash of its sources and flags."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from upgrader.adapters import gate

SOURCE = Path(__file__).resolve().parent
DEFAULT_DIRECTORY = SOURCE.parents[2] / "build" / "pktflow"

# Static: the same file runs in a guest whose whole userland is busybox.
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")


def build_agent(directory: Path = DEFAULT_DIRECTORY, compiler: str = "gcc") -> Path:
    """Return the path of a `pktflow` made from the sources beside this file; compile it if there is none.

    Raises CommandError with the compiler's words when it does not compile. Safe to call side by side.
    """
    sources = sorted(SOURCE.glob("*.c"))
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    for file in [*sources, *sorted(SOURCE.glob("*.h"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    target = directory / f"pktflow-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    try:
        gate.run([compiler, *FLAGS, "-o", str(draft), *map(str, sources)], timeout_s=120)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
