"""Verify the series for the original versions, and put them into trees that the operator points to.

``python -m upgrader.lab.patches_check [--tree FOLDER=DIRECTORY …]``: without a tree, the form of the series and that
patches and pins name the same files. With one, the hash of every file the series touches is compared with the pin; when
all are those of the exact tag, the lines are added; when all are those after the series, nothing is left to do; anything
else is refused, and nothing is written. How such a tree is come by and built is upstream's documentation.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upgrader.core.errors import HostError, UpgradeError, UsageError
from upgrader.lab.added_lines import Change, Pin, apply, read_patch, read_pins, sha256

REPOSITORY = Path(__file__).resolve().parents[2]
# What the operator's variables are called, and the series each is for.
FOLDERS: Mapping[str, str] = {"qemu": "qemu-patches/2.9.0", "dpdk": "ovs-patches/dpdk-17.11"}
_TAG = re.compile(r"repository: (\S+)\ntag: (\S+)\ncommit: ([0-9a-f]{40})\n")


@dataclass(frozen=True, slots=True)
class Series:
    """One folder: the tag it is for, its patches in order, and the hashes of what they touch."""

    folder: Path
    tag: str
    patches: tuple[tuple[str, tuple[Change, ...]], ...]
    pins: Mapping[str, Pin]

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for _name, changes in self.patches for change in changes)


def read_series(folder: Path) -> Series:
    """Read a folder and hold it to its form. Raises UsageError that names file and line."""
    tag = _TAG.fullmatch((folder / "tag").read_text())
    if not tag:
        raise _wrong(f"{folder / 'tag'}: not the lines repository, tag and commit")
    names = [n for n in (folder / "series").read_text().splitlines() if n and not n.startswith("#")]
    if sorted(names) != sorted(p.name for p in folder.glob("*.patch")) or names != sorted(names):
        raise _wrong(f"{folder / 'series'}: not the folder's patches, each once, in the order of their numbers")
    patches = tuple((name, read_patch(f"{folder.name}/{name}", (folder / name).read_text())) for name in names)
    series = Series(
        folder, f"{tag[1]} {tag[2]}", patches, read_pins(f"{folder.name}/pins", (folder / "pins").read_text())
    )
    touched = {change.path for change in series.changes}
    if touched != set(series.pins):
        raise _wrong(
            f"{folder / 'pins'}: not the files of the patches: {', '.join(sorted(touched ^ set(series.pins)))}"
        )
    for change in series.changes:
        if change.new and series.pins[change.path].before is not None:
            raise _wrong(f"{folder / 'pins'}: {change.path} is new in the patches")
    return series


def put_in(series: Series, tree: Path) -> str:
    """Add the series' lines to the tree, or find them there; returns what was done, one sentence.

    Raises HostError, nothing written, when a file is neither the tag's nor the series'.
    """
    if not tree.is_dir():
        raise HostError(
            "PATCHES_NO_TREE",
            f"there is no directory {tree}",
            state="nothing was written",
            next=f"name the unpacked tree of {series.tag}",
        )
    now = {path: (tree / path).read_bytes() if (tree / path).is_file() else None for path in series.pins}
    hashes = {path: None if content is None else sha256(content) for path, content in now.items()}
    if all(hashes[path] == pin.after for path, pin in series.pins.items()):
        return f"{tree} has the series of {series.folder.name} already"
    differ = sorted(path for path, pin in series.pins.items() if hashes[path] != pin.before)
    if differ:
        shown = ", ".join(differ[:5]) + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
        raise HostError(
            "PATCHES_TREE_DIFFERS",
            f"{tree} is not {series.tag}: {shown} "
            f"{'is' if len(differ) == 1 else 'are'} not as pinned in {series.folder.name}/pins",
            state="nothing was written",
            next=f"unpack {series.tag} anew, and name that directory",
        )
    result = dict(now)
    for change in series.changes:
        result[change.path] = apply(change, result[change.path])
    wrong = sorted(p for p, pin in series.pins.items() if sha256(result[p] or b"") != pin.after)
    if wrong:
        raise _wrong(f"{series.folder / 'pins'}: with the patches, {', '.join(wrong)} would not be as pinned")
    _write(tree, {path: content for path, content in result.items() if content is not None})
    new = [c for c in series.changes if c.new]
    old = [c for c in series.changes if not c.new]
    return (
        f"{tree}: {len(series.patches)} patches for {series.tag}: {sum(c.added for c in new)} lines in {len(new)} new "
        f"files, {sum(c.added for c in old)} inserted into {len({c.path for c in old})}; build it as upstream says"
    )


def _write(tree: Path, files: Mapping[str, bytes]) -> None:
    """All beside first, then all renamed: a full disk leaves the tree as it was."""
    beside: list[tuple[Path, Path]] = []
    try:
        for path, content in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.patches-check")
            beside.append((temporary, target))
            temporary.write_bytes(content)
            temporary.chmod(target.stat().st_mode & 0o7777 if target.exists() else 0o644)
        for temporary, target in beside:
            temporary.replace(target)
    except OSError as error:
        for temporary, _target in beside:
            temporary.unlink(missing_ok=True)
        raise HostError(
            "PATCHES_NOT_WRITTEN",
            f"writing to {tree} failed: {error}",
            state="the tree may have some of the lines",
            next="unpack the tree anew, make room, then the same command again",
        ) from error


def _wrong(what: str) -> UsageError:
    return UsageError("PATCHES_FORM", what, state="nothing was written", next="mend the folder; its README.md says how")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; what was done on stdout, errors on stderr."""
    parser = argparse.ArgumentParser("python -m upgrader.lab.patches_check", description=__doc__)
    for name, folder in FOLDERS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="TREE", help=f"put {folder} into this tree")
    args = vars(parser.parse_args(argv))
    try:
        every = {name: read_series(REPOSITORY / folder) for name, folder in FOLDERS.items()}
        for name, series in every.items():
            added = sum(c.added for c in series.changes)
            print(
                f"{FOLDERS[name]}: {len(series.patches)} patches for {series.tag}, {added} lines, added only; pins whole"
            )
        for name, series in every.items():
            if tree := args[name]:
                print(put_in(series, tree.resolve()))
    except UpgradeError as error:
        print(f"{error}\nstate: {error.state}\nnext: {error.next}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
