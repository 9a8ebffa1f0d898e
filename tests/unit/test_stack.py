"""Recipes of the stack: what the committed ones must be, what the key depends on, and errors that name the line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError, UpgradeError, UsageError
from upgrader.lab import stack, stack_apt, stack_build
from upgrader.lab.stack_apt import source_entries
from upgrader.lab.stack_recipe import Recipe, build_key, expand_flags, read_recipe

COMMITTED = [part.recipe for part in stack.PARTS.values()]
PATCH = """\
From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: Someone <someone@localhost>
Date: Mon, 23 Nov 2026 17:07:18 +0000
Subject: [PATCH] vhost: do a thing that takes more than one line to
 describe

Why.

Signed-off-by: Someone <someone@localhost>
---
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "patches"
    directory.mkdir()
    (directory / "source").write_text("package: thing\nversion-prefix: 1.2\n")
    (directory / "series").write_text("# first\n0001-a.patch\n")
    (directory / "0001-a.patch").write_text(PATCH)
    (directory / "configure-flags").write_text("# why\n--prefix=@PREFIX@\n\n--with=@SRC@/x\n")
    (directory / "build-deps").write_text("gcc\nmake\n")
    return directory


def key(recipe: Recipe, version: str = "1.2-3", *, patched: bool = True, **other: object) -> str:
    depends = {name: str(value) for name, value in other.items()}
    return build_key(recipe, version, patched=patched, location=Path("/stack"), depends=depends)


def test_recipe_is_read_as_written(folder: Path) -> None:
    recipe = read_recipe("thing", folder)
    assert (recipe.package, recipe.version_prefix) == ("thing", "1.2")
    assert [patch.subject for patch in recipe.patches] == [
        "vhost: do a thing that takes more than one line to describe"
    ]
    assert recipe.build_deps == ("gcc", "make")
    assert expand_flags(recipe, src=Path("/s"), prefix=Path("/p")) == ["--prefix=/p", "--with=/s/x"]


@pytest.mark.parametrize("directory", COMMITTED)
def test_committed_recipes_are_complete(directory: str) -> None:
    """Reading checks that series and files agree and that each patch has a subject and a Signed-off-by."""
    recipe = read_recipe(directory, stack.REPOSITORY / directory)
    assert recipe.patches
    assert [patch.path.name[:4] for patch in recipe.patches] == [
        f"{number:04}" for number in range(1, len(recipe.patches) + 1)
    ]
    assert any("@PREFIX@" in flag for flag in recipe.configure_flags)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("0001-a.patch", PATCH.replace("Why.", "Because.")),
        ("configure-flags", "--prefix=@PREFIX@\n--other\n"),
        ("devices.mak", "CONFIG_Q35=y\n"),
        ("source", "package: another\nversion-prefix: 1.2\n"),
    ],
)
def test_key_changes_with_what_goes_into_the_build(folder: Path, file: str, content: str) -> None:
    before = key(read_recipe("thing", folder))
    (folder / file).write_text(content)
    assert key(read_recipe("thing", folder)) != before


def test_key_changes_with_version_patches_and_needed_parts(folder: Path) -> None:
    recipe = read_recipe("thing", folder)
    keys = {key(recipe), key(recipe, "1.2-4"), key(recipe, patched=False), key(recipe, dpdk="abc")}
    assert len(keys) == 4


def test_key_does_not_change_with_comments_and_test_lists(folder: Path) -> None:
    before = key(read_recipe("thing", folder))
    (folder / "configure-flags").write_text("--prefix=@PREFIX@\n# another reason\n--with=@SRC@/x\n")
    (folder / "checks").write_text("make check\n")
    assert key(read_recipe("thing", folder)) == before


def test_key_changes_with_the_commands(folder: Path) -> None:
    recipe = read_recipe("thing", folder)
    one, other = (
        build_key(recipe, "1.2-3", patched=True, location=Path("/stack"), commands=[command])
        for command in (("ninja",), ("make",))
    )
    assert one != other


def test_unpatched_build_ignores_the_patches(folder: Path) -> None:
    before = key(read_recipe("thing", folder), patched=False)
    (folder / "0001-a.patch").write_text(PATCH.replace("Why.", "Because."))
    assert key(read_recipe("thing", folder), patched=False) == before


@pytest.mark.parametrize(
    ("file", "content", "where"),
    [
        ("source", "package: thing\n\nnonsense\n", "source:3"),
        ("source", "package: thing\nversion: 1\n", "source:2"),
        ("source", "package: a\npackage: b\n", "source:2"),
        ("source", "package: thing\n", "'version-prefix' is missing"),
        ("series", "0001-a.patch\n0002-b.patch\n", "series:2"),
        ("series", "0001-a.patch\n\n0001-a.patch\n", "series:3"),
        ("series", "", "does not list 0001-a.patch"),
        ("build-deps", "gcc\nmake ninja\n", "build-deps:2"),
        ("0001-a.patch", PATCH.replace("Signed-off-by", "Seen-by"), "Signed-off-by"),
        ("0001-a.patch", PATCH.replace("Subject: [PATCH]", "Subject:"), "Subject"),
    ],
)
def test_errors_name_file_and_line(folder: Path, file: str, content: str, where: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UsageError) as raised:
        read_recipe("thing", folder)
    assert where in raised.value.what
    assert file in raised.value.what
    assert raised.value.state == "nothing was built"


