"""What the collection decides without a host: whether a run is wanted, whether a host is well, the report over a fleet."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.collection import SOURCE, installed_in
from upgrader.core import finding
from upgrader.core.errors import Exit
from upgrader.core.lifecycle import UNFINISHED, RunState, VmState
from upgrader.core.plan import PlanKind
from upgrader.core.report import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"


@pytest.fixture(scope="module")
def utils(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The collection's own modules, under the names that Ansible gives them."""
    path = str(installed_in(tmp_path_factory.mktemp("collection")))
    sys.path.insert(0, path)
    try:
        yield lambda name: importlib.import_module(f"ansible_collections.ovs.hot_upgrade.plugins.module_utils.{name}")
    finally:
        sys.path.remove(path)
        for name in [n for n in sys.modules if n.startswith("ansible_collections")]:
            del sys.modules[name]


def plan(**changes: object) -> dict[str, object]:
    made = {"from_slot": "a", "to_slot": "b", "from_version": "3.1.0", "to_version": "3.2.1", "findings": []}
    return {**made, **changes}


def run(**changes: object) -> dict[str, Any]:
    moves = [{"vm": f"vm{n}/vhu{n}", "blackout_us": 900.0 + n, "over_budget": False, "undone": False,
              "from_slot": "a", "to_slot": "b"} for n in range(2)]  # fmt: skip
    made = {"run_id": 1, "strategy": "per-vm-dual", "outcome": "done", "reason": "", "from_slot": "a", "to_slot": "b", "from_version": "3.1.0",
            "to_version": "3.2.1", "moves": moves, "steps": [{"title": "watch slot b for 10 s", "state": "done"}],
            "error": None, "state": None, "next": None, "took_s": 1.0}  # fmt: skip
    return {**made, **changes}


def status(**changes: object) -> dict[str, object]:
    return {"run": run(**changes), "vms": {"vm0/vhu0": "at-target", "vm1/vhu1": "gone"}, "protection": DISARMED}


DISARMED = {"state": "disarmed", "reason": "", "next": "upgrade arm"}


@pytest.mark.parametrize(
    ("changes", "wanted", "needed"),
    [
        ({}, {}, True),
        ({"to_version": "3.1.0"}, {}, False),
        ({"from_version": "3.2.1", "to_version": "3.1.0"}, {}, False),  # it would be a downgrade, at every second call
        ({"from_version": "3.9.0", "to_version": "3.10.0"}, {}, True),
        ({"to_version": None}, {}, False),
        ({"to_version": "3.1.0"}, {"force": True}, True),
        ({}, {"slot": "a"}, False),
        ({}, {"slot": "b"}, True),
        ({}, {"version": "3.1.0"}, False),
        ({}, {"version": "3.2.1"}, True),
        ({"from_version": "3.2.1", "to_version": "3.1.0"}, {"version": "3.1.0"}, True),
    ],
)
def test_when_a_run_is_wanted(utils: Any, changes: dict[str, object], wanted: dict[str, object], needed: bool) -> None:
    assert utils("decide").needs_upgrade(plan(**changes), **wanted)[0] is needed


def test_a_version_that_is_nowhere_is_refused(utils: Any) -> None:
    decide = utils("decide")
    with pytest.raises(decide.CannotBeError) as refused:
        decide.needs_upgrade(plan(), version="3.3.0")
    assert refused.value.error["code"] == "VERSION_NOT_INSTALLED"


@pytest.mark.parametrize(
    ("latest", "wanted", "needed"),
    [
        (None, {"version": "3.1.0"}, False),
        (run(), {}, True),
        (run(), {"version": "3.1.0"}, True),
        (run(), {"version": "3.2.1"}, False),  # it led there: this host took no part
        (run(outcome="restored"), {"slot": "a"}, False),
        (run(outcome="halted"), {"slot": "a"}, True),
        (run(strategy="standby"), {"slot": "a"}, False),  # slot b only stands by
        (run(strategy="takeover"), {"slot": "b"}, False),
    ],
)
def test_when_a_rollback_is_wanted(utils: Any, latest: Any, wanted: dict[str, str], needed: bool) -> None:
    assert utils("decide").needs_rollback(latest, **wanted)[0] is needed


