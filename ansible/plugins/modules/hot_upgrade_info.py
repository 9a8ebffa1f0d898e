#!/usr/bin/python
# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what a host's coordinator knows of its switches, its findings and its runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hot_upgrade_info
short_description: Tell of a host's switches, findings and upgrade runs
version_added: 0.1.0
description:
  - Reads what C(upgrade status), C(plan), C(history), C(report) and C(config show) print, and judges whether the host is
    well. Changes nothing.
author: The authors of ovs-hot-upgrade (@ovs-hot-upgrade)
options:
  gather:
    description:
      - What to read. V(findings) looks at the host itself, the others at its journal and its configuration.
    type: list
    elements: str
    choices: [status, findings, history, report, config]
    default: [status, findings]
  run_id:
    description: Number of the run that V(report) tells of; without it the latest.
    type: int
  limit:
    description: How many runs V(history) names, the newest first.
    type: int
    default: 20
extends_documentation_fragment:
  - ovs.hot_upgrade.upgrade
  - ansible.builtin.action_common_attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  platform:
    platforms: posix
seealso:
  - module: ovs.hot_upgrade.hot_upgrade
  - module: ovs.hot_upgrade.hot_upgrade_takeover
"""

EXAMPLES = r"""
- name: Is this host well, and which switch serves
  ovs.hot_upgrade.hot_upgrade_info:
  register: host

- name: Stop where it is not
  ansible.builtin.assert:
    that: host.healthy
    fail_msg: "{{ host.problems }}"

- name: The longest hand-over of the latest run
  ovs.hot_upgrade.hot_upgrade_info:
    gather: [report]
  register: told
"""

RETURN = r"""
slot:
  description: The slot whose switch serves; empty where it cannot be said.
  returned: where findings were gathered
  type: str
  sample: a
version:
  description: The version of OVS that serves.
  returned: where findings were gathered
  type: str
  sample: 3.1.0
healthy:
  description: Whether nothing is wrong, see RV(problems).
  returned: where status was gathered
  type: bool
  sample: true
problems:
  description:
    - What is wrong with the host now, each with code and what. A finding that only forbids a run is none.
    - V(TAKEN_OVER) means that a switch had to be replaced by its standby since the latest upgrade, V(NOT_PROTECTED) that a
      standby is wanted and is not there or not ready.
  returned: where status was gathered
  type: list
  elements: dict
  sample: [{code: OVER_BUDGET, what: vm3/vhu3 over the blackout budget in run 4}]
status:
  description: As C(upgrade status --json) prints it.
  returned: where gathered
  type: dict
  sample: {coordinator_pid: 4711, run: null, vms: {}, protection: {state: armed, active: a, standby: b, vms: 12}}
findings:
  description: What is to be known before a run, each with code, severity, what and remedy.
  returned: where gathered
  type: list
  elements: dict
  sample: []
blocked:
  description: Whether findings forbid a run.
  returned: where findings were gathered
  type: bool
  sample: false
plan:
  description: What a run would do, as C(upgrade plan --json) prints it.
  returned: where findings were gathered
  type: dict
  sample: {from_slot: a, to_slot: b, from_version: 3.1.0, to_version: 3.2.1}
history:
  description: The runs of the host, the newest first.
  returned: where gathered
  type: list
  elements: dict
  sample: [{run_id: 1, source: a, target: b, state: done}]
report:
  description: One run, as C(upgrade report --json) prints it; empty where there has been none.
  returned: where gathered
  type: dict
  sample: {run_id: 1, outcome: done}
config:
  description: The configuration with every default, as C(upgrade config show) prints it.
  returned: where gathered
  type: dict
  sample: {policy: {soak_s: 10.0, blackout_budget_us: 20000}}
error:
  description: What went wrong, in which state the host is, and what to type next.
  returned: on failure
  type: dict
  sample: {code: CONFIG_MISSING, what: there is no configuration, state: nothing was changed, next: write one}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import decide
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import upgrade_cli as cli


def gather(module, upgrade):
    """All that was asked for."""
    wanted = module.params["gather"]
    found = {"changed": False}
    if "status" in wanted:
        found["status"] = _ask(module, upgrade, "status").get("status")
    if "findings" in wanted:
        plan = _ask(module, upgrade, "plan").get("plan")
        known = not any(f["code"] in ("NO_SWITCH", "BOTH_SLOTS_OWN_VMS") for f in plan["findings"])
        found.update(
            plan=plan,
            findings=plan["findings"],
            blocked=plan["blocked"],
            slot=plan["from_slot"] if known else "",
            version=plan["from_version"] if known else "",
        )
    if "history" in wanted:
        answer = _ask(module, upgrade, "history", "--limit", str(module.params["limit"]))
        found["history"] = answer.get("history")["runs"]
    if "report" in wanted:
        number = [str(module.params["run_id"])] if module.params["run_id"] is not None else []
        answer = upgrade.call("report", *number)
        none_yet = not number and answer.exit_code == cli.USAGE and (answer.error() or {}).get("code") == "NO_SUCH_RUN"
        found["report"] = {} if none_yet else _checked(module, answer).get("run")
    if "config" in wanted:
        found["config"] = _ask(module, upgrade, "config", "show", as_json=False).get("config")["config"]
    if "status" in wanted:
        found["problems"] = decide.problems(found["status"], found.get("plan"), *_latest_moves(module, upgrade, found))
        found["healthy"] = not found["problems"]
    return found


def _latest_moves(module, upgrade, found):
    """Report of the latest run that moved VMs, where a standby's runs came after it, and the runs since."""
    run = found["status"]["run"]
    if not run or run["strategy"] not in decide.STANDS_BY:
        return None, ()
    runs = _ask(module, upgrade, "history", "--limit", "200").get("history")["runs"]
    moved = next((r["run_id"] for r in runs if r["kind"] in decide.MOVES_VMS), None)
    return _ask(module, upgrade, "report", str(moved)).get("run") if moved is not None else None, runs


def _ask(module, upgrade, *words, **how):
    return _checked(module, upgrade.call(*words, **how))


def _checked(module, answer):
    """The answer; anything but one ends the module. Findings are an answer, too."""
    error = answer.error()
    if error and not (answer.exit_code == cli.BLOCKED and answer.get("plan")):
        module.fail_json(
            msg=cli.message(error),
            error=error,
            exit_code=answer.exit_code,
            exit_name=cli.EXIT_NAMES.get(answer.exit_code, "unexpected"),
        )
    return answer


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=cli.arguments(
            gather={
                "type": "list",
                "elements": "str",
                "choices": ["status", "findings", "history", "report", "config"],
                "default": ["status", "findings"],
            },
            run_id={"type": "int"},
            limit={"type": "int", "default": 20},
        ),
        supports_check_mode=True,
    )
    module.exit_json(**gather(module, cli.Upgrade(module)))


if __name__ == "__main__":
    main()
