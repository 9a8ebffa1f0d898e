"""What a lab writes down about itself: its options before anything is made, its processes as they start."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from upgrader.core.errors import UsageError
from upgrader.lab.host import Process
from upgrader.lab.spec import LabSpec

SCHEMA_VERSION: Final = 1


class Phase(StrEnum):
    """How far a lab has come. Anything but `UP` found at the start of a command means that the tool was stopped in the middle."""

    BUILDING = "building"
    UP = "up"
    GOING_DOWN = "going down"


@dataclass(frozen=True, slots=True)
class NamedProcess:
    """A long-lived process of the lab under the name that `status` shows."""

    name: str
    process: Process


@dataclass(frozen=True, slots=True)
class LabState:
    """The state file. `spec` is the whole intent: every name that `down` has to look for follows from it."""

    spec: LabSpec
    phase: Phase
    processes: tuple[NamedProcess, ...] = ()

    def with_process(self, name: str, process: Process) -> LabState:
        return replace(self, processes=(*(p for p in self.processes if p.name != name), NamedProcess(name, process)))

    def process(self, name: str) -> Process | None:
        return next((p.process for p in self.processes if p.name == name), None)


def path_of(lab: LabSpec) -> Path:
    """The state file of a lab."""
    return lab.directory / "state.json"


def write(state: LabState) -> None:
    """Write the state file in one step, directory included."""
    path = path_of(state.spec)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    new.write_text(
        json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "phase": state.phase,
                "spec": state.spec.to_json(),
                "processes": [
                    {"name": p.name, "pid": p.process.pid, "start_ticks": p.process.start_ticks}
                    for p in state.processes
                ],
            },
            indent=2,
        )
    )
    new.replace(path)


def read(lab: LabSpec) -> LabState | None:
    """What the lab of this name wrote, None where there is no lab.

    A directory without a readable state file (made by another version, or the tool was killed before its first write)
    is a half-built lab of the options given: it can be taken down, since names follow from the lab's name alone.
    """
    try:
        raw = json.loads(path_of(lab).read_text())
        return LabState(
            LabSpec.from_json(raw["spec"]),
            Phase(raw["phase"]),
            tuple(NamedProcess(p["name"], Process(p["pid"], p["start_ticks"])) for p in raw["processes"]),
        )
    except FileNotFoundError:
        return LabState(lab, Phase.BUILDING) if lab.directory.exists() else None
    except (ValueError, KeyError, TypeError, UsageError):
        return LabState(lab, Phase.BUILDING)
