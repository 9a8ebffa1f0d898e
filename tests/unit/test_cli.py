"""The command line: every way to be refused ends in three lines and its exit code, also as JSON."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import typer

from tests.support.operator import Operator
from tests.support.runs import sim_run
from upgrader.cli import app, render
from upgrader.core.errors import Exit, HostError
from upgrader.core.journal import recorded
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.engine.coordinator import make_plan
from upgrader.lab.settings import render as render_settings
from upgrader.lab.spec import LabSpec
from upgrader.terminal import consoles


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], Exit.USAGE, "NO_HOST"),
        (["--bogus"], Exit.USAGE, "No such option"),
        (["nonsense"], Exit.USAGE, "No such command"),
        (["--host", "-oProxyCommand=x"], Exit.UNEXPECTED, "HOST_UNREACHABLE"),
        (["--host", "localhost", "--restore", "c"], Exit.USAGE, "NO_SUCH_SLOT"),
        (["--host", "localhost", "--config", "/none.toml"], Exit.USAGE, "CONFIG_MISSING"),
        (["lab", "up", "--vms", "0"], Exit.USAGE, "vms"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    assert app._main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert "state:" in captured.err
    assert "next:" in captured.err


def test_this_machines_name_is_this_machine() -> None:
    assert app._is_local("localhost")
    assert app._is_local(socket.gethostname())
    assert not app._is_local("elsewhere")


def test_a_refusal_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert app._main(["--host", "localhost", "--config", "/none.toml", "--json"]) == Exit.USAGE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema_version"], answer["kind"], answer["code"]) == (1, "error", "CONFIG_MISSING")
    assert set(answer) >= {"what", "state", "next"}


def test_what_to_type_next_reads_the_same_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise HostError("SOME_CODE", "something", state="as it was", next="upgrade --host localhost --restore a")

    monkeypatch.setattr(app.verbs, "upgrade", refuse)
    assert app._main(["--config", "/etc/x.toml", "--host", "localhost"]) == Exit.UNEXPECTED
    assert "next:  upgrade --config /etc/x.toml --host localhost --restore a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ZeroDivisionError("division by zero"), Exit.UNEXPECTED, "UNEXPECTED: ZeroDivisionError: division by zero"),
        (typer.Abort(), Exit.STOPPED, "interrupted before anything was changed"),
        (KeyboardInterrupt(), Exit.STOPPED, "interrupted before anything was changed"),
    ],
)
def test_no_traceback_reaches_an_operator(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(app.verbs, "upgrade", fail)
    assert app._main(["--host", "localhost"]) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err


def test_without_root_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A simulated host is anybody's; any other one is root's."""
    file = tmp_path / "config.toml"
    file.write_text(render_settings(LabSpec("t")))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert app._main(["--host", "localhost", "--config", str(file)]) == Exit.USAGE
    assert "NOT_ROOT" in capsys.readouterr().err


def test_what_a_person_sees_of_plan_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sim_run(tmp_path, 2, Policy(blackout_budget_us=700, canary_check_s=0, soak_s=0))
    out, _ = consoles()
    facts, plan = make_plan(run.setup, None, run.setup.policy)
    render.show_owners(out, facts)
    render.show_plan(out, plan)
    view = run.begin().forward()
    for event in view.events:
        render.show_event(out, view.heading, event)
    render.show_report(out, report(view))
    render.show_status(out, view, recorded(view), report(view), None)
    text = capsys.readouterr().out
    for words in (
        "slot a serves vm0/vhu0, vm1/vhu1",
        "slot a -> b, OVS 3.1.0 -> 3.1.0, 2 VM ports",
        "it can lose:",
        "a hand-over above 0.7 ms stops the run; on a failure: back; afterwards the old switch is ended",
        "move-vm         vm1/vhu1: a -> b",
        "blackout 0.71 ms",
        "over budget",
        "halted: run 1, 1 VM port moved a -> b",
        "why:   OVER_BUDGET",
        "next:  upgrade resume",
        "rings: 1 at slot a, 1 at slot b; steering: a+b; control plane: slot a",
    ):
        assert words in text, text
    assert run.world.trouble == []


def test_a_plan_that_was_edited_is_not_carried_out_as_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Operator(tmp_path, monkeypatch)
    assert host.types("plan", "--out", "plan.json")[0] == Exit.DONE
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["steps"] = [s for s in plan["steps"] if s["kind"] != "prove"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, out, _ = host.types("run", "plan.json", "--yes", "--json")
    assert code == Exit.DONE
    assert any("prove" in step["title"] for step in json.loads(out)["steps"])
