"""Series of patches that only add: new files, and lines inserted into files of one exact version. Pure.

They hold no line of upstream's: a hunk is ``@@ -N,0 +M,K @@`` and K lines to insert behind line N, without context. So
nothing in a patch tells whether it fits; the hash of every file it touches does (`Pin`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from upgrader.core.errors import UsageError

_DIFF = re.compile(r"diff --git a/(\S+) b/(\S+)")
_HUNK = re.compile(r"@@ -(\d+),0 \+(\d+)(?:,(\d+))? @@")
_MAIL = ("From ", "From: ", "Date: ", "Subject: ")


@dataclass(frozen=True, slots=True)
class Insertion:
    """Lines to insert behind line `behind`, counted before the patch; 0 is the file's beginning."""

    behind: int
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What one patch does to one file."""

    path: str
    new: bool
    insertions: tuple[Insertion, ...]

    @property
    def added(self) -> int:
        return sum(len(i.lines) for i in self.insertions)


@dataclass(frozen=True, slots=True)
class Pin:
    """SHA-256 of a file before and after a series; `before` is None for a file that must not exist."""

    before: str | None
    after: str


def read_patch(name: str, text: str) -> tuple[Change, ...]:
    """The changes of one mail of `git format-patch -U0`, in order. Raises UsageError that names the line."""
    lines = text.split("\n")
    if lines.pop() != "":
        raise _form(name, len(lines) + 1, "the last line has no end")
    for number, start in enumerate(_MAIL, 1):
        if number > len(lines) or not lines[number - 1].startswith(start):
            raise _form(name, number, f"a mail has '{start.strip()}' here")
    first = next((i for i, line in enumerate(lines) if line.startswith("diff --git ")), len(lines))
    if not any(line.startswith("Signed-off-by: ") for line in lines[:first]):
        raise _form(name, first, "there is no Signed-off-by before the first file")
    changes: list[Change] = []
    at = first
    while at < len(lines):
        change, at = _read_file(name, lines, at)
        if change.path in {c.path for c in changes}:
            raise _form(name, at, f"{change.path} is there twice")
        changes.append(change)
    if not changes:
        raise _form(name, len(lines), "it changes nothing")
    return tuple(changes)


def _read_file(name: str, lines: list[str], at: int) -> tuple[Change, int]:
    """One file's part, which begins at lines[at], and where the next one begins."""
    found = _DIFF.fullmatch(lines[at])
    if not found or found[1] != found[2] or found[1].startswith("/") or ".." in found[1].split("/"):
        raise _form(name, at + 1, "not a file of the tree under one name")
    path = found[1]
    at += 1
    new = at < len(lines) and lines[at] == "new file mode 100644"
    at += new
    head = (r"index [0-9a-f]+\.\.[0-9a-f]+( 100\d{3})?", r"--- /dev/null" if new else rf"--- a/{re.escape(path)}")
    for expected in (*head, rf"\+\+\+ b/{re.escape(path)}"):
        if at >= len(lines) or not re.fullmatch(expected, lines[at]):
            raise _form(name, at + 1, "only a new file, or lines for one that is there, may be added")
        at += 1
    insertions: list[Insertion] = []
    added = 0
    while at < len(lines) and not lines[at].startswith("diff --git "):
        hunk = _HUNK.fullmatch(lines[at])
        if not hunk:
            raise _form(name, at + 1, "not '@@ -N,0 +M,K @@' with nothing behind it: the series may only add lines")
        behind, where, count = int(hunk[1]), int(hunk[2]), int(hunk[3] or 1)
        body = lines[at + 1 : at + 1 + count]
        if len(body) < count or any(not line.startswith("+") for line in body):
            raise _form(name, at + 2, f"{count} added lines are announced, and there is something else")
        if where != behind + added + 1 or (insertions and behind <= insertions[-1].behind) or (new and behind):
            raise _form(name, at + 1, "the hunks are not in order, or their line numbers do not add up")
        insertions.append(Insertion(behind, tuple(line[1:] for line in body)))
        added += count
        at += 1 + count
    if not insertions or (new and len(insertions) > 1):
        raise _form(name, at, f"{path} has no hunk, or a new file more than one")
    return Change(path, new, tuple(insertions)), at


def apply(change: Change, before: bytes | None) -> bytes:
    """The file with the lines in it. Raises UsageError where there is no such line, or the file is there and new."""
    if (before is None) != change.new:
        raise UsageError(
            "PATCHES_DO_NOT_FIT",
            f"{change.path} {'is there already' if change.new else 'does not exist'}",
            state="nothing was written",
            next="use the tree of the exact tag that the folder's file `tag` names",
        )
    text = (before or b"").decode("utf-8", "surrogateescape")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for insertion in reversed(change.insertions):
        if insertion.behind > len(lines):
            raise UsageError(
                "PATCHES_DO_NOT_FIT",
                f"{change.path} has no line {insertion.behind}",
                state="nothing was written",
                next="use the tree of the exact tag that the folder's file `tag` names",
            )
        lines[insertion.behind : insertion.behind] = insertion.lines
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")


def read_pins(name: str, text: str) -> Mapping[str, Pin]:
    """By path, from lines ``<sha256 | new> <sha256> <path>``; comments begin with #. Raises UsageError."""
    pins: dict[str, Pin] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"(new|[0-9a-f]{64}) +([0-9a-f]{64}) (\S+)", line)
        if not found or found[3] in pins:
            raise _form(name, number, "not '<sha256 before, or new> <sha256 after> <path>', each path once")
        pins[found[3]] = Pin(None if found[1] == "new" else found[1], found[2])
    return pins


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _form(name: str, number: int, what: str) -> UsageError:
    return UsageError(
        "PATCHES_FORM",
        f"{name}:{number}: {what}",
        state="nothing was written",
        next="git format-patch -U0 --zero-commit --no-signature, without what git puts behind the second @@",
    )
