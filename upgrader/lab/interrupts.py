"""Ctrl-C and SIGTERM as one orderly way out of a command that has something to take down."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType


def raise_once(again: Callable[[], None]) -> None:
    """From now on the first Ctrl-C or SIGTERM raises KeyboardInterrupt; for later ones `again` is called, no more.

    Impatience must not cut the way down short. In a process that a library forks off us (pyroute2 does, to enter a
    namespace, and ends it by SIGTERM) the signals end it at once: it holds a copy of our stack, and unwinding that would
    take our lab down.
    """
    asked = False

    def once(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            again()
            return
        asked = True
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)

    def forget() -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)

    for number in signals:
        signal.signal(number, once)
    # Held back over the fork: a signal that comes before the child has forgotten our handlers would else be lost.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signals),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
        after_in_child=forget,
    )
