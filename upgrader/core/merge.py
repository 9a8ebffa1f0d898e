"""Two databases that both have writers for a while, as when control has moved and clients have not yet; pure."""

from __future__ import annotations

from collections.abc import Iterable

from upgrader.core.replica import Edit, Tables, Value


def merge(base: Tables, source: Tables, target: Tables) -> Tables:
    """What `target` becomes when the changes from `base` to `source` are made to it, and its own are kept.

    Where both changed the same, elements of sets and keys of maps are taken one by one, and of a single value the
    source's is taken. A row that either deleted since `base` is gone.
    """
    merged: Tables = {}
    for table in {**source, **target}:
        before, theirs, ours = base.get(table, {}), source.get(table, {}), target.get(table, {})
        merged[table] = {}
        for uuid in {**theirs, **ours}:
            if uuid in theirs and uuid in ours:
                old = before.get(uuid, {})
                changed = {c: _value(old.get(c), v, ours[uuid][c]) for c, v in theirs[uuid].items() if c in ours[uuid]}
                merged[table][uuid] = {**ours[uuid], **changed}
            elif uuid not in before:
                merged[table][uuid] = theirs.get(uuid) or ours[uuid]
    return merged


def _value(base: Value | None, theirs: Value, ours: Value) -> Value:
    if theirs == base or base is None:
        return ours
    if ours == base:
        return theirs
    if isinstance(theirs, dict) and isinstance(ours, dict) and isinstance(base, dict):
        kept = {k: v for k, v in ours.items() if k in theirs or k not in base}
        return kept | {k: v for k, v in theirs.items() if base.get(k) != v}
    many = max(len(theirs), len(ours), len(base)) > 1
    if many and isinstance(theirs, frozenset) and isinstance(ours, frozenset) and isinstance(base, frozenset):
        return (ours - (base - theirs)) | (theirs - base)
    return theirs


def after(tables: Tables, edits: Iterable[Edit]) -> Tables:
    """What tables hold once the edits are made."""
    result = {table: dict(rows) for table, rows in tables.items()}
    for edit in edits:
        rows = result.setdefault(edit.table, {})
        if edit.op == "delete":
            rows.pop(edit.uuid, None)
        else:
            rows[edit.uuid] = {**rows.get(edit.uuid, {}), **edit.row}
    return result
