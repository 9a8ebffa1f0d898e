"""The building itself: one part from its source package to an installed prefix behind a symlink."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from upgrader.adapters import gate
from upgrader.core.errors import HostError
from upgrader.lab.stack_apt import Progress, SourceArchive, install_missing, installed_source_version
from upgrader.lab.stack_recipe import Recipe, build_key, expand_flags, read_recipe

SCHEMA_VERSION = 1
STEP_TIMEOUT_S = 3600.0
LOG_TAIL_LINES = 15

# The distribution's tools and the recipe's flags only: what is not in the key must not reach the build.
BUILD_ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    **dict.fromkeys(("CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "MAKEFLAGS", "MFLAGS", "PYTHONPATH"), ""),
}


# Should we be killed, make and ninja are told, and end their compilers; else they would write into the next build.
BOUND = ("setpriv", "--pdeathsig", "TERM", "--")
# No fuzz: a patch that only nearly fits is one for another source.
APPLY = ("patch", "-p1", "-F0", "--batch", "--forward", "--no-backup-if-mismatch", "-i")
VHOST_LIBRARY = "librte_vhost.so.23"


@dataclass(frozen=True, slots=True)
class Part:
    """How one part is built.

    needs      parts whose result goes into this one
    build_all  what upstream's tests need beyond `build`
    """

    name: str
    recipe: str
    configure: tuple[str, ...]
    build: tuple[str, ...]
    install: tuple[str, ...]
    needs: tuple[str, ...] = ()
    build_all: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """One installed part. `seconds` has an entry per step, and is empty when it was there already.

    place  the prefix that was compiled in: where it lies, or where a package will put it
    """

    part: str
    patched: bool
    key: str
    prefix: Path
    link: Path
    place: Path
    source_version: str
    seconds: Mapping[str, float] = field(default_factory=dict)


class Builder:
    """One call of build_stack, with the lock held."""

    def __init__(
        self,
        parts: Mapping[str, Part],
        stack_dir: Path,
        recipes: Path,
        *,
        patched: bool,
        jobs: int,
        progress: Progress,
        places: Mapping[str, Path],
    ) -> None:
        self._parts = parts
        self._stack_dir = stack_dir
        self._recipes = recipes
        self._patched = patched
        self._jobs = jobs
        self._say = progress
        self._places = places
        self._sources = SourceArchive(stack_dir / "sources", progress)
        self._built: dict[str, Built] = {}

    def install_dependencies(self, names: Sequence[str]) -> None:
        """Install the build dependencies of all parts in one go."""
        install_missing([package for name in names for package in self._recipe(name).build_deps], self._say)

    def build(self, name: str) -> Built:
        """Build one part, or find it built."""
        recipe = self._recipe(name)
        started = time.monotonic()
        version, origin = self._source(recipe)
        fetched = time.monotonic()
        depends = {need: self._built[need].key for need in self._parts[name].needs if need in self._built}
        part, place = self._parts[name], self._places.get(name)
        key = build_key(
            recipe,
            version,
            patched=self._patched,
            location=place or self._stack_dir,
            commands=(part.configure, part.build, part.install),
            depends=depends,
        )
        label = name + ("" if self._patched else "-unpatched") + ("-packaged" if place else "")
        prefix, link = self._stack_dir / f"{label}-{key}", self._stack_dir / label
        built = Built(name, self._patched, key, prefix, link, place or prefix, version)
        if (built.prefix / "manifest.json").exists():
            self._say(f"{label}: {built.prefix.name} is there")
        else:
            seconds = {"fetch": fetched - started, **self._make(recipe, built, origin)}
            built = replace(built, seconds=seconds)
            self._say(f"{label}: built in {sum(seconds.values()):.0f} s, {built.prefix}")
        _point(built.link, built.prefix.name)
        self._built[name] = built
        return built

    def check(self, built: Built) -> None:
        """Run the tests of upstream that the recipe lists, in the build directory."""
        work = self._work(built)
        if not work.is_dir():
            raise HostError(
                "STACK_NO_BUILD_TREE",
                f"{built.prefix.name} is installed, but its build tree {work} is gone",
                state="the installed build is untouched",
                next=f"rm -r {built.prefix}, then the same command again",
            )
        checks, build_all = self._recipe(built.part).checks, self._parts[built.part].build_all
        if checks and build_all:
            self._say(f"{built.link.name}: build what its tests need")
            self._step(work, "build", [*build_all, f"-j{self._jobs}"])
        for number, command in enumerate(checks, 1):
            self._say(f"{built.link.name}: {command}")
            words = [word.replace("@JOBS@", str(self._jobs)) for word in shlex.split(command)]
            self._run(words, cwd=work / "obj", log=work / f"check-{number}.log")

    def _recipe(self, name: str) -> Recipe:
        return read_recipe(name, self._recipes / self._parts[name].recipe, packaged=name in self._places)

    def _work(self, built: Built) -> Path:
        return self._stack_dir / "work" / built.prefix.name

    def _source(self, recipe: Recipe) -> tuple[str, Path]:
        """Return the version and the file (.dsc or tarball) to unpack."""
        if not recipe.tarball:
            return self._sources.fetch(recipe)
        version = installed_source_version(recipe.package)
        if not version.startswith(recipe.version_prefix):
            raise HostError(
                "STACK_WRONG_VERSION",
                f"{recipe.package} is installed as {version}, the patches are for {recipe.version_prefix}",
                state="nothing was built",
                next=f"apt-get install {recipe.package}={recipe.version_prefix}*",
            )
        changed = gate.run(["dpkg", "--verify", recipe.package], env=BUILD_ENV, check=False).stdout
        if any(line.endswith(str(recipe.tarball)) for line in changed.splitlines()):
            raise HostError(
                "STACK_SOURCE_CHANGED",
                f"{recipe.tarball} is not as {recipe.package} installed it",
                state="nothing was built",
                next=f"apt-get install --reinstall {recipe.package}",
            )
        return version, recipe.tarball

    def _make(self, recipe: Recipe, built: Built, origin: Path) -> dict[str, float]:
        part, label = self._parts[built.part], built.link.name
        work = self._work(built)
        for old in work.parent.glob(f"{label}-*"):
            # Trees of this part only: what follows the label is a key and nothing else.
            if old.name.removeprefix(f"{label}-").isalnum():
                shutil.rmtree(old)
        (work / "obj").mkdir(parents=True)
        stage = work / "stage"
        flags = expand_flags(recipe, src=work / "src", prefix=built.place)
        steps: list[tuple[str, Callable[[], None]]] = [
            ("unpack", lambda: self._unpack(recipe, origin, work)),
            ("patch", lambda: self._patch(recipe, work)),
            ("configure", lambda: self._step(work, "configure", [*part.configure, *flags])),
            ("build", lambda: self._step(work, "build", [*part.build, f"-j{self._jobs}"])),
            ("install", lambda: self._install(part, built, work, stage)),
        ]
        seconds = {}
        for step, run in steps:
            self._say(f"{label}: {step}")
            begin = time.monotonic()
            run()
            seconds[step] = round(time.monotonic() - begin, 1)
        staged = stage / built.place.relative_to("/")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "part": built.part,
            "patched": built.patched,
            "key": built.key,
            "source": {"package": recipe.package, "version": built.source_version},
            "patches": [
                {"name": patch.path.name, "subject": patch.subject, "sha256": patch.sha256}
                for patch in (recipe.patches if built.patched else ())
            ],
            "configure": flags,
            "depends": {need: self._built[need].key for need in part.needs if need in self._built},
            "seconds": seconds,
        }
        (staged / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        # A prefix without a manifest is what a build interrupted by a power cut may have left.
        shutil.rmtree(built.prefix, ignore_errors=True)
        staged.rename(built.prefix)
        shutil.rmtree(stage)
        return seconds

    def _unpack(self, recipe: Recipe, origin: Path, work: Path) -> None:
        src = work / "src"
        if recipe.tarball:
            src.mkdir()
            command = ["tar", "-xzf", str(origin), "-C", str(src), "--strip-components=1", "--no-same-owner"]
        else:
            command = ["dpkg-source", "-x", str(origin), str(src)]
        self._step(work, "unpack", command)

    def _patch(self, recipe: Recipe, work: Path) -> None:
        for patch in recipe.patches if self._patched else ():
            self._run([*APPLY, str(patch.path)], cwd=work / "src", log=work / "patch.log")
        if recipe.device_file:
            target = work / "src/configs/devices/x86_64-softmmu/ovs-upgrade.mak"
            shutil.copyfile(recipe.device_file, target)

    def _install(self, part: Part, built: Built, work: Path, stage: Path) -> None:
        staged = stage / built.place.relative_to("/")
        staged.mkdir(parents=True)
        if part.install:
            self._step(work, "install", list(part.install), env={"DESTDIR": str(stage)})
        if part.name == "dpdk":
            _check_same_configuration(work / "obj/rte_build_config.h")
            (staged / "lib").mkdir()
            shutil.copy2(work / "obj/lib/librte_vhost.so.23.0", staged / "lib" / VHOST_LIBRARY)
        if "dpdk" in self._built and "dpdk" in part.needs:
            beside = staged / "lib/dpdk"
            beside.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._built["dpdk"].prefix / "lib" / VHOST_LIBRARY, beside)
        for leftover in (*staged.glob("lib/*.a"), *staged.glob("lib/*.la")):
            leftover.unlink()
        files = (path for path in staged.rglob("*") if path.is_file() and not path.is_symlink())
        binaries = [path for path in files if _is_elf(path)]
        self._run(["strip", "--strip-unneeded", *map(str, binaries)], cwd=work, log=work / "install.log")

    def _step(self, work: Path, step: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        in_tree = step not in {"unpack", "patch"}
        self._run(command, cwd=work / "obj" if in_tree else work, log=work / f"{step}.log", env=env)

    def _run(self, command: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None) -> None:
        """Run one command with its output in a log file; what interrupts us ends its process group too."""
        process = gate.spawn([*BOUND, *command], cwd=cwd, output=log, env={**BUILD_ENV, **(env or {})})
        try:
            code = process.wait(timeout=STEP_TIMEOUT_S)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise self._failed(command, cwd, log, f"did not end within {STEP_TIMEOUT_S:g} s") from None
            raise
        if code != 0:
            raise self._failed(command, cwd, log, f"exited with {code}")

    @staticmethod
    def _failed(command: Sequence[str], cwd: Path, log: Path, reason: str) -> HostError:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return HostError(
            "STACK_BUILD_FAILED",
            f"`{gate.paste(command)}` in {cwd} {reason}:\n{tail}",
            state="the build installed before, if any, is still in use",
            next=f"less {log}",
        )


def _point(link: Path, target: str) -> None:
    """Make the symlink point to the target in one step."""
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _check_same_configuration(ours: Path) -> None:
    """Fail unless the constants that our build and the installed DPDK both have are equal: they share structures.

    Strings are paths and names, of no concern to structures.
    """
    include = gate.run(["pkg-config", "--cflags-only-I", "libdpdk"], env=BUILD_ENV).stdout.split()
    theirs = [path for word in include if (path := Path(word.removeprefix("-I")) / ours.name).exists()]
    if not theirs:
        raise HostError(
            "STACK_NO_DPDK_HEADERS",
            f"no {ours.name} below {' '.join(include)}",
            state="nothing was installed",
            next="apt-get install --reinstall libdpdk-dev",
        )
    one, other = _defines(ours), _defines(theirs[0])
    different = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    if different:
        raise HostError(
            "STACK_DPDK_ABI",
            f"{ours} and {theirs[0]} differ in {', '.join(different)}",
            state="nothing was installed",
            next="compare ovs-patches/dpdk-22.11/configure-flags with the distribution's debian/rules",
        )


def _defines(header: Path) -> dict[str, str]:
    lines = (line.split(maxsplit=2) for line in header.read_text().splitlines() if line.startswith("#define "))
    values = {words[1]: words[2] if len(words) > 2 else "" for words in lines}
    return {name: value for name, value in values.items() if not value.startswith('"')}
