"""A standalone database as ovsdb-server keeps it in a file, made from a schema and rows; pure.

A record is a line ``OVSDB JSON <length> <SHA-1>`` and that many bytes of JSON: first the schema, then transactions
(ovsdb(5), "File Formats"). For servers that take no row with a UUID of its own from a client.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from upgrader.core.replica import ROOT, Tables, encode


def database_file(schema: Mapping[str, Any], tables: Tables, next_cfg: int) -> bytes:
    """The file. `next_cfg` is the number that the configuration gets (ovs-vswitchd.conf.db(5))."""
    rows: dict[str, dict[str, dict[str, object]]] = {
        table: {uuid: {column: encode(value) for column, value in row.items()} for uuid, row in found.items()}
        for table, found in tables.items()
        if found
    }
    for row in rows.get(ROOT, {}).values():
        row["next_cfg"] = next_cfg
    return _record(schema) + _record({**rows, "_comment": "copied from the other slot"})


def _record(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode() + b"\n"
    return f"OVSDB JSON {len(text)} {hashlib.sha1(text).hexdigest()}\n".encode() + text  # noqa: S324 - the format's
