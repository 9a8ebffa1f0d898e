"""A host whose every effect asks first whether we are still its coordinator.

The journal refuses an intent of an older coordinator, but between two intents a step has several effects. One that hung, or
was stopped, while another took the host over would have the rest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any, cast

from upgrader.core.errors import JournalError
from upgrader.ports import Host

#: By port, the calls that change something; every other one only looks.
EFFECTS: Mapping[str, frozenset[str]] = {
    "processes": frozenset(
        {"start_database", "start_switch", "log_vhost_messages", "stop", "kill_switch", "fence", "start_at_boot"}
    ),
    "database": frozenset({"sync", "release_control", "assume_control"}),
    "openflow": frozenset({"sync", "release_flows", "sync_learned", "teach_neighbours"}),
    "hypervisor": frozenset({"attach_standby", "drop_connection", "switch", "give_fence"}),
    "steering": frozenset({"prepare", "steady", "open_window", "move_vm", "close_window", "failover", "fence"}),
    "resources": frozenset({"listen", "redirect", "remove", "copy_addresses"}),
    "well_known": frozenset({"adopt", "mend", "point_to", "drop_clients"}),
}


def claimed(host: Host, require_claim: Callable[[], None]) -> Host:
    """The same host for the coordinator that `require_claim` speaks of: it raises SupersededError for an older one."""
    ports = {name: _Port(getattr(host, name), effects, require_claim) for name, effects in EFFECTS.items()}
    return replace(host, **cast("dict[str, Any]", ports))


class _Port:
    """One port of the host."""

    def __init__(self, port: object, effects: frozenset[str], require_claim: Callable[[], None]) -> None:
        self._port = port
        self._effects = effects
        self._require_claim = require_claim

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name not in self._effects:
            return method

        @wraps(method)
        def call(*args: Any, **keywords: Any) -> Any:
            with suppress(JournalError):  # one that cannot be read refuses the next intent; a takeover goes by no disk
                self._require_claim()
            return method(*args, **keywords)

        return call
