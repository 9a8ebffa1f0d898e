"""Who is in control of a switch: its controllers, managers and fail_mode, handed from one slot to another; pure.

A slot is in control unless its database has a note (`CONTROL_KEY`): either the control it would exert, copied from the
slot that does, so that it can take over when that one is dead, or that it has handed its own over. A hand-over is
three transactions: the receiver's note is brought up to date (`parked`), the giver lets go (`released`), the receiver
exerts what is in its note (`assumed`). So control is never with both and never lost, wherever the coordinator dies.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

from upgrader.core.model import Slot
from upgrader.core.replica import (
    BRIDGE,
    CONTROL_KEY,
    CONTROLLER,
    MANAGER,
    NOTHING,
    ROOT,
    Ref,
    Row,
    Tables,
    configuration,
    decode,
    encode,
    one,
    quiet,
    root,
    words,
)

_HANDED_OVER = "handed-over"


@dataclass(frozen=True, slots=True)
class Control:
    """What is in control of a switch, by name.

    controllers  targets by bridge
    managers     targets
    fail_modes   by bridge
    connected    targets of either that are connected now
    """

    controllers: tuple[tuple[str, tuple[str, ...]], ...]
    managers: tuple[str, ...]
    fail_modes: tuple[tuple[str, str], ...]
    connected: frozenset[str]


def in_control(tables: Tables) -> bool:
    """Whether this slot is the one that controllers and managers are with."""
    return root(tables) is not None and _note(tables) is None


def is_parked(tables: Tables) -> bool:
    """Whether the slot keeps control that it does not exert."""
    return _note(tables) not in (None, _HANDED_OVER)


def parked(source: Tables, target: Tables) -> Tables:
    """`target` with the source's control kept in it, not exerted; as it is where the source has none to tell of."""
    if not in_control(source):
        # a hand-over that was cut off half-way, on its way back: who handed it over has no note of it any more
        cut = is_parked(source) and _note(target) == _HANDED_OVER
        return _noted(target, _note(source)) if cut else target
    kept = {
        "managers": _rows(source, MANAGER),
        "controllers": _rows(source, CONTROLLER),
        "bridges": {
            uuid: {c: encode(row.get(c, NOTHING)) for c in ("controller", "fail_mode")}
            for uuid, row in source.get(BRIDGE, {}).items()
        },
    }
    return _noted(target, json.dumps(kept, sort_keys=True, separators=(",", ":")))


def released(source: Tables, slot: Slot) -> Tables:
    """`source` with nobody in control of it, and a note that it has handed it over."""
    return _noted(quiet(copy.deepcopy(configuration(source)), slot, source.get(BRIDGE, {})), _HANDED_OVER)


def assumed(target: Tables) -> Tables:
    """`target` under the control that is kept in it; a bridge that is gone since is left out."""
    kept = json.loads(_note(target) or "{}")
    changed = _noted(target, None)
    used: set[str] = set()
    for uuid, columns in kept.get("bridges", {}).items():
        if uuid in changed.get(BRIDGE, {}):
            changed[BRIDGE][uuid].update({c: decode(v) for c, v in columns.items()})
            used |= {str(c) for c in decode(columns["controller"])}
    changed[CONTROLLER] = {u: r for u, r in _decoded(kept.get("controllers", {})).items() if u in used}
    changed[MANAGER] = _decoded(kept.get("managers", {}))
    for row in changed.get(ROOT, {}).values():
        row["manager_options"] = frozenset(Ref(u) for u in changed[MANAGER])
    return changed


def control(tables: Tables) -> Control:
    """Who is in control of the switch, or would be after a hand-over to it."""
    rows = assumed(tables) if is_parked(tables) else tables
    targets = {u: str(one(r, "target")) for u, r in rows.get(CONTROLLER, {}).items()}
    led, modes = [], []
    for row in rows.get(BRIDGE, {}).values():
        name = str(one(row, "name"))
        if found := tuple(sorted(targets[str(c)] for c in row.get("controller", NOTHING) if str(c) in targets)):
            led.append((name, found))
        modes.append((name, str(one(row, "fail_mode") or "standalone")))
    managers = tuple(sorted(str(one(r, "target")) for r in rows.get(MANAGER, {}).values()))
    linked = [r for t in (CONTROLLER, MANAGER) for r in tables.get(t, {}).values() if one(r, "is_connected") is True]
    connected = frozenset(str(one(r, "target")) for r in linked)
    return Control(tuple(sorted(led)), managers, tuple(sorted(modes)), connected)


def _note(tables: Tables) -> str | None:
    own = root(tables)
    note = words(own[1], "external_ids").get(CONTROL_KEY) if own else None
    return None if note is None else str(note)


def _noted(tables: Tables, note: str | None) -> Tables:
    changed = copy.deepcopy(configuration(tables))
    for row in changed.get(ROOT, {}).values():
        ids = {k: v for k, v in words(row, "external_ids").items() if k != CONTROL_KEY}
        row["external_ids"] = {**ids, **({CONTROL_KEY: note} if note is not None else {})}
    return changed


def _rows(tables: Tables, table: str) -> dict[str, dict[str, object]]:
    return {u: {c: encode(v) for c, v in r.items()} for u, r in configuration(tables).get(table, {}).items()}


def _decoded(rows: dict[str, dict[str, object]]) -> dict[str, Row]:
    return {u: {c: decode(v) for c, v in r.items()} for u, r in rows.items()}
