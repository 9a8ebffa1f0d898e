"""This host as the verbs meet it: its configuration, its journal, its daemon, and who may change it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from upgrader.cli.options import Globals
from upgrader.core.errors import UsageError

if TYPE_CHECKING:
    from upgrader.adapters.journal import SqliteJournal
    from upgrader.config import Config
    from upgrader.daemon.client import Client

# What follows is imported late, as in `verbs`.
# ruff: noqa: PLC0415


def config_path(options: Globals) -> Path:
    """Of the configuration's file."""
    from upgrader import config

    return config.config_path(options.config).absolute()


def settings_of(options: Globals) -> Config:
    from upgrader.config import load

    return load(config_path(options))


def journal_of(options: Globals) -> tuple[Config, SqliteJournal]:
    from upgrader.adapters.journal import SqliteJournal

    settings = settings_of(options)
    return settings, SqliteJournal(settings.host.journal, read_only=True)


def daemon(options: Globals) -> Client:
    from upgrader.daemon.client import ensure

    return ensure(settings_of(options).host.socket, config_path(options))


def require_root(options: Globals) -> None:
    """A simulated host is anybody's."""
    if os.geteuid() != 0 and not _is_simulated(options):
        raise UsageError(
            "NOT_ROOT",
            "starting switches, steering and QEMU's monitor need root",
            state="nothing was changed",
            next="the same command with sudo",
        )


def require_free(options: Globals) -> None:
    """While a run moves VMs the host looks half-way: what counts is that one is under way, not what a plan finds."""
    from upgrader.core.errors import LockedError
    from upgrader.daemon.client import connect

    client = connect(settings_of(options).host.socket)
    if client is None:
        return
    with client:
        if client.ping():
            raise LockedError(
                "RUN_BUSY",
                "a run is being carried out",
                state="this command changed nothing",
                next="upgrade status --watch",
            )


def _is_simulated(options: Globals) -> bool:
    try:
        return settings_of(options).simulated is not None
    except UsageError:
        return False
