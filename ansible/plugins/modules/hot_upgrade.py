#!/usr/bin/python
# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a host's OVS-DPDK replaced under its running VMs, or the latest replacement taken back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hot_upgrade
short_description: Replace the OVS-DPDK of a host under its running VMs
version_added: 0.1.0
description:
  - Makes the switch that shall serve a host's VMs serve them, one VM at a time, by C(upgrade plan) and C(upgrade run).
  - Changes nothing where that switch serves already, and where findings forbid a run.
author: The authors of ovs-hot-upgrade (@ovs-hot-upgrade)
options:
  state:
    description:
      - V(upgraded) means that the wanted switch serves, see O(slot), O(version), O(force). Without any of them that is
        the newer one of what runs and what the other slot has installed, so that a second call changes nothing.
      - V(rolled_back) means that the latest run is taken back; also one that is done, as long as its old switch is kept.
        With O(slot) or O(version) only a run that came from there, so that a host that took no part in a rollout is left
        alone by its rollback.
    type: str
    choices: [upgraded, rolled_back]
    default: upgraded
  slot:
    description: The slot whose switch shall serve, or shall serve again, whatever its version.
    type: str
    choices: [a, b]
  version:
    description:
      - The version of OVS that shall serve, or shall serve again. The other slot has to have it installed where it does not
        run.
    type: str
  force:
    description: Run to the other slot whatever runs and is installed. Every call changes the host then.
    type: bool
    default: false
  resume:
    description:
      - Go on with a run that has stopped half-way, or follow one that goes on, before anything else.
      - Without it such a host fails with C(RUN_UNFINISHED) and is not touched, because why it stopped should be known first.
    type: bool
    default: false
  keep_old:
    description: Whether the old switch goes on standing by, for a rollback; without it C(policy.keep_old) counts.
    type: bool
  on_failure:
    description: What becomes of the run when a step fails; without it C(policy.on_failure) counts.
    type: str
    choices: [back, stay]
extends_documentation_fragment:
  - ovs.hot_upgrade.upgrade
attributes:
  check_mode:
    support: full
    description: The plan is made and returned, and the host is not changed. Findings that would forbid the run fail it.
  diff_mode:
    support: full
    description: Which slot serves, by which version.
seealso:
  - module: ovs.hot_upgrade.hot_upgrade_info
  - module: ovs.hot_upgrade.hot_upgrade_takeover
"""

EXAMPLES = r"""
- name: Serve by the newer one of the two switches
  ovs.hot_upgrade.hot_upgrade:

- name: Serve by OVS 3.2.1, and keep the old switch for a rollback
  ovs.hot_upgrade.hot_upgrade:
    version: 3.2.1
    keep_old: true

- name: Take the latest run back, if it came from OVS 3.1.0
  ovs.hot_upgrade.hot_upgrade:
    state: rolled_back
    version: 3.1.0

- name: Upgrade, and say of a failure what to do about it
  block:
    - name: Upgrade
      ovs.hot_upgrade.hot_upgrade:
      register: upgraded
  rescue:
    - name: Nothing was changed, findings forbid it
      ansible.builtin.debug:
        msg: "{{ upgraded.findings | map(attribute='remedy') }}"
      when: upgraded.exit_name == 'blocked'
"""

RETURN = r"""
outcome:
  description:
    - What the host came to. V(already) and V(planned) (check mode) are the module's own words; V(blocked), V(refused) and
      V(unexpected) mean that no run began; the others are those of the run.
  returned: always
  type: str
  sample: done
exit_code:
  description: Exit code of the last command, 0 to 7 or 10.
  returned: always
  type: int
  sample: 0
exit_name:
  description: The same as a word, one of done, unexpected, usage, blocked, restored, operator-needed, stopped, locked, changes.
  returned: always
  type: str
  sample: done
why:
  description: Why a run was wanted, or was not.
  returned: when it was asked of the host
  type: str
  sample: slot a serves, OVS 3.1.0; slot b has the newer 3.2.1
error:
  description: What went wrong, in which state the host is, and what to type next.
  returned: on failure
  type: dict
  contains:
    code: {description: Stable code., type: str, returned: always, sample: BLOCKED}
    what: {description: What happened., type: str, returned: always, sample: '1 finding forbids the run: VF_MISSING'}
    state: {description: What state the host is in., type: str, returned: always, sample: nothing was changed}
    next: {description: What to type next., type: str, returned: always, sample: upgrade check}
findings:
  description: What C(upgrade check) says of the host, each with code, severity, what and remedy.
  returned: where a plan was made
  type: list
  elements: dict
  sample: []
plan:
  description: The plan, as C(upgrade plan --json) prints it.
  returned: where one was made
  type: dict
  sample: {from_slot: a, to_slot: b, from_version: 3.1.0, to_version: 3.2.1}
