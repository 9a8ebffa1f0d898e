"""A database made as a file: what ovsdb-server checks of it, and that every value is there as RFC 7047 has it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from upgrader.core.database_file import database_file
from upgrader.core.replica import Ref

SCHEMA = {"name": "Open_vSwitch", "version": "7.15.1", "tables": {"Open_vSwitch": {"columns": {}}}}
ROOT, BRIDGE = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"


def records(content: bytes) -> list[Any]:
    """Every record's JSON, its length and SHA-1 checked as ovsdb/log.c of Open vSwitch does."""
    found = []
    while content:
        head, _, rest = content.partition(b"\n")
        magic, kind, length, digest = head.split()
        assert (magic, kind) == (b"OVSDB", b"JSON")
        text, content = rest[: int(length)], rest[int(length) :]
        assert hashlib.sha1(text).hexdigest().encode() == digest
        assert text.endswith(b"\n")
        found.append(json.loads(text))
    return found


def test_it_holds_the_schema_and_the_rows_under_their_uuids() -> None:
    tables = {
        "Open_vSwitch": {ROOT: {"bridges": frozenset({Ref(BRIDGE)}), "other_config": {"dpdk-init": "true"}}},
        "Bridge": {BRIDGE: {"name": frozenset({"br-int"}), "ports": frozenset()}},
        "Manager": {},
    }
    schema, rows = records(database_file(SCHEMA, tables, 7))  # type: ignore[arg-type]
    assert schema == SCHEMA
    assert rows.pop("_comment")
    assert rows == {
        "Open_vSwitch": {
            ROOT: {"bridges": ["uuid", BRIDGE], "other_config": ["map", [["dpdk-init", "true"]]], "next_cfg": 7}
        },
        "Bridge": {BRIDGE: {"name": "br-int", "ports": ["set", []]}},
    }
