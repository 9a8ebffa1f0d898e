"""The lab's book of hugepages, its lock, its state file, and how it knows and ends its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from upgrader.core.errors import HostError, LockedError
from upgrader.lab import spec as names
from upgrader.lab.host import Hugepages, Process, end, locked, look_up
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import LabState, Phase, path_of, read, write


class FakeKernel(Hugepages):
    """Hugepages on a file that gives at most `most` pages."""

    def __init__(self, folder: Path, total: int, most: int = 1 << 20) -> None:
        self.knob = folder / "nr_hugepages"
        self.knob.write_text(str(total))
        self.most = most
        self.killed_before_set = False
        super().__init__(self.knob, folder / "book.json")

    def _set(self, pages: int) -> None:
        if self.killed_before_set:
            raise SystemExit
        self.knob.write_text(str(min(pages, self.most)))

    @property
    def total(self) -> int:
        return int(self.knob.read_text())


def test_pages_are_added_to_what_was_there_and_given_back(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)
    kernel.reserve("one", 5)
    kernel.reserve("two", 7)
    assert kernel.total == 22
    kernel.release("one")
    assert kernel.total == 17
    kernel.release("two")
    kernel.release("two")
    assert kernel.total == 10
    assert [p.name for p in tmp_path.iterdir()] == ["nr_hugepages"]


def test_pages_that_another_has_added_meanwhile_stay(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)
    kernel.reserve("one", 5)
    kernel.knob.write_text(str(kernel.total + 100))
    kernel.release("one")
    assert kernel.total == 110


def test_a_lower_number_set_by_a_person_is_not_raised(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)
    kernel.reserve("one", 5)
    kernel.knob.write_text("3")
    kernel.release("one")
    assert kernel.total == 3


def test_killed_between_the_note_and_the_effect_nothing_is_taken_from_others(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)
    kernel.killed_before_set = True
    with pytest.raises(SystemExit):
        kernel.reserve("one", 5)
    kernel.killed_before_set = False
    assert kernel.reserved("one") == 5
    kernel.release("one")
    assert kernel.total == 10


def test_killed_while_giving_back_the_rest_is_given_back_once(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)
    kernel.reserve("one", 5)
    kernel.killed_before_set = True
    with pytest.raises(SystemExit):
        kernel.release("one")
    kernel.killed_before_set = False
    kernel.release("one")
    assert kernel.total == 10


def test_too_few_pages_are_refused_and_given_back(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10, most=13)
    with pytest.raises(HostError, match="5 more 2 MiB hugepages are needed, the kernel gave 3") as refused:
        kernel.reserve("one", 5)
    assert refused.value.code == "HUGEPAGES_SHORT"
    assert kernel.total == 10
    assert kernel.reserved("one") == 0


def test_labs_that_come_and_go_at_once_lose_no_page(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path, 10)

    def come_and_go(name: str) -> None:
        for _ in range(50):
            kernel.reserve(name, 3)
            kernel.release(name)

    threads = [threading.Thread(target=come_and_go, args=(f"lab{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kernel.total == 10


def test_the_lock_keeps_a_second_one_out(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    with locked(path, "busy"):
        with pytest.raises(LockedError, match="busy"), locked(path, "busy"):
            pass
        path.unlink()  # as the last one out does
    with locked(path, "busy"):
        assert path.exists()


def test_a_process_is_not_taken_for_a_later_one_with_its_pid() -> None:
    me = look_up(os.getpid())
    assert me is not None
    assert me.alive()
    assert not Process(me.pid, me.start_ticks - 1).alive()
    assert end([Process(me.pid, me.start_ticks - 1)]) == []


def test_a_process_that_ignores_the_request_is_killed() -> None:
    code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"deaf\n"
        process = look_up(child.pid)
        assert process is not None
        assert end([process]) == []
        assert child.wait() == -signal.SIGKILL


@pytest.fixture
def run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(names, "RUN_ROOT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("run_root")
def test_state_survives_the_file() -> None:
    spec = LabSpec(vms=2)
    assert read(spec) is None
    state = LabState(spec, Phase.UP).with_process("libvirtd", Process(1, 2)).with_process("libvirtd", Process(3, 4))
    write(state)
    assert read(LabSpec(vms=9)) == state
    assert state.process("libvirtd") == Process(3, 4)


@pytest.mark.usefixtures("run_root")
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"phase": "up", "spec": {"vms": 99}, "processes": []}', "null"])
def test_a_state_file_that_cannot_be_read_is_a_half_built_lab(text: str) -> None:
    spec = LabSpec(vms=2)
    write(LabState(spec, Phase.UP))
    path_of(spec).write_text(text)
    assert read(spec) == LabState(spec, Phase.BUILDING)


def test_a_lab_killed_before_its_first_word_is_half_built(run_root: Path) -> None:
    (run_root / "lab").mkdir()
    assert read(LabSpec()) == LabState(LabSpec(), Phase.BUILDING)


_INTERRUPTED = """
import os, signal, time
from upgrader.lab.interrupts import raise_once
raise_once(lambda: print("again", flush=True))
child = os.fork()
try:
    if child == 0:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    print("down", flush=True)
"""


def test_one_interrupt_unwinds_the_next_does_not_and_a_forked_helper_never() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines() == [f"child {-signal.SIGTERM}", "again", "down"], done.stderr
