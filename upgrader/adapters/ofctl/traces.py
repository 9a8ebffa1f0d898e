"""Packets that flow now, followed through both switches' tables by ofproto/trace."""

from __future__ import annotations

from upgrader.adapters.ofctl.programs import appctl, asked
from upgrader.core import learned
from upgrader.core.model import Slot
from upgrader.core.proof import Difference
from upgrader.core.versions import Ovs, can


def compare(source: Slot, target: Slot, limit: int) -> tuple[int, tuple[Difference, ...]]:
    """Trace the source's busiest megaflows in both; how many were traced, and those with another outcome.

    None where one of the two names no ports in a trace: a datapath's numbers mean nothing in another one.
    """
    if any(can(Ovs.TRACE_NAMES, asked(slot, "version")) is False for slot in (source, target)):
        return 0, ()
    traced, found = 0, []
    for datapath in appctl(source, "dpctl/dump-dps").split():
        name = datapath.partition("@")[2]
        shown = asked(source, "dpctl/dump-flows", "--names", datapath) or ""
        for megaflow in learned.busiest(shown, limit):
            old, new = (asked(s, "ofproto/trace", "--names", name, megaflow.match) for s in (source, target))
            outcome = learned.outcome(old or "")
            if outcome is None:
                continue  # the tables have changed since, or the match is none that a trace can begin with
            traced += 1
            if (other := learned.outcome(new or "")) != outcome:
                found.append(Difference("trace", name, megaflow.match, outcome, other))
    return traced, tuple(found)
