"""Whether the new switch's ports could serve: number, link, memory pool, polled rings; not their `error`, which stays empty."""

from __future__ import annotations

from collections.abc import Iterable

from upgrader.core.errors import StepError
from upgrader.core.model import VmPort
from upgrader.steps.base import Context


def require_ready(context: Context) -> None:
    """Raise StepError unless every port of the new switch has its number, and the rest where it should by now."""
    host = context.host
    old = host.database.read(context.source)
    up = {i.name for i in old.interfaces if i.link_state == "up"} - {i.name for i in old.vhost_interfaces()}
    _require(context, {context.target.uplink, *up}, _parked(context, context.plan.all_ports))


def require_parked(context: Context, ports: Iterable[VmPort]) -> None:
    """The same of these VMs' ports, once the new switch stands by on them: QEMU may have been answered without a device."""
    if waiting := _parked(context, ports):
        # a switch says of a link a moment later that it is up
        context.host.database.wait_for_ports(context.target, sorted(waiting), context.host.ready_timeout_s)
        _require(context, set(), waiting)


def _parked(context: Context, ports: Iterable[VmPort]) -> set[str]:
    """Interfaces on which the new switch stands by; a guest without a driver has no device for anybody."""
    found = set()
    for port in ports:
        now = context.host.hypervisor.ownership(port)
        standby = now.standby if now and any(r.enabled for r in now.rings) else None
        if standby and standby.ready and standby.pid == context.target_pid():
            found.add(port.interface)
    return found


def _require(context: Context, expected: set[str], waiting: set[str]) -> None:
    host, target = context.host, context.target
    lacking = list(host.database.unready(target, sorted(expected | waiting)))
    polled = host.processes.polled_queues(target) if waiting else {}
    lacking += [f"{name}: no ring is polled" for name in sorted(waiting) if not polled.get(name)]
    if lacking:
        raise StepError(
            "STANDBY_PORTS_NOT_READY",
            f"ports of slot {target.name} are not ready: " + "; ".join(lacking),
            state="no VM was moved for it",
            next=f"tail {target.rundir / 'ovs-vswitchd.log'}",
        )
