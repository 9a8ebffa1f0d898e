#!/usr/bin/python
# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a standby that stays in a host's other slot, its end, and a takeover by it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hot_upgrade_takeover
short_description: Keep a standby for the OVS-DPDK of a host, or let it take over
version_added: 0.2.0
description:
  - Arms a host by C(upgrade arm), disarms it by C(upgrade disarm), or takes its switch over by C(upgrade takeover).
  - A host that is armed has a second switch in its other slot that is what the first is and stands by on every VM.
author: The authors of ovs-hot-upgrade (@ovs-hot-upgrade)
options:
  state:
    description:
      - V(armed) means that a standby is there and is kept. It takes C(takeover.policy) C(manual) or C(automatic) in the configuration.
      - V(disarmed) means that none is wanted. No VM is moved by either.
      - V(taken_over) means that the switch of O(slot) does not serve, and the standby does. A switch that lives is killed
        first, and what its VMs had under way to it is lost. In check mode this is C(upgrade takeover --dry-run).
    type: str
    choices: [armed, disarmed, taken_over]
    default: armed
  slot:
    description: The slot whose switch is to be taken over, so that a second call does not take over from the next one.
    type: str
    choices: [a, b]
  timeout:
    description: How long a standby that is being made may take to be ready, in seconds.
    type: int
    default: 120
extends_documentation_fragment:
  - ovs.hot_upgrade.upgrade
attributes:
  check_mode:
    support: full
    description: Nothing is changed. Findings that would forbid it fail it.
  diff_mode:
    support: full
    description: How well the host is protected, or which slot serves.
seealso:
  - module: ovs.hot_upgrade.hot_upgrade
  - module: ovs.hot_upgrade.hot_upgrade_info
"""

EXAMPLES = r"""
- name: Keep a standby
  ovs.hot_upgrade.hot_upgrade_takeover:

- name: None from now on
  ovs.hot_upgrade.hot_upgrade_takeover:
    state: disarmed

- name: What a takeover would do now
  ovs.hot_upgrade.hot_upgrade_takeover:
    state: taken_over
    slot: a
  check_mode: true
  register: told

- name: Take over from the switch of slot a, once
  ovs.hot_upgrade.hot_upgrade_takeover:
    state: taken_over
    slot: a
"""

RETURN = r"""
outcome:
  description:
    - What the host came to. V(already) and V(planned) (check mode) are the module's own words; V(blocked), V(refused) and
      V(unexpected) mean that no run began; V(unprotected) that one was done and the host is not armed for all that; the others
      are those of the run.
  returned: always
  type: str
  sample: done
exit_code:
  description: Exit code of the last command, 0 to 7.
  returned: always
  type: int
  sample: 0
exit_name:
  description: The same as a word, one of done, unexpected, usage, blocked, restored, operator-needed, stopped, locked, changes.
  returned: always
  type: str
  sample: done
why:
  description: Why something was done, or was not.
  returned: when it was asked of the host
  type: str
  sample: the host is disarmed
protection:
  description: How well the host is protected, as C(upgrade status --json) prints it.
  returned: when it was asked of the host
  type: dict
  sample: {state: armed, active: a, standby: b, vms: 12, policy: manual, reason: '', next: ''}
error:
  description: What went wrong, in which state the host is, and what to type next.
  returned: on failure
  type: dict
  sample: {code: TAKEOVER_OFF, what: takeover.policy is "off", state: nothing was changed, next: upgrade arm}
findings:
  description: What C(upgrade) says of the host, each with code, severity, what and remedy.
  returned: where a plan was made
  type: list
  elements: dict
  sample: []
plan:
  description: The plan of the takeover, or in check mode that of an upgrade, whose findings are those of arming.
  returned: where one was made
  type: dict
  sample: {from_slot: a, to_slot: b, strategy: takeover, blocked: false}
run:
  description: The run's report, as C(upgrade report --json) prints it.
  returned: where a run was carried out
  type: dict
  sample: {run_id: 4, strategy: takeover, outcome: done}
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import decide
from ansible_collections.ovs.hot_upgrade.plugins.module_utils import upgrade_cli as cli

_POLL_S = 1.0