run:
  description: The run's report, as C(upgrade report --json) prints it, with every VM's hand-over.
  returned: where a run was carried out or stands half-way
  type: dict
  sample: {run_id: 1, outcome: done, moves: [{vm: vm0/vhu0, blackout_us: 950.0, over_budget: false}]}
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import decide
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import upgrade_cli as cli


class Task(cli.Task):
    """One call of the module."""

    def upgraded(self):
        """The wanted switch serves."""
        p = self.params
        run = decide.unfinished(self.ask("status").get("status"))
        if run:
            self.take_up(run)
            if p["force"] or self.module.check_mode:
                return self.end()  # that was the run that was wanted
        with _plan_file() as file:
            words = ["plan", "--detailed-exitcode", "--out", file]
            if p["keep_old"] is not None:
                words.append("--keep-old" if p["keep_old"] else "--end-old")
            if p["on_failure"]:
                words += ["--on-failure", p["on_failure"]]
            answer = self.ask(*words)
            plan = answer.get("plan")
            self.result.update(plan=plan, findings=plan["findings"])
            if plan["blocked"] and decide.harm(plan):
                self.fail(answer)  # nobody knows yet which switch serves
            try:
                needed, why = decide.needs_upgrade(plan, p["slot"], p["version"], p["force"])
            except decide.CannotBeError as error:
                self.fail_with(error.error, cli.USAGE, "refused")
            self.result["why"] = why
            if not needed:
                return self.end(why)
            self.diff(plan)
            if plan["blocked"]:
                self.fail(answer)
            if self.module.check_mode:
                return self.planned(cli.CHANGES, why)
            self.carry_out("run", file, "--yes")
        return self.end(why)

    def rolled_back(self):
        """The latest run is taken back."""
        run = self.ask("status").get("status")["run"]
        try:
            needed, why = decide.needs_rollback(run, self.params["slot"], self.params["version"])
        except decide.CannotBeError as error:
            self.fail_with(error.error, cli.USAGE, "refused")
        if not needed:
            return self.end(why)
        if run["outcome"] in decide.GOES_ON and not self.params["resume"]:
            self.result["run"] = run
            self.fail_with(decide.unfinished_error(run), cli.LOCKED, "refused")
        if self.module.check_mode:
            return self.planned(cli.CHANGES, "run %d would be taken back" % run["run_id"])
        self.carry_out("rollback", "--yes")
        return self.end("run %d was taken back" % run["run_id"])

    def take_up(self, run):
        """Go on with an unfinished run, where that was asked for."""
        self.result["run"] = run
        if not self.params["resume"]:
            code = cli.LOCKED if run["outcome"] in decide.GOES_ON else cli.BLOCKED
            self.fail_with(decide.unfinished_error(run), code, run["outcome"])
        if self.module.check_mode:
            self.planned(cli.CHANGES, "run %d would be taken up" % run["run_id"])
            return
        if run["outcome"] in decide.GOES_ON:
            run = self.follow(run)
        if run["outcome"] in ("done", "restored"):
            self.result.update(run=run, outcome=run["outcome"], changed=run["outcome"] == "done")
            error = cli.error_of(run)
            if error:
                self.fail_with(error, cli.STOPPED if run["reason"] == "ASKED" else cli.RESTORED, run["outcome"])
        else:
            self.carry_out("resume", "--yes")

    def follow(self, run):
        """A run that goes on, watched to its end; as it was where its coordinator turns out to be dead."""
        answer = self.upgrade.call("status", "--watch")
        if answer.get("status"):
            return answer.get("status")["run"]
        if answer.error()["code"] != "COORDINATOR_DIED":
            self.fail(answer)
        return run

    def diff(self, plan):
        """Which slot serves, before and after."""
        before = {"slot": plan["from_slot"], "version": plan["from_version"]}
        after = {"slot": plan["to_slot"], "version": plan["to_version"]}
        self.result["diff"] = {"before": before, "after": after}


class _plan_file:  # noqa: N801 - used as a function is
    """A name for a plan, gone afterwards: also when the module ends in the middle (exit_json raises SystemExit)."""

    def __enter__(self):
        handle, self.name = tempfile.mkstemp(prefix="ovs-upgrade-plan-", suffix=".json")
        os.close(handle)
        return self.name

    def __exit__(self, *unused):
        os.unlink(self.name)


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=cli.arguments(
            state={"type": "str", "choices": ["upgraded", "rolled_back"], "default": "upgraded"},
            slot={"type": "str", "choices": ["a", "b"]},
            version={"type": "str"},
            force={"type": "bool", "default": False},
            resume={"type": "bool", "default": False},
            keep_old={"type": "bool"},
            on_failure={"type": "str", "choices": ["back", "stay"]},
        ),
        mutually_exclusive=[("slot", "version", "force")],
        supports_check_mode=True,
    )
    task = Task(module)
    task.upgraded() if module.params["state"] == "upgraded" else task.rolled_back()


if __name__ == "__main__":
    main()
