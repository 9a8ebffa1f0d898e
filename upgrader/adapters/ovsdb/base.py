"""What a slot's database was made the last time it followed the other one's: kept beside it, to tell later writes by."""

from __future__ import annotations

import json
from pathlib import Path

from upgrader.core.model import Slot
from upgrader.core.replica import Tables, decode, encode


def keep(slot: Slot, tables: Tables) -> None:
    """Replace what is kept, in one step."""
    path = _path(slot)
    text = json.dumps(
        {t: {u: {c: encode(v) for c, v in r.items()} for u, r in rows.items()} for t, rows in tables.items()}
    )
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def recall(slot: Slot) -> Tables | None:
    """What is kept; None where nothing is, or it cannot be read: then no write can be told from an old state."""
    try:
        kept = json.loads(_path(slot).read_text(encoding="utf-8"))
        return {t: {u: {c: decode(v) for c, v in r.items()} for u, r in rows.items()} for t, rows in kept.items()}
    except (OSError, ValueError):
        return None


def forget(slot: Slot) -> None:
    """For a database that begins anew, or leads."""
    _path(slot).unlink(missing_ok=True)


def _path(slot: Slot) -> Path:
    return slot.rundir / "follows.json"
