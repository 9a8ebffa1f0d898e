"""What a filter that the kernel shows compares, and whom its mirred actions send to. From pyroute2's messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from upgrader.core import tc
from upgrader.core.tc import Words


def read_words(message: Any) -> Words | None:
    """What a u32 filter compares; of another filter nothing. None for the entry of a hash table, or of a priority."""
    options = message.get_attr("TCA_OPTIONS")
    if options is None:
        return None
    if message.get_attr("TCA_KIND") != "u32":
        return {}
    selector = options.get_attr("TCA_U32_SEL")
    # from the bytes: pyroute2 0.9 decodes keys four bytes early
    return None if selector is None else tc.read_u32_keys(selector.data[selector.offset + 4 :])


def read_targets(message: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Netdevs a u32 filter's mirred actions send to, their indexes, and the packets the first of them has seen."""
    options = message.get_attr("TCA_OPTIONS")
    actions = options.get_attr("TCA_U32_ACT") if message.get_attr("TCA_KIND") == "u32" and options is not None else None
    return _read_actions(actions) if actions is not None else ((), (), 0)


def _read_actions(actions: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Netdevs a filter's mirred actions send to, their indexes, and the packets the first of them has seen."""
    targets: list[int] = []
    indexes: list[int] = []
    packets = 0
    for _, action in _attrs(actions):
        options = action.get_attr("TCA_ACT_OPTIONS")
        if action.get_attr("TCA_ACT_KIND") != "mirred" or options is None:
            continue
        parms = options.get_attr("TCA_MIRRED_PARMS")
        if not targets:
            stats = action.get_attr("TCA_ACT_STATS")
            basic = stats.get_attr("TCA_STATS_BASIC") if stats is not None else None
            packets = basic["packets"] if basic else 0
        targets.append(parms["ifindex"])
        indexes.append(parms["index"])
    return tuple(targets), tuple(indexes), packets


def _attrs(message: Any) -> Iterable[tuple[str, Any]]:
    return ((a[0], a[1]) for a in message["attrs"])
