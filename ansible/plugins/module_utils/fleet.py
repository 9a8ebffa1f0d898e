# Copyright: the authors of ovs-hot-upgrade
# SPDX-License-Identifier: Apache-2.0
"""What a rollout came to: a record a host, a report over all of them, and that report as one page. Pure."""

from __future__ import annotations

import html

SCHEMA_VERSION = 1
# How a host ended, the worst first; `untouched`: the rollout stopped before its batch
KINDS = ("failed", "untouched", "planned", "done", "already")


def host_record(host, came_to=None, info=None, failed=None):
    """One host of the report.

    came_to  result of hot_upgrade; None or empty where it was not called
    info     result of hot_upgrade_info
    failed   `code`, `what`, `state`, `next` of why this host stops the rollout
    """
    came_to, info = came_to or {}, info or {}
    run = came_to.get("run") or (info.get("status") or {}).get("run") or {}
    moves = [
        {k: m[k] for k in ("vm", "blackout_us", "over_budget", "undone", "from_slot", "to_slot")}
        for m in run.get("moves", [])
    ]
    longest = max((m["blackout_us"] for m in moves), default=None)
    if failed:
        kind = "failed"
    elif came_to.get("outcome") == "planned":
        kind = "planned"
    else:
        kind = "done" if came_to.get("changed") else "already"
    return {
        "host": host,
        "kind": kind,
        "outcome": came_to.get("outcome") or run.get("outcome"),
        "slot": info.get("slot"),
        "version": info.get("version"),
        "protection": ((info.get("status") or {}).get("protection") or {}).get("state"),
        "why": came_to.get("why"),
        "findings": info.get("findings") or came_to.get("findings") or [],
        "problems": info.get("problems") or [],
        "error": failed or None,
        "run_id": run.get("run_id"),
        "run_took_s": run.get("took_s"),
        "longest_blackout_us": longest,
        "over_budget": sorted({m["vm"] for m in moves if m["over_budget"]}),
        "moves": moves,
    }


def failure(result, task=""):
    """Why a task of ours failed, as `code`, `what`, `state`, `next`: its own words where it has them."""
    error = result.get("error")
    if isinstance(error, dict):
        return error
    if result.get("unreachable"):
        return {
            "code": "HOST_UNREACHABLE",
            "what": str(result.get("msg", "no connection")).strip(),
            "state": "not known; if a run had begun there it goes on without this connection",
            "next": "upgrade status, on that host; then this playbook again with rollout_resume=true",
        }
    return {
        "code": "TASK_FAILED",
        "what": "%s%s" % (task + ": " if task else "", result.get("msg", "no message")),
        "state": "not known; `upgrade status` on that host tells",
        "next": "upgrade status, on that host",
    }


def fleet_report(records, hosts, title="", at=""):
    """All hosts of the play, those without a record as untouched; `outcome` is stopped, done, or partial so far."""
    known = {r["host"]: r for r in records}
    told = [known.get(h) or {**host_record(h), "kind": "untouched"} for h in hosts]
    counts = {k: sum(1 for r in told if r["kind"] == k) for k in KINDS}
    outcome = "stopped" if counts["failed"] else "partial" if counts["untouched"] else "done"
    blackouts = sorted(m["blackout_us"] for r in told for m in r["moves"] if not m["undone"])
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "fleet",
        "title": title,
        "at": at,
        "outcome": outcome,
        "counts": {"hosts": len(told), **counts},
        "stopped_by": [{"host": r["host"], **r["error"]} for r in told if r["error"]],
        "blackout_us": {
            "moves": len(blackouts),
            "median": blackouts[len(blackouts) // 2] if blackouts else None,
            "max": blackouts[-1] if blackouts else None,
        },
        "hosts": told,
    }


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3em .7em;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.failed{color:#a40000;font-weight:600}.untouched{color:#777}
.done,.already{color:#1b6e1b}.planned{color:#8a5a00}.stop{border-left:4px solid #a40000;padding:.2em 1em;margin:1em 0;background:#fdf3f3}
code{white-space:pre-wrap}summary{cursor:pointer}"""


def fleet_html(report):
    """The report as one page that needs nothing else. Every word from a host is escaped."""
    counts = report["counts"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>%s</title><style>%s</style>"
        % (_text(report["title"]), _STYLE),
        "<h1>%s</h1><p><b class=%s>%s</b>: %s. %s</p>"
        % (
            _text(report["title"]),
            "failed" if report["outcome"] == "stopped" else "done",
            _text(report["outcome"]),
            ", ".join("%d %s" % (counts[k], k) for k in ("hosts", *KINDS) if counts[k] or k == "hosts"),
            _text(report["at"]),
        ),
    ]
    for stop in report["stopped_by"]:
        parts.append(
            "<div class=stop><p><b>%s</b> %s: %s<p>state: %s<p>next: <code>%s</code></div>"
            % tuple(_text(stop[k]) for k in ("host", "code", "what", "state", "next"))
        )
    heads = ("host", "", "serves", "OVS", "standby", "run", "VMs", "longest blackout", "why")
    parts.append("<table><tr>%s</tr>" % "".join("<th>%s</th>" % h for h in heads))
    parts += [_row(r) for r in report["hosts"]]
    parts.append("</table></html>\n")
    return "".join(parts)


def _row(r):
    blackout = "" if r["longest_blackout_us"] is None else "%.2f ms" % (r["longest_blackout_us"] / 1000)
    return "<tr><td>%s<td class=%s>%s<td>%s<td>%s<td>%s<td>%s<td class=n>%s<td class=n>%s<td>%s</tr>" % (
        _text(r["host"]),
        r["kind"],
        _text(r["kind"]),
        _text("slot " + r["slot"] if r["slot"] else ""),
        _text(r["version"]),
        _text(r["protection"]),
        _text(r["run_id"]),
        len({m["vm"] for m in r["moves"]}) or "",
        blackout,
        _details(r),
    )


def _details(r):
    why = _text(r["error"]["code"] if r["error"] else r["why"])
    lines = ["%s: %s" % (_text(f["code"]), _text(f["what"])) for f in r["findings"] + r["problems"]]
    lines += [
        "%s: %.2f ms%s%s"
        % (
            _text(m["vm"]),
            m["blackout_us"] / 1000,
            " (over budget)" if m["over_budget"] else "",
            " (way back)" if m["undone"] else "",
        )
        for m in r["moves"]
    ]
    return "<details><summary>%s</summary>%s</details>" % (why or "…", "<br>".join(lines)) if lines else why


def _text(value):
    return "" if value is None else html.escape(str(value))
