"""The error tree. Every error an operator sees says what happened, what state the host is in, and what to type next."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the `upgrade` command; stable, Ansible maps them."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    BLOCKED = 3  # findings forbid the run; nothing changed
    RESTORED = 4  # failed, rolled back, host safe
    OPERATOR = 5  # failed, a person is needed
    STOPPED = 6  # paused or aborted on request
    LOCKED = 7  # another run holds the host
    CHANGES = 10  # plan --detailed-exitcode: there is something to do


class UpgradeError(Exception):
    """Root of the tree.

    code   stable, upper-case with underscores, e.g. ``LIBVIRT_UNREACHABLE``
    what   what happened, one sentence
    state  what state the host is in now, one sentence
    next   the next command to type, or what to do by hand
    """

    exit_code = Exit.UNEXPECTED

    def __init__(self, code: str, what: str, *, state: str, next: str) -> None:  # noqa: A002 - the operator's word
        super().__init__(what)
        self.code = code
        self.what = what
        self.state = state
        self.next = next

    def __str__(self) -> str:
        return f"{self.code}: {self.what}"


class UsageError(UpgradeError):
    """What was asked for cannot be meant: unknown host, bad configuration. Nothing was changed."""

    exit_code = Exit.USAGE


class BlockedError(UpgradeError):
    """Findings forbid the run. Nothing was changed."""

    exit_code = Exit.BLOCKED


class LockedError(UpgradeError):
    """Another run holds the host. Nothing was changed."""

    exit_code = Exit.LOCKED


class CommandError(UpgradeError):
    """A command of the gate failed or took too long."""

    def __init__(self, command: str, reason: str, output: str) -> None:
        tail = "\n".join(output.strip().splitlines()[-8:])
        super().__init__(
            "COMMAND_FAILED",
            f"`{command}` {reason}" + (f":\n{tail}" if tail else ""),
            state="as the command left it",
            next=command,
        )
        self.command = command
        self.reason = reason
        self.output = output


class HostError(UpgradeError):
    """A part of the host (a switch, libvirt, a NIC) refused, did not answer, or is not as it must be."""


class StepError(UpgradeError):
    """A step's effect failed or its verification did not hold."""


class SupersededError(UpgradeError):
    """Another coordinator has taken this host over since we began: whatever we were about to do, we must not."""

    exit_code = Exit.LOCKED

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(
            "SUPERSEDED",
            f"coordinator {theirs} has taken this host over, this one is {ours}",
            state="as that coordinator leaves it; this one stopped before its next effect",
            next="upgrade status",
        )


class JournalError(UpgradeError):
    """The journal cannot be read or written."""


class StopAskedError(Exception):
    """A person asked the run to stop while a step only waited; not an error, and never shown."""
