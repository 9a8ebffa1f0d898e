"""A fleet of simulated hosts in this process: thousands of them, each decided on by what decides for a real one.

Real are the modules of the collection from the JSON on, their gate and report, Ansible's division into batches, and on each
host the planner, the coordinator and every step. Not real are the ports under them, the processes between them, and the order
of the role's tasks, which is written again in `SimFleet.host`: the playbooks themselves are tried in tests/ansible.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import yaml
from ansible.executor.playbook_executor import PlaybookExecutor

from tests.support.collection import NAME, SOURCE
from tests.support.runs import watch
from upgrader.adapters.journal import plan_from_json, plan_to_json
from upgrader.cli import documents, runs
from upgrader.core.errors import Exit, HostError, UpgradeError
from upgrader.core.lifecycle import RunState
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Policy
from upgrader.core.report import report
from upgrader.core.takeover import Protection, Standing
from upgrader.engine.control import Control
from upgrader.engine.coordinator import Coordinator, Setup, make_plan
from upgrader.sim.facts import slot
from upgrader.sim.host import make_host, make_programs, make_world
from upgrader.sim.journal import SimJournal

VMS = 2
POLICY = Policy(soak_s=0.4, canary_check_s=0.2, keep_old=True)


class Ended(Exception):  # noqa: N818 - a module ends so when all is well, too
    """A module is through; its result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__(result)
        self.result = result


