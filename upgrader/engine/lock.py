"""One run at a time on a host: a lock file that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upgrader.core.errors import LockedError, UsageError


@contextmanager
def host_lock(path: Path) -> Iterator[None]:
    """Hold the host. Raises LockedError, naming the holder, when another run does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise UsageError(
            "LOCK_UNUSABLE",
            f"the lock {path} cannot be opened: {error.strerror}",
            state="nothing was changed",
            next="correct host.lock in the configuration",
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "unknown"
            raise LockedError(
                "HOST_LOCKED",
                f"another coordinator holds this host (pid {who}, lock {path})",
                state="nothing was changed",
                next="upgrade status",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> int | None:
    """Pid of who holds the host, None where nobody does. Takes the lock for a moment, and changes nothing."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = path.read_text().strip()
        return int(text) if text.isdecimal() else 0
    except OSError:
        return None
    return None
