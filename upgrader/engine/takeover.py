"""The guard of a host: keeps its standby ready while no run is on, waits for the death of the active, and takes over.

Who waits, and acts, is the sentry (engine/sentry.py), in a process of its own. `look` does all the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

import structlog

from upgrader.core import takeover
from upgrader.core.arming import takeover_plan, with_staleness
from upgrader.core.errors import StepError, UpgradeError
from upgrader.core.journal import Data
from upgrader.core.lifecycle import RunState
from upgrader.core.plan import Plan, PlanKind
from upgrader.core.takeover import Action, Protection, Sight, Standing
from upgrader.engine.coordinator import DIED, Coordinator, Setup, make_plan
from upgrader.engine.sentry import Failed, Order, Sentry, Taken
from upgrader.engine.standby import attached, bring_strays, known_vms
from upgrader.steps import Context, replication
from upgrader.steps.attach_standby import attach
from upgrader.steps.take_over import take_over

log = structlog.get_logger(__name__)

_STALE_S = 10.0  # a standby that was not brought in step for so long is not what the active is
_AGAIN_S = 30.0  # between two attempts to arm a host
_SILENT = 3  # looks after which a connection is made anew
_NOT_KEPT = "nobody keeps it so: the host is not armed"
_RUNS = 200  # of the journal, looked at for the last wish and the last takeovers


class Resume:
    """The takeover that a coordinator before us did not finish goes on."""


Todo = Plan | Taken | Resume | None


@dataclass(slots=True)
class _Armed:
    """A standby that stands by.

    plan    of the run that armed the host
    cold    keeps the standby what the active is
    ready   what a takeover would do now
    silent  by VM, how many looks in a row QEMU called the standby ready and the standby's port was down
    died_s  when the active was first seen to be dead (CLOCK_MONOTONIC); None: it lives
    """

    run_id: int
    plan: Plan
    cold: Context
    following: replication.Following = field(default_factory=replication.Following)
    ready: Plan | None = None
    at_death: bool = False
    at_hang: bool = False
    sentry: Sentry | None = None
    silent: dict[str, int] = field(default_factory=dict)
    died_s: float | None = None

    def stale(self, at_s: float) -> str:
        """Why the standby was not known to be what the active was at that moment, or at its death before; empty: it was."""
        at_s = at_s if self.died_s is None else min(at_s, self.died_s)
        in_step = self.following.in_step
        return "" if (why := in_step.stale(at_s, _STALE_S)) is None else why


class Guard:
    """`look` is called now and then while no run is on, `suspend` before one begins; `woken` when there is news.

    `post` starts a sentry and returns the connection to it; without one a death is seen when somebody looks.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        woken: Callable[[], None] = lambda: None,
        post: Callable[[], Connection] | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._woken = woken
        self._post = post
        self._lock = threading.Lock()  # of `_armed`
        self._armed: _Armed | None = None
        self._first = True
        self._not_before_s = 0.0
        self._said = ""
        self.standing = Standing(Protection.DISARMED)

    @property
    def wanted(self) -> bool:
        """Whether somebody relies on this process being there."""
        return self.standing.state is not Protection.DISARMED

    @property
    def sentry_ready(self) -> bool:
        armed = self._armed
        return bool(armed and armed.sentry and armed.sentry.ready and not armed.sentry.gone)

    def suspend(self) -> None:
        """Stop waiting: a run is about to begin, and core/decisions.py says what a death means in it."""
        if self._relieve():
            log.warning("taken over at the moment when a run began: the run finds the VMs where they are now")

    def _relieve(self) -> Taken | None:
        """Nobody waits any more; the takeover that was carried out by then, to be recorded."""
        with self._lock:
            armed, self._armed = self._armed, None
        return armed.sentry.stop() if armed and armed.sentry else None

    def failed(self, error: UpgradeError) -> None:
        """What was to be done could not be begun, or seen."""
        worse = Protection.STALE if self.standing.state is Protection.ARMED else self.standing.state
        worse = Protection.EXPOSED if worse is Protection.ARMING else worse
        self.standing = replace(self.standing, state=worse, reason=str(error), next=error.next)

    def look(self) -> Todo:
        """Bring the standby in step, see who lives, and say what is to be run."""
        first, self._first = self._first, False
        news = self._armed.sentry.news if self._armed and self._armed.sentry else None
        if isinstance(news, Taken):
            armed = self._armed
            self._relieve()
            return self._record(news, armed)
        if isinstance(news, Failed):
            log.error("not taken over", error=news.what)
            self._relieve()
        setup = self._coordinator.setup()
        past = takeover.history(self._coordinator.journal.headings(_RUNS, steps=False), setup.host.clock.now_ns())
        if past.state is Protection.ARMED and past.run_id is not None:
            return self._look_armed(setup, past.run_id, past.recent)
        self.suspend()
        if past.state is Protection.EXPOSED:
            return self._look_exposed(setup, past.recent)
        if past.state is Protection.TAKING_OVER:
            latest = self._coordinator.journal.latest()
            cut = latest is not None and (latest.state is RunState.PAUSED or latest.reason == DIED)
            self._tell(past.state, "the takeover has not been finished", "upgrade resume")
            return Resume() if first and cut else None
        self._tell(past.state, next_="upgrade arm" if past.state is Protection.DISARMED else "")
        return None

    def _look_armed(self, setup: Setup, run_id: int, recent: int) -> Todo:
        if self._armed is None or self._armed.run_id != run_id:
            self.suspend()
            self._armed = self._make(setup, run_id)
        armed = self._armed
        seen = _sight(armed.cold, armed.plan)
        if seen is Sight.ACTIVE_DIED and armed.died_s is None:
            armed.died_s = setup.host.clock.monotonic_s()
        state = Protection.ARMED
        if seen is Sight.BOTH_LIVE and armed.sentry and armed.sentry.hangs:
            seen = Sight.ACTIVE_HANGS
            state = Protection.STALE if self.standing.state is Protection.STALE else state
        action = takeover.decide(state, seen, setup.takeover, recent)
        armed.at_death = takeover.decide(state, Sight.ACTIVE_DIED, setup.takeover, recent) is Action.TAKE_OVER
        fresh = self.standing.state is Protection.ARMED  # what it took over by itself would be what the active is
        armed.at_hang = fresh and takeover.decide(state, Sight.ACTIVE_HANGS, setup.takeover, recent) is Action.TAKE_OVER
        match action:
            case Action.FOLLOW:
                self._follow(setup, armed)
            case Action.TAKE_OVER:
                return self._act(armed)
            case Action.ARM:
                return self._arm(setup, f"the standby, slot {armed.cold.target.name}, has died")
            case Action.SHOUT:
                self._shout(seen, armed, armed.stale(setup.host.clock.monotonic_s()))
            case Action.NOTHING:
                self._tell(Protection.STALE, 'takeover.policy is "off": the standby is not kept', "upgrade disarm")
        return None

    def _record(self, taken: Taken, armed: _Armed | None) -> Taken:
        """The next standby need not wait: the storm guard counts takeovers, the pause is for attempts that fail."""
        self._not_before_s = 0.0
        began_at_ns, clock = taken.data.get("began_at_ns"), self._coordinator.setup().host.clock
        ago_s = (clock.now_ns() - began_at_ns) / 1e9 if isinstance(began_at_ns, int) else 0.0
        why = self._staleness(armed, clock.monotonic_s() - ago_s)
        if why:
            log.warning("taken over to a standby that was not what the active was", why=why)
        self._tell(Protection.TAKING_OVER)
        return replace(taken, plan=with_staleness(taken.plan, why))

    def _staleness(self, armed: _Armed | None, at_s: float) -> str:
        return armed.stale(at_s) if armed else _NOT_KEPT

    def staleness(self) -> str:
        """Why what would be taken over to now is not known to be what the active is; empty where it is."""
        return self._staleness(self._armed, self._coordinator.setup().host.clock.monotonic_s())

    def _look_exposed(self, setup: Setup, recent: int) -> Todo:
        runs = {n: setup.host.processes.status(s).vswitchd_pid is not None for n, s in setup.slots.items()}
        seen = Sight.BOTH_DIED if not any(runs.values()) else Sight.STANDBY_DIED
        if takeover.decide(Protection.EXPOSED, seen, setup.takeover, recent) is Action.ARM:
            return self._arm(setup, "there is no standby")
        policy = setup.takeover
        if not any(runs.values()):
            why = "no switch runs"
        elif policy.maintenance:
            why = "takeover.maintenance is set"
        elif recent >= policy.max_per_hour:
            why = f"{recent} takeovers within an hour (takeover.max_per_hour is {policy.max_per_hour}): something is wrong"
        else:
            why = "takeover.rearm is off" if policy.policy != "off" else 'takeover.policy is "off"'
        self._tell(Protection.EXPOSED, f"there is no standby, and {why}", "upgrade arm")
        return None

    def _arm(self, setup: Setup, why: str) -> Todo:
        now_s = setup.host.clock.monotonic_s()
        self.suspend()
        before = (
            f"; {self.standing.reason}" if self.standing.state is Protection.EXPOSED and self.standing.reason else ""
        )
        if now_s < self._not_before_s:
            if not before:
                self._tell(Protection.EXPOSED, f"{why}; it is tried again in a moment", "upgrade status")
            return None
        self._not_before_s = now_s + _AGAIN_S
        plan = make_plan(setup, None, setup.policy, PlanKind.ARM)[1]
        if plan.blocking:
            found = plan.blocking[0]
            self._tell(Protection.EXPOSED, f"{why}, and none can be started: {found.code}: {found.what}", found.remedy)
            return None
        self._tell(Protection.ARMING, why)
        return plan

    def _make(self, setup: Setup, run_id: int) -> _Armed:
        plan = self._coordinator.journal.plan(run_id)
        slots = setup.slots[plan.source], setup.slots[plan.target]
        armed = _Armed(run_id, plan, Context(setup.host, plan, *slots))
        if armed.cold.pid(armed.cold.target) is not None:
            self._prepare(setup, armed)
        return armed

    def _follow(self, setup: Setup, armed: _Armed) -> None:
        """Attach VMs that came, copy what the active was taught, and have the takeover ready for them."""
        source, target = armed.cold.source.name, armed.cold.target.name
        lacking: list[str] = []
        try:
            self._mend_databases(setup, armed)
            bring_strays(armed.cold)
            self._prepare(setup, armed)
            self._order(armed)
            cold = armed.cold
            lacking += [f"{p.label}: {why}" for p in cold.plan.ports if (why := attached(cold, p))]
            lacking += _silent(armed, {text.partition(":")[0] for text in lacking})
            armed.following.poll(cold)
        except UpgradeError as error:
            lacking.append(str(error))
        if stale := armed.stale(armed.cold.host.clock.monotonic_s()):
            lacking.append(stale)
        state = Protection.STALE if lacking else Protection.ARMED
        where = Standing(state, "; ".join(lacking[:3]), "upgrade status" if lacking else "", source, target)
        self._stand(replace(where, vms=len(armed.cold.plan.ports), policy=setup.takeover.policy, stale=stale))

    def _mend_databases(self, setup: Setup, armed: _Armed) -> None:
        """A database server that died takes no packet with it: forwarding goes on, and it is started on its file again."""
        for slot in (armed.cold.source, armed.cold.target):
            now = setup.host.processes.status(slot)
            if now.vswitchd_pid is None or now.ovsdb_pid is not None:
                continue
            if setup.takeover.maintenance:
                raise StepError(
                    "DATABASE_DIED",
                    f"ovsdb-server of slot {slot.name} has died, and takeover.maintenance is set",
                    state="its switch forwards as before, and takes no change of its configuration",
                    next="unset takeover.maintenance: it is started again by itself",
                )
            setup.host.processes.start_database(slot)
            log.warning("ovsdb-server had died and was started again", slot=slot.name)

    def _prepare(self, setup: Setup, armed: _Armed) -> None:
        """What a takeover would do to the VMs that run now, and all that it needs for it."""
        cold = armed.cold
        ports, bound = known_vms(cold)
        armed.cold = replace(cold, plan=replace(cold.plan, ports=ports, all_ports=ports, bindings=bound))
        versions = cold.plan.from_version, cold.plan.to_version
        ready = takeover_plan(
            cold.plan.host, cold.source.name, cold.target.name, ports, bound, versions, (), setup.policy
        )
        armed.ready = ready

    def _order(self, armed: _Armed) -> None:
        """Have the sentry ready for that. Raises HostError when it is not."""
        with self._lock:
            if self._post is None or armed.ready is None or self._armed is not armed:
                return
            if armed.sentry is None or armed.sentry.gone:
                armed.sentry = Sentry(self._post(), self._woken)
        armed.sentry.order(Order(armed.ready, armed.at_death, armed.at_hang))

    def _act(self, armed: _Armed) -> Taken | None:
        """The takeover itself, where the sentry has not carried it out: effects first, the record after them."""
        taken = self._relieve()
        if taken is None and armed.ready:
            try:
                context = replace(armed.cold, plan=armed.ready)
                taken = Taken(armed.ready, take_over(context, armed.ready.all_ports))
            except UpgradeError as error:
                log.error("not taken over", error=str(error))
                self.standing = replace(self.standing, state=Protection.EXPOSED, reason=str(error), next=error.next)
        return self._record(taken, armed) if taken else None

    def act_now(self, plan: Plan) -> Data:
        """A takeover that a person asked for, whatever `look` is waiting for meanwhile. Raises UpgradeError."""
        taken = self._relieve()
        if taken:
            return taken.data
        setup = self._coordinator.setup()
        return take_over(Context(setup.host, plan, setup.slots[plan.source], setup.slots[plan.target]), plan.all_ports)

    def _shout(self, seen: Sight, armed: _Armed, stale: str) -> None:
        source, target = armed.cold.source.name, armed.cold.target.name
        hangs = armed.sentry.hangs if armed.sentry else ""
        what = {
            Sight.ACTIVE_DIED: f"slot {source} is dead; QEMU brings rings to slot {target}, nobody has turned steering",
            Sight.ACTIVE_HANGS: f"slot {source}'s switch lives and does not work: {hangs}",
            Sight.STANDBY_DIED: f"the standby, slot {target}, has died",
            Sight.BOTH_DIED: "both switches are dead: no VM has a network",
        }.get(seen, str(seen))
        then = "upgrade takeover" if seen in (Sight.ACTIVE_DIED, Sight.ACTIVE_HANGS) else "upgrade arm"
        if seen is Sight.BOTH_DIED:
            then = f"start the switch of slot {source}, then: upgrade arm"
        if stale and seen in (Sight.ACTIVE_DIED, Sight.ACTIVE_HANGS):
            what += f"; the standby is an old copy: {stale}"
        self._tell(Protection.EXPOSED, what, then, stale)

    def _tell(self, state: Protection, reason: str = "", next_: str = "", stale: str = _NOT_KEPT) -> None:
        self._stand(Standing(state, reason, next_, stale=stale))

    def _stand(self, now: Standing) -> None:
        """Known to `status`, and in the log when it is news."""
        self.standing = now
        said = f"{now.state} {now.reason}"
        if said != self._said:
            self._said = said
            loud = now.state in (Protection.EXPOSED, Protection.STALE)
            (log.warning if loud else log.info)("protection", state=str(now.state), reason=now.reason, next=now.next)


