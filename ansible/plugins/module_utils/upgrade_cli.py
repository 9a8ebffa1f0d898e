# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""Calling `upgrade` on the host a module runs on, and reading the JSON it prints."""

from __future__ import annotations

import json

SCHEMA_VERSION = 1

DONE, UNEXPECTED, USAGE, BLOCKED, RESTORED, OPERATOR, STOPPED, LOCKED = range(8)
CHANGES = 10
# What each exit code of `upgrade` says of the host (core/errors.py, Exit)
EXIT_NAMES = {
    DONE: "done",
    UNEXPECTED: "unexpected",
    USAGE: "usage",
    BLOCKED: "blocked",
    RESTORED: "restored",
    OPERATOR: "operator-needed",
    STOPPED: "stopped",
    LOCKED: "locked",
    CHANGES: "changes",
}


class Answer:
    """What one call came to: `documents` by their kind, as printed on stdout; `plan` and `error` may come together."""

    def __init__(self, command, exit_code, stdout, stderr):
        self.command = command
        self.exit_code = exit_code
        self.stderr = stderr
        self.documents = {}
        self.unreadable = None
        try:
            for document in documents(stdout):
                self.documents[document.get("kind")] = document
        except ValueError as error:
            self.unreadable = str(error)

    def get(self, kind):
        """The document of this kind, None where there is none."""
        return self.documents.get(kind)

    def error(self):
        """`code`, `what`, `state`, `next` of what went wrong; None where nothing did."""
        if self.exit_code in (DONE, CHANGES) and self.unreadable is None and self.documents:
            return None
        said = self.get("error")
        if said:
            return {key: said[key] for key in ("code", "what", "state", "next")}
        run = self.get("run")
        if run and self.unreadable is None:
            return error_of(run) or _ended(run)
        tail = "\n".join(self.stderr.strip().splitlines()[-8:])
        return {
            "code": "NO_ANSWER",
            "what": "`%s` ended with %d and printed no JSON of schema_version %d%s%s"
            % (
                self.command,
                self.exit_code,
                SCHEMA_VERSION,
                ": " + self.unreadable if self.unreadable else "",
                ":\n" + tail if tail else "",
            ),
            "state": "not known; a run that had begun goes on without this command",
            "next": "upgrade status",
        }


def error_of(run):
    """The error of a run's report, in its parts; None where it has none."""
    if not run["error"]:
        return None
    code, _unused, what = run["error"].partition(": ")
    return {"code": code, "what": what, "state": run["state"], "next": run["next"]}


def _ended(run):
    what = "run %d ended as %s" % (run["run_id"], run["outcome"])
    return {"code": run["reason"] or "RUN_NOT_DONE", "what": what, "state": run["state"], "next": run["next"]}


def documents(text):
    """Every JSON object in a text that holds nothing else. Raises ValueError for what is none, or of another schema."""
    decoder = json.JSONDecoder()
    found = []
    rest = text.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        if not isinstance(document, dict):
            raise ValueError("stdout holds JSON that is no object")
        if document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError("schema_version is %r" % document.get("schema_version"))
        found.append(document)
        rest = rest[end:].lstrip()
    return found


class Upgrade:
    """The `upgrade` command of this host, with one configuration."""

    def __init__(self, module):
        self._module = module
        self._program = module.params["executable"]
        self._config = module.params["config"]

    def call(self, *words, as_json=True):
        """Run one verb with `--json`; `as_json` is False for one that prints nothing else and knows no such option."""
        argv = [self._program]
        if self._config:
            argv += ["--config", self._config]
        argv += list(words) + (["--json"] if as_json else [])
        command = " ".join(argv)
        try:
            code, out, err = self._module.run_command(argv, handle_exceptions=False)
        except OSError as error:
            return _missing(command, error)
        return Answer(command, code, out, err)


class Task:
    """One call of a module that may change the host: what it has found out so far, and how it ends."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.upgrade = Upgrade(module)
        self.result = {"changed": False, "outcome": "already", "exit_code": DONE, "exit_name": EXIT_NAMES[DONE]}

    def ask(self, *words):
        """A verb that reads; anything but an answer ends the module. Findings are an answer."""
        answer = self.upgrade.call(*words)
        if answer.exit_code not in (DONE, CHANGES) or answer.error():
            if not (answer.exit_code == BLOCKED and answer.get("plan")):
                self.fail(answer)
        return answer

    def carry_out(self, *words):
        """A verb that changes the host; anything but its success ends the module."""
        answer = self.upgrade.call(*words)
        run = answer.get("run")
        if run:
            self.result["run"] = run
            # taken back is as before; every other end of a run is not
            self.result["changed"] = words[0] == "rollback" or run["outcome"] != "restored"
        if answer.error():
            self.fail(answer)
        self.result.update(outcome=run["outcome"], exit_code=answer.exit_code)

    def planned(self, exit_code, why):
        """The end of a check."""
        self.result.update(changed=True, outcome="planned", exit_code=exit_code, exit_name=EXIT_NAMES[exit_code])
        self.end(why)

    def end(self, why=None):
        """Success."""
        if why:
            self.result.update(why=why, msg=why)
        self.module.exit_json(**self.result)

    def fail(self, answer):
        """The command's own words for what went wrong."""
        run = answer.get("run")
        words = {BLOCKED: "blocked", UNEXPECTED: "unexpected"}
        self.fail_with(
            answer.error(), answer.exit_code, run["outcome"] if run else words.get(answer.exit_code, "refused")
        )

    def fail_with(self, error, exit_code, outcome):
        """Failure; `msg` has what happened, the host's state and what to type next."""
        error = dict(error, next=typed(error["next"], self.params["config"]))
        self.result.update(
            error=error,
            outcome=outcome,
            exit_code=exit_code,
            exit_name=EXIT_NAMES.get(exit_code, "unexpected"),
        )
        self.module.fail_json(msg=message(error), **self.result)


def _missing(command, error):
    said = {
        "schema_version": SCHEMA_VERSION,
        "kind": "error",
        "code": "COMMAND_MISSING",
        "what": "`%s` cannot be run: %s" % (command, error.strerror),
        "state": "nothing was changed",
        "next": "install it (role ovs.hot_upgrade.install), or set `executable`",
    }
    return Answer(command, USAGE, json.dumps(said), "")


def typed(words, config):
    """A command that is offered, so that it reads the same configuration."""
    return words.replace("upgrade ", "upgrade --config %s " % config) if config and "--config" not in words else words


def message(error):
    """The four things every error says, in one text."""
    return "%s: %s\nstate: %s\nnext: %s" % (error["code"], error["what"], error["state"], error["next"])


def arguments(**more):
    """Argument spec of the modules."""
    spec = {"executable": {"type": "str", "default": "upgrade"}, "config": {"type": "path"}}
    spec.update(more)
    return spec