@pytest.mark.parametrize("file", ["source", "series", "configure-flags", "build-deps"])
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UsageError, match=f"{file}: is missing"):
        read_recipe("thing", folder)


def test_source_entries_follow_the_machines_own() -> None:
    deb822 = (
        "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/x.gpg\n\n"
        "Types: deb\nURIs: http://other.example\nSuites: nodistro\nComponents: main\n\n"
        "Types: deb\nURIs: http://off.example\nSuites: bookworm\nEnabled: no\n"
    )
    assert source_entries(deb822, deb822=True, codename="bookworm") == (
        "Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /usr/share/keyrings/x.gpg\n"
    )
    one_line = (
        "# deb http://no.example bookworm main\n"
        "deb [signed-by=/k.gpg] http://mirror.example bookworm-security main\n"
        "deb http://other.example cloud-bookworm main\n"
    )
    assert source_entries(one_line, deb822=False, codename="bookworm") == (
        "deb-src [signed-by=/k.gpg] http://mirror.example bookworm-security main\n"
    )
    assert source_entries("", deb822=True, codename="bookworm") == ""


def test_package_lists_are_fetched_where_the_first_install_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh machine has empty lists: nothing can be installed before `apt-get update`."""
    done: list[str] = []

    def run(argv: list[str], **_other: object) -> gate.Completed:
        if argv[0] == "dpkg-query":
            return gate.Completed(tuple(argv), 0, "ii " if argv[-1] == "there" else "", "")
        verb = next(word for word in argv if word in {"install", "update"})
        done.append(verb)
        if done == ["install"]:
            raise CommandError("apt-get install", "exited with 100", "E: Unable to locate package missing")
        assert verb == "update" or argv[-1] == "missing"
        return gate.Completed(tuple(argv), 0, "", "")

    monkeypatch.setattr(gate, "run", run)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stack_apt.install_missing(["there", "missing"], lambda _text: None)
    assert done == ["install", "update", "install"]
    done.clear()
    stack_apt.install_missing(["there"], lambda _text: None)
    assert done == []


def test_missing_packages_without_root_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_apt, "is_installed", lambda _package: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError) as raised:
        stack_apt.install_missing(["ninja-build", "gcc"], lambda _text: None)
    assert "gcc ninja-build" in raised.value.what
    assert raised.value.next.startswith("sudo apt-get install")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A part that is built from a tarball by shell commands, so that the build itself can be tested in no time."""
    recipes = tmp_path / "recipes"
    folder = recipes / "toy"
    folder.mkdir(parents=True)
    tree = tmp_path / "toy-1.2"
    tree.mkdir()
    (tree / "greeting").write_text("one\n")
    tarball = Path(shutil.make_archive(str(tmp_path / "toy"), "gztar", tmp_path, "toy-1.2"))
    (folder / "source").write_text(f"package: toy\nversion-prefix: 1.2\ntarball: {tarball}\n")
    (folder / "series").write_text("0001-two.patch\n")
    diff = "--- a/greeting\n+++ b/greeting\n@@ -1 +1 @@\n-one\n+two\n"
    (folder / "0001-two.patch").write_text(PATCH + diff)
    (folder / "configure-flags").write_text("@PREFIX@\n")
    (folder / "build-deps").write_text("")
    part = stack_build.Part(
        "toy",
        "toy",
        configure=("sh", "-c", 'echo "$0" > where'),
        build=("sh", "-c", "cp ../src/greeting ."),
        install=("sh", "-c", 'mkdir -p "$DESTDIR$(cat where)/bin" && cp greeting /bin/true "$DESTDIR$(cat where)/bin"'),
    )
    monkeypatch.setattr(stack, "PARTS", {"toy": part})
    monkeypatch.setattr(stack_build, "installed_source_version", lambda _package: "1.2-3")
    return recipes


def build(recipes: Path, *, patched: bool = True) -> stack_build.Built:
    said: list[str] = []
    return stack.build_stack(
        recipes.parent / "build", parts=["toy"], patched=patched, recipes=recipes, progress=said.append
    )[0]


def test_build_is_installed_behind_a_link_and_not_repeated(toy: Path) -> None:
    first = build(toy)
    assert (first.link / "bin/greeting").read_text() == "two\n"
    assert first.link.resolve() == first.prefix
    manifest = json.loads((first.prefix / "manifest.json").read_text())
    assert manifest["source"] == {"package": "toy", "version": "1.2-3"}
    assert [patch["name"] for patch in manifest["patches"]] == ["0001-two.patch"]
    assert first.seconds
    assert not build(toy).seconds, "nothing was to be built the second time"


