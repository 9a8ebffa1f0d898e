"""Series that only add: what form is let through, what trees are, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from upgrader.core.errors import HostError, UsageError
from upgrader.lab import patches_check
from upgrader.lab.added_lines import Change, Insertion, apply, read_patch, read_pins, sha256
from upgrader.lab.patches_check import FOLDERS, REPOSITORY, put_in, read_series

MAIL = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Someone <someone@localhost>
Date: Wed, 25 Nov 2026 08:00:00 +0000
Subject: [PATCH] thing: Do it

Why.

Signed-off-by: Someone <someone@localhost>
---
 old.c | 3 +++
"""
OLD = b"one\ntwo\nthree\n"
NEW = b"alpha\n"
PATCHED = b"zero\none\ntwo\nand a half\nthree\nfour\n"
DIFF = """\
diff --git a/new.c b/new.c
new file mode 100644
index 00000000..11111111
--- /dev/null
+++ b/new.c
@@ -0,0 +1 @@
+alpha
diff --git a/old.c b/old.c
index 22222222..33333333 100644
--- a/old.c
+++ b/old.c
@@ -0,0 +1 @@
+zero
@@ -2,0 +4 @@
+and a half
@@ -3,0 +6 @@
+four
"""


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_committed_series_only_add_and_are_pinned(folder: str) -> None:
    series = read_series(REPOSITORY / folder)
    assert series.patches
    for change in series.changes:
        pin = series.pins[change.path]
        assert (pin.before is None) == any(c.new for c in series.changes if c.path == change.path)
        assert pin.before != pin.after


def test_committed_new_files_are_as_pinned() -> None:
    """A new file is in the series as a whole, so what comes of it can be known without upstream's tree."""
    for folder in FOLDERS.values():
        series = read_series(REPOSITORY / folder)
        for path in {c.path for c in series.changes if c.new}:
            content: bytes | None = None
            for change in series.changes:
                if change.path == path:
                    content = apply(change, content)
            assert sha256(content or b"") == series.pins[path].after, path


def test_a_patch_is_read_as_written() -> None:
    assert read_patch("p", MAIL + DIFF) == (
        Change("new.c", True, (Insertion(0, ("alpha",)),)),
        Change("old.c", False, (Insertion(0, ("zero",)), Insertion(2, ("and a half",)), Insertion(3, ("four",)))),
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("@@ -2,0 +4 @@\n+and a half", "@@ -2 +4 @@\n-two\n+and a half"),  # takes a line away
        ("@@ -2,0 +4 @@", "@@ -2,0 +4 @@ static int of_upstream(void)"),  # a line of upstream's behind the @@
        ("@@ -2,0 +4 @@", "@@ -2,0 +5 @@"),  # does not add up
        ("@@ -2,0 +4 @@", "@@ -2,0 +4,2 @@"),  # announces more than there is
        ("+and a half", " two\n+and a half"),  # context
        ("@@ -3,0 +6 @@", "@@ -1,0 +4 @@"),  # not in order
        ("+four\n", "+four\n\\ No newline at end of file\n"),
        ("b/old.c\nindex", "b/other.c\nindex"),  # a new name
        ("index 22222222..33333333 100644", "old mode 100644\nnew mode 100755"),
        ("a/old.c b/old.c", "a/../old.c b/../old.c"),
        ("new file mode 100644", "deleted file mode 100644"),
        ("Signed-off-by: ", "Signed: "),
        ("Subject: ", "Topic: "),
        ("+four\n", "+four"),  # cut off
    ],
)
def test_what_does_more_than_add_is_refused(before: str, after: str) -> None:
    text = MAIL + DIFF
    assert before in text
    with pytest.raises(UsageError) as refused:
        read_patch("p.patch", text.replace(before, after))
    assert refused.value.code == "PATCHES_FORM"
    assert str(refused.value).split()[1].startswith("p.patch:")


def test_pins_name_each_path_once() -> None:
    with pytest.raises(UsageError, match="pins:2"):
        read_pins("pins", f"new {'0' * 64} a\nnew {'0' * 64} a\n")
    with pytest.raises(UsageError, match="pins:1"):
        read_pins("pins", f"{'0' * 63} {'0' * 64} a\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "series"
    made.mkdir()
    (made / "tag").write_text(f"repository: someone/thing\ntag: v1\ncommit: {'a' * 40}\n")
    (made / "series").write_text("0001-a.patch\n")
    (made / "0001-a.patch").write_text(MAIL + DIFF)
    (made / "pins").write_text(f"# comment\nnew {sha256(NEW)} new.c\n{sha256(OLD)} {sha256(PATCHED)} old.c\n")
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    made.mkdir()
    (made / "old.c").write_bytes(OLD)
    (made / "old.c").chmod(0o755)
    return made


def contents(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def test_the_tag_gets_the_lines_once(folder: Path, tree: Path) -> None:
    done = put_in(read_series(folder), tree)
    assert contents(tree) == {"old.c": PATCHED, "new.c": NEW}
    assert (tree / "old.c").stat().st_mode & 0o777 == 0o755
    assert "1 patches for someone/thing v1: 1 lines in 1 new files, 3 inserted into 1" in done
    assert "already" in put_in(read_series(folder), tree)
    assert contents(tree) == {"old.c": PATCHED, "new.c": NEW}


@pytest.mark.parametrize("how", ["another version", "half done", "a file in the way", "a file is gone"])
def test_any_other_tree_is_left_alone(folder: Path, tree: Path, how: str) -> None:
    if how == "another version":
        (tree / "old.c").write_bytes(OLD + b"more\n")
    elif how == "half done":
        (tree / "old.c").write_bytes(PATCHED)
    elif how == "a file in the way":
        (tree / "new.c").write_bytes(b"mine\n")
    else:
        (tree / "old.c").unlink()
    before = contents(tree)
    with pytest.raises(HostError) as refused:
        put_in(read_series(folder), tree)
    assert refused.value.code == "PATCHES_TREE_DIFFERS"
    assert "nothing was written" in refused.value.state
    assert contents(tree) == before


def test_a_pin_that_the_patches_do_not_lead_to_is_refused(folder: Path, tree: Path) -> None:
    pins = folder / "pins"
    pins.write_text(pins.read_text().replace(sha256(PATCHED), sha256(b"other")))
    with pytest.raises(UsageError, match=r"old\.c would not be as pinned"):
        put_in(read_series(folder), tree)
    assert contents(tree) == {"old.c": OLD}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tag", "tag: v1\n"),
        ("series", "0001-a.patch\n0002-b.patch\n"),
        ("series", ""),
        ("pins", "# none\n"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UsageError) as refused:
        read_series(folder)
    assert refused.value.code == "PATCHES_FORM"


def test_no_tree_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError) as refused:
        put_in(read_series(folder), tmp_path / "nowhere")
    assert refused.value.code == "PATCHES_NO_TREE"


def test_the_command_checks_the_form_without_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    assert patches_check.main([]) == 0
    said = capsys.readouterr().out
    assert all(folder in said for folder in FOLDERS.values())


def test_the_command_refuses_a_tree_of_another_version(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patches_check.main(["--qemu", str(tree)]) != 0
    said = capsys.readouterr().err
    assert "PATCHES_TREE_DIFFERS" in said
    assert "next: " in said
