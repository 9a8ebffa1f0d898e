"""`upgrade lab`: what a person is told when it cannot be done."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from upgrader.cli import app
from upgrader.lab import spec as names


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No lab of the machine is looked at, and signal handlers are put back."""
    monkeypatch.setattr(names, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kept = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in kept:
        signal.signal(number, handler)


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str


def _run(*args: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = app._main(["lab", *args])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    "args", [("--vms", "0"), ("--queues", "9"), ("--pages", "1g"), ("--name", "No Name"), ("--name", "../../etc")]
)
def test_a_bad_option_is_a_usage_error(args: tuple[str, str], tmp_path: Path) -> None:
    done = _run("up", *args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "next:  upgrade lab up" in done.stderr
    assert not (tmp_path / "run").exists()
    told = json.loads(_run("up", *args, "--json").stdout)
    assert (told["kind"], told["state"]) == ("error", "nothing was changed")


@pytest.mark.parametrize("option", ["--ovs-prefix", "--qemu-binary"])
def test_a_stack_that_is_not_built_is_named_with_its_command(option: str, tmp_path: Path) -> None:
    done = _run("up", "--ovs-prefix", str(_built(tmp_path)), "--qemu-binary", "/bin/true", option, "/no/where")
    assert done.exit_code == 1
    assert "STACK_MISSING" in done.stderr
    assert "/no/where" in done.stderr
    assert "next:  make stack" in done.stderr
    assert not (tmp_path / "run").exists()


def _built(tmp_path: Path) -> Path:
    (tmp_path / "ovs/sbin").mkdir(parents=True)
    (tmp_path / "ovs/sbin/ovs-vswitchd").touch()
    return tmp_path / "ovs"


def test_no_lab_is_said_so() -> None:
    assert "there is no lab 'lab'" in _run("status").stdout
    done = _run("status", "--json")
    assert done.exit_code == 0
    seen = json.loads(done.stdout)
    assert (seen["phase"], seen["healthy"]) == (None, False)


def test_down_of_nothing_is_harmless() -> None:
    done = _run("down", "--name", "nolab")
    assert done.exit_code == 0
    assert "there was nothing of a lab 'nolab'" in done.stderr


def test_without_root_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in ("up", "down"):
        done = _run(verb)
        assert done.exit_code == 2
        assert f"next:  sudo upgrade lab {verb}" in done.stderr
    assert not (tmp_path / "run").exists()
