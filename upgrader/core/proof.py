"""Two switches compared, thing by thing; pure. What is equal says nothing, what differs is told with both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same in both switches.

    kind   what it is: ``flow``, ``group``, ``meter``, ``interface``, ``route``, …
    where  the bridge it belongs to, or ``database``
    what   which one: its name, number, or match
    old    how the active switch has it, None where it does not
    new    how the standby has it, None where it does not
    """

    kind: str
    where: str
    what: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        head = f"{self.kind} {self.what} ({self.where})"
        return f"{head}\n  active:  {self.old or 'has none'}\n  standby: {self.new or 'has none'}"


def compare(kind: str, where: str, old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Difference, ...]:
    """What differs between things of one kind, by what identifies each."""
    return tuple(
        Difference(kind, where, what, old.get(what), new.get(what))
        for what in sorted({*old, *new})
        if old.get(what) != new.get(what)
    )


def persisting(earlier: Iterable[Difference], later: Iterable[Difference]) -> tuple[Difference, ...]:
    """Differences that were the same both times: not a change on its way from one switch to the other."""
    before = set(earlier)
    return tuple(d for d in later if d in before)


def tell(differences: Iterable[Difference]) -> str:
    """The differences for an operator, the first of each kind before the second of any; long lists are cut."""
    by_kind: dict[str, list[Difference]] = {}
    for difference in differences:
        by_kind.setdefault(difference.kind, []).append(difference)
    ranked = sorted((n, kind, d) for kind, found in by_kind.items() for n, d in enumerate(map(str, found)))
    shown = [text for _, _, text in ranked[:_SHOWN]]
    if len(ranked) > _SHOWN:
        shown.append(f"and {len(ranked) - _SHOWN} more")
    return "\n".join(shown)
