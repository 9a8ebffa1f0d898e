"""The sentry of an armed host: it waits for the death of the active, takes over at once, and does nothing else.

It has a process of its own. In the guard's a thread that waits would share the interpreter with those that replicate and
look, which on a busy machine are put off while they hold it. What it needs stands ready: connections, messages, threads;
on the way there is nothing to import, to log or to write. The guard gives it orders over a connection; when that ends it ends.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import structlog

from upgrader.core.errors import HostError, UpgradeError
from upgrader.core.health import Health
from upgrader.core.journal import Data
from upgrader.core.plan import Plan
from upgrader.engine.coordinator import Setup
from upgrader.ports import DeathWatch, Probe
from upgrader.steps import Context
from upgrader.steps.fences import Fences
from upgrader.steps.take_over import take_over

log = structlog.get_logger(__name__)

_AT_A_TIME = 8  # VMs whose QEMU is spoken to
_READY_S = 20.0  # an interpreter takes to start on a busy machine, and to connect to all it needs
_PULSE_S = 0.1  # between two looks at whether it works
_STOP_S = 10.0  # a takeover takes to end


@dataclass(frozen=True, slots=True)
class Order:
    """What a takeover would do now, and whether the sentry is to do it by itself: at a death, and where the active hangs."""

    plan: Plan
    at_death: bool
    at_hang: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A takeover that was carried out and is to be recorded, and to be finished."""

    plan: Plan
    data: Data


@dataclass(frozen=True, slots=True)
class Ready:
    """The order stands. `early`: the active's death is seen at its first sign; else when it is gone."""

    early: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """An order that cannot be got ready, or a takeover that could not be carried out: it stops being the sentry."""

    what: str
    next: str


class Died:
    """The active has died, and there is no order to take over."""


@dataclass(frozen=True, slots=True)
class Hangs:
    """The active lives and does not work, and there is no order to take over from it; empty: it does again."""

    what: str


def serve(orders: Connection, setup: Setup) -> None:
    """Be the sentry, until the guard says stop (None) or is gone."""
    pool = ThreadPoolExecutor(_AT_A_TIME, "bring")
    death: DeathWatch | None = None
    probe: Probe | None = None
    order: Order | None = None
    health = Health()
    fences = Fences()
    _go_first()
    try:
        while True:
            readable = wait([orders, death.fileno()] if death else [orders], _PULSE_S if probe else None)
            if orders in readable:
                order = orders.recv()
                if order is None:
                    return
                context = _context(setup, order)
                death = death or setup.host.processes.watch(context.source)
                probe = probe or setup.host.processes.probe(context.source)
                orders.send(_get_ready(context, pool, death, fences))
            elif readable:
                if death and death.died():
                    orders.send(_act(setup, order, pool, fences, "") if order and order.at_death else Died())
                    _let_go(death, probe)
                    death = probe = None
            elif order and probe and (pulse := probe.pulse()):
                before, health = health.hang, health.after(pulse)
                if health.hang and order.at_hang:
                    orders.send(_act(setup, order, pool, fences, health.hang))
                    _let_go(death, probe)
                    death = probe = None
                elif health.hang != before:
                    orders.send(Hangs(health.hang))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # no guard, no sentry: QEMU moves the rings by itself, the next guard does the rest
    finally:
        _let_go(death, probe)
        fences.close()
        pool.shutdown(wait=False)
        orders.close()


def _let_go(death: DeathWatch | None, probe: Probe | None) -> None:
    for watched in (death, probe):
        if watched:
            watched.close()


def _context(setup: Setup, order: Order) -> Context:
    return Context(setup.host, order.plan, setup.slots[order.plan.source], setup.slots[order.plan.target])


def _get_ready(context: Context, pool: ThreadPoolExecutor, death: DeathWatch | None, fences: Fences) -> Ready | Failed:
    """Once through what the takeover needs, so that it stands ready: sockets, messages, fences, the connection to libvirt."""
    try:
        context.host.steering.rules()
        fences.renew(context)
    except UpgradeError as error:
        return Failed(str(error), error.next)
    together = threading.Barrier(_AT_A_TIME)
    for _ in range(_AT_A_TIME):
        pool.submit(_go_first, together)
    if not gc.isenabled():
        gc.collect()  # now, and not in the middle of a takeover
    return Ready(death is not None and death.early)


def _go_first(together: threading.Barrier | None = None) -> None:
    """Before all that shares the machine: these threads sleep but for a takeover."""
    if together:
        together.wait()  # so that each thread of the pool comes here
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:  # a unit or a container without real-time priorities
        if not together:
            log.warning("no real-time priority: a takeover waits for a CPU as everybody does", error=str(error))


def _act(setup: Setup, order: Order, pool: ThreadPoolExecutor, fences: Fences, hang: str) -> Taken | Failed:
    """The takeover itself: effects first, the record after them."""
    try:
        data = take_over(_context(setup, order), order.plan.all_ports, pool.map, fences)
        return Taken(order.plan, {**data, "hung": hang} if hang else data)
    except UpgradeError as error:
        return Failed(str(error), error.next)


class Sentry:
    """The guard's end of the connection. `woken` is called when there is news."""

    def __init__(self, orders: Connection, woken: Callable[[], None]) -> None:
        self._orders = orders
        self._woken = woken
        self._answered = threading.Event()
        self._ended = threading.Event()
        self.news: Taken | Failed | Died | None = None
        self.hangs = ""
        self.ready: Ready | None = None
        threading.Thread(target=self._listen, name="sentry", daemon=True).start()

    def order(self, order: Order) -> None:
        """Returns once it is ready for that; one that saw the death before has `news`. Raises HostError when it is not."""
        self._answered.clear()
        why = "it has ended"
        with suppress(OSError):
            self._orders.send(order)
            self._answered.wait(_READY_S)
            why = f"it does not answer within {_READY_S:g} s"
        if isinstance(self.news, Failed):
            why = self.news.what
        elif self.news or (self.ready and self._answered.is_set() and not self._ended.is_set()):
            return
        raise HostError(
            "SENTRY_NOT_READY",
            f"nobody waits for the death of slot {order.plan.source}'s switch: {why}",
            state="QEMU brings the rings to the standby if it dies; nobody turns steering at that moment",
            next="systemctl restart ovs-upgraded",
        )

    def stop(self) -> Taken | None:
        """Wait no more. A takeover that it had begun is waited for, and returned."""
        with suppress(OSError):
            self._orders.send(None)
        self._ended.wait(_STOP_S)
        return self.news if isinstance(self.news, Taken) else None

    @property
    def gone(self) -> bool:
        return self._ended.is_set()

    def _listen(self) -> None:
        try:
            while True:
                message = self._orders.recv()
                if isinstance(message, Ready):
                    self.ready = message
                    self._answered.set()
                    continue
                if isinstance(message, Hangs):
                    self.hangs = message.what
                else:
                    self.news = message
                    self._answered.set()
                self._woken()
        except (EOFError, OSError):
            pass
        finally:
            self._orders.close()
            self._ended.set()
            self._answered.set()
