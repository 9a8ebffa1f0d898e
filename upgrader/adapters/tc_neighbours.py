"""A copy of what neighbours answer, for every slot's VF: ARP replies and ND advertisements that reach the PF.

The VTEP address is the PF's, so the kernel asks and is answered; a switch looks its tunnels' next hops up in a table of its
own, which it learns from answers that it sees. With a copy each knows them at first hand, also one that is changed while it
stands by, and when the other switch is gone. The kernel, and filters behind these, get the packet as before.
"""

from __future__ import annotations

from upgrader.adapters.netlink import Requests
from upgrader.adapters.tc_links import Links
from upgrader.adapters.tc_u32_read import read_targets, read_words
from upgrader.core import tc
from upgrader.core.tc import Answers, Words


def copies_answers(prio: int, words: Words) -> bool:
    """Whether a u32 filter at that place, which compares these words, is one of the two."""
    return any((prio, words) == (kind.prio, kind.words) for kind in Answers)


def copy_answers(links: Links, requests: Requests) -> None:
    """Have both filters in place, to the netdevs of now. Idempotent; raises OSError with the kernel's refusal."""
    parent = links.attach_ingress()
    wanted = tuple(links.representors.values())
    present: dict[Answers, tuple[int, tuple[int, ...]]] = {}
    for message in links.ipr.get_filters(index=links.pf, parent=parent):
        prio, words = message["info"] >> 16, read_words(message)
        for kind in Answers:
            if (prio, words) == (kind.prio, kind.words):
                present[kind] = message["handle"], read_targets(message)[0]
    for kind in Answers:
        handle, targets = present.get(kind, (0, ()))
        if targets != wanted:
            flags = tc.CREATE | (tc.REPLACE if handle else tc.EXCLUSIVE)
            options = tc.u32_options(kind.words, tc.copy_to(wanted))
            where = {"ifindex": links.pf, "parent": parent, "prio": kind.prio, "handle": handle}
            message = tc.filter_message(tc.NEW_FILTER, flags, **where, classifier="u32", underlay=kind, options=options)
            requests.send([message])
