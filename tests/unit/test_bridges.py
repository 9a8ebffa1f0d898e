"""What of a bridge is read one after the other may not go together; then it is read once more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from upgrader.adapters.ofctl import bridges
from upgrader.adapters.ofctl.bridges import Ofctl
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot
from upgrader.sim.facts import slot


class Switches:
    """A bridge in each of two slots; the active one's controller deletes a group between two dumps, so many times."""

    def __init__(self, source: Slot, deletes: int) -> None:
        self._source, self._deletes = source, deletes
        self.dumps = 0
        self.taken: list[str] = []

    def ofctl(self, reader: Slot, of: Slot, bridge: str, command: str, *_: str, **how: Any) -> str:
        if command == "bundle":
            lines = how["stdin"].splitlines()
            uses = any("group:1" in line for line in lines)
            if uses and not any("group_id=1" in line for line in lines):
                raise CommandError("ovs-ofctl bundle", "exited with 1", "OFPBAC_BAD_OUT_GROUP")
            self.taken += lines
        if of != self._source or command not in ("--no-stats dump-flows", "dump-groups"):
            return ""
        if "flows" in command:
            self.dumps += 1
            return "" if self.dumps > self._deletes else "priority=1 actions=group:1\n"
        return ""


@pytest.fixture(name="pair")
def pair_fixture(tmp_path: Path) -> tuple[Slot, Slot]:
    return replace(slot("a"), rundir=tmp_path / "a"), replace(slot("b"), rundir=tmp_path / "b")


def test_a_group_that_goes_between_two_dumps_is_looked_for_again(
    pair: tuple[Slot, Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = Switches(pair[0], deletes=2)
    monkeypatch.setattr(bridges, "ofctl", switches.ofctl)
    assert Ofctl().sync(*pair, "br-int", hold=True) == {}
    assert switches.dumps == 3
    assert switches.taken == []


def test_what_a_bridge_refuses_each_time_is_said(pair: tuple[Slot, Slot], monkeypatch: pytest.MonkeyPatch) -> None:
    switches = Switches(pair[0], deletes=99)
    monkeypatch.setattr(bridges, "ofctl", switches.ofctl)
    with pytest.raises(CommandError, match="exited with 1"):
        Ofctl().sync(*pair, "br-int", hold=True)
    assert switches.dumps == 3
