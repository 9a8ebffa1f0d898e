"""The daemon's log: it never holds a run up, and each line of a run says of which run, step and VM it is."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from tests.support.runs import SimRun, disarm, settled, sim_run
from tests.support.service import Service
from tests.support.sim_host import SimHost, until
from upgrader.core.errors import Exit
from upgrader.core.journal import EventKind
from upgrader.core.lifecycle import RunState
from upgrader.daemon import logs
from upgrader.engine.control import Request
from upgrader.sim.world import refused

PAGE = 4096  # the smallest pipe that Linux makes


@pytest.fixture
def full() -> Iterator[int]:
    """The end of a pipe that is full, and that nobody reads: whoever writes there waits for ever."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PAGE)
    os.set_blocking(write, False)
    os.write(write, b"." * PAGE)
    os.set_blocking(write, True)
    assert not select.select([], [write], [], 0)[1]
    yield write
    os.close(read)
    os.close(write)


def test_a_journal_that_takes_no_line_holds_no_run_up(tmp_path: Path, full: int) -> None:
    """As it started, while a run goes there and back, and as it ends: nobody has read a byte."""
    with SimHost(tmp_path) as host:
        # JOURNAL_STREAM is what systemd sets for a service whose stderr goes to the journal
        with Service(host.config, "--verbose", stderr=full, env={"JOURNAL_STREAM": "1:1"}) as service:
            service.ready()
            for slot in ("b", "a"):
                code, _, err = host.upgrade("--host", "localhost", "--yes")
                assert code == Exit.DONE, err
                with host.world().opened() as world:
                    settled(world, slot)  # type: ignore[arg-type]
            assert host.pid == service.pid, "the run was this very daemon's"
            assert not select.select([], [full], [], 0)[1], "nobody has read"
            assert service.ends(signal.SIGTERM) == 0
        assert host.pid is None


def test_what_goes_by_the_pipe_is_the_log(tmp_path: Path) -> None:
    """The test above is one of logs: read, the same pipe tells of every run."""
    read, write = os.pipe()
    with SimHost(tmp_path) as host, Service(host.config, stderr=write, env={"JOURNAL_STREAM": "1:1"}) as service:
        os.close(write)
        service.ready()
        assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.DONE
        assert service.ends(signal.SIGTERM) == 0
        with os.fdopen(read) as pipe:
            lines = [json.loads(line) for line in pipe]
    assert [line["to"] for line in lines if line.get("kind") == EventKind.STATE] == ["running", "done"]


def test_lines_that_find_no_room_are_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    lines: queue.Queue[logging.LogRecord] = queue.Queue(3)
    bounded = logs._Bounded(lines)
    for number in range(8):
        bounded.handle(logging.makeLogRecord({"msg": f"line {number}"}))
    writer = logs.Writer(lines, Sink(), bounded)
    writer.start()
    until(lambda: len(written) >= 4, "what there is")
    bounded.handle(logging.makeLogRecord({"msg": "later"}))
    writer.stop()
    assert [line for line in written if "lost" not in line] == ["line 0", "line 1", "line 2", "later"]
    assert [json.loads(line)["lines"] for line in written if "lost" in line] == [5]


def test_an_end_waits_for_the_last_lines_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LAST_LINES_S", 0.1)

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(3)

    lines: queue.Queue[logging.LogRecord] = queue.Queue(1)
    bounded = logs._Bounded(lines)
    writer = logs.Writer(lines, Stuck(), bounded)
    writer.start()
    for _ in range(4):
        bounded.handle(logging.makeLogRecord({"msg": "x"}))
    started = time.monotonic()
    writer.stop()
    assert time.monotonic() - started < 2


# --- what a line is about


@pytest.fixture
def told() -> Iterator[LogCapture]:
    """Every line, with what was bound when it was written."""
    before = structlog.get_config()
    capture = LogCapture()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=False,
    )
    yield capture
    structlog.configure(**before)


def _in_the_middle(run: SimRun) -> None:
    """A line from within every effect, as an adapter writes it."""
    log = structlog.get_logger("an adapter")
    acts = run.world.fault

    def fault(name: str, count: int) -> BaseException | None:
        log.debug("in the middle", call=name)
        return acts(name, count)

    run.world.fault = fault


@pytest.mark.parametrize("way", ["there", "back", "fails", "paused"])
def test_every_line_of_a_run_says_of_which_run_step_and_vm_it_is(tmp_path: Path, told: LogCapture, way: str) -> None:
    run = sim_run(tmp_path, 3)
    match way:
        case "back":
            run.world.fault = lambda name, count: run.control.ask(Request.BACK) if name == "switch vm1" else None
        case "fails":  # a switch that is tried again, and a move that is undone
            run.world.fault = lambda name, count: refused("no") if name in ("switch vm1", "sync_learned a b") else None
        case "paused":
            run.world.fault = lambda name, count: run.control.ask(Request.PAUSE) if name == "switch vm1" else None
    _in_the_middle(run)
    engine = run.begin()
    titles = {step.title: step.port for step in run.journal.plan(1).steps}
    told.entries.clear()
    engine.forward()
    if way == "paused":
        run.again()
        disarm(run)
        _in_the_middle(run)
        run.rollback().back()
    lines = [e for e in told.entries if "run" in e or e["event"] not in ("coordinator",)]
    assert len([e for e in lines if e["event"] == "in the middle"]) > 20
    for line in lines:
        assert line.get("run") == 1, line
        if line["event"] == "in the middle" and not _between_steps(line):
            port = titles[line["step"]]
            assert line["vm"] == (port.label if port else None), line
    concerned = {line["step"] for line in lines if line["event"] == "in the middle" and "step" in line}
    assert {t for t in titles if "vm0" in t or "vm1" in t} <= concerned
    assert "step" not in structlog.contextvars.get_contextvars(), "what comes after the run is not about it"
    assert "run" not in structlog.contextvars.get_contextvars()


def _between_steps(line: dict[str, object]) -> bool:
    """Steering that follows VMs to where they are, as a run stops, is no step's."""
    return "step" not in line and str(line["call"]).split(" ")[0] in ("steady", "steer", "close_window")


def test_the_daemons_own_lines_of_a_run_say_which_it_is(tmp_path: Path) -> None:
    with SimHost(tmp_path, effect_s=0.0) as host:
        assert host.upgrade("--host", "localhost", "--yes")[0] == Exit.DONE
        host.end_coordinator(signal.SIGTERM)
        lines = [json.loads(line) for line in (host.state / "journal.log").read_text().splitlines()]
    events = [line for line in lines if line["event"] == "event"]
    assert [line["to"] for line in events if line["kind"] == "state"] == [RunState.RUNNING, RunState.DONE]
    assert {line["run"] for line in events} == {1}
    steps = [line for line in events if line["kind"] != "state"]
    assert all(line["step"] for line in steps)
    assert {"vm0/vhu0", "vm1/vhu1", "vm2/vhu2"} == {line["vm"] for line in steps} - {None}
    assert [line["run"] for line in lines if line["event"] == "run ended"] == [1]
