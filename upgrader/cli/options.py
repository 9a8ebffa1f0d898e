"""Options that several verbs share, and what the first part of the command line said."""

from __future__ import annotations

from dataclasses import dataclass
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
    str | None, typer.Option("--on-failure", metavar="back|stay|ask", help="What becomes of the run when a step fails.")
]


@dataclass(frozen=True, slots=True)
class Globals:
    """What stood before the verb."""

    config: Path | None = None
    host: str | None = None

    def command(self, words: str) -> str:
        """A command of ours that reads the same configuration."""
        return words.replace("upgrade ", f"upgrade --config {self.config} ", 1) if self.config else words


def of(context: typer.Context) -> Globals:
    found = context.find_object(Globals)
    return found if found is not None else Globals()
