"""What a part of the stack is made of: the files beside its patches, checked, and the hash that names a build.

A part (QEMU, Open vSwitch, DPDK's vhost library) has a folder with

``source``           `key: value` lines: ``package``, ``version-prefix``; also ``tarball`` where the tree comes in a
                     binary package, ``same-as-installed`` where it must match an installed library
``series``           names of patch mails in order
``configure-flags``  one argument a line; ``@SRC@`` and ``@PREFIX@`` are replaced
``package-flags``    further ones of a build for a package, in place of those of ``configure-flags`` that they contradict
``build-deps``       one Debian package a line
``devices.mak``      (QEMU) the devices built in
``checks``           upstream's own tests, one command a line, run in the build directory (QEMU: ``qtests``)

Empty lines and lines that start with ``#`` do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import default as mail_policy
from pathlib import Path

from upgrader.core.errors import UsageError

SOURCE_KEYS = frozenset({"package", "version-prefix", "tarball", "same-as-installed"})
CHECK_FILES = ("checks", "qtests")
KEY_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch mail of a series."""

    path: Path
    subject: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides how a part is built, the version of the source package aside."""

    name: str
    directory: Path
    package: str
    version_prefix: str
    tarball: Path | None
    same_as_installed: str | None
    patches: tuple[Patch, ...]
    configure_flags: tuple[str, ...]
    build_deps: tuple[str, ...]
    device_file: Path | None
    checks: tuple[str, ...]


def recipe_error(path: Path, line: int, what: str) -> UsageError:
    """Build the error for a file that cannot be meant; `line` counts from 1, 0 is the file as a whole."""
    where = f"{path}:{line}" if line else str(path)
    return UsageError("STACK_RECIPE", f"{where}: {what}", state="nothing was built", next=f"correct {path}")


def read_recipe(name: str, directory: Path, *, packaged: bool = False) -> Recipe:
    """Read a part's folder. Raises UsageError naming file and line where it is not as described above."""
    source = _read_source(directory / "source")
    device_file = directory / "devices.mak"
    checks = next((directory / file for file in CHECK_FILES if (directory / file).exists()), None)
    return Recipe(
        name=name,
        directory=directory,
        package=source["package"],
        version_prefix=source["version-prefix"],
        tarball=Path(source["tarball"]) if "tarball" in source else None,
        same_as_installed=source.get("same-as-installed"),
        patches=_read_series(directory),
        configure_flags=_read_flags(directory, packaged=packaged),
        build_deps=tuple(_read_words(directory / "build-deps")),
        device_file=device_file if device_file.exists() else None,
        checks=tuple(command for _, command in _lines(checks)) if checks else (),
    )


def build_key(
    recipe: Recipe,
    source_version: str,
    *,
    patched: bool,
    location: Path,
    commands: Sequence[Sequence[str]] = (),
    depends: Mapping[str, str] | None = None,
) -> str:
    """Name a build: the same key, the same result.

    location  the directory that holds the installed builds: their paths are compiled in
    commands  what configures, builds and installs
    depends   keys of the parts this one contains
    """
    content = {
        "source": [recipe.package, source_version],
        "patches": [patch.sha256 for patch in recipe.patches] if patched else [],
        "flags": recipe.configure_flags,
        "devices": _sha256(recipe.device_file) if recipe.device_file else None,
        "location": str(location),
        "commands": [list(command) for command in commands],
        "depends": dict(depends or {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def expand_flags(recipe: Recipe, *, src: Path, prefix: Path) -> list[str]:
    """Return the configure arguments with the placeholders replaced."""
    located = (flag.replace("@SRC@", str(src)) for flag in recipe.configure_flags)
    return [flag.replace("@PREFIX@", str(prefix)) for flag in located]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise recipe_error(path, 0, "is missing") from None
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]


def _read_flags(directory: Path, *, packaged: bool) -> tuple[str, ...]:
    flags = [flag for _, flag in _lines(directory / "configure-flags")]
    special = directory / "package-flags"
    if not packaged or not special.exists():
        return tuple(flags)
    more = [flag for _, flag in _lines(special)]
    replaced = {_subject(flag) for flag in more}
    return (*(flag for flag in flags if _subject(flag) not in replaced), *more)


def _subject(flag: str) -> str:
    """What an argument of a configure script is about: ``--disable-kvm`` and ``--enable-kvm`` are about one thing."""
    return flag.partition("=")[0].replace("--disable-", "--enable-", 1)


def _read_words(path: Path) -> list[str]:
    words = []
    for number, line in _lines(path):
        if len(line.split()) != 1:
            raise recipe_error(path, number, f"one word is expected, not {line!r}")
        words.append(line)
    return words


def _read_source(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in _lines(path):
        key, colon, value = (word.strip() for word in line.partition(":"))
        if not colon or not value:
            raise recipe_error(path, number, f"`key: value` is expected, not {line!r}")
        if key not in SOURCE_KEYS:
            known = ", ".join(sorted(SOURCE_KEYS))
            raise recipe_error(path, number, f"unknown key {key!r}, known are {known}")
        if key in found:
            raise recipe_error(path, number, f"{key!r} is given twice")
        found[key] = value
    for key in ("package", "version-prefix"):
        if key not in found:
            raise recipe_error(path, 0, f"{key!r} is missing")
    return found


def _read_series(directory: Path) -> tuple[Patch, ...]:
    series = directory / "series"
    patches: list[Patch] = []
    for number, name in _lines(series):
        path = directory / name
        if not path.is_file():
            raise recipe_error(series, number, f"there is no patch {name!r}")
        if any(patch.path == path for patch in patches):
            raise recipe_error(series, number, f"{name!r} is listed twice")
        patches.append(_read_patch(path))
    forgotten = {path.name for path in directory.glob("*.patch")} - {patch.path.name for patch in patches}
    if forgotten:
        raise recipe_error(series, 0, f"does not list {', '.join(sorted(forgotten))}")
    return tuple(patches)


def _read_patch(path: Path) -> Patch:
    content = path.read_bytes()
    subject = str(BytesHeaderParser(policy=mail_policy).parsebytes(content)["subject"] or "")
    if not subject.startswith("[PATCH"):
        raise recipe_error(path, 0, "has no `Subject: [PATCH] …`: a mail of `git format-patch` is expected")
    if b"\nSigned-off-by: " not in content:
        raise recipe_error(path, 0, "has no Signed-off-by line")
    subject = subject.partition("]")[2].strip()
    return Patch(path, subject, hashlib.sha256(content).hexdigest())
