"""The daemon's side: requests from root, a thread each; one run at a time, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypedDict

import structlog

from upgrader.core.arming import with_staleness
from upgrader.core.errors import Exit, LockedError, SupersededError, UpgradeError, UsageError
from upgrader.core.journal import Event, RunView
from upgrader.core.plan import Plan, PlanKind
from upgrader.core.takeover import history
from upgrader.daemon.protocol import encode, error_fields, peer_uid, read
from upgrader.engine.control import Control, Request
from upgrader.engine.coordinator import Coordinator
from upgrader.engine.run import Engine
from upgrader.engine.sentry import Taken
from upgrader.engine.takeover import Guard, Resume, Todo

log = structlog.get_logger(__name__)

_SOON_S = 1.0
_STUCK_S = 5.0  # it looks for clients several times a second
_PAST = 200  # runs


class Started(TypedDict):
    """Which run, and how many events its journal had when it was asked for."""

    run_id: int
    events: int


class Runner:
    """Carries out one run at a time; asked by any thread."""

    def __init__(self, coordinator: Coordinator, post: Callable[[], Connection] | None = None) -> None:
        self._coordinator = coordinator
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._control = Control()
        self._engine: Engine | None = None
        self.news = threading.Event()  # something has happened that `keep` should look at
        self.superseded = False  # another coordinator has this host: nothing is left to be done for us
        self.guard = Guard(coordinator, self.news.set, post)

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(self, plan_json: str) -> Started:
        """A new run of the plan; it goes on in its own thread. Returns its id and how many events it had before."""
        from upgrader.adapters.journal import plan_from_json  # noqa: PLC0415 - pydantic

        try:
            plan = plan_from_json(plan_json)
        except ValueError as error:
            raise UsageError(
                "PLAN_UNREADABLE",
                f"that is no plan: {error}",
                state="nothing was changed",
                next="upgrade plan --out FILE",
            ) from error
        if plan.kind is PlanKind.TAKEOVER:
            plan = with_staleness(plan, self.guard.staleness())
            if not self.busy and not self._quiet():
                return self._take_over(plan)
        with self._free():
            return self._start(self._coordinator.begin(plan, self._control, _log_event), back=False)

    def _quiet(self) -> bool:
        """Whether `keep` is not at work, or ends soon."""
        quiet = self._lock.acquire(timeout=_SOON_S)
        if quiet:
            self._lock.release()
        return quiet

    def _take_over(self, plan: Plan) -> Started:
        """Act before the record: `keep` may wait for the very switch that hangs, and is freed by its death."""
        plan = self._coordinator.require(plan)
        acted = self.guard.act_now(plan)
        with self._free():
            return self._start(self._coordinator.record(plan, acted, self._control, _log_event), back=False)

    def resume(self) -> Started:
        with self._free():
            return self._start(self._coordinator.resume(self._control, _log_event), back=False)

    def rollback(self) -> Started:
        """Take the latest run back: ask the one that runs to turn round, or begin with one that stopped or is done."""
        with self._lock:
            if self.busy:
                self._control.ask(Request.BACK)
                return self._now()
        with self._free():
            return self._start(self._coordinator.rollback(self._control, _log_event), back=True)

    def ask(self, request: Request) -> Started:
        """Pause or abort the run that runs. Raises UsageError where none does."""
        with self._lock:
            if not self.busy:
                raise UsageError(
                    "NO_RUN", "no run is being carried out", state="nothing was changed", next="upgrade status"
                )
            self._control.ask(request)
            return self._now()

    def keep(self) -> None:
        """Keep right what has to be between runs; nothing while one is on, and none begins meanwhile."""
        with self._lock:
            if not self.busy:
                try:
                    self._coordinator.journal.require_claim()
                    self._coordinator.keep()
                except SupersededError as error:
                    self._end(error)
                    return
                except UpgradeError as error:
                    log.warning("could not be kept right", error=str(error))
                try:
                    self._carry_on(self.guard.look())
                except UpgradeError as error:
                    log.warning("protection", error=str(error), next=error.next)
                    self.guard.failed(error)

    def _carry_on(self, todo: Todo) -> None:
        """Begin what the guard found to be done."""
        if todo is None:
            return
        self._control = Control()
        if isinstance(todo, Taken):
            engine = self._coordinator.record(todo.plan, todo.data, self._control, _log_event)
        elif isinstance(todo, Resume):
            engine = self._coordinator.resume(self._control, _log_event)
        else:
            engine = self._coordinator.begin(todo, self._control, _log_event)
        self._start(engine, back=False)

    def past(self) -> tuple[int, RunView | None, RunView | None]:
        """Takeovers of the last hour, the latest run, and the latest takeover."""
        journal = self._coordinator.journal
        headings = journal.headings(_PAST, steps=False)
        recent = history(headings, self._coordinator.setup().host.clock.now_ns()).recent
        taken = next((head.run_id for head, _, _ in headings if head.kind == PlanKind.TAKEOVER), None)
        return recent, journal.latest(), None if taken is None else journal.view(taken)

    def join(self, timeout_s: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)

    @contextlib.contextmanager
    def _free(self) -> Any:
        with self._lock:
            if self.busy:
                raise LockedError(
                    "RUN_BUSY",
                    f"run {self._now()['run_id']} is being carried out",
                    state="this command changed nothing",
                    next="upgrade status --watch",
                )
            self._control = Control()
            yield

    def _start(self, engine: Engine, *, back: bool) -> Started:
        self.guard.suspend()
        self._engine = engine
        started = self._now()
        self._thread = threading.Thread(target=self._carry_out, args=(engine, back), name="run", daemon=True)
        self._thread.start()
        return started

    def _now(self) -> Started:
        view = self._engine.view if self._engine else None
        return {"run_id": view.heading.run_id if view else 0, "events": len(view.events) if view else 0}

    def _carry_out(self, engine: Engine, back: bool) -> None:
        # of the vigil's lines, too, and of the last one
        structlog.contextvars.bind_contextvars(run=engine.view.heading.run_id)
        try:
            with self._coordinator.vigil(engine).beside():
                view = engine.back() if back else engine.forward()
            log.info("run ended", state=str(view.state), reason=view.reason)
        except SupersededError as error:
            self._end(error)
        except UpgradeError as error:  # the journal cannot be written: the run stands where it stood
            log.error("run stopped", error=str(error))
        except Exception:
            log.exception("run stopped by a fault of ours")
        finally:
            self.news.set()

    def _end(self, error: SupersededError) -> None:
        log.error("this coordinator ends", error=str(error))
        self.superseded = True


def _log_event(_view: RunView, event: Event) -> None:
    log.info(
        "event", kind=str(event.kind), number=event.step, **{k: v for k, v in event.data.items() if k in ("to", "code")}
    )


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a socket of mode 0600. `last_used`: when a client was there last, CLOCK_MONOTONIC, seconds."""

    daemon_threads = True

    def __init__(
        self, path: Path, config: Path, coordinator: Coordinator, post: Callable[[], Connection] | None = None
    ) -> None:
        self.runner = Runner(coordinator, post)
        self.path = path
        self._config = config
        self._door = threading.Lock()
        self._closing = False
        self.clients = 0
        self.last_used = time.monotonic()
        self._turned = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.unlink(missing_ok=True)  # whoever holds the host's lock is the only one that may listen here
        mask = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(mask)
        self._inode = path.stat().st_ino

    def require_config(self, given: str) -> None:
        """Refuse a plan that was made by another configuration than ours."""
        if Path(given) != self._config:
            raise UsageError(
                "CONFIG_DIFFERS",
                f"the coordinator of this host reads {self._config}, not {given}",
                state="nothing was changed",
                next=f"upgrade --config {self._config} --host localhost",
            )

    def enter(self) -> bool:
        """Count a client in, unless we are about to end: then it starts another daemon."""
        with self._door:
            if self._closing:
                return False
            self.clients += 1
            return True

    def leave(self) -> None:
        with self._door:
            self.clients -= 1
            self.last_used = time.monotonic()

    def close_if_idle(self, linger_s: float) -> bool:
        """Let nobody in any more, if nobody has been here for so long."""
        with self._door:
            self._closing = self.idle_s > linger_s and not self.runner.guard.wanted
            return self._closing

    def service_actions(self) -> None:
        """`serve_forever` has come round once more."""
        self._turned = time.monotonic()

    @property
    def answers(self) -> bool:
        """Whether a client would be heard: what the watchdog is told of."""
        return time.monotonic() - self._turned < _STUCK_S

    def server_close(self) -> None:
        super().server_close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:  # else another daemon listens there by now
                self.path.unlink()

    @property
    def idle_s(self) -> float:
        """For how long there has been no client and no run."""
        if self.clients or self.runner.busy:
            self.last_used = time.monotonic()
        return time.monotonic() - self.last_used


