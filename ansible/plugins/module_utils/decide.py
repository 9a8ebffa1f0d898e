# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""What a host needs, and whether it is well: decided from the JSON of `upgrade`, with no look at the host. Pure."""

from __future__ import annotations

import re

GOES_ON = ("running", "undoing")
UNFINISHED = ("running", "paused", "halted", "undoing", "operator-needed")
# Findings that mean that VMs are harmed now, or that nobody knows which switch is the host's
HARM = ("NO_SWITCH", "BOTH_SLOTS_OWN_VMS", "VM_NOT_SERVED", "VM_SERVED_BY_OTHER")


class CannotBeError(Exception):
    """What was asked for cannot be had on this host; `error` as printed by `upgrade`."""

    def __init__(self, code, what, state, then):
        super().__init__(what)
        self.error = {"code": code, "what": what, "state": state, "next": then}


def version_key(text):
    """``3.2.1`` as numbers, to be compared."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def needs_upgrade(plan, slot=None, version=None, force=False):
    """Whether the run of this plan is wanted, and why (or why not). Raises CannotBeError.

    By `slot`: the switch of that slot shall serve. By `version`: that version shall serve. By neither: the newer one of
    the two slots shall. `force`: the other slot's shall, whatever it is.
    """
    source, target = plan["from_slot"], plan["to_slot"]
    runs, installed = plan["from_version"], plan["to_version"]
    here = "slot %s serves, OVS %s" % (source, runs or "unknown")
    if force:
        return True, "%s; forced to slot %s, OVS %s" % (here, target, installed or "unknown")
    if slot is not None:
        return (False, here) if source == slot else (True, "%s; slot %s is wanted" % (here, slot))
    if version is not None:
        if runs == version:
            return False, here
        if installed == version:
            return True, "%s; %s is wanted, which slot %s has" % (here, version, target)
        raise CannotBeError(
            "VERSION_NOT_INSTALLED",
            "OVS %s is wanted; slot %s runs %s, slot %s has %s installed"
            % (version, source, runs or "none", target, installed or "none"),
            "nothing was changed",
            "install OVS %s in the prefix of slot %s, then run this again" % (version, target),
        )
    if installed and runs and version_key(installed) > version_key(runs):
        return True, "%s; slot %s has the newer %s" % (here, target, installed)
    return False, "%s; slot %s has nothing newer (%s)" % (here, target, installed or "nothing")


def needs_rollback(run, slot=None, version=None):
    """Whether the latest run (None: there is none) is to be taken back so that `slot`, or `version`, serves again; and why.

    Raises CannotBeError for a run that neither came from there nor led there.
    """
    if run is None:
        return False, "no run is recorded"
    here = "run %d (slot %s, OVS %s -> slot %s, OVS %s) is %s" % (
        run["run_id"], run["from_slot"], run["from_version"], run["to_slot"], run["to_version"], run["outcome"],
    )  # fmt: skip
    came_from = slot in (None, run["from_slot"]) and version in (None, run["from_version"])
    if came_from:
        return run["outcome"] != "restored", here
    led_to = slot in (None, run["to_slot"]) and version in (None, run["to_version"])
    if led_to and run["outcome"] == "done":
        return False, here
    raise CannotBeError(
        "ROLLBACK_LEADS_ELSEWHERE",
        "%s: taking it back does not lead to %s" % (here, "slot " + slot if slot else "OVS " + version),
        "nothing was changed",
        "upgrade status; upgrade history",
    )


def harm(plan):
    """The plan's findings under which it cannot be said which switch serves."""
    return [f for f in plan["findings"] if f["code"] in HARM]


def unfinished(status):
    """The run that stopped half-way or goes on, None where there is none."""
    run = status["run"]
    return run if run and run["outcome"] in UNFINISHED else None


def unfinished_error(run):
    """What is said of a run that nobody told us to take up."""
    going = run["outcome"] in GOES_ON
    return {
        "code": "RUN_UNFINISHED",
        "what": "run %d (slot %s -> %s) is %s%s"
        % (
            run["run_id"],
            run["from_slot"],
            run["to_slot"],
            run["outcome"],
            "" if going else " half-way" + (": " + run["error"] if run["error"] else ""),
        ),
        "state": run["state"],
        "next": run["next"] + "; with Ansible: resume=true",
    }


def problems(status, plan):
    """What is wrong with a host, as a list of `code` and `what`; empty where it is well. `plan` may be None.

    Well: no run half-way, the latest run that is done moved every VM within its budget and did every step (the soak is
    one), and no finding says that a VM is harmed.
    """
    found = []
    run = status["run"]
    if run and run["outcome"] in UNFINISHED:
        found.append(_problem("RUN_UNFINISHED", "run %d is %s" % (run["run_id"], run["outcome"])))
    if run and run["outcome"] == "done":
        if run["reason"]:
            found.append(_problem(run["reason"], "run %d ended with %s" % (run["run_id"], run["reason"])))
        late = sorted({m["vm"] for m in run["moves"] if m["over_budget"] and not m["undone"]})
        if late:
            found.append(_problem("OVER_BUDGET", "%s over the blackout budget in run %d" % (some(late), run["run_id"])))
        open_steps = [s["title"] for s in run["steps"] if s["state"] != "done"]
        if open_steps:
            found.append(_problem("STEP_NOT_DONE", "not done in run %d: %s" % (run["run_id"], some(open_steps))))
        away = sorted(vm for vm, state in status["vms"].items() if state not in ("at-target", "gone"))
        if away:
            found.append(_problem("VM_NOT_MOVED", "%s not at slot %s" % (some(away), run["to_slot"])))
    if plan:
        found += [_problem(f["code"], f["what"]) for f in harm(plan)]
    return found


def some(names, limit=5):
    """The first few of many names, in words."""
    return ", ".join(names[:limit]) + (" and %d more" % (len(names) - limit) if len(names) > limit else "")


def _problem(code, what):
    return {"code": code, "what": what}
