"""Debian's side of the build: installing packages, fetching source packages without touching the machine's apt.

Source entries are derived from the machine's own binary ones (same mirror, same keys) in a private directory, so
that a proxy or a local mirror is respected. apt verifies the archive's signature and the hash of each file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError
from upgrader.lab.stack_recipe import Recipe

APT_ENV = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
APT_TIMEOUT_S = 900.0
# Others on the machine may be installing as well.
APT_WAIT = ["-o", "DPkg::Lock::Timeout=600"]
ONE_LINE = re.compile(r"^deb(?P<options>\s+\[[^]]*\])?\s+(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$")

Progress = Callable[[str], None]


def is_installed(package: str) -> bool:
    """Tell whether dpkg has the package installed and configured."""
    query = ["dpkg-query", "-W", "-f=${db:Status-Abbrev}", package]
    return gate.run(query, env=APT_ENV, check=False).stdout.startswith("ii")


def installed_source_version(package: str) -> str:
    """Return the version of the source package that an installed binary package was built from."""
    version = gate.run(["dpkg-query", "-W", "-f=${source:Version}", package], env=APT_ENV).stdout.strip()
    if not version:
        raise HostError(
            "STACK_NOT_INSTALLED",
            f"the version of {package} is not known to dpkg",
            state="nothing was built",
            next=f"apt-get install {package}",
        )
    return version


def install_missing(packages: Iterable[str], progress: Progress) -> None:
    """Install what is not there. Fetches the package lists first where they are empty or out of date."""
    missing = sorted({package for package in packages if not is_installed(package)})
    if not missing:
        return
    if os.geteuid() != 0:
        raise HostError(
            "STACK_NEEDS_ROOT",
            f"packages are missing and only root can install them: {' '.join(missing)}",
            state="nothing was changed",
            next=f"sudo apt-get install --no-install-recommends {' '.join(missing)}",
        )
    progress(f"installing {' '.join(missing)}")
    install = ["apt-get", *APT_WAIT, "install", "-y", "-q", "--no-install-recommends", *missing]
    try:
        gate.run(install, env=APT_ENV, timeout_s=APT_TIMEOUT_S)
    except CommandError:
        # Empty lists on a fresh machine, or old ones that name files the mirror has dropped.
        gate.run(["apt-get", *APT_WAIT, "update", "-q"], env=APT_ENV, timeout_s=APT_TIMEOUT_S)
        gate.run(install, env=APT_ENV, timeout_s=APT_TIMEOUT_S)


def source_entries(text: str, *, deb822: bool, codename: str) -> str:
    """Turn binary entries of an apt sources file into source entries, those of the distribution itself only.

    codename  the release, e.g. ``bookworm``: suites that begin otherwise are third parties'
    """
    if not deb822:
        found = [entry for line in text.splitlines() if (entry := ONE_LINE.match(line.strip()))]
        ours = [entry.group(0) for entry in found if entry["suite"].startswith(codename)]
        return "".join(f"deb-src{line.removeprefix('deb')}\n" for line in ours)
    stanzas = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        split = (line.partition(":") for line in lines)
        fields = {key.strip().lower(): value.strip() for key, _, value in split}
        binary = "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no"
        if binary and any(suite.startswith(codename) for suite in fields.get("suites", "").split()):
            kept = [line for line in lines if not line.lower().startswith("types:")]
            stanzas.append("\n".join(["Types: deb-src", *kept]))
    return "\n\n".join(stanzas) + "\n" if stanzas else ""


class SourceArchive:
    """Source packages by a private apt configuration under one directory."""

    def __init__(self, directory: Path, progress: Progress, *, etc_apt: Path = Path("/etc/apt")) -> None:
        self._directory = directory
        self._progress = progress
        self._etc_apt = etc_apt
        self._ready = False

    def cached(self, recipe: Recipe) -> tuple[str, Path] | None:
        """Return version and .dsc of a package fetched before that still fits, or nothing."""
        wanted = installed_source_version(recipe.same_as_installed) if recipe.same_as_installed else None
        # The file is written after the download: without it that has not ended.
        complete = sorted(self._directory.glob(f"{recipe.package}/*/version"), key=lambda f: f.stat().st_mtime)
        for file in reversed(complete):
            version, dsc = file.read_text().strip(), next(file.parent.glob("*.dsc"))
            if version.startswith(recipe.version_prefix) and wanted in (None, version):
                return version, dsc
        return None

    def fetch(self, recipe: Recipe) -> tuple[str, Path]:
        """Download a source package, the newest version with the prefix or the installed one.

        Returns the version and the .dsc. What was downloaded before is used again.
        """
        found = self.cached(recipe)
        if found:
            return found
        apt = self._apt()
        version = self._choose(recipe, apt)
        self._progress(f"{recipe.name}: fetching {recipe.package} {version}")
        target = self._directory / recipe.package / version.replace(":", "%3a")
        target.mkdir(parents=True, exist_ok=True)
        gate.run(
            ["apt-get", *apt, "source", "-q", "--download-only", f"{recipe.package}={version}"],
            env=APT_ENV,
            cwd=target,
            timeout_s=APT_TIMEOUT_S,
        )
        dsc = next(target.glob("*.dsc"))
        (target / "version").write_text(version + "\n")
        return version, dsc

    def _choose(self, recipe: Recipe, apt: Sequence[str]) -> str:
        show = ["apt-cache", *apt, "showsrc", "--only-source", recipe.package]
        shown = gate.run(show, env=APT_ENV, check=False)
        versions = [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("Version: ")]
        if recipe.same_as_installed:
            versions = [v for v in versions if v == installed_source_version(recipe.same_as_installed)]
        fitting = [v for v in versions if v.startswith(recipe.version_prefix)]
        if not fitting:
            like = f" like the installed {recipe.same_as_installed}" if recipe.same_as_installed else ""
            raise HostError(
                "STACK_NO_SOURCE",
                f"no source package {recipe.package} {recipe.version_prefix}…{like} in the archive",
                state="nothing was built",
                next="apt-get update && apt-get dist-upgrade, then the build once more",
            )
        newest = fitting[0]
        for version in fitting[1:]:
            later = gate.run(["dpkg", "--compare-versions", version, "gt", newest], env=APT_ENV, check=False)
            newest = version if later.returncode == 0 else newest
        return newest

    def _apt(self) -> list[str]:
        base = self._directory / "apt"
        parts, lists, cache = base / "sources.list.d", base / "lists", base / "cache"
        options = [
            f"Dir::Etc::sourcelist={os.devnull}",
            f"Dir::Etc::sourceparts={parts}",
            f"Dir::State::lists={lists}",
            f"Dir::Cache={cache}",
            # The sandbox user cannot read a directory below a private checkout.
            "APT::Sandbox::User=root",
        ]
        apt = [word for option in options for word in ("-o", option)]
        if not self._ready:
            for directory in (parts, lists / "partial", cache / "archives" / "partial"):
                directory.mkdir(parents=True, exist_ok=True)
            self._write_entries(parts)
            gate.run(["apt-get", *apt, "update", "-q"], env=APT_ENV, timeout_s=APT_TIMEOUT_S)
            self._ready = True
        return apt

    def _write_entries(self, parts: Path) -> None:
        codename = _codename()
        written = False
        files = [self._etc_apt / "sources.list", *sorted((self._etc_apt / "sources.list.d").glob("*"))]
        for file in files:
            if file.suffix not in {".list", ".sources"} or not file.is_file():
                continue
            entries = source_entries(file.read_text(), deb822=file.suffix == ".sources", codename=codename)
            (parts / file.name).write_text(entries)
            written = written or bool(entries)
        if not written:
            raise HostError(
                "STACK_NO_ARCHIVE",
                f"{self._etc_apt} names no archive of {codename} to take source packages from",
                state="nothing was built",
                next=f"add the archive of {codename} to {self._etc_apt}/sources.list.d",
            )


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise HostError(
        "STACK_NOT_DEBIAN",
        "/etc/os-release names no VERSION_CODENAME",
        state="nothing was built",
        next="use Debian 12, or give the paths of binaries built elsewhere",
    )
