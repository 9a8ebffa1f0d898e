"""Build the patched stack: QEMU, Open vSwitch and DPDK's vhost library, from the distribution's sources.

Each part goes into ``build/stack/<part>-<key>`` with a symlink ``build/stack/<part>`` that is changed in one
step; the key is a hash of source version, patches, flags and devices, so that nothing is built twice and nothing
stale is used.
``python -m upgrader.lab.stack [part…] [--unpatched] [--check]``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from upgrader.adapters import gate
from upgrader.core.errors import CommandError, HostError, UpgradeError, UsageError
from upgrader.lab.stack_apt import Progress, SourceArchive, install_missing, installed_source_version
from upgrader.lab.stack_recipe import Recipe, build_key, expand_flags, read_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_DIR = REPOSITORY / "build"
SCHEMA_VERSION = 1
STEP_TIMEOUT_S = 3600.0
LOG_TAIL_LINES = 15

# The distribution's tools and the recipe's flags only: what is not in the key must not reach the build.
BUILD_ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    **dict.fromkeys(("CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "MAKEFLAGS", "MFLAGS", "PYTHONPATH"), ""),
}


@dataclass(frozen=True, slots=True)
class Part:
    """How one part is built. `needs` are parts whose result goes into this one."""

    name: str
    recipe: str
    configure: tuple[str, ...]
    build: tuple[str, ...]
    install: tuple[str, ...]
    needs: tuple[str, ...] = ()


# Completed by the recipe's flags (configure) and by -jN (build); all run in the build directory.
PARTS: Mapping[str, Part] = {
    "qemu": Part(
        "qemu",
        "qemu-patches/7.2",
        configure=("../src/configure",),
        build=("ninja",),
        install=("ninja", "install"),
    ),
    "dpdk": Part(
        "dpdk",
        "ovs-patches/dpdk-22.11",
        configure=("meson", "setup", ".", "../src"),
        build=("ninja", "lib/librte_vhost.so.23.0"),
        install=(),
    ),
    "ovs": Part(
        "ovs",
        "ovs-patches/3.1.0",
        configure=("../src/configure",),
        build=("make",),
        install=("make", "install"),
        needs=("dpdk",),
    ),
}
DEFAULT_PARTS = ("qemu", "ovs")
# No fuzz: a patch that only nearly fits is one for another source.
APPLY = ("patch", "-p1", "-F0", "--batch", "--forward", "--no-backup-if-mismatch", "-i")
VHOST_LIBRARY = "librte_vhost.so.23"


@dataclass(frozen=True, slots=True)
class Built:
    """One installed part. `seconds` has an entry per step, and is empty when it was there already."""

    part: str
    patched: bool
    key: str
    prefix: Path
    link: Path
    source_version: str
    seconds: Mapping[str, float] = field(default_factory=dict)


def build_stack(
    build_dir: Path = BUILD_DIR,
    *,
    parts: Sequence[str] = DEFAULT_PARTS,
    patched: bool = True,
    check: bool = False,
    jobs: int | None = None,
    recipes: Path = REPOSITORY,
    progress: Progress | None = None,
) -> list[Built]:
    """Build and install what is not there yet; return all parts asked for, with those they need before them.

    patched  without, the distribution's sources as they are, beside (``<part>-unpatched``)
    check    also run upstream's own tests that the recipe lists
    Raises UpgradeError: what failed, the log, what to type next. A failed build leaves the installed one alone.
    """
    say = progress or (lambda _text: None)
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise UsageError(
            "STACK_UNKNOWN_PART",
            f"no part of the stack is called {', '.join(unknown)}",
            state="nothing was built",
            next=f"name one of {', '.join(PARTS)}",
        )
    stack_dir = build_dir.resolve() / "stack"
    stack_dir.mkdir(parents=True, exist_ok=True)
    # The unpatched switch runs on the distribution's own DPDK.
    wanted = [need for name in parts for need in (*(PARTS[name].needs if patched else ()), name)]
    with _lock(stack_dir, say):
        workers = jobs or os.cpu_count() or 1
        builder = _Builder(stack_dir, recipes, patched=patched, jobs=workers, progress=say)
        builder.install_dependencies(wanted)
        built = [builder.build(name) for name in dict.fromkeys(wanted)]
        if check:
            for one in built:
                builder.check(one)
    return built


@contextlib.contextmanager
def _lock(stack_dir: Path, say: Progress) -> Iterator[None]:
    """Hold the directory for one build. The lock goes with the process, however it ends."""
    with (stack_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"another build is running (pid {file.read().strip() or 'unknown'}), waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class _Builder:
    """One call of build_stack, with the lock held."""

    def __init__(self, stack_dir: Path, recipes: Path, *, patched: bool, jobs: int, progress: Progress) -> None:
        self._stack_dir = stack_dir
        self._recipes = recipes
        self._patched = patched
        self._jobs = jobs
        self._say = progress
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
        depends = {need: self._built[need].key for need in PARTS[name].needs if need in self._built}
        key = build_key(recipe, version, patched=self._patched, location=self._stack_dir, depends=depends)
        label = name if self._patched else f"{name}-unpatched"
        prefix, link = self._stack_dir / f"{label}-{key}", self._stack_dir / label
        built = Built(name, self._patched, key, prefix, link, version)
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
        for number, command in enumerate(self._recipe(built.part).checks, 1):
            self._say(f"{built.link.name}: {command}")
            words = [word.replace("@JOBS@", str(self._jobs)) for word in shlex.split(command)]
            self._run(words, cwd=work / "obj", log=work / f"check-{number}.log")

    def _recipe(self, name: str) -> Recipe:
        return read_recipe(name, self._recipes / PARTS[name].recipe)

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
        part, label = PARTS[built.part], built.link.name
        work = self._work(built)
        for old in work.parent.glob(f"{label}-*"):
            # Trees of this part only: what follows the label is a key and nothing else.
            if old.name.removeprefix(f"{label}-").isalnum():
                shutil.rmtree(old)
        (work / "obj").mkdir(parents=True)
        stage = work / "stage"
        flags = expand_flags(recipe, src=work / "src", prefix=built.prefix)
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
        staged = stage / built.prefix.relative_to("/")
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
        staged = stage / built.prefix.relative_to("/")
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
        process = gate.spawn(command, cwd=cwd, output=log, env={**BUILD_ENV, **(env or {})})
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m upgrader.lab.stack``; progress on stderr, the paths of the builds on stdout."""
    parser = argparse.ArgumentParser("python -m upgrader.lab.stack", description="Build the patched stack.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: qemu ovs)")
    parser.add_argument("--unpatched", action="store_true", help="the distribution's sources as they are, beside")
    parser.add_argument("--check", action="store_true", help="also run upstream's tests of what is patched")
    parser.add_argument("--build-dir", type=Path, default=BUILD_DIR, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, help="compile jobs at a time (default: one per core)")
    args = parser.parse_args(argv)

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    begin = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        built = build_stack(
            args.build_dir,
            parts=args.parts or DEFAULT_PARTS,
            patched=not args.unpatched,
            check=args.check,
            jobs=args.jobs,
            progress=progress,
        )
    except UpgradeError as error:
        next_step = error.next if not isinstance(error, CommandError) else f"run it by hand: {error.command}"
        print(f"{error}\nstate: {error.state}\nnext: {next_step}", file=sys.stderr)
        return int(error.exit_code)
    for one in built:
        print(one.link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
