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
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import structlog

from upgrader.core.errors import CommandError, UpgradeError, UsageError
from upgrader.lab.stack_apt import Progress
from upgrader.lab.stack_build import Builder, Built, Part

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_DIR = REPOSITORY / "build"
# Completed by the recipe's flags (configure) and by -jN (build); all run in the build directory.
PARTS: Mapping[str, Part] = {
    "qemu": Part(
        "qemu",
        "qemu-patches/7.2",
        configure=("../src/configure",),
        # Only what is installed: upstream's tests are as much again, and are built when they are to be run.
        build=("ninja", "qemu-system-x86_64", "trace/trace-events-all"),
        install=("meson", "install", "--no-rebuild", "--quiet"),
        build_all=("ninja",),
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


def build_stack(
    build_dir: Path = BUILD_DIR,
    *,
    parts: Sequence[str] = DEFAULT_PARTS,
    patched: bool = True,
    check: bool = False,
    jobs: int | None = None,
    recipes: Path = REPOSITORY,
    places: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> list[Built]:
    """Build and install what is not there yet; return all parts asked for, with those they need before them.

    patched  without, the distribution's sources as they are, beside (``<part>-unpatched``)
    check    also run upstream's own tests that the recipe lists
    places   by part, the prefix that a package will put it at; it is built for that one, beside (``<part>-packaged``)
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
    # The folder itself, not a link to it: its path is part of the keys, and the switch looks for its DPDK there.
    stack_dir = (build_dir / "stack").resolve()
    stack_dir.mkdir(parents=True, exist_ok=True)
    # The unpatched switch runs on the distribution's own DPDK.
    wanted = [need for name in parts for need in (*(PARTS[name].needs if patched else ()), name)]
    with _lock(stack_dir, say):
        workers = jobs or os.cpu_count() or 1
        builder = Builder(PARTS, stack_dir, recipes, patched=patched, jobs=workers, progress=say, places=places or {})
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
    # A terminated build takes its compilers with it, like an interrupted one.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(128 + signal.SIGTERM))
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
    except KeyboardInterrupt:
        print("interrupted; what was installed before is still in use", file=sys.stderr)
        return 128 + signal.SIGINT
    for one in built:
        print(one.link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
