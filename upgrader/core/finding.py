"""What a finding is, and what checks of all kinds use to make one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from upgrader.core.model import HostFacts, SlotFacts, other_slot

# Findings a person may decide to live with; the others mean that VMs would be harmed.
Acceptable = Literal[
    "PMD_CORES_SHARED",
    "LEARNING_IN_USE",
    "LACP_IN_USE",
    "BOND_IN_USE",
    "STP_IN_USE",
    "BFD_IN_USE",
    "MIRRORS_IN_USE",
    "SETTINGS_IN_USE",
    "FLOW_EXPORT_IN_USE",
    "FLOW_EXPORT_LOOPBACK",
    "CONTROLLER_LOOPBACK",
    "MANAGER_LOOPBACK",
    "STEERING_UNPROVEN",
    "SWITCH_EMPTY",
]
ACCEPTABLE: tuple[str, ...] = get_args(Acceptable)


class Severity(StrEnum):
    """BLOCKING forbids the run, WARNING is shown before it, INFO is for the record."""

    BLOCKING = "blocking"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a person should know before the run.

    code    stable, upper-case with underscores
    what    what was found, one sentence
    remedy  what to type or do
    """

    code: str
    severity: Severity
    what: str
    remedy: str


def blocking(code: str, what: str, remedy: str) -> Finding:
    """A finding that forbids the run."""
    return Finding(code, Severity.BLOCKING, what, remedy)


def some(names: Collection[str], limit: int = 5) -> str:
    """Names for a sentence, not more than a reader takes in."""
    shown = sorted(names)[:limit]
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def target_slot(facts: HostFacts) -> SlotFacts | None:
    """The slot an upgrade would go to."""
    return facts.slot(other_slot(facts.active)) if facts.active else None