@pytest.mark.parametrize(
    ("latest", "wanted"),
    [
        (run(), {"version": "3.0.0"}),
        (run(outcome="halted"), {"slot": "b"}),
        (run(strategy="standby"), {"slot": "b"}),
        (run(strategy="standby"), {}),
    ],
)
def test_a_rollback_that_leads_elsewhere_is_refused(utils: Any, latest: Any, wanted: dict[str, str]) -> None:
    decide = utils("decide")
    with pytest.raises(decide.CannotBeError):
        decide.needs_rollback(latest, **wanted)


def test_a_host_is_well_or_it_is_said_why_not(utils: Any) -> None:
    decide = utils("decide")
    late = [{**m, "over_budget": True} for m in run()["moves"]]
    harmed = {"code": "VM_NOT_SERVED", "severity": "blocking", "what": "no switch serves vm0"}

    def codes(of: dict[str, object], made: object = None) -> list[str]:
        return [p["code"] for p in decide.problems(of, made)]

    assert codes(status(), plan(findings=[{**harmed, "code": "VF_MISSING"}])) == []
    assert codes({"run": None, "vms": {}, "protection": DISARMED}) == []
    assert codes(status(outcome="restored", moves=late)) == []
    assert codes(status(moves=late)) == ["OVER_BUDGET"]
    assert codes(status(reason="ROLLBACK_TOO_LATE")) == ["ROLLBACK_TOO_LATE"]
    assert codes(status(steps=[{"title": "watch", "state": "failed"}])) == ["STEP_NOT_DONE"]
    assert codes({**status(), "vms": {"vm0/vhu0": "at-source"}}) == ["VM_NOT_MOVED"]
    assert codes(status(), plan(findings=[harmed])) == ["VM_NOT_SERVED"]
    for state in UNFINISHED:
        assert codes(status(outcome=str(state))) == ["RUN_UNFINISHED"]


def test_an_armed_host_is_judged_by_the_run_that_moved_its_vms(utils: Any) -> None:
    decide = utils("decide")
    late = [{**m, "over_budget": True} for m in run()["moves"]]
    armed = {**status(strategy="standby", run_id=3, moves=[]), "vms": {"vm0/vhu0": "standby"}}
    armed["protection"] = {**DISARMED, "state": "armed"}

    def codes(moved: object = None, kinds: tuple[str, ...] = (), **kept: str) -> list[str]:
        runs = [{"kind": k, "source": "a", "target": "b", "run_id": 9 - n} for n, k in enumerate(kinds)]
        of = {**armed, "protection": {**armed["protection"], **kept}}  # type: ignore[dict-item]
        return [p["code"] for p in decide.problems(of, None, moved, runs)]

    assert codes() == codes(run()) == codes(run(), ("arm", "upgrade", "takeover")) == codes(state="arming") == []
    assert codes(run(moves=late)) == ["OVER_BUDGET"]
    assert codes(run(), ("arm", "takeover", "arm", "upgrade")) == ["TAKEN_OVER"]
    assert codes(state="exposed", reason="the storm guard holds") == ["NOT_PROTECTED"]
    assert codes(state="stale") == ["NOT_PROTECTED"]


def test_when_a_takeover_is_wanted(utils: Any) -> None:
    needs = utils("decide").needs_takeover
    ready = plan(blocked=False)
    assert [needs(ready, None, slot)[0] for slot in "ab"] == [True, False]
    alone = plan(from_slot="b", to_slot="a", blocked=True)  # as `takeover` tells of a host where slot a has it all
    assert [needs(alone, plan(), slot)[0] for slot in "ab"] == [True, False]
    unknown = plan(findings=[{"code": "NO_SWITCH"}])
    assert needs(alone, unknown, "b")[0], "let the command say what is wrong"