class _Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        if not self.server.enter():
            return
        try:
            uid = peer_uid(self.connection)
            if uid not in (0, os.geteuid()):
                log.warning("a client was turned away", uid=uid)
                return
            while True:
                try:
                    message = read(self.rfile)
                    if message is None:
                        return
                    answer = {"result": self._answer(str(message.get("method")), message.get("params") or {})}
                except UpgradeError as error:
                    answer = {"error": error_fields(error)}
                except Exception as error:
                    log.exception("a request failed")
                    unexpected = UpgradeError(
                        "UNEXPECTED",
                        f"{type(error).__name__}: {error}",
                        state="a run that is under way goes on",
                        next="upgrade status; journalctl -u ovs-upgraded",
                    )
                    answer = {"error": error_fields(unexpected)}
                self.wfile.write(encode(answer))
        except OSError:
            pass  # the client is gone; what it asked for goes on
        finally:
            self.server.leave()

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        server = self.server
        match method:
            case "ping":
                return {"pid": os.getpid(), "busy": server.runner.busy}
            case "protection":
                return asdict(server.runner.guard.standing)
            case "run":
                server.require_config(str(params["config"]))
                return {**server.runner.begin(str(params["plan"]))}
            case "resume":
                return {**server.runner.resume()}
            case "rollback":
                return {**server.runner.rollback()}
            case "ask":
                return {**server.runner.ask(Request(params["request"]))}
        error = UpgradeError(
            "NO_SUCH_METHOD", f"there is no method {method}", state="nothing was changed", next="upgrade --help"
        )
        error.exit_code = Exit.USAGE
        raise error
