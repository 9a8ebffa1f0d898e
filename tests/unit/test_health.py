"""When a switch that lives is said to hang, and when not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrader.adapters.probe import SwitchProbe, read_cycles
from upgrader.core.health import MAIN_S, PMD_BLOCKED_S, PMD_RAN_S, STOPPED_S, Health, Pulse, Thread

EVERY_S = 0.1


def after(pulses: Iterable[Pulse]) -> tuple[str, float]:
    """The first hang that is told, and when; else ("", the end)."""
    health, at = Health(), 0.0
    for pulse in pulses:
        health, at = health.after(pulse), pulse.at_s
        if health.hang:
            break
    return health.hang, at


def run(
    seconds: float,
    *,
    state: str = "S",
    pmd: str = "R",
    share: float = 1.0,
    main_share: float = 0.0,
    turns: bool = True,
    answers: bool = True,
    begin_s: float = 1.0,
) -> Iterator[Pulse]:
    """A second in which all is well, and then so many seconds of what is said. `share`: of a CPU that the PMD gets."""
    ran = main_ran = cycles = 0.0
    for tick in range(round((begin_s + seconds) / EVERY_S)):
        at = tick * EVERY_S
        well = at < begin_s
        ran += EVERY_S * (1.0 if well else share)
        main_ran += 0 if well else EVERY_S * main_share
        cycles += 1000 if well or turns else 0
        answer = {3: int(cycles)} if well or answers else None
        yield Pulse(at, Thread(main_ran, "S" if well else state), {3: Thread(ran, "R" if well else pmd)}, answer)


@pytest.mark.parametrize(
    ("pulses", "hang", "within_s"),
    [
        (run(100), "", 0),
        (run(100, pmd="S", share=0.0, turns=False), "", 0),  # without a queue it sleeps
        (run(3, turns=False), "comes to no end of a turn", PMD_RAN_S + 0.2),
        (run(20, turns=False, share=0.1), "comes to no end of a turn", 10 * PMD_RAN_S + 0.3),
        (run(100, turns=False, share=0.0), "", 0),  # starved
        (run(100, turns=False, share=0.0, answers=False), "does not answer", MAIN_S + 0.2),
        (run(5, turns=False, pmd="D", share=0.0), "does not return", PMD_BLOCKED_S + 0.2),
        (run(MAIN_S - 1, turns=False, answers=False), "", 0),  # nobody knows whether the PMD turns
        (run(100, answers=False), "does not answer", MAIN_S + 0.2),
        (run(100, answers=False, state="R", main_share=0.01), "", 0),  # starved
        (run(100, answers=False, state="R", main_share=1.0), "does not answer", MAIN_S + 0.2),  # it turns in a circle
        (run(5, state="T", answers=False, turns=False, share=0.0), "stopped by a signal", STOPPED_S + 0.2),
        (run(5, state="t", answers=False, turns=False, share=0.0), "stopped by a signal", STOPPED_S + 0.2),
        (run(STOPPED_S - 0.1, state="T", answers=False, turns=False, share=0.0), "", 0),
    ],
)
def test_what_is_a_hang(pulses: Iterator[Pulse], hang: str, within_s: float) -> None:
    found, at = after(pulses)
    assert hang in found if hang else not found, found
    assert not hang or at - 1.0 <= within_s


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(0, 1), st.booleans(), st.integers(1, 10**9)), max_size=60))
def test_a_pmd_that_turns_is_never_called_stuck_however_little_cpu_it_gets(
    steps: list[tuple[float, float, bool, int]],
) -> None:
    at = ran = 0.0
    cycles = 1
    pulses = []
    for seconds, share, answers, turned in steps:
        at, ran, cycles = at + seconds, ran + seconds * share, cycles + turned
        pulses.append(Pulse(at, Thread(ran, "S"), {0: Thread(ran, "R")}, {0: cycles} if answers else None))
    answered = [p.at_s for p in pulses if p.answer is not None]
    longest = max((b - a for a, b in pairwise([pulses[0].at_s, *answered, at])), default=0.0) if pulses else 0.0
    hang, _ = after(pulses)
    assert not hang or (hang == "its main thread does not answer" and longest >= MAIN_S)


def test_a_pmd_that_was_set_up_anew_counts_from_there() -> None:
    health = Health()
    for tick in range(20):  # port churn: each look finds another thread, whose count begins again
        health = health.after(Pulse(tick * 0.6, Thread(0, "S"), {3: Thread(0.6, "R")}, {3: tick % 2 + 1}))
        assert health.hang == ""


def test_it_goes_on_and_is_well_again() -> None:
    health = Health()
    for pulse in run(3, turns=False):
        health = health.after(pulse)
    assert health.hang
    last = list(run(3, turns=False))[-1]
    assert not health.after(Pulse(last.at_s + 0.1, last.main, last.pmds, {3: 10**9})).hang


def test_cycles_are_read_from_what_a_switch_prints() -> None:
    text = """pmd thread numa_id 0 core_id 1:
  packets received: 10
  packet recirculations: 0
  avg. datapath passes per packet: 1.00
  idle cycles: 1000 (99.00%)
  processing cycles: 10 (1.00%)
  avg cycles per packet: 101.00 (1010/10)
pmd thread numa_id 1 core_id 12:
  packets received: 0
main thread:
  packets received: 3
  idle cycles: 77 (99.00%)
"""
    assert read_cycles(text) == {1: 1010, 12: 0}


def test_a_probe_of_a_real_process_never_waits_for_it(tmp_path: Path) -> None:
    """One that answers as a switch does, is stopped, goes on, and ends; its control socket is a stand-in's."""
    code = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print(1, flush=True); n = 0\n"
        "while True:\n"
        "    c = s.accept()[0]\n"
        "    while c.recv(4096):\n"
        "        n += 1; text = f'pmd thread numa_id 0 core_id 3:\\n  idle cycles: {n} (100%)\\n'\n"
        "        c.send(json.dumps({'id': 0, 'result': text, 'error': None}).encode())\n"
    )
    control = tmp_path / "x.ctl"
    process = subprocess.Popen([sys.executable, "-c", code, str(control)], stdout=subprocess.PIPE)
    probe = SwitchProbe(process.pid, control)
    try:
        assert process.stdout is not None
        process.stdout.readline()

        def look() -> Pulse:
            started = time.monotonic()
            pulse = probe.pulse()
            assert pulse is not None
            assert time.monotonic() - started < 1
            return pulse

        def until(what: Callable[[Pulse], bool]) -> Pulse:
            deadline = time.monotonic() + 10
            while not what(pulse := look()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return pulse

        assert until(lambda p: p.answer is not None).answer == {3: 1}
        assert until(lambda p: p.answer is not None).answer == {3: 2}
        process.send_signal(signal.SIGSTOP)
        until(lambda p: p.main.state == "T")
        time.sleep(0.05)
        look()  # what it had answered before
        assert all(look().answer is None for _ in range(5))
        process.send_signal(signal.SIGCONT)
        until(lambda p: p.answer is not None)
        process.kill()
        process.wait()
        assert probe.pulse() is None
    finally:
        process.kill()
        process.wait()
        probe.close()