def test_folder_shared_by_a_link_holds_one_build_that_does_not_depend_on_the_link(toy: Path, tmp_path: Path) -> None:
    shared, other = tmp_path / "build/stack", tmp_path / "another clone"
    shared.mkdir(parents=True)
    other.mkdir()
    (other / "stack").symlink_to(shared)
    first = stack.build_stack(other, parts=["toy"], recipes=toy)[0]
    assert first.prefix.parent == shared
    assert json.loads((first.prefix / "manifest.json").read_text())["configure"] == [str(first.prefix)]
    second = build(toy)
    assert (second.prefix, second.seconds) == (first.prefix, {}), "nothing was to be built the second time"


def test_unpatched_build_goes_beside(toy: Path) -> None:
    patched, unpatched = build(toy), build(toy, patched=False)
    assert unpatched.link.name == "toy-unpatched"
    assert (unpatched.link / "bin/greeting").read_text() == "one\n"
    assert (patched.link / "bin/greeting").read_text() == "two\n"


def test_build_for_a_package_goes_beside_with_the_place_compiled_in(toy: Path) -> None:
    (toy / "toy/configure-flags").write_text("@PREFIX@\n--disable-thing\n")
    (toy / "toy/package-flags").write_text("--enable-thing\n")
    place = Path("/usr/lib/somewhere/toy")
    made = stack.build_stack(toy.parent / "build", parts=["toy"], recipes=toy, places={"toy": place})[0]
    assert (made.link.name, made.place) == ("toy-packaged", place)
    assert (made.link / "bin/greeting").read_text() == "two\n"
    assert json.loads((made.prefix / "manifest.json").read_text())["configure"] == [str(place), "--enable-thing"]
    assert not place.exists(), "it was staged"
    assert build(toy).prefix != made.prefix


def test_patch_that_only_nearly_fits_is_refused(toy: Path) -> None:
    patch = toy / "toy/0001-two.patch"
    context = "@@ -1,2 +1,2 @@\n-one\n+two\n a line that is not there\n"
    patch.write_text(patch.read_text().replace("@@ -1 +1 @@\n-one\n+two\n", context))
    with pytest.raises(HostError) as raised:
        build(toy)
    assert raised.value.code == "STACK_BUILD_FAILED"
    assert "patch -p1 -F0" in raised.value.what
    assert raised.value.next.endswith("patch.log")


def test_upstreams_tests_run_in_the_build_directory(toy: Path) -> None:
    (toy / "toy/checks").write_text("# why\nsh -c 'grep two greeting && echo @JOBS@ > jobs'\n")
    arguments: dict[str, Any] = {"parts": ["toy"], "recipes": toy, "check": True}
    built = stack.build_stack(toy.parent / "build", jobs=3, **arguments)[0]
    work = built.prefix.parent / "work" / built.prefix.name
    assert (work / "obj/jobs").read_text() == "3\n"
    (toy / "toy/checks").write_text("sh -c 'echo it is broken; false'\n")
    with pytest.raises(HostError, match="it is broken"):
        stack.build_stack(toy.parent / "build", **arguments)


def test_failed_build_leaves_the_installed_one_in_place(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(toy)
    (toy / "toy/configure-flags").write_text("@PREFIX@\n--changed\n")
    failing = stack_build.Part(
        "toy", "toy", configure=("true",), build=("sh", "-c", "echo the reason; exit 3"), install=()
    )
    monkeypatch.setattr(stack, "PARTS", {"toy": failing})
    with pytest.raises(HostError, match="the reason") as raised:
        build(toy)
    assert "exited with 3" in raised.value.what
    assert first.link.resolve() == first.prefix
    assert sorted(path.name for path in first.prefix.parent.glob("toy*")) == ["toy", first.prefix.name]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_interrupted_build_leaves_no_process_and_nothing_installed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = toy.parent / "pid"
    script = f"sleep 300 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait"
    part = stack_build.Part("toy", "toy", configure=("true",), build=("sh", "-c", script), install=())
    monkeypatch.setattr(stack, "PARTS", {"toy": part})

    def interrupt(_number: int, _frame: object) -> None:
        if pid_file.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(toy)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    # Killed is not gone at once.
    end = time.monotonic() + 10
    while _lives(int(pid_file.read_text())) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _lives(int(pid_file.read_text()))
    assert not list((toy.parent / "build/stack").glob("toy*"))


def test_prefix_without_a_manifest_is_built_anew(toy: Path) -> None:
    first = build(toy)
    (first.prefix / "manifest.json").unlink()
    (first.prefix / "bin/greeting").write_text("half\n")
    assert build(toy).prefix == first.prefix
    assert (first.prefix / "bin/greeting").read_text() == "two\n"


def test_wrong_source_version_and_unknown_part_are_errors(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_build, "installed_source_version", lambda _package: "2.0-1")
    with pytest.raises(HostError, match=r"2\.0-1"):
        build(toy)
    with pytest.raises(UpgradeError, match="no part of the stack is called qemo"):
        stack.build_stack(toy.parent / "build", parts=["qemo"], recipes=toy)
