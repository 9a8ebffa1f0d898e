"""The machine's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """CLOCK_REALTIME for moments, CLOCK_MONOTONIC for spans."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