def _sight(context: Context, armed_by: Plan) -> Sight:
    active, standby = context.pid(context.source), context.pid(context.target)
    vms = context.host.hypervisor.vm_interfaces() if active is not None and standby is not None else ()
    owners = {vm.ownership.owner_pid for vm in vms if vm.ownership and vm.ownership.owner_pid is not None}
    was = {p.ownership.owner_pid for p in armed_by.ports if p.ownership and p.ownership.owner_pid is not None}
    return takeover.sight(active=active, standby=standby, was=was, owners=owners)


def _silent(armed: _Armed, known: Collection[str]) -> list[str]:
    """VMs on which the standby acknowledged everything and has no device for all that: their connection is made anew.

    Seen with a switch that a restarted VM had found first: DPDK waits for a status that only an owner is sent.
    """
    context = armed.cold
    up = {i.name for i in context.host.database.read(context.target).vhost_interfaces() if i.link_state == "up"}
    before, armed.silent = armed.silent, {}
    found = []
    for port in context.plan.ports:
        if port.label in known or port.interface in up:
            continue
        now = context.host.hypervisor.ownership(port)
        if now is None or now.standby is None or not any(r.enabled for r in now.rings):
            continue  # a guest without a driver has no device for anybody
        count = armed.silent[port.label] = before.get(port.label, 0) + 1
        found.append(f"{port.label}: slot {context.target.name} acknowledges, and its port is down")
        if count == _SILENT:
            log.warning("the standby's connection is made anew", vm=port.label)
            attach(context, port, next(b for b in context.plan.bindings if b.interface == port.interface), anew=True)
            armed.silent.pop(port.label)
    return found
