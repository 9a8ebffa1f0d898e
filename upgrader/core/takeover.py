"""The protection of a host: which state it is in, and what follows from what was seen. A table, and functions that ask it.

It stands on two facts. When the owner of a VM's rings is proved gone and the other switch stands by, QEMU brings the rings
there by itself. And whoever is to be fenced is killed first: nothing here is decided by a time-out alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from upgrader.core.journal import Heading
from upgrader.core.lifecycle import UNFINISHED, RunState
from upgrader.core.model import SlotName
from upgrader.core.plan import PlanKind

_HOUR_NS = 3_600_000_000_000

TakeoverWord = Literal["off", "manual", "automatic"]


@dataclass(frozen=True, slots=True)
class TakeoverPolicy:
    """What is done without a person.

    policy        off: no standby is kept; manual: it is kept and watched, a person types `upgrade takeover`;
                  automatic: the daemon takes over by itself
    max_per_hour  takeovers in an hour after which the host is not armed again by itself
    rearm         after a takeover, and after the death of a standby, a new standby is started
    maintenance   a person is at work: nothing is done by itself, whatever is seen
    """

    policy: TakeoverWord = "manual"
    max_per_hour: int = 3
    rearm: bool = True
    maintenance: bool = False


class Protection(StrEnum):
    """How well a host is protected against the death of its switch.

    DISARMED     nobody asked for a standby
    ARMING       a standby is being started, replicated, proved and attached
    ARMED        it stands by on every VM, and is kept what the active is
    STALE        it stands by, and is not what the active is, or not on every VM: better than none
    TAKING_OVER  rings, steering and control go to it
    EXPOSED      a standby was asked for, and there is none
    """

    DISARMED = "disarmed"
    ARMING = "arming"
    ARMED = "armed"
    STALE = "stale"
    TAKING_OVER = "taking-over"
    EXPOSED = "exposed"


class Sight(StrEnum):
    """What was seen of the two switches."""

    BOTH_LIVE = "both-live"
    ACTIVE_DIED = "active-died"  # also when it came again meanwhile: QEMU has brought its VMs to the standby
    ACTIVE_HANGS = "active-hangs"
    STANDBY_DIED = "standby-died"
    BOTH_DIED = "both-died"


class Action(StrEnum):
    """What to do.

    FOLLOW     keep the standby what the active is, attach VMs that came
    TAKE_OVER  fence the active, and bring everything to the standby
    ARM        start a standby
    SHOUT      nothing by itself: say what a person has to do
    NOTHING    nothing, and nothing to say
    """

    FOLLOW = "follow"
    TAKE_OVER = "take-over"
    ARM = "arm"
    SHOUT = "shout"
    NOTHING = "nothing"


#: Under `automatic`. ARMING and TAKING_OVER have no entries: a run is on, and core/decisions.py says what a death means.
TABLE: Mapping[tuple[Protection, Sight], Action] = {
    # a person's wish that there be no standby is not overruled by anything
    **{(Protection.DISARMED, sight): Action.NOTHING for sight in Sight},
    (Protection.ARMED, Sight.BOTH_LIVE): Action.FOLLOW,
    (Protection.ARMED, Sight.ACTIVE_DIED): Action.TAKE_OVER,
    (Protection.ARMED, Sight.ACTIVE_HANGS): Action.TAKE_OVER,
    (Protection.ARMED, Sight.STANDBY_DIED): Action.ARM,
    (Protection.ARMED, Sight.BOTH_DIED): Action.SHOUT,
    (Protection.STALE, Sight.BOTH_LIVE): Action.FOLLOW,
    # QEMU has brought the rings there already: an old copy forwards more than no switch at all
    (Protection.STALE, Sight.ACTIVE_DIED): Action.TAKE_OVER,
    # that one still may forward something, and what it is exchanged for may not: a person has to look
    (Protection.STALE, Sight.ACTIVE_HANGS): Action.SHOUT,
    (Protection.STALE, Sight.STANDBY_DIED): Action.ARM,
    (Protection.STALE, Sight.BOTH_DIED): Action.SHOUT,
    (Protection.EXPOSED, Sight.BOTH_LIVE): Action.ARM,
    (Protection.EXPOSED, Sight.ACTIVE_DIED): Action.SHOUT,
    (Protection.EXPOSED, Sight.ACTIVE_HANGS): Action.SHOUT,
    (Protection.EXPOSED, Sight.STANDBY_DIED): Action.ARM,
    (Protection.EXPOSED, Sight.BOTH_DIED): Action.SHOUT,
}


def decide(now: Protection, seen: Sight, policy: TakeoverPolicy, recent: int) -> Action:
    """What to do. `recent`: takeovers of the last hour.

    The storm guard stops what leads to the next takeover, a new standby, and a takeover from a switch that lives. One
    from a dead switch is never held back: QEMU has brought the rings over, and only steering and control would stay
    with nobody.
    """
    action = TABLE[now, seen]
    storm = recent >= policy.max_per_hour
    match action:
        case Action.TAKE_OVER:
            held = policy.policy != "automatic" or policy.maintenance or (storm and seen is Sight.ACTIVE_HANGS)
        case Action.ARM:
            # a standby that died is replaced under `manual`, too: no VM is touched by that
            held = policy.policy == "off" or policy.maintenance or not policy.rearm or storm
        case Action.FOLLOW:
            held = False
            if policy.policy == "off":
                action = Action.NOTHING
        case _:
            held = False
    return Action.SHOUT if held else action


def sight(*, active: int | None, standby: int | None, was: Collection[int], owners: Collection[int]) -> Sight:
    """From the pids of the two switches now, None where one does not run.

    was     pids of the active when the host was armed; empty: not known
    owners  pids that serve a VM now

    A VM that is with the standby says nothing by itself: one that was restarted may be. It does when the active is
    another process than it was: that one was started anew by somebody, and serves nobody.
    """
    if active is None:
        return Sight.ACTIVE_DIED if standby is not None else Sight.BOTH_DIED
    if standby is None:
        return Sight.STANDBY_DIED
    revived = bool(was) and active not in was
    return Sight.ACTIVE_DIED if revived and standby in owners else Sight.BOTH_LIVE


@dataclass(frozen=True, slots=True)
class History:
    """What the journal says of a host's protection.

    state   as far as it goes: that of the host may be worse
    run_id  of the run that armed it, None where none did
    recent  takeovers in the last hour
    """

    state: Protection
    run_id: int | None
    recent: int


def history(runs: Iterable[tuple[Heading, RunState, int]], now_ns: int) -> History:
    """From the headings of the journal, the newest first; `now_ns` is CLOCK_REALTIME.

    Arming is a wish that lasts until somebody disarms: an upgrade or a takeover after it leaves the host without a
    standby, and it is to be armed again.
    """
    recent = 0
    state: Protection | None = None
    run_id: int | None = None
    newest = True
    for head, ended, _ in runs:
        kind = PlanKind(head.kind)
        if kind is PlanKind.TAKEOVER and now_ns - head.started_at_ns < _HOUR_NS:
            recent += 1
        if state is None:
            if kind is PlanKind.DISARM and ended is RunState.DONE:
                state = Protection.DISARMED
            elif kind is PlanKind.ARM and newest and ended is RunState.RUNNING:
                state = Protection.ARMING
            elif kind is PlanKind.ARM and newest and ended is RunState.DONE:
                state, run_id = Protection.ARMED, head.run_id
            elif kind is PlanKind.ARM:
                state = Protection.EXPOSED
            elif kind is PlanKind.TAKEOVER and newest and ended in UNFINISHED:
                state = Protection.TAKING_OVER
        newest = False
    return History(state or Protection.DISARMED, run_id, recent)


@dataclass(frozen=True, slots=True)
class Standing:
    """What `upgrade status` says of a host's protection.

    reason  why it is no better than `state`
    stale   why what would be taken over to is not known to be what the active is, or was; empty where it is
    """

    state: Protection
    reason: str = ""
    next: str = ""
    active: SlotName | None = None
    standby: SlotName | None = None
    vms: int = 0
    policy: str = ""
    stale: str = ""
