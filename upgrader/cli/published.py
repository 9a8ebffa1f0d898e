"""Makes what is published of the command line: JSON schemas and the man page. From a checkout:

build/venv/bin/python -m upgrader.cli.published docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from upgrader.cli import documents as d
from upgrader.cli.manpage import manpage
from upgrader.config import Config
from upgrader.core.report import SCHEMA_VERSION
from upgrader.lab import documents as lab
from upgrader.lab.spec import BUILD_DIR

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DOCUMENTS: dict[str, Any] = {
    "plan": d.PlanDocument,
    "run": d.RunDocument,
    "status": d.StatusDocument,
    "history": d.HistoryDocument,
    "findings": d.FindingsDocument,
    "error": d.ErrorDocument,
    "nic": d.NicDocument,
    "nic-check": d.NicCheckDocument,
    "nic-probe": d.NicProbeDocument,
    "lab": lab.LabDocument,
    "traffic": lab.TrafficDocument,
    "traffic-self-test": lab.SelfTestDocument,
}


def schemas() -> dict[str, dict[str, Any]]:
    """By name of the document, what may stand in it; all its keys are always there."""
    made = {name: TypeAdapter(kind).json_schema(mode="serialization") for name, kind in _DOCUMENTS.items()}
    made["config"] = _config()
    return {name: {"$schema": _DIALECT, **_all_required(schema)} for name, schema in made.items()}


def _all_required(schema: Any) -> Any:
    """A default in the code is no leave to omit: what is printed always has every key. One that lies in a checkout is none."""
    if isinstance(schema, list):
        return [_all_required(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: _all_required(part)
        for key, part in schema.items()
        if not (key == "default" and str(part).startswith(f"{BUILD_DIR}/"))
    }
    return {**made, "required": list(schema["properties"])} if "properties" in schema else made


def _config() -> dict[str, Any]:
    schema = Config.model_json_schema(mode="serialization")
    definitions = {**schema.pop("$defs"), "Config": schema}
    return {
        "$defs": definitions,
        "title": "ConfigDocument",
        "description": "`config show`: every key with the value that counts, defaults too.",
        "type": "object",
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION, "type": "integer"},
            "kind": {"const": "config", "type": "string"},
            "config": {"$ref": "#/$defs/Config"},
        },
    }


def published() -> dict[Path, str]:
    """Every generated file below docs/, with its text."""
    files = {
        Path("schemas") / f"{name}.schema.json": json.dumps(schema, indent=2) + "\n"
        for name, schema in schemas().items()
    }
    return {**files, Path("upgrade.1"): manpage()}


def main() -> int:
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for name, text in published().items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
