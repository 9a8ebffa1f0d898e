"""Real slots for tests: each in a network namespace of its own, always taken down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.labs import lab_fixture
from tests.support.slots import SlotFactory
from upgrader.core.model import Slot

__all__ = ["lab_fixture"]  # one for all modules: two that import it would have two labs of one name


@pytest.fixture
def make_slot(tmp_path: Path) -> Iterator[Callable[[str], Slot]]:
    """Start a real ovsdb-server and ovs-vswitchd (userspace datapath, no DPDK) and return its slot."""
    with SlotFactory(tmp_path) as factory:
        yield factory.start
