"""The package's units under a real systemd, which runs as PID 1 of a box of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.systemd_box import SystemdBox, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="needs root, unshare(1) and the machine's systemd"),
]
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdBox]:
    with SystemdBox(tmp_path_factory.mktemp("box")) as it:
        yield it


def passed(output: str) -> int:
    """Tests that passed, by pytest's last line; none of them may have been skipped."""
    last = output.strip().splitlines()[-1]
    found = re.search(r"(\d+) passed", last)
    assert found, output[-6000:]
    assert not re.search(r"failed|error|skipped", last), output[-6000:]
    return int(found[1])


def test_slots_as_units_keep_the_contract(box: SystemdBox) -> None:
    assert passed(box.pytest(str(HERE / "test_processes.py"), "-k", "SlotSystemd").stdout) >= 10
