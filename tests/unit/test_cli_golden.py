"""Every verb as a person sees it, on a terminal and off it, against tests/golden.

After a change that is meant: `UPDATE_GOLDEN=1 build/venv/bin/python -m pytest -q tests/unit/test_cli_golden.py`, and read
the difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer

from tests.support.fake_nic import FakeVfs
from tests.support.lab_scenes import building, lab, measured, self_tested
from tests.support.operator import Operator, readable, seen
from tests.support.scenes import (
    Scene,
    a_mistake_of_ours,
    aborted,
    accepted,
    armed,
    armed_and_the_active_is_dead,
    armed_and_the_standby_is_dead,
    armed_but_for_one_vm,
    armed_without_a_daemon,
    at_work,
    blocked,
    broken_journal,
    conf_d,
    conf_d_sound,
    dead,
    died,
    done,
    ended_too_far,
    fails,
    fresh,
    garbled_config,
    guarded,
    halted,
    halted_with_a_plan,
    interrupted,
    kept,
    no_config,
    no_libvirt,
    no_plan,
    not_root,
    over_budget,
    paused,
    planned,
    restored,
    running,
    several,
    several_kinds,
    stale,
    stayed,
    stuck,
    takeover_off,
    two_slots_alike,
    will,
    will_be_stuck,
    will_not_go_back,
    will_stay,
    wrong_config,
    x710_elsewhere,
    x710_of,
)
from upgrader.cli import app

GOLDEN = Path(__file__).parents[1] / "golden"

ROOT = Path(__file__).parents[2]


#: name of the golden file, how the host came to be, VMs, what is typed
CASES: tuple[tuple[str, Scene, int, str], ...] = (
    ("check", fresh, 2, "check"),
    ("check-blocked", blocked, 3, "check"),
    ("check-accepted", accepted, 2, "check"),
    ("check-json", blocked, 2, "check --json"),
    ("check-1000", fresh, 1000, "check"),
    ("plan", fresh, 2, "plan"),
    ("plan-out", fresh, 2, "plan --out plan.json --keep-old --on-failure ask"),
    ("plan-json", fresh, 2, "plan --json"),
    ("plan-blocked", blocked, 2, "plan"),
    ("plan-pending", fresh, 2, "plan --detailed-exitcode"),
    ("plan-1000", fresh, 1000, "plan"),
    ("dry-run", fresh, 2, "--host localhost --dry-run"),
    ("run", planned, 2, "run plan.json --yes"),
    ("run-json", planned, 1, "run plan.json --yes --json"),
    ("run-200", planned, 200, "run plan.json --yes"),
    ("short-way", fresh, 2, "--host localhost --yes"),
    ("status-none", fresh, 2, "status"),
    ("status-running", running, 3, "status"),
    ("status-running-1000", running, 1000, "status"),
    ("status-json", running, 2, "status --json"),
    ("status-none-json", fresh, 2, "status --json"),
    ("status-coordinator-dead", dead, 3, "status"),
    ("status-coordinator-died", died, 3, "status"),
    ("status-paused", paused, 3, "status"),
    ("status-halted", halted, 3, "status"),
    ("status-halted-on-request", stayed, 3, "status"),
    ("status-over-budget", over_budget, 2, "status"),
    ("status-done", done, 2, "status"),
    ("status-done-kept", kept, 2, "status"),
    ("status-restored", restored, 2, "status"),
    ("status-restored-on-request", aborted, 2, "status"),
    ("status-operator-needed", stuck, 2, "status"),
    ("status-watch-done", done, 2, "status --watch"),
    ("run-fails", will("switch vm1", fails, planned), 2, "run plan.json --yes"),
    ("run-stays", will_stay, 2, "run plan.json --yes"),
    ("run-stuck", will_be_stuck, 2, "run plan.json --yes"),
    ("run-interrupted", interrupted, 2, "run plan.json --yes"),
    ("pause", at_work, 3, "pause"),
    ("pause-json", at_work, 2, "pause --json"),
    ("abort", at_work, 3, "abort"),
    ("abort-json", at_work, 2, "abort --json"),
    ("abort-stay", at_work, 3, "abort --stay"),
    ("resume", paused, 3, "resume --yes"),
    ("resume-died", died, 3, "resume --yes"),
    ("resume-fails", will("switch vm2", fails, paused), 3, "resume --yes"),
    ("resume-fails-json", will("switch vm2", fails, paused), 3, "resume --yes --json"),
    ("rollback", kept, 2, "rollback --yes"),
    ("rollback-json", kept, 1, "rollback --yes --json"),
    ("rollback-killed-switch", will("switch vm0", fails, kept), 2, "rollback --yes"),
    ("rollback-stuck", will_not_go_back, 2, "rollback --yes"),
    ("rollback-died", died, 3, "rollback --yes"),
    ("rollback-too-late", ended_too_far, 2, "rollback --yes"),
    ("rollback-halted", halted, 2, "rollback --yes"),
    ("history", several, 2, "history"),
    ("history-kinds", several_kinds, 2, "history"),
    ("history-none", fresh, 2, "history"),
    ("history-json", several, 2, "history --json"),
    ("report", done, 2, "report"),
    ("report-json", done, 1, "report --json"),
    ("report-restored", restored, 2, "report"),
    ("report-over-budget", over_budget, 2, "report"),
    ("report-200", done, 200, "report"),
    ("arm", guarded, 2, "arm --yes"),
    ("arm-json", guarded, 1, "arm --yes --json"),
    ("arm-again", armed, 2, "arm --yes"),
    ("arm-fails", will("attach vm1", fails, guarded), 2, "arm --yes"),
    ("disarm", armed, 2, "disarm --yes"),
    ("disarm-json", armed, 1, "disarm --yes --json"),
    ("takeover-dry-run", armed, 2, "takeover --dry-run"),
    ("takeover-dry-run-json", armed, 1, "takeover --dry-run --json"),
    ("takeover-dry-run-blocked", fresh, 2, "takeover --dry-run"),
    ("takeover", armed, 2, "takeover --yes"),
    ("takeover-json", armed, 1, "takeover --yes --json"),
    ("takeover-dead", armed_and_the_active_is_dead, 2, "takeover --yes"),
    ("takeover-left-behind", armed_but_for_one_vm, 2, "takeover --yes"),
    ("status-armed", armed, 2, "status"),
    ("status-armed-json", armed, 1, "status --json"),
    ("status-armed-no-daemon", armed_without_a_daemon, 2, "status"),
    ("status-active-dead", armed_and_the_active_is_dead, 2, "status"),
    ("status-standby-dead", armed_and_the_standby_is_dead, 2, "status"),
    ("nic-show", x710_of(), 2, "nic show"),
    ("nic-show-json", x710_of(), 2, "nic show --json"),
    ("nic-show-in-tree", x710_of(out_of_tree=False), 2, "nic show --vms 8"),
    ("nic-check", x710_of(), 2, "nic check --vms 2"),
    ("nic-check-blocked", x710_of(out_of_tree=False), 2, "nic check --vms 2"),
    ("nic-check-json", x710_of(out_of_tree=False), 2, "nic check --json"),
    ("nic-probe", x710_of(), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-json", x710_of(), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2 --json"),
    ("nic-probe-silent", x710_of(vfs=FakeVfs), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-elsewhere", x710_elsewhere, 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-no-rule", x710_of(rule=False), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("lab-status", lab(), 2, "lab status"),
    ("lab-status-none", lab(phase=None), 2, "lab status"),
    ("lab-status-broken", lab("guest vm1 does not run"), 2, "lab status"),
    ("lab-status-json", lab("guest vm1 does not run"), 2, "lab status --json"),
    ("lab-up", building(), 2, "lab up"),
    ("lab-up-again", building(built=False), 2, "lab up"),
    ("lab-up-json", building(), 2, "lab up --json"),
    ("lab-down", building(), 2, "lab down"),
    ("lab-down-none", building(built=False), 2, "lab down"),
    ("lab-traffic", measured, 2, "lab traffic --seconds 1"),
    ("lab-traffic-json", measured, 2, "lab traffic --seconds 1 --json"),
    ("lab-traffic-self-test", self_tested(), 2, "lab traffic --self-test"),
    ("lab-traffic-self-test-json", self_tested(), 2, "lab traffic --self-test --json"),
    ("lab-traffic-self-test-fails", self_tested(passed=False), 2, "lab traffic --self-test"),
    ("refused-lab-up-vms", building(), 2, "lab up --vms 0"),
    ("refused-lab-up-vms-json", building(), 2, "lab up --vms 0 --json"),
    ("refused-lab-traffic-not-up", fresh, 2, "lab traffic --name nobody"),
    ("help", fresh, 2, "--help"),
    ("help-run", fresh, 2, "run --help"),
    ("version", fresh, 2, "--version"),
    ("config-show", fresh, 2, "config show"),
    ("config-validate", fresh, 2, "config validate"),
    ("config-validate-conf-d", conf_d_sound, 2, "config validate"),
    ("refused-config-missing", no_config, 2, "status"),
    ("refused-config-missing-json", no_config, 2, "status --json"),
    ("refused-config-unreadable", garbled_config, 2, "config validate"),
    ("refused-config-invalid", wrong_config, 2, "config validate"),
    ("refused-config-two-slots", two_slots_alike, 2, "config validate"),
    ("refused-config-conf-d", conf_d, 2, "config validate"),
    ("refused-no-host", fresh, 2, ""),
    ("refused-no-verb", fresh, 2, "upgrade"),
    ("refused-no-option", fresh, 2, "status --colour"),
    ("refused-no-option-json", fresh, 2, "status --colour --json"),
    ("refused-no-shell", fresh, 2, "--show-completion tcsh"),
    ("refused-no-argument", fresh, 2, "run"),
    ("refused-option-of-the-short-way", planned, 2, "--dry-run run plan.json"),
    ("refused-no-slot", fresh, 2, "--host localhost --restore c"),
    ("refused-no-policy", fresh, 2, "plan --on-failure panic"),
    ("refused-not-root", not_root, 2, "check"),
    ("refused-not-confirmed", fresh, 2, "--host localhost"),
    ("refused-blocked", blocked, 2, "--host localhost --yes"),
    ("refused-arm-off", takeover_off, 2, "arm --yes"),
    ("refused-arm-not-confirmed", fresh, 2, "arm"),
    ("refused-arm-blocked", blocked, 2, "arm --yes"),
    ("refused-disarm-nothing", fresh, 2, "disarm --yes"),
    ("refused-takeover-not-confirmed", armed, 2, "takeover"),
    ("refused-takeover-no-standby", fresh, 2, "takeover --yes"),
    ("refused-takeover-no-standby-json", fresh, 2, "takeover --yes --json"),
    ("refused-nic-no-mac", x710_of(), 2, "nic probe --vni 100 --mac vm1"),
    ("refused-nic-no-vni", x710_of(), 2, "nic probe --mac 52:54:00:00:00:01"),
    ("refused-no-libvirt", no_libvirt, 2, "check"),
    ("refused-no-libvirt-json", no_libvirt, 2, "plan --json"),
    ("refused-unexpected", a_mistake_of_ours, 2, "check"),
    ("refused-no-plan-file", fresh, 2, "run plan.json --yes"),
    ("refused-plan-unreadable", no_plan, 2, "run plan.json --yes"),
    ("refused-plan-stale", stale, 2, "run plan.json --yes"),
    ("refused-busy", at_work, 2, "run plan.json --yes"),
    ("refused-busy-json", at_work, 2, "run plan.json --yes --json"),
    ("refused-busy-short-way", at_work, 2, "--host localhost --yes"),
    ("refused-busy-resume", at_work, 2, "resume --yes"),
    ("refused-unfinished", halted_with_a_plan, 2, "run plan.json --yes"),
    ("refused-nothing-to-resume", done, 2, "resume --yes"),
    ("refused-nothing-to-roll-back", done, 2, "rollback --yes"),
    ("refused-no-run-to-pause", done, 2, "pause"),
    ("refused-no-run-to-abort", done, 2, "abort"),
    ("refused-no-such-run", done, 2, "report 7"),
    ("refused-unwritable", fresh, 2, "plan --out none/plan.json"),
    ("refused-journal", broken_journal, 2, "status"),
)  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is as long wherever tests run: lines are broken by its length."""
    with TemporaryDirectory(prefix="golden-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize(("name", "scene", "vms", "typed"), CASES, ids=[c[0] for c in CASES])
def test_as_it_was(name: str, scene: Scene, vms: int, typed: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_host(number: int) -> Operator:
        directory = place / str(number)
        directory.mkdir()
        host = Operator(directory, monkeypatch, vms)
        scene(host)
        return host

    words = typed.split()
    host = at_the_host(0)
    only_looks = words[:1] in (["check"], ["status"], ["history"], ["report"])
    code, out, err = host.types(*words)
    host.ends()
    assert "\x1b" not in out + err, "off a terminal there are no escape sequences"
    on = []
    for number, colour in ((1, True), (2, False)):
        if not only_looks:
            host = at_the_host(number)
        on.append(host.types_on_a_terminal(*words, colour=colour))
        host.ends()
    assert {c for c, _ in on} == {code}
    show = seen if "\x1b[?25l" in on[0][1] else readable  # a bar was drawn: what it left
    text = f"$ upgrade {typed}\nexit {code}\n"
    for title, part in (
        ("stdout", out),
        ("stderr", err),
        ("on a terminal", show(on[0][1])),
        ("on a terminal, NO_COLOR", show(on[1][1])),
    ):
        text += f"\n----- {title}\n{part}"
    for number in range(3):
        text = text.replace(str(place / str(number)), "/etc/ovs-upgrade").replace(str(ROOT), "/checkout")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def verbs(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """Every verb that can be typed, with those of groups."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, *words, name)
    if not hasattr(command, "commands"):
        yield words


def test_every_verb_has_a_golden_of_what_it_does_and_one_as_json_where_it_has_that() -> None:
    """Each is written on a terminal, off it, and with NO_COLOR; none of these is a refusal."""
    done = [typed.split() for name, _, _, typed in CASES if not name.startswith("refused-")]
    every = list(verbs(typer.main.get_command(app.whole())))
    assert len(every) > 20
    for words in every:
        mine = [typed for typed in done if tuple(typed[: len(words)]) == words]
        assert [typed for typed in mine if "--json" not in typed], words
        takes = {option for param in _of(words).params for option in param.opts}
        assert "--json" not in takes or [typed for typed in mine if "--json" in typed], words


def _of(words: tuple[str, ...]) -> Any:
    command: Any = typer.main.get_command(app.whole())
    for word in words:
        command = command.commands[word]
    return command


def test_no_golden_without_a_case() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {c[0] for c in CASES}
