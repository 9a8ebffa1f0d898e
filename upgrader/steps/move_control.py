"""Hand controllers and managers from the old switch to the new one, right after the last VM, with no change lost."""

from __future__ import annotations

from upgrader.core.control import Control
from upgrader.core.errors import StepError
from upgrader.core.model import Slot
from upgrader.core.plan import PlannedStep
from upgrader.steps import replication
from upgrader.steps.base import Context, Data

_CONNECT_S = 15.0
_POLL_S = 0.05


class MoveControl:
    pause_safe = False  # tools that nobody told where to look still write to the old switch
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        return hand_control(context, context.source, context.target)

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        """With one side only, and whoever was connected to the old switch is connected to the new one."""
        if _alive(context, context.source) and context.host.database.in_control(context.source):
            raise _nowhere(context, "both slots are in control")
        if not context.host.database.in_control(context.target):
            raise _nowhere(context, f"slot {context.target.name} is not in control")
        was = data.get("connected")
        missing = _await_connected(context, context.target, {str(t) for t in was} if isinstance(was, list) else set())
        if missing:
            raise StepError(
                "CONTROL_NOT_TAKEN_UP",
                f"{', '.join(sorted(missing))} did not connect to slot {context.target.name} within {_CONNECT_S:g} s, "
                f"and was connected to slot {context.source.name}",
                state="every VM is served; what controllers last wrote stands in both switches",
                next=f"ovs-vsctl --db=unix:{context.target.db_socket} list Controller",
            )

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """The same the other way; where the old switch is gone, control stays where it can be exerted."""
        if not _alive(context, context.source):
            return {"kept": context.target.name}
        return hand_control(context, context.target, context.source)


def hand_control(context: Context, giver: Slot, taker: Slot) -> Data:
    """From one slot to the other. Idempotent, and goes on where one that was cut off left it.

    The giver lets go before the last copy, so that nothing is written after it, and the taker takes up after it.
    From then on the taker is the source, and the giver follows.
    """
    database = context.host.database
    for slot in (giver, taker):
        _mend_database(context, slot)
    giving = _alive(context, giver)
    if database.in_control(taker):
        if giving:
            replication.follow(context, taker, giver)
        return {"already": taker.name}
    connected: list[str] = []
    if giving:
        connected = sorted(database.control(giver).connected)
        replication.follow(context, giver, taker, moving=True)  # most of it, while controllers still write
        database.release_control(giver)
        replication.follow(context, giver, taker, hold=False, moving=True)
    left = sum(context.host.openflow.release_flows(taker, b) for b in database.bridges(taker))
    database.assume_control(taker)
    if not database.in_control(taker):
        raise _nowhere(context, f"slot {taker.name} has no note of who is in control")
    if giving:
        replication.follow(context, taker, giver)
    return _told(database.control(taker)) | {"connected": connected, "flows left to run out": left}


def _told(control: Control) -> dict[str, object]:
    return {
        "controllers": {bridge: list(targets) for bridge, targets in control.controllers},
        "managers": list(control.managers),
        "fail_modes": dict(control.fail_modes),
    }


def _alive(context: Context, slot: Slot) -> bool:
    status = context.host.processes.status(slot)
    return status.vswitchd_pid is not None and status.ovsdb_pid is not None


def _mend_database(context: Context, slot: Slot) -> None:
    """A switch whose database server has died keeps its controllers, and cannot be told to let them go."""
    status = context.host.processes.status(slot)
    if status.vswitchd_pid is not None and status.ovsdb_pid is None:
        context.host.processes.start_database(slot)


def _await_connected(context: Context, slot: Slot, expected: set[str]) -> set[str]:
    """Which of these targets have not connected in time."""
    clock = context.host.clock
    deadline = clock.monotonic_s() + _CONNECT_S
    while missing := expected - context.host.database.control(slot).connected:
        if clock.monotonic_s() > deadline:
            break
        clock.sleep(_POLL_S)
    return missing


def _nowhere(context: Context, what: str) -> StepError:
    return StepError(
        "CONTROL_NOT_HANDED_OVER",
        f"controllers and managers were to go from slot {context.source.name} to {context.target.name}: {what}",
        state="both switches go on forwarding as they were last told",
        next=f"ovs-vsctl --db=unix:{context.target.db_socket} list Controller",
    )
