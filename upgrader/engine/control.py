"""What people ask of a run while it runs. Heard between two steps, and by steps that only wait."""

from __future__ import annotations

import threading
from enum import StrEnum


class Request(StrEnum):
    """PAUSE: stop, and go on later. BACK: stop and undo. STAY: stop, every VM where it is."""

    PAUSE = "pause"
    BACK = "back"
    STAY = "stay"


class Control:
    """Passes requests from any thread to the one that carries out the run; the last one counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: Request | None = None

    def ask(self, request: Request) -> None:
        with self._lock:
            self._asked = request

    def asked(self) -> Request | None:
        with self._lock:
            return self._asked

    def take(self) -> Request | None:
        """The request, which counts as heard from then on."""
        with self._lock:
            asked, self._asked = self._asked, None
            return asked
