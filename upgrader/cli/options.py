"""Options that several verbs share, and what the first part of the command line said."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the run.")]
KeepOld = Annotated[
    bool | None,
    typer.Option("--keep-old/--end-old", help="Whether the old switch goes on standing by, for a rollback."),
]
OnFailure = Annotated[
    str | None,
    typer.Option(
        "--on-failure",
        metavar="back|stay|ask",
        help="What becomes of the run when a step fails.",
        autocompletion=lambda: ["back", "stay", "ask"],
    ),
]

# a command of ours in what an error says: at the start of it, or after what is no part of a path or a word
_OURS = re.compile(r"(?<![\w./-])upgrade (?=--\w|[a-z]+\b)")
HOISTED = {"--host": True, "--config": True, "--here": False, "--verbose": False, "-v": False}  # takes a value


@dataclass(frozen=True, slots=True)
class Globals:
    """What stood before the verb.

    host     as the person named it
    remote   that person is on another machine: what is typed next has to name the host
    verbose  log every command that is run
    """

    config: Path | None = None
    host: str | None = None
    remote: bool = False
    verbose: bool = False

    def command(self, words: str) -> str:
        """Commands of ours that mean the same host and read the same configuration."""
        if self.remote and self.host:
            words = words.replace("--host localhost", f"--host {shlex.quote(self.host)}")
        extra = f"--config {shlex.quote(str(self.config))} " if self.config else ""

        def more(match: re.Match[str]) -> str:
            rest = words[match.end() :]
            host = f"--host {shlex.quote(self.host)} " if self.remote and self.host else ""
            here = rest.startswith(("--host", "--help", "lab "))
            return f"upgrade {extra}{'' if here else host}" if not rest.startswith("lab ") else match.group()

        return _OURS.sub(more, words)


def hoisted(arguments: list[str]) -> list[str]:
    """--host, --config and --verbose may stand anywhere: they are moved in front of the verb."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif HOISTED.get(word):
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word in HOISTED or word.partition("=")[0] in ("--host", "--config"):
            front.append(word)
        else:
            rest.append(word)
    return [*front, *rest]


def options_of(arguments: list[str]) -> Globals:
    """From the bare words, where parsing did not come so far."""
    given = dict(pairwise(arguments))
    given |= dict(word.split("=", 1) for word in arguments if word.startswith(("--host=", "--config=")))
    config = given.get("--config")
    return Globals(Path(config) if config else None, given.get("--host"), remote="--here" in arguments)


def logs_of(options: Globals) -> None:
    """Set logging up, where something is about to log."""
    from upgrader.cli import logs  # noqa: PLC0415

    logs.set_up(verbose=options.verbose)


def of(context: typer.Context) -> Globals:
    found = context.find_object(Globals)
    return found if found is not None else Globals()
