"""Shell completion: typer's script for a shell that is named, so that it can be made in a package's build, too."""

from __future__ import annotations

from typing import NoReturn

import typer
from typer.completion import (  # type: ignore[attr-defined]  # typer itself only guesses which shell is meant
    get_completion_inspect_parameters,
    get_completion_script,
)

from upgrader.core.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def show_completion(shell: str) -> NoReturn:
    """Print the script and leave. Raises UsageError for another shell."""
    if shell not in SHELLS:
        raise UsageError(
            "NO_SUCH_SHELL",
            f"--show-completion takes {', '.join(SHELLS)}, not {shell}",
            state="nothing was changed",
            next="upgrade --show-completion bash",
        )
    typer.echo(get_completion_script(prog_name="upgrade", complete_var="_UPGRADE_COMPLETE", shell=shell))
    raise typer.Exit


def knows_the_shells() -> None:
    """Make typer ready to complete. It does that as it makes its own two options, which we do not take."""
    get_completion_inspect_parameters()
