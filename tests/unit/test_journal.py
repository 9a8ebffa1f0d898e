"""The journal in SQLite: what is special to a file. What it shares with the simulated one is in tests/contract."""

from __future__ import annotations

from pathlib import Path

from upgrader.adapters.journal import SqliteJournal


def test_a_file_that_is_not_filled_yet_reads_as_empty(tmp_path: Path) -> None:
    """The coordinator makes the file, then its tables: who looks in between must not fail."""
    path = tmp_path / "journal.db"
    path.touch()
    journal = SqliteJournal(path, read_only=True)
    assert journal.latest() is None
    assert journal.headings(5) == ()
    assert path.stat().st_size == 0
