"""What the one writer of a host does: plans, begins runs, goes on with them, takes them back. One at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from upgrader.core import arming
from upgrader.core import plan as planning
from upgrader.core.errors import BlockedError, UpgradeError
from upgrader.core.findings import forbidden
from upgrader.core.journal import Data, Event, EventKind, Heading, RunView, recorded
from upgrader.core.lifecycle import UNFINISHED, RunState
from upgrader.core.model import HostFacts, Slot, SlotName, owned_by
from upgrader.core.plan import Plan, PlanKind, Policy, StepKind
from upgrader.core.takeover import TakeoverPolicy
from upgrader.engine.claimed import claimed
from upgrader.engine.control import Control
from upgrader.engine.facts import gather
from upgrader.engine.resets import ResetWatch
from upgrader.engine.run import Engine, standby_lost
from upgrader.engine.vigil import Vigil
from upgrader.ports import Host, Journal, Watcher
from upgrader.steps import Context
from upgrader.steps.catch_up import bring_late
from upgrader.steps.replication import tell_neighbours
from upgrader.steps.sockets import give_sockets

log = structlog.get_logger(__name__)

DIED = "COORDINATOR_DIED"


@dataclass(frozen=True, slots=True)
class Setup:
    """The host as the configuration describes it now."""

    name: str
    host: Host
    slots: Mapping[SlotName, Slot]
    accept: tuple[str, ...]
    policy: Policy
    adapter: str
    takeover: TakeoverPolicy = field(default_factory=TakeoverPolicy)


class Coordinator:
    """Stands on a journal that it has claimed. `setup` is called anew for each plan and run, so that the file counts."""

    def __init__(self, setup: Callable[[], Setup], journal: Journal) -> None:
        self.journal = journal
        self._setup = setup
        self._resets = ResetWatch()
        self._read: tuple[int, Plan] | None = None

    def setup(self) -> Setup:
        """The host as it is configured now; it is changed only as long as we are its coordinator."""
        made = self._setup()
        return replace(made, host=claimed(made.host, self.journal.require_claim))

    def start(self) -> RunView | None:
        """Become the one writer, and settle what the last one left: a run in the middle of which it died is halted.

        Nothing is moved by that. What the journal says and what the host says of each VM is logged where they differ.
        """
        generation = self.journal.claim()
        log.info("coordinator", generation=generation)
        view = self.journal.latest()
        if view is None or view.state not in (RunState.RUNNING, RunState.UNDOING):
            return view
        setup = self.setup()
        now = setup.host.clock.now_ns()
        event = Event(EventKind.STATE, now, None, {"to": str(RunState.HALTED), "reason": DIED, **_seen(setup, view)})
        settled = view.apply(event)
        self.journal.append(view.heading.run_id, event)
        return settled

    def keep(self) -> None:
        """Said now and then while no run is on: the well-known names follow the switch that has them.

        The rule of a VF that was reset is written anew; one of a run that stopped half-way when the run goes on. And
        where a run kept its old switch, VMs that came to it since follow the others: traffic goes to the new one. When
        one of the two has died, VMs that are started come to the other. Switches that see no answers are told of them.
        """
        setup = self.setup()
        setup.host.well_known.mend()
        latest = None
        for head, state, _ in self.journal.headings(1, steps=False):
            latest = head.run_id, state
            if not self._keeps(head, state):
                continue
            slots = setup.slots[head.source], setup.slots[head.target]
            context = Context(setup.host, self._plan(head.run_id), *slots)
            old, new = context.pid(context.source), context.pid(context.target)
            if old is not None and new is not None and context.served_by(context.source):
                moves = bring_late(context)
                log.info("brought after the others", run=head.run_id, vms=[str(m["vm"]) for m in moves])
            elif old is None and new is not None:
                give_sockets(context, context.source, context.target)
            elif new is None and old is not None:
                give_sockets(context, context.target, context.source)
        if latest is None or latest[1] not in UNFINISHED:
            self._resets.look(setup.host, setup.slots, latest)
        tell_neighbours(setup.host, setup.slots.values())

    def begin(self, plan: Plan, control: Control, watch: Watcher) -> Engine:
        """A new run of this plan. Raises BlockedError, and begins nothing, where findings or the host forbid it."""
        return self.record(self.require(plan), None, control, watch)

    def require(self, plan: Plan) -> Plan:
        """The plan as it is made now. Raises BlockedError where findings, the run before, or the host forbid it.

        Not the one that was given: a file's steps may have been edited, and its id with them not.
        """
        if plan.blocking:
            raise forbidden(plan.blocking, "upgrade check   (it says what to do about each)")
        latest = self.journal.latest()
        unfinished = latest is not None and latest.state in UNFINISHED
        if unfinished and latest and not _supersedes(plan, latest):
            raise BlockedError(
                "RUN_UNFINISHED",
                f"run {latest.heading.run_id} (slot {latest.heading.source} -> {latest.heading.target}) is "
                f"{latest.state} half-way",
                state="nothing was changed",
                next="upgrade resume   (on), or: upgrade rollback   (back)",
            )
        restore = None if plan.kind is not PlanKind.UPGRADE or _starts(plan) else plan.target
        now = make_plan(self.setup(), restore, plan.policy, plan.kind)[1]
        if now.id != plan.id:
            raise BlockedError(
                "PLAN_STALE",
                f"the host is not as it was when plan {plan.id} was made (it would be {now.id} now)",
                state="nothing was changed",
                next="upgrade plan   (and read it again)",
            )
        # which VMs there are is asked of a switch that may be dead
        return plan if plan.kind is PlanKind.TAKEOVER else now

    def record(self, plan: Plan, acted: Data | None, control: Control, watch: Watcher) -> Engine:
        """A new run of a plan that may begin. `acted` tells of first effects that had no time to be recorded."""
        setup = self.setup()
        latest = self.journal.latest()
        if latest is not None and latest.state in UNFINISHED:
            self._supersede(latest, setup.host.clock.now_ns())
        view = self.journal.begin(plan, setup.host.clock.now_ns())
        return self._engine(view, plan, setup, control, watch, acted)

    def resume(self, control: Control, watch: Watcher) -> Engine:
        """The run that stopped half-way, to be carried on by `forward`. Raises BlockedError where there is none."""
        view = self.journal.latest()
        if view is None or view.state not in UNFINISHED:
            raise BlockedError(
                "NOTHING_TO_RESUME",
                "no run has stopped half-way" + (f": run {view.heading.run_id} is {view.state}" if view else ""),
                state="nothing was changed",
                next="upgrade status",
            )
        setup = self.setup()
        plan = self.journal.plan(view.heading.run_id)
        self._require_same_standby(view, plan, setup)
        return self._engine(view, plan, setup, control, watch)

    def rollback(self, control: Control, watch: Watcher) -> Engine:
        """The latest run, to be taken back: half-way, or done with its old switch kept. Raises BlockedError otherwise."""
        view = self.journal.latest()
        setup = self.setup()
        if view is not None and view.heading.kind == PlanKind.TAKEOVER and view.state in UNFINISHED:
            raise BlockedError(
                "NO_WAY_BACK",
                f"run {view.heading.run_id} took over from a switch that was dead",
                state="nothing was changed",
                next="upgrade resume",
            )
        kept = view is not None and self._is_kept(view.heading, view.state, setup)
        if view is None or not (kept or view.state in UNFINISHED):
            what = f"run {view.heading.run_id} is {view.state}" if view else "there has been no run"
            raise BlockedError(
                "NOTHING_TO_ROLL_BACK",
                f"{what}, and no old switch is kept to go back to",
                state="nothing was changed",
                next="upgrade --host localhost   (it goes to the other slot by a new run)",
            )
        return self._engine(view, self.journal.plan(view.heading.run_id), setup, control, watch)

    def _is_kept(self, head: Heading, state: RunState, setup: Setup) -> bool:
        """Whether that run is done, was to keep its old switch, and that still runs."""
        runs = setup.host.processes.status(setup.slots[head.source]).vswitchd_pid is not None
        return runs and self._keeps(head, state)

    def _keeps(self, head: Heading, state: RunState) -> bool:
        """Whether that run is done, and was to keep its old switch."""
        done = state is RunState.DONE and head.kind == PlanKind.UPGRADE
        return done and self._plan(head.run_id).policy.keep_old

    def _plan(self, run_id: int) -> Plan:
        """The one that was read last is kept: `keep` asks for it every few seconds, and of many VMs it is long."""
        if self._read is None or self._read[0] != run_id:
            self._read = run_id, self.journal.plan(run_id)
        return self._read[1]

    def _engine(
        self, view: RunView, plan: Plan, setup: Setup, control: Control, watch: Watcher, acted: Data | None = None
    ) -> Engine:
        return Engine(view, plan, setup.host, setup.slots, self.journal, control, watch, acted)

    def vigil(self, engine: Engine) -> Vigil:
        """Who looks after both switches while that run is carried out; it kills only where takeovers are automatic."""
        setup = self.setup()
        acts = setup.takeover.policy == "automatic" and not setup.takeover.maintenance
        return Vigil(setup.host, setup.slots, engine.view.heading.target, acts=acts)

    def _require_same_standby(self, view: RunView, plan: Plan, setup: Setup) -> None:
        """What the run prepared in the new switch is gone with that process."""
        runs = setup.host.processes.status(setup.slots[plan.target]).vswitchd_pid
        if (started := standby_lost(view, plan, runs)) is not None:
            raise BlockedError(
                "STANDBY_IS_ANOTHER",
                f"the switch of slot {plan.target} that this run started (pid {started}) "
                + ("does not run any more" if runs is None else f"is another one now (pid {runs})"),
                state="nothing was changed; QEMU serves each VM by a switch that lives",
                next="upgrade rollback",
            )

    def _supersede(self, view: RunView, at_ns: int) -> None:
        event = Event(EventKind.STATE, at_ns, None, {"to": str(RunState.SUPERSEDED), "reason": "RESTORE"})
        view.apply(event)
        self.journal.append(view.heading.run_id, event)


def make_plan(
    setup: Setup, restore: SlotName | None, policy: Policy, kind: PlanKind = PlanKind.UPGRADE
) -> tuple[HostFacts, Plan]:
    """What a run would do now. Reads the host, changes nothing."""
    host = setup.host
    asks = kind is not PlanKind.TAKEOVER  # the one to be taken over from may hang
    facts = gather(setup.name, dict(setup.slots), host, vni_key=host.vni_key, adapter=setup.adapter, ask_switches=asks)
    capabilities = host.steering.capabilities()
    match kind:
        case PlanKind.ARM:
            return facts, arming.arm(facts, capabilities, setup.accept, policy)
        case PlanKind.DISARM:
            return facts, arming.disarm(facts, capabilities, setup.accept, policy)
        case PlanKind.TAKEOVER:
            return facts, arming.takeover(facts, policy)
    if restore:
        return facts, planning.restore(facts, capabilities, restore, setup.accept, policy)
    return facts, planning.upgrade(facts, capabilities, setup.accept, policy)


def _starts(plan: Plan) -> bool:
    return any(s.kind is StepKind.START_STANDBY for s in plan.steps)


def _supersedes(plan: Plan, unfinished: RunView) -> bool:
    """Whether a run may begin where another one is half-way: it is a way out of that, from wherever it stands."""
    if plan.kind is PlanKind.ARM:
        return unfinished.heading.kind == PlanKind.ARM
    return plan.kind is not PlanKind.UPGRADE or not _starts(plan)


def _seen(setup: Setup, view: RunView) -> dict[str, object]:
    """Who serves each VM of the run in QEMU's eyes, for the journal; and a log line where the journal says otherwise."""
    pids = {n: setup.host.processes.status(s).vswitchd_pid for n, s in setup.slots.items()}
    try:
        interfaces = setup.host.hypervisor.vm_interfaces()
    except UpgradeError as error:
        log.warning("cannot look at the VMs", error=str(error))
        return {}
    by_domain = {vm.domain: vm for vm in interfaces}
    rings: dict[str, SlotName | None] = {}
    for label, slot in recorded(view).rings.items():
        vm = by_domain.get(label.rpartition("/")[0])
        rings[label] = next((n for n, pid in pids.items() if vm and owned_by(vm.ownership, pid)), None)
        if rings[label] != slot:
            log.warning("the journal and QEMU differ", vm=label, journal=slot, qemu=rings[label])
    return {"rings": rings}


def with_policy(policy: Policy, *, on_failure: planning.OnFailure | None, keep_old: bool | None) -> Policy:
    """The configured policy, but for what the operator said on the command line."""
    if on_failure is not None:
        policy = replace(policy, on_failure=on_failure)
    return replace(policy, keep_old=keep_old) if keep_old is not None else policy
