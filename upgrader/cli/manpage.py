"""upgrade(1), made of the commands as they are: man(7) macros, so that any man can show it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from upgrader import __version__
from upgrader.cli.app import whole
from upgrader.core.errors import Exit

_EXIT = {
    Exit.DONE: "Done; of check and plan: nothing forbids a run.",
    Exit.UNEXPECTED: "Unexpected: a part of the host or a connection failed. The error says what state the host is in.",
    Exit.USAGE: "The command line, the configuration or a file cannot be meant. Nothing was changed.",
    Exit.BLOCKED: "Findings, or a run that has not ended, forbid this one. Nothing was changed.",
    Exit.RESTORED: "The run failed and was taken back; the host is as it was before.",
    Exit.OPERATOR: "The run failed half-way and a person is needed; what to type is said.",
    Exit.STOPPED: "Paused or aborted on request.",
    Exit.LOCKED: "Another run holds this host. Nothing was changed.",
    Exit.CHANGES: "plan --detailed-exitcode: there is something to do.",
}
_FILES = (
    ("/etc/ovs-upgrade/config.toml, conf.d/*.toml beside it", "The configuration; a later file counts."),
    ("/var/lib/ovs-upgrade/journal.db", "What became of every run (host.journal)."),
    ("/run/ovs-upgrade.sock", "Where the daemon listens (host.socket)."),
)
_ENVIRONMENT = (
    ("OVS_UPGRADE_CONFIG", "The configuration, where --config does not name it."),
    (
        "OVS_UPGRADE_REMOTE_COMMAND",
        "How a host that --host names calls this command, where it is not in the PATH there.",
    ),
    ("OVS_UPGRADE_SSH", "Further arguments of ssh(1) for --host."),
    ("NO_COLOR", "No colours, also on another host."),
)
_EXAMPLES = (
    ("What stands against an upgrade of this host, and what it would do", "upgrade --host localhost --dry-run"),
    ("Upgrade; asks before it begins, --yes does not", "upgrade --host localhost"),
    ("A plan today, carried out tonight if the host is still the same", "upgrade plan --out plan.json"),
    ("", "upgrade run plan.json --yes"),
    ("Watch a run that another session began; stop it after the VM in hand; go on", "upgrade status --watch"),
    ("", "upgrade pause"),
    ("", "upgrade resume"),
    ("The same on another host", "upgrade --host root@hv7.example.net status"),
)


def manpage() -> str:
    """The page's text."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    root = typer.main.get_command(whole())
    yield f'.TH UPGRADE 1 "" "ovs-hot-upgrade {__version__}" "Hot upgrade of OVS-DPDK"'
    yield ".SH NAME"
    yield r"upgrade \- replace the OVS-DPDK of a host under its running VMs, one VM at a time"
    yield ".SH SYNOPSIS"
    yield r".B upgrade \-\-host"
    yield ".I HOST"
    yield r"[\fIoptions\fR]"
    yield ".br"
    yield ".B upgrade"
    yield r"[\fB\-\-host\fR \fIHOST\fR] [\fB\-\-config\fR \fIFILE\fR] \fIverb\fR [\fIoptions\fR]"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(root.help or "")
    yield ".PP"
    yield from _text("Data goes to standard output, progress and logs to standard error. Off a terminal nothing moves "
                     "and nothing is coloured.")  # fmt: skip
    yield ".SH OPTIONS"
    yield from _options(root)
    yield ".SH VERBS"
    for name, command in _verbs(root):
        yield f".SS {_escaped(_usage(name, command))}"
        yield from _paragraphs(command.help or "")
        yield from _options(command)
    for title, pairs in (
        ("EXIT STATUS", tuple((str(int(code)), words) for code, words in _EXIT.items())),
        ("FILES", _FILES),
        ("ENVIRONMENT", _ENVIRONMENT),
    ):
        yield f".SH {title}"
        for term, words in pairs:
            yield from _term(rf"\fB{_escaped(term)}\fR", words)
    yield ".SH EXAMPLES"
    for words, typed in _EXAMPLES:
        if words:
            yield ".PP"
            yield from _text(f"{words}:")
        yield ".PP"
        yield ".RS 4"
        yield ".nf"
        yield _escaped(typed)
        yield ".fi"
        yield ".RE"
    yield ".SH SEE ALSO"
    yield ".BR ovs\\-vswitchd (8),"
    yield ".BR ssh (1)"


def _verbs(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{before}{name}"
        if hasattr(command, "commands"):
            yield from _verbs(command, f"{path} ")
        else:
            yield path, command


def _usage(name: str, command: Any) -> str:
    arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
    return " ".join([name, *arguments])


def _options(command: Any) -> Iterator[str]:
    for param in command.params:
        if param.param_type_name == "argument":
            if param.help:
                yield from _term(rf"\fI{_escaped(param.metavar or param.name.upper())}\fR", param.help)
            continue
        if param.hidden:
            continue
        names = ", ".join(rf"\fB{_escaped(o)}\fR" for o in (*param.opts, *param.secondary_opts))
        value = "" if param.is_flag else rf" \fI{_escaped(param.metavar or param.name.upper())}\fR"
        yield from _term(names + value, param.help or "")


def _term(term: str, words: str) -> Iterator[str]:
    yield ".TP"
    yield term
    yield from _text(words)


def _paragraphs(help_text: str) -> Iterator[str]:
    for number, paragraph in enumerate(inspect.cleandoc(help_text).split("\n\n")):
        if number:
            yield ".PP"
        yield from _text(" ".join(paragraph.split()))


def _text(words: str) -> Iterator[str]:
    line = _escaped(words)
    yield f"\\&{line}" if line.startswith((".", "'")) else line


def _escaped(words: str) -> str:
    return words.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