class SimulatedHost:
    """One host in memory, and `upgrade --json` on it."""

    def __init__(self, name: str, slots: Mapping[SlotName, Slot]) -> None:
        self.world = make_world(VMS)
        self.journal = SimJournal()
        self.reachable = True
        self._setup = Setup(name, make_host(self.world), slots, (), POLICY, "simulated")
        self._coordinator = Coordinator(lambda: self._setup, self.journal)
        self._coordinator.start()

    def budget(self, blackout_us: int) -> None:
        """From the next plan on."""
        self._setup = replace(self._setup, policy=replace(POLICY, blackout_budget_us=blackout_us))

    def upgrade(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Exit code, stdout, stderr of the command, as the verbs make them of what the coordinator does."""
        said: list[Any] = []
        try:
            code = self._verb(argv[1], argv[2:], said.append)
        except UpgradeError as error:
            said.append(documents.error_document(error))
            code = error.exit_code
        return code, "\n".join(json.dumps(asdict(d)) for d in said), ""

    def _verb(self, verb: str, words: Sequence[str], say: Callable[[Any], None]) -> int:
        if verb == "status":
            say(documents.status_document(self.journal.latest(), None, Standing(Protection.DISARMED)))
            return Exit.DONE
        if verb == "plan":
            made = make_plan(self._setup, None, self._setup.policy)[1]
            say(documents.plan_document(made))
            runs.require_unblocked(made)
            if "--out" in words:
                Path(words[words.index("--out") + 1]).write_text(plan_to_json(made), encoding="utf-8")
            return Exit.CHANGES if "--detailed-exitcode" in words and made.steps else Exit.DONE
        if verb == "run":
            view = self._coordinator.begin(plan_from_json(Path(words[0]).read_text()), Control(), watch).forward()
        elif verb == "rollback":
            view = self._coordinator.rollback(Control(), watch).back()
        else:
            raise AssertionError(f"no module calls `upgrade {verb}` here")
        say(documents.run_document(report(view)))
        if verb == "rollback" and view.state is RunState.RESTORED:
            return Exit.DONE
        return runs.exit_code(view)


@dataclass(frozen=True)
class Harm:
    """A failure put into a host: what the report has to call it, how it gets there, how a person mends it."""

    code: str
    put: Callable[[SimulatedHost], None]
    mend: Callable[[SimulatedHost], None]
    rolled_back_first: bool = False


def _unpatched(host: SimulatedHost) -> None:
    host.world.vms["vm1"] = replace(host.world.vms["vm1"], ownership=None)


def _refuse(host: SimulatedHost) -> None:
    error = HostError("HUGEPAGES", "no free hugepages", state="nothing was changed", next="free -h")
    host.world.fault = lambda name, _count: error if name.startswith("start_switch") else None


def _works(host: SimulatedHost) -> None:
    host.world.fault = lambda _name, _count: None


def _unreachable(host: SimulatedHost) -> None:
    host.reachable = False


def _reachable(host: SimulatedHost) -> None:
    host.reachable = True


HARMS = (
    Harm("OVER_BUDGET", lambda h: h.budget(500), lambda h: h.budget(POLICY.blackout_budget_us), rolled_back_first=True),
    Harm("BLOCKED", _unpatched, lambda h: h.world.restart("vm1")),
    Harm("HUGEPAGES", _refuse, _works),
    Harm("HOST_UNREACHABLE", _unreachable, _reachable),
)


@dataclass
class SimFleet:
    """`collection`: a folder where the collection is found by name, on sys.path. Hosts are made when first looked at."""

    folder: Path
    names: Sequence[str]
    harms: dict[str, Harm] = field(default_factory=dict)
    hosts: dict[str, SimulatedHost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_programs(self.folder / "ovs")
        self._slots = {n: slot(n, rundir=self.folder / n, prefix=self.folder / "ovs") for n in ("a", "b")}
        self._modules = {m: _import(f"modules.{m}") for m in ("hot_upgrade", "hot_upgrade_info")}
        self._fleet = _import("module_utils.fleet")

    def at(self, name: str) -> SimulatedHost:
        if name not in self.hosts:
            self.hosts[name] = SimulatedHost(name, self._slots)
            if harm := self.harms.get(name):
                harm.put(self.hosts[name])
        return self.hosts[name]

    def batches(self, playbook: str) -> list[list[str]]:
        """As Ansible divides them by that playbook's `serial`, of which the default counts."""
        (play,) = yaml.safe_load((SOURCE / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8"))
        serial = yaml.safe_load(play["serial"].split("default(")[1].rpartition(") }}")[0])
        executor = SimpleNamespace(_inventory=SimpleNamespace(get_hosts=lambda _hosts, order: list(self.names)))
        chosen = SimpleNamespace(hosts="all", order=None, serial=serial)
        found: list[list[str]] = PlaybookExecutor._get_serialized_batches(executor, chosen)
        return found

    def rollout(self, playbook: str, *, state: str, wanted: SlotName) -> dict[str, Any]:
        """Batch after batch; one in which a host fails is the last, where the playbook has max_fail_percentage: 0."""
        (play,) = yaml.safe_load((SOURCE / "playbooks" / f"{playbook}.yml").read_text(encoding="utf-8"))
        records = []
        for batch in self.batches(playbook):
            records += [self.host(name, state=state, slot=wanted) for name in batch]
            if "max_fail_percentage" in play and any(r["error"] for r in records[-len(batch) :]):
                assert play["max_fail_percentage"] == 0
                break
        found: dict[str, Any] = self._fleet.fleet_report(records, list(self.names))
        return found

    def page(self, of: dict[str, Any]) -> str:
        """The report as HTML."""
        return str(self._fleet.fleet_html(of))

    def host(self, name: str, **asked: object) -> dict[str, Any]:
        """One host's part, in the order of roles/rollout: the module, a look, the gate, the record."""
        came_to = self._module("hot_upgrade", name, **asked)
        info = {} if came_to.get("failed") or came_to.get("unreachable") else self._module("hot_upgrade_info", name)
        bad = came_to if came_to.get("failed") or came_to.get("unreachable") else info
        if problems := info.get("problems"):
            bad = {"failed": True, "msg": "; ".join(p["what"] for p in problems)}
        failed = self._fleet.failure(bad) if bad.get("failed") or bad.get("unreachable") else None
        found: dict[str, Any] = self._fleet.host_record(name, came_to, info, failed)
        return found

    def _module(self, module: str, name: str, **asked: object) -> dict[str, Any]:
        host = self.at(name)
        if not host.reachable:
            return {"unreachable": True, "msg": "Connection timed out"}
        defaults = {"executable": "upgrade", "config": None, "slot": None, "version": None, "force": False,
                    "resume": False, "keep_old": None, "on_failure": None, "gather": ["status", "findings"]}  # fmt: skip
        stand_in = SimpleNamespace(
            params={**defaults, **asked},
            check_mode=False,
            run_command=lambda argv, **_how: host.upgrade(argv),
            exit_json=_end,
            fail_json=lambda **result: _end(failed=True, **result),
        )
        try:
            if module == "hot_upgrade_info":
                _end(**self._modules[module].gather(stand_in, self._modules[module].cli.Upgrade(stand_in)))
            task = self._modules[module].Task(stand_in)
            task.upgraded() if asked["state"] == "upgraded" else task.rolled_back()
        except Ended as end:
            return end.result
        raise AssertionError(f"{module} did not end")


def _end(**result: Any) -> None:
    raise Ended(result)


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"ansible_collections.{NAME}.plugins.{name}")