class Task(cli.Task):
    """One call of the module."""

    def armed(self):
        """A standby is there."""
        status = self.settled()
        needed, why = decide.needs_arming(status)
        self.result["why"] = why
        if not needed:
            return self.end(why)
        self.diff(protection=(status["protection"]["state"], "armed"))
        if self.module.check_mode:
            self.would_be_armed()
            return self.planned(cli.DONE, why)
        self.carry_out("arm", "--yes")
        kept = self.settled()["protection"]
        if kept["state"] != "armed":
            self.fail_with(
                {
                    "code": "NOT_ARMED",
                    "what": "a standby was made, and the host is %s: %s"
                    % (kept["state"], kept["reason"] or "no reason given"),
                    "state": "every VM is served by the switch that served it",
                    "next": kept["next"] or "upgrade status",
                },
                cli.DONE,
                "unprotected",
            )
        return self.end(why)

    def disarmed(self):
        """No standby is wanted."""
        status = self.free()
        state = status["protection"]["state"]
        why = "the host is %s" % state
        self.result["why"] = why
        if state == "disarmed":
            return self.end(why)
        self.diff(protection=(state, "disarmed"))
        if self.module.check_mode:
            return self.planned(cli.DONE, why)
        self.carry_out("disarm", "--yes")
        self.result["protection"] = self.ask("status").get("status")["protection"]
        return self.end(why)

    def taken_over(self):
        """The switch of that slot does not serve."""
        slot = self.params["slot"]
        self.free()
        answer = self.ask("takeover", "--dry-run")
        made = answer.get("plan")
        self.result.update(plan=made, findings=made["findings"])
        serving = self.ask("plan").get("plan") if made["blocked"] else None
        needed, why = decide.needs_takeover(made, serving, slot)
        self.result["why"] = why
        if not needed:
            return self.end(why)
        if made["blocked"]:
            self.fail(answer)
        self.diff(slot=(made["from_slot"], made["to_slot"]))
        if self.module.check_mode:
            return self.planned(cli.DONE, why)
        self.carry_out("takeover", "--yes")
        return self.end(why)

    def would_be_armed(self):
        """Fail where `upgrade arm` would be refused: it has no dry run, but an upgrade's plan has the same findings."""
        answer = self.ask("plan")
        plan = answer.get("plan")
        self.result.update(plan=plan, findings=plan["findings"])
        if plan["blocked"]:
            self.fail(answer)
        config = self.upgrade.call("config", "show", as_json=False).get("config")
        if config and config["config"]["takeover"]["policy"] == "off":
            self.fail_with(decide.TAKEOVER_OFF, cli.BLOCKED, "blocked")

    def free(self):
        """The host's status; fails where a run stands half-way or goes on."""
        status = self.ask("status").get("status")
        run = decide.unfinished(status)
        self.result["protection"] = status["protection"]
        if run:
            self.result["run"] = run
            error = dict(decide.unfinished_error(run), next=run["next"])
            self.fail_with(error, cli.LOCKED if run["outcome"] in decide.GOES_ON else cli.BLOCKED, run["outcome"])
        return status

    def settled(self):
        """The same, once the daemon has made up its mind: after a run it may be at work on a new standby by itself."""
        deadline = time.monotonic() + self.params["timeout"]
        while True:
            status = self.ask("status").get("status")
            run = decide.unfinished(status)
            at_work = status["protection"]["state"] == "arming" or (
                run and run["strategy"] == "standby" and run["outcome"] in decide.GOES_ON
            )
            if not at_work or self.module.check_mode or time.monotonic() > deadline:
                return self.free()
            time.sleep(_POLL_S)

    def diff(self, **changes):
        """What is different afterwards, each as before and after."""
        before = {key: pair[0] for key, pair in changes.items()}
        after = {key: pair[1] for key, pair in changes.items()}
        self.result["diff"] = {"before": before, "after": after}


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=cli.arguments(
            state={"type": "str", "choices": ["armed", "disarmed", "taken_over"], "default": "armed"},
            slot={"type": "str", "choices": ["a", "b"]},
            timeout={"type": "int", "default": 120},
        ),
        required_if=[("state", "taken_over", ("slot",))],
        supports_check_mode=True,
    )
    getattr(Task(module), module.params["state"])()


if __name__ == "__main__":
    main()
