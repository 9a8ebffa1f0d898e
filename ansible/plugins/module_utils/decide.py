# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""What a host needs, and whether it is well: decided from the JSON of `upgrade`, with no look at the host. Pure."""

from __future__ import annotations

import re

GOES_ON = ("running", "undoing")
UNFINISHED = ("running", "paused", "halted", "undoing", "operator-needed")
# Strategies of runs that move no VM for an upgrade: a standby was made ready, or took over from a switch that died
STANDS_BY = ("standby", "takeover")
MOVES_VMS = ("upgrade",)  # kinds of runs, as `upgrade history` names them
# Findings that mean that VMs are harmed now, or that nobody knows which switch is the host's
HARM = ("NO_SWITCH", "BOTH_SLOTS_OWN_VMS", "VM_NOT_SERVED", "VM_SERVED_BY_OTHER")

# What `upgrade arm` says under that policy
TAKEOVER_OFF = {
    "code": "TAKEOVER_OFF",
    "what": 'takeover.policy is "off": no standby would be kept',
    "state": "nothing was changed",
    "next": 'set takeover.policy to "manual" or "automatic" in the configuration, then: upgrade arm',
}


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
    if run["strategy"] in STANDS_BY:
        serves = run["from_slot"] if run["strategy"] == "standby" else run["to_slot"]
        if slot == serves:
            return False, here
        raise CannotBeError(
            "NOTHING_TO_ROLL_BACK",
            "%s: the standby has taken the old switch's place" % here,
            "nothing was changed",
            "upgrade to the other slot by a new run: state=upgraded, slot=%s" % ("a" if serves == "b" else "b"),
        )
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


def problems(status, plan, moved=None, runs=()):
    """What is wrong with a host, as a list of `code` and `what`; empty where it is well. `plan` may be None.

    moved  report of the latest run that moved VMs, where a later one only made or used a standby
    runs   lines of its history, the newest first, as far back as that run

    Well: no run half-way, the latest run that moved VMs and is done moved every VM within its budget and did every step
    (the soak is one), no switch had to be taken over since, a standby that is wanted is there or is being made, and no
    finding says that a VM is harmed.
    """
    found = []
    run = status["run"]
    if run and run["outcome"] in UNFINISHED:
        found.append(_problem("RUN_UNFINISHED", "run %d is %s" % (run["run_id"], run["outcome"])))
    if run and run["strategy"] not in STANDS_BY and run["outcome"] == "done":
        found += _of_run(run)
        away = sorted(vm for vm, state in status["vms"].items() if state not in ("at-target", "gone"))
        if away:
            found.append(_problem("VM_NOT_MOVED", "%s not at slot %s" % (some(away), run["to_slot"])))
    if moved and moved["outcome"] == "done":
        found += _of_run(moved)
    for line in runs:
        if line["kind"] in MOVES_VMS:
            break
        if line["kind"] == "takeover":
            what = "the switch of slot %s died or was killed, and slot %s took over in run %d"
            found.append(_problem("TAKEN_OVER", what % (line["source"], line["target"], line["run_id"])))
    kept = status["protection"]
    if kept["state"] in ("exposed", "stale"):
        what = "a standby is wanted, and the host is %s: %s" % (kept["state"], kept["reason"] or "no reason is given")
        found.append(_problem("NOT_PROTECTED", what))
    if plan:
        found += [_problem(f["code"], f["what"]) for f in harm(plan)]
    return found


def _of_run(run):
    """What is wrong with a run that is done."""
    found = []
    if run["reason"]:
        found.append(_problem(run["reason"], "run %d ended with %s" % (run["run_id"], run["reason"])))
    late = sorted({m["vm"] for m in run["moves"] if m["over_budget"] and not m["undone"]})
    if late:
        found.append(_problem("OVER_BUDGET", "%s over the blackout budget in run %d" % (some(late), run["run_id"])))
    open_steps = [s["title"] for s in run["steps"] if s["state"] != "done"]
    if open_steps:
        found.append(_problem("STEP_NOT_DONE", "not done in run %d: %s" % (run["run_id"], some(open_steps))))
    return found


def needs_arming(status):
    """Whether `upgrade arm` is wanted, and why (or why not)."""
    kept = status["protection"]
    here = "the host is %s%s" % (kept["state"], ": " + kept["reason"] if kept["reason"] else "")
    return kept["state"] != "armed", here


def needs_takeover(takeover, plan, slot):
    """Whether the switch of `slot` is to be taken over from, and why (or why not).

    takeover  plan of `upgrade takeover --dry-run`
    plan      plan of an upgrade, which names the slot that serves; asked for where the takeover is blocked
    """
    if not takeover["blocked"]:
        here = "slot %s would take over from slot %s" % (takeover["to_slot"], takeover["from_slot"])
        return takeover["from_slot"] == slot, here
    if harm(plan):
        return True, "which slot serves is not known"
    return plan["from_slot"] == slot, "slot %s serves" % plan["from_slot"]


def some(names, limit=5):
    """The first few of many names, in words."""
    return ", ".join(names[:limit]) + (" and %d more" % (len(names) - limit) if len(names) > limit else "")


def _problem(code, what):
    return {"code": code, "what": what}
