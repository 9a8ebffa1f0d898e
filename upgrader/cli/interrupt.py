"""Ctrl-C, a lost ssh session, SIGTERM: a run hears of them and stops where that is safe."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from upgrader.terminal import Stderr


class Interrupt:
    """Whether somebody asked for an end. Called, it answers."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """While inside, signals that would end us only leave a mark, however often they come.

    An exception raised in the middle of a step, or of its undo, would leave both half done.
    """
    interrupt = Interrupt()

    def mark(number: int, _frame: FrameType | None) -> None:
        if not interrupt.asked and number != signal.SIGHUP:  # after a hang-up there is nobody to tell
            Stderr().write("\nstopping after the step in hand; what was done is undone then\n")
        interrupt.asked = True

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, mark) for number in numbers}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
