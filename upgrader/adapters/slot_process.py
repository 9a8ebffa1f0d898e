"""The two daemons of a slot, as plain processes in the slot's network namespace that outlive whoever started them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from upgrader.adapters import gate
from upgrader.adapters.slot_control import (
    DATABASE,
    NICE,
    SWITCH,
    SlotControl,
    live_pid,
    prepare_database,
    require_started,
    slot_env,
)
from upgrader.core.errors import CommandError, HostError
from upgrader.core.model import Slot

__all__ = ["SlotProcesses", "live_pid", "slot_env"]


class SlotProcesses(SlotControl):
    """Starts, stops and looks at the daemons of slots."""

    def start_database(self, slot: Slot, image: Path | None = None) -> int:
        """Start ovsdb-server and return its pid. `image`: a standalone database file to start from (moved in place).

        Without an image an existing conf.db is used, or an empty one is made from the slot's schema.
        """
        prepare_database(slot, image)
        gate.run(
            [
                str(slot.prefix / "sbin/ovsdb-server"),
                str(slot.db_file),
                f"--remote=punix:{slot.db_socket}",
                f"--pidfile={slot.ovsdb_pidfile}",
                f"--unixctl={slot.ovsdb_ctl}",
                f"--log-file={slot.rundir / 'ovsdb-server.log'}",
                "-vconsole:off",
                "--detach",
                "--no-chdir",
            ],
            netns=slot.netns,
            env=slot_env(slot),
        )
        return require_started(slot, DATABASE)

    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
        """Start ovs-vswitchd on the slot's database and return its pid, once it has applied the configuration.

        No monitor process (its fork would hide a crash) and no core of guest memory (it delays the hang-up by which
        QEMU learns of a crash by seconds).
        """
        try:
            gate.run(
                [
                    "nice",
                    "-n",
                    str(NICE - os.nice(0)),
                    "prlimit",
                    "--core=0:0",
                    f"--nofile={_descriptors()}",
                    "--",
                    str(slot.prefix / "sbin/ovs-vswitchd"),
                    f"unix:{slot.db_socket}",
                    f"--pidfile={slot.vswitchd_pidfile}",
                    f"--unixctl={slot.vswitchd_ctl}",
                    f"--log-file={slot.rundir / 'ovs-vswitchd.log'}",
                    "-vconsole:off",
                    "--detach",
                    "--no-chdir",
                ],
                netns=slot.netns,
                env=slot_env(slot),
                timeout_s=timeout_s,
            )
        except CommandError as error:
            self.kill_switch(slot)  # it may have left our session already, and would come up unasked later
            raise HostError(
                "SLOT_START_FAILED",
                f"ovs-vswitchd of slot {slot.name} did not start: {error.reason}",
                state=f"slot {slot.name} is down, the other slot was not touched",
                next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
            ) from error
        return require_started(slot, SWITCH)

    def start_at_boot(self, slot: Slot) -> None:
        """Nothing: whoever starts a plain process at boot is not known here."""


def _descriptors() -> str:
    """Limit on open files as prlimit(1) takes it: many, for vhost sockets, but no more than we may ask for.

    Raising the hard limit needs CAP_SYS_RESOURCE, which root in a container may lack.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    return f"{limit}:{limit}"
