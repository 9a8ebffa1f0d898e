"""The journal in SQLite: what is special to a file. What it shares with the simulated one is in tests/contract."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.test_journal import a_plan
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.errors import JournalError, SupersededError
from upgrader.core.lifecycle import RunState
from upgrader.core.report import report


def test_a_file_that_is_not_filled_yet_reads_as_empty(tmp_path: Path) -> None:
    """The coordinator makes the file, then its tables: who looks in between must not fail."""
    path = tmp_path / "journal.db"
    path.touch()
    journal = SqliteJournal(path, read_only=True)
    assert journal.latest() is None
    assert journal.headings(5) == ()
    assert path.stat().st_size == 0


WRITER = """
import sys
from pathlib import Path
from tests.contract.test_journal import a_plan
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.journal import Event, EventKind
journal = SqliteJournal(Path(sys.argv[1]))
journal.claim()
run = journal.begin(a_plan(), 0).heading.run_id
journal.append(run, Event(EventKind.STATE, 1, None, {"to": "running", "reason": ""}))
for number in range(1_000_000):
    journal.append(run, Event(EventKind.INTENT, number, 0))
    print(number, flush=True)
"""


def test_nothing_that_was_appended_is_lost_to_sigkill(tmp_path: Path) -> None:
    for after in (1, 7, 30):
        path = tmp_path / f"{after}.db"
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = -1
            for line in writer.stdout:
                told = int(line)
                if told == after:
                    writer.kill()
        assert told >= after
        view = SqliteJournal(path).latest()
        assert view is not None
        numbers = [e.at_ns for e in view.events[1:]]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > told, "an event that append returned for is not there"


def refused(open_it: Callable[[], object]) -> JournalError:
    with pytest.raises(JournalError) as error:
        open_it()
    assert error.value.state
    assert "df " in error.value.next
    return error.value


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_is_no_journal(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database at all" * 500)
    before = path.read_bytes()
    assert str(path) in refused(lambda: SqliteJournal(path, read_only=read_only)).what
    assert path.read_bytes() == before


def test_a_journal_that_was_cut_off_in_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = SqliteJournal(path)
    journal.claim()
    for number in range(20):
        journal.begin(a_plan(5), number)
    journal.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(lambda: SqliteJournal(path).headings(100))


@pytest.mark.parametrize("read_only", [True, False])
def test_a_journal_of_a_newer_release(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "journal.db"
    SqliteJournal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer release (version 99" in refused(lambda: SqliteJournal(path, read_only=read_only)).what


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Root may write anywhere but where there is no folder to be made."""
    (tmp_path / "file").touch()
    refused(lambda: SqliteJournal(tmp_path / "file" / "journal.db"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Nothing of what did not fit is there, and what was there stays readable."""
    script = f"""
import os
from pathlib import Path
from tests.contract.test_journal import a_plan, state
from upgrader.adapters.journal import SqliteJournal
from upgrader.core.errors import JournalError, SupersededError
from upgrader.core.lifecycle import RunState
path = Path({str(tmp_path)!r}) / "journal.db"
journal = SqliteJournal(path)
journal.claim()
count = 0
try:
    while count < 10_000:
        journal.begin(a_plan(20), count)
        count += 1
except JournalError as error:
    assert "full" in error.what, error.what
    assert len(journal.headings(100_000)) == count
    assert len(SqliteJournal(path, read_only=True).headings(100_000)) == count
    print("held", count)
"""
    (tmp_path.parent / "script.py").write_text(script)
    mounted = f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} {tmp_path.parent / 'script.py'}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.startswith("held"), done.stderr
    assert int(done.stdout.split()[1]) > 3
    assert list(tmp_path.iterdir()) == []


def test_a_journal_of_version_1_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as db:
        db.executescript((Path(__file__).parent / "journal-1.sql").read_text())
    for read_only in (True, False):
        journal = SqliteJournal(path, read_only=read_only)
        view = journal.latest()
        assert view is not None
        assert view.state is RunState.DONE
        assert [p.label for p in journal.plan(view.heading.run_id).ports] == ["vm0/vhu0", "vm1/vhu1"]
        assert report(view).moved == 2
    assert journal.claim() == 2


def test_a_commit_is_on_the_disk_and_readers_are_not_held_up(tmp_path: Path) -> None:
    """sqlite.org/pragma.html: synchronous 2 is FULL; the log ahead of the file lets others read meanwhile."""
    journal = SqliteJournal(tmp_path / "journal.db")
    assert journal._db is not None
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.claim()
    journal._db.execute("BEGIN IMMEDIATE")
    assert SqliteJournal(tmp_path / "journal.db", read_only=True).latest() is None
    journal.require_claim()
    journal._db.execute("ROLLBACK")
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600


def test_a_claim_is_asked_for_without_writing(tmp_path: Path) -> None:
    older, newer = SqliteJournal(tmp_path / "journal.db"), SqliteJournal(tmp_path / "journal.db")
    older.claim()
    older.require_claim()
    newer.claim()
    for _ in range(2):
        with pytest.raises(SupersededError):
            older.require_claim()
    newer.require_claim()
    newer.close()
    with pytest.raises(JournalError):
        newer.require_claim()
