"""Put the new switch in charge: the well-known names, so that tools and clients nobody told where to look end up at it, and
libvirt's sockets, so that VMs that are started do.

It can be taken back as long as the old switch runs: that one gets its names again.
"""

from __future__ import annotations

from upgrader.core.errors import StepError
from upgrader.core.model import Slot
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.sockets import give_sockets


class Promote:
    pause_safe = True
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()
        if problem := context.host.well_known.problem():
            raise StepError(
                "WELL_KNOWN_TAKEN",
                problem,
                state=f"every VM is served by slot {context.target.name}; the names are as they were",
                next=f"upgrade --host localhost --restore {context.source.name}",
            )

    def do(self, context: Context, step: PlannedStep) -> Data:
        return hand_names(context, context.source, context.target)

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        require_names(context)

    def undo(self, context: Context, step: PlannedStep) -> Data:
        """The names of a switch that has died are of no use to anybody: then they stay with the one that runs."""
        status = context.host.processes.status(context.source)
        if status.vswitchd_pid is None or status.ovsdb_pid is None:
            raise StepError(
                "OLD_SWITCH_DIED",
                f"slot {context.source.name} does not run whole any more (vswitchd {status.vswitchd_pid}, ovsdb {status.ovsdb_pid})",
                state=f"tools and clients reach slot {context.target.name}",
                next=f"upgrade --host localhost --restore {context.target.name}",
            )
        return hand_names(context, context.target, context.source)


def require_names(context: Context) -> None:
    """Raise unless the new switch's processes answer every name, found the way the tools find it."""
    host, target = context.host, context.target
    status = host.processes.status(target)
    expected = {"ovs-vswitchd": status.vswitchd_pid, "ovsdb-server": status.ovsdb_pid, "db.sock": status.ovsdb_pid}
    answers = host.well_known.who_answers(bridges_of(context, target))
    wrong = [f"{n} (pid {pid})" for n, pid in answers.items() if pid != expected.get(n, status.vswitchd_pid) or not pid]
    if wrong:
        raise StepError(
            "NAMES_NOT_AS_SET",
            f"slot {target.name} should answer every well-known name, others answer {', '.join(wrong)}",
            state=f"every VM is served by slot {target.name}",
            next=f"upgrade --host localhost --restore {target.name}",
        )


def bridges_of(context: Context, slot: Slot) -> list[str]:
    return [b.name for b in context.host.database.read(slot).bridges]


def hand_names(context: Context, old: Slot, new: Slot) -> Data:
    """Names first: a client that is sent away looks for the database by its name at once."""
    host = context.host
    host.well_known.point_to(new.name, bridges_of(context, new))
    host.processes.start_at_boot(new)
    give_sockets(context, old, new)
    return {"names": new.name, "clients": "moved" if host.well_known.drop_clients(old.name) else "follow at retire"}
