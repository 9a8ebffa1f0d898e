"""Two writers at once lose nothing."""

from __future__ import annotations

import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_replica import changed, made, only
from upgrader.core import replica
from upgrader.core.merge import after, merge
from upgrader.core.replica import INTERFACE, PORT


@settings(deadline=None)
@given(data=st.data())
def test_what_each_side_changed_is_in_what_they_become(data: st.DataObject) -> None:
    base = made(3)
    ours, theirs = data.draw(changed(base)), data.draw(changed(base))
    assert merge(base, theirs, base) == theirs
    assert merge(base, base, ours) == ours
    merged = merge(base, theirs, ours)
    for side in (ours, theirs):
        for table, rows in side.items():
            assert {u for u in rows if u not in base[table]} <= merged[table].keys()
    deleted = {u for side in (ours, theirs) for u in base[PORT] if u not in side[PORT]}
    assert deleted.isdisjoint(merged[PORT])


@settings(deadline=None)
@given(data=st.data())
def test_edits_lead_where_they_say(data: st.DataObject) -> None:
    base = replica.configuration(made(3))
    other = replica.configuration(data.draw(changed(made(3))))
    before = copy.deepcopy(base)
    assert after(base, replica.edits(other, base)) == other
    assert base == before


def test_maps_and_sets_are_taken_apart_and_own_keys_stay() -> None:
    base, ours, theirs = made(2), made(2), made(2)
    only(ours, INTERFACE, "vhu0")["options"] = {"vhost-server-path": "/run/slot-b/vhost/vhu0"}
    only(ours, INTERFACE, "vhu0")["external_ids"] = {"a": "1"}
    only(theirs, INTERFACE, "vhu0")["external_ids"] = {"b": "2"}
    only(theirs, PORT, "vhu1")["tag"] = frozenset({5})
    merged = merge(base, theirs, ours)
    assert only(merged, INTERFACE, "vhu0")["external_ids"] == {"a": "1", "b": "2"}
    assert only(merged, INTERFACE, "vhu0")["options"] == {"vhost-server-path": "/run/slot-b/vhost/vhu0"}
    assert only(merged, PORT, "vhu1")["tag"] == {5}