def test_words_are_those_of_the_coordinator(utils: Any) -> None:
    decide, cli = utils("decide"), utils("upgrade_cli")
    assert set(decide.UNFINISHED) == {str(s) for s in UNFINISHED}
    assert set(decide.GOES_ON) == {str(RunState.RUNNING), str(RunState.UNDOING)}
    assert set(cli.EXIT_NAMES) == {int(e) for e in Exit}
    assert cli.SCHEMA_VERSION == SCHEMA_VERSION
    assert {str(VmState.AT_TARGET), str(VmState.GONE)} == {"at-target", "gone"}
    assert set(decide.HARM) <= finding_codes()
    assert set(decide.MOVES_VMS) == {str(PlanKind.UPGRADE)}
    assert set(PlanKind) == {*decide.MOVES_VMS, PlanKind.ARM, PlanKind.DISARM, PlanKind.TAKEOVER}


def test_ten_thousand_hosts_in_one_report(utils: Any) -> None:
    fleet = utils("fleet")
    names = [f"hv{n:05d}" for n in range(10_000)]
    bad = {"code": "OVER_BUDGET", "what": "a VM", "state": "served", "next": "upgrade resume"}
    info = {"status": status(), "slot": "b", "version": "3.2.1", "findings": [], "problems": []}
    records = [
        fleet.host_record(
            n, {"outcome": "done", "changed": True, "run": run()}, info, bad if at in (6_998, 6_999) else None
        )
        for at, n in enumerate(names[:7_000])
    ]
    began = time.perf_counter()
    report = fleet.fleet_report(records, names)
    page = fleet.fleet_html(report)
    assert time.perf_counter() - began < 10
    assert report["counts"] == {
        "hosts": 10_000, "failed": 2, "untouched": 3_000, "planned": 0, "done": 6_998, "already": 0,
    }  # fmt: skip
    assert (report["outcome"], report["blackout_us"]["max"]) == ("stopped", 901.0)
    assert [s["host"] for s in report["stopped_by"]] == names[6_998:7_000]
    assert all(name in page for name in names)


def test_a_page_escapes_what_hosts_say_and_needs_nothing_else(utils: Any) -> None:
    fleet = utils("fleet")
    evil = "<script>alert(1)</script>"
    error = dict.fromkeys(("code", "what", "state", "next"), evil)
    finding = {"code": evil, "what": evil}
    record = fleet.host_record(evil, {"why": evil}, {"findings": [finding], "version": evil}, error)
    page = fleet.fleet_html(fleet.fleet_report([record], [evil], title=evil))
    tags: list[str] = []
    references: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            references.extend(name for name, _ in attrs if name in ("src", "href"))

    Reader().feed(page)
    assert "script" not in tags
    assert {"table", "style"} <= set(tags)
    assert references == []


def finding_codes() -> set[str]:
    """Every code that a finding of the coordinator's can have: the first argument of what makes one."""
    found = {str(code) for code in get_args(finding.Acceptable)}  # some of those are made of two words
    core = Path(finding.__file__).parent
    for name in sorted(p.name for p in core.glob("*.py")):
        module = ast.parse((core / name).read_text(encoding="utf-8"))
        named = {
            n.targets[0].id: n.value
            for n in module.body
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)
        }
        for node in ast.walk(module):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Finding", "blocking", "_blocking")
            ):
                code = named.get(node.args[0].id) if isinstance(node.args[0], ast.Name) else node.args[0]
                if isinstance(code, ast.Constant):
                    found.add(str(code.value))
    return found


def test_the_runbook_has_every_finding_and_every_end_of_a_run() -> None:
    headings = set(re.findall(r"^#+ `([^`]+)`", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE))
    codes = finding_codes()
    assert len(codes) > 20
    assert codes - headings == set()
    assert {str(s) for s in RunState} - headings == set()
    unknown = {h for h in headings if h.isupper()} - codes
    assert unknown == set(), "a finding that nobody makes"


def test_the_documents_name_what_there_is() -> None:
    text = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
    for playbook in SOURCE.glob("playbooks/*.yml"):
        assert f"ovs.hot_upgrade.{playbook.stem}" in text
    spec = (SOURCE / "roles/rollout/meta/argument_specs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"\brollout_[a-z_]+", text))
    assert set(re.findall(r"^      (rollout_[a-z_]+):", spec, re.MULTILINE)) <= named
