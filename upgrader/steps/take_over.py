"""Bring every VM and the overlay's traffic to the switch that stands by, from one that is dead, or is killed here.

Every effect looks first, or holds when said again: this is carried out before it is recorded, and perhaps twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from upgrader.core import arming
from upgrader.core.errors import HostError, StepError, UpgradeError
from upgrader.core.in_step import STALE
from upgrader.core.model import VmPort, owned_by
from upgrader.core.plan import PlannedStep
from upgrader.steps.base import Context, Data
from upgrader.steps.fences import Fences

Each = Callable[
    [Callable[[VmPort], bool | UpgradeError | None], Sequence[VmPort]], Iterable[bool | UpgradeError | None]
]

_SETTLE_S = 3.0
_BY_THEMSELVES_S = 0.01  # QEMUs that were told: to be asked meanwhile would hold them up
_POLL_S = 0.001
_CONNECT_S = 10.0
_CONNECT_POLL_S = 0.05


class TakeOver:
    pause_safe = False  # rings and steering may be apart
    lasting = True

    def check(self, context: Context, step: PlannedStep) -> None:
        context.target_pid()

    def do(self, context: Context, step: PlannedStep) -> Data:
        """What was done before the run began is not done again, but looked at by `verify` as ever.

        The dead switch's VF is stopped behind all that a VM waits for, and not where a switch runs on it again.
        """
        acted = context.acted if context.acted is not None else take_over(context, context.plan.all_ports)
        if context.pid(context.source) is None:
            context.host.steering.fence(context.source.name)
        stale = arming.stale(context.plan)
        return {**acted, **reconnect(context), **({STALE: stale} if stale else {})}

    def verify(self, context: Context, step: PlannedStep, data: Data) -> None:
        left = [port.label for port, slot in context.owners() if slot != context.target.name]
        if left:
            raise StepError(
                "VMS_LEFT_BEHIND",
                f"{', '.join(left[:5])} could not be brought to slot {context.target.name}, which did not stand by on it",
                state=f"slot {context.target.name} serves all others and has the overlay's traffic",
                next=f"virsh reboot {left[0].partition('/')[0]}   then: upgrade resume",
            )

    def undo(self, context: Context, step: PlannedStep) -> Data:
        raise StepError(
            "TAKEN_OVER",
            f"slot {context.source.name} was dead, or was killed for the takeover: there is no way back",
            state=f"slot {context.target.name} serves the VMs it could be brought to",
            next="upgrade resume",
        )


def take_over(context: Context, ports: Sequence[VmPort], each: Each = map, fences: Fences | None = None) -> Data:
    """Fence, steering, rings; nothing else, and no record: this is what a VM waits for. Returns when it began (CLOCK_REALTIME)
    and what each part took, us. `each` applies a function to all VMs, one after the other or several at a time.

    QEMUs that were given `fences` move their rings while steering is turned, and are asked afterwards. Of the others steering
    goes first, since it is one message for all VMs; what it brings before the rings have moved would have been
    lost at the dead switch as well. Raises HostError, with nothing changed, when the old switch cannot be fenced.
    """
    clock, steering = context.host.clock, context.host.steering
    pid = context.target_pid()
    if context.pid(context.source) == pid:
        raise HostError(
            "PID_FILE_STALE",
            f"{context.source.vswitchd_pidfile} names process {pid}, which is the switch of slot {context.target.name}",
            state="nothing was changed: each VM is with whoever served it",
            next=f"rm {context.source.vswitchd_pidfile}   then: upgrade takeover",
        )
    began_at_ns, started = clock.now_ns(), clock.monotonic_s()
    known = {p.ownership.owner_pid for p in ports if p.ownership and p.ownership.owner_pid is not None} - {pid}
    harmless = context.host.processes.fence(context.source, known)
    fenced = clock.monotonic_s()
    told = fences.say(harmless) if fences else frozenset()
    trouble: list[str] = []
    try:
        steering.failover(context.target.name)
    except UpgradeError as error:
        trouble.append(f"steering: {error}")  # the rings are worth having all the same; the next step steers again
    steered = clock.monotonic_s()
    switched = 0
    waiting = list(ports)
    deadline = steered + _SETTLE_S
    while waiting:  # each VM once before any is waited for
        busy = told if clock.monotonic_s() < fenced + _BY_THEMSELVES_S else frozenset()
        turn = [port for port in waiting if port.label not in busy]
        brought = list(each(lambda port: _try(context, port, pid, harmless), turn))
        switched += brought.count(True)
        again = [(port, result) for port, result in zip(turn, brought, strict=True) if not isinstance(result, bool)]
        if again and clock.monotonic_s() > deadline:
            trouble += [f"{port.label}: {result}" for port, result in again if result is not None]
            break
        waiting = [port for port in waiting if port.label in busy] + [port for port, _ in again]
        if waiting:
            clock.sleep(_POLL_S)
    ended = clock.monotonic_s()
    data: dict[str, object] = {
        "began_at_ns": began_at_ns,
        "fence_us": round((fenced - started) * 1e6),
        "steer_us": round((steered - fenced) * 1e6),
        "rings_us": round((ended - steered) * 1e6),
        "VMs": len(ports),
        "switched by us": switched,
    }
    return data | ({"fences": len(told)} if told else {}) | ({"trouble": trouble} if trouble else {})


def _try(context: Context, port: VmPort, pid: int, harmless: frozenset[int]) -> bool | UpgradeError | None:
    try:
        return _bring(context, port, pid, harmless)
    except UpgradeError as error:
        return error


def _bring(context: Context, port: VmPort, pid: int, harmless: frozenset[int]) -> bool | None:
    """One VM's rings to the standby, unless QEMU has brought them there by itself.

    Returns whether we did it; None: not there yet. QEMU may do the same at the same moment: it refuses one of the two, by
    owner and generation, and is asked again.
    """
    hypervisor = context.host.hypervisor
    now = hypervisor.ownership(port)
    if now is None or owned_by(now, pid):
        return False
    standby = now.standby
    if standby is None or standby.pid != pid:
        return False  # nobody of ours stands by here: `reconnect` is for it
    if now.owner_connected and now.owner_pid is not None and now.owner_pid not in harmless:
        raise HostError(
            "NOT_FENCED",
            f"{port.label} is served by process {now.owner_pid}, which is not the switch of slot {context.source.name}",
            state=f"{port.label} stays with that process",
            next=f"ps -fp {now.owner_pid}",
        )
    if not standby.ready and not now.in_doubt:
        return None
    hypervisor.switch(port, now.owner, now.generation, fenced=True)
    return True


def reconnect(context: Context) -> Data:
    """VMs on which nobody stood by (they came a moment ago): the switch dials the socket that libvirt made for them.

    As after a restart of a switch: such a VM sees its link go down and come up.
    """
    host = context.host
    bound = {b.interface: b for b in context.plan.bindings}
    pid = context.target_pid()
    dialled = []
    for port in context.plan.all_ports:
        now, binding = host.hypervisor.ownership(port), bound.get(port.interface)
        if now is None or owned_by(now, pid) or binding is None or now.owner_connected:
            continue
        if now.standby is not None and now.standby.pid == pid:
            continue
        if binding.fresh:
            host.resources.redirect(binding.socket, binding.origin)
        dialled.append(port)
    deadline = host.clock.monotonic_s() + _CONNECT_S
    while host.clock.monotonic_s() < deadline and not all(_served(context, port, pid) for port in dialled):
        host.clock.sleep(_CONNECT_POLL_S)
    return {"connected anew": [p.label for p in dialled]} if dialled else {}


def _served(context: Context, port: VmPort, pid: int) -> bool:
    now = context.host.hypervisor.ownership(port)
    return now is None or owned_by(now, pid)
