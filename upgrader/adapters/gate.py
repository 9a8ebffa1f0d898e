"""The one gate for subprocesses: every command has a time limit, can be printed for pasting, and fails with its output."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from upgrader.core.errors import CommandError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended: its exit code and what it printed."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def in_netns(argv: Sequence[str], netns: str | None) -> list[str]:
    """Prefix a command so that it runs in a named network namespace (`ip netns`), or in ours when there is no name."""
    if not netns:
        return list(argv)
    return ["nsenter", f"--net=/run/netns/{netns}", "--", *argv]


def paste(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Render a command as a line for a shell, with the variables it sets."""
    variables = [f"{k}={shlex.quote(v)}" for k, v in (env or {}).items()]
    return " ".join([*variables, shlex.join(argv)])


def run(
    argv: Sequence[str],
    *,
    netns: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    cwd: Path | None = None,
    timeout_s: float = 30.0,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    show_stderr: bool = False,
) -> Completed:
    """Run a command to its end.

    `env` is added to ours; with `show_stderr` what it says there goes to our own stderr as it comes. Raises
    CommandError when it cannot be started, exceeds `timeout_s` (it is killed then), or, with `check`, exits with
    anything but 0.
    """
    full = in_netns(argv, netns)
    line = paste(full, env)
    log.debug("run", command=line)
    try:
        process = subprocess.Popen(
            full,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if show_stderr else subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **(env or {})},
            pass_fds=tuple(pass_fds),
            # a terminal's Ctrl-C is for us: whoever called decides whether a command in hand is to end
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(line, f"could not be started ({error.strerror}: {error.filename})", "") from error
    try:
        stdout, stderr = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        text = error.stderr or error.stdout or b""
        said = text.decode(errors="replace") if isinstance(text, bytes) else text
        raise CommandError(line, f"did not end within {timeout_s:g} s and was killed", said) from error
    except BaseException:
        _kill(process)
        raise
    if check and process.returncode != 0:
        raise CommandError(line, f"exited with {process.returncode}", stderr or stdout)
    return Completed(tuple(full), process.returncode, stdout, stderr or "")


def _kill(process: subprocess.Popen[str]) -> None:
    """End a command and what it started; daemons that left its session stay, and may hold its pipes open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def spawn(
    argv: Sequence[str],
    *,
    netns: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: Path | None = None,
    stdin_pipe: bool = False,
    stdout_pipe: bool = False,
    pass_fds: Sequence[int] = (),
    new_session: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a command that goes on beside us; the caller ends it. Output goes to the file `output`, or nowhere.

    With `stdin_pipe` / `stdout_pipe` the caller talks to it through pipes instead. A new session keeps a
    terminal's Ctrl-C from reaching it: whoever started it takes it down in order.
    """
    full = in_netns(argv, netns)
    line = paste(full, env)
    log.debug("spawn", command=line)
    sink = output.open("ab") if output else None
    try:
        return subprocess.Popen(
            full,
            stdin=subprocess.PIPE if stdin_pipe else subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout_pipe else (sink or subprocess.DEVNULL),
            stderr=sink or subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=new_session,
            pass_fds=tuple(pass_fds),
        )
    except OSError as error:
        raise CommandError(line, f"could not be started ({error.strerror}: {error.filename})", "") from error
    finally:
        if sink:
            sink.close()
