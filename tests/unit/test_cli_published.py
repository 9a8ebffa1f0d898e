"""What is published of the command line is what it does: schemas against real outputs, man page, completion, `next`."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from tests.unit.test_cli_golden import CASES, GOLDEN
from upgrader.cli import app
from upgrader.cli.options import Globals, hoisted
from upgrader.cli.published import published, schemas

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REGENERATE = "build/venv/bin/python -m upgrader.cli.published docs"


@pytest.mark.parametrize("name", sorted(str(n) for n in published()))
def test_what_is_generated_is_current(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == published()[Path(name)], f"run: {REGENERATE}"


def test_no_other_schema_is_published() -> None:
    assert {p.relative_to(DOCS) for p in (DOCS / "schemas").iterdir()} == set(published()) - {Path("upgrade.1")}


def closed(schema: Any) -> Any:
    """The schema, with no key allowed that it does not name: an output may have more only when it is published."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(part) for key, part in schema.items()}
    if "properties" in schema:
        made.setdefault("additionalProperties", False)
    return made


def outputs() -> Iterator[tuple[str, dict[str, Any]]]:
    for case in CASES:
        text = (GOLDEN / f"{case[0]}.txt").read_text(encoding="utf-8")
        stdout = text.split("----- stdout\n", 1)[1].split("\n----- stderr\n", 1)[0]
        if stdout.startswith("{"):
            yield case[0], json.loads(stdout)


def test_real_outputs_keep_to_their_schemas() -> None:
    """The golden outputs: they are held to what the verbs print by their own test."""
    made = schemas()
    kinds = set()
    for name, output in outputs():
        kind = output["kind"]
        jsonschema.validate(output, made[kind])
        jsonschema.validate(output, closed(made[kind]))
        kinds.add(kind)
        spoilt = {**output, "schema_version": "one"}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, made[kind])
        lacking = {k: v for k, v in output.items() if k != list(output)[-1]}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(lacking, made[kind])
        assert name
    assert kinds == set(made)


@pytest.mark.parametrize("argv", [["man", "-l", "--warnings=w", "-Tutf8"], ["groff", "-man", "-Tutf8", "-ww"]])
def test_the_man_page_is_shown_without_a_warning(argv: list[str]) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"there is no {argv[0]} here")
    env = {**os.environ, "MANPAGER": "cat", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([*argv, str(DOCS / "upgrade.1")], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("EXIT STATUS", "status", "--watch", "lab traffic", "OVS_UPGRADE_SSH"):
        assert words in re.sub("\x1b\\[[0-9;]*m|.\b", "", done.stdout).replace("−", "-")  # noqa: RUF001


# --- completion


def completed(*words: str) -> list[str]:
    """What bash would offer for the last word, by the protocol its script speaks."""
    env = {**os.environ, "COMP_WORDS": " ".join(["upgrade", *words]), "COMP_CWORD": str(len(words))}
    env["_UPGRADE_COMPLETE"] = "complete_bash"
    argv = [sys.executable, "-m", "upgrader.cli.app"]
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=True).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sta",), ["status"]),
        (("r",), ["run", "resume", "rollback", "report"]),
        (("status", "--w"), ["--watch"]),
        (("plan", "--on-failure", ""), ["back", "stay", "ask"]),
        (("--restore", ""), ["a", "b"]),
        (("config", ""), ["show", "validate"]),
        (("lab", ""), ["up", "status", "down", "traffic"]),
        (("lab", "up", "--q"), ["--queues", "--qemu-binary"]),
        (("lab", "up", "--pages", "2m", "--js"), ["--json"]),
    ],
)
def test_completion(words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_calls_us(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app._main(["--show-completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_UPGRADE_COMPLETE=complete_{shell}" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# --- every command that is offered can be typed

_COMMAND = re.compile(r"(?<![\w./-])upgrade (?=--\w|[a-z]+\b)(?P<rest>[^;,`\"\n]*?)(?=$|[;,`\"\n]|   | \(|\))")


def strings(node: ast.AST) -> Iterator[str]:
    """Those of an expression, with a word where an f-string puts a value."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "x" for v in node.values)
    elif isinstance(node, ast.Constant):
        yield str(node.value)
    else:
        for child in ast.iter_child_nodes(node):
            yield from strings(child)


def offers(tree: ast.AST) -> Iterator[str]:
    """What a file tells an operator to type: next= of an error, the remedy of a finding, `_what_next`, and `next:`."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.keyword) and node.arg == "next":
            yield from strings(node.value)
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Finding", "_blocking")
        ):
            yield from strings(node.args[-1]) if node.args else ()
        elif isinstance(node, ast.FunctionDef) and node.name == "_what_next":
            yield from (text for line in node.body[1:] for text in strings(line))
        elif isinstance(node, (ast.Constant, ast.JoinedStr)):
            yield from (text.split("next:", 1)[1] for text in strings(node) if "next:" in text)


def said_in_the_source() -> list[tuple[str, str]]:
    found = []
    for path in sorted((ROOT / "upgrader").rglob("*.py")):
        for text in offers(ast.parse(path.read_text(encoding="utf-8"))):
            found += [(str(path.relative_to(ROOT)), m["rest"].strip()) for m in _COMMAND.finditer(text)]
    return found


def said_in_the_docs() -> list[tuple[str, str]]:
    found = []
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]*)`", text):
            for line in block.splitlines():
                code = re.sub(r"^build/venv/bin/| > .*", "", line.split("#")[0].rstrip())
                if re.match(r"upgrade (--|[a-z])", code) and not re.search(r"[|…\[<]", code):
                    found.append((str(path.relative_to(ROOT)), code.removeprefix("upgrade ")))
    return found


def parse(words: list[str]) -> None:
    """By the real parser, without carrying anything out. Raises what an operator would be told."""
    command: Any = typer.main.get_command(app.whole())
    if words == ["lab"]:  # it shows what there is
        return
    name, context = "upgrade", None
    words = hoisted(words)
    while True:
        context = command.make_context(name, list(words), parent=context)
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "commands") or not rest:
            return
        if rest[0] == "x":  # which verb it is stands in a value
            return
        name, command, words = command.resolve_command(context, rest)


def test_every_command_that_is_offered_can_be_typed() -> None:
    source, docs = said_in_the_source(), said_in_the_docs()
    wrong = []
    for where, rest in (*source, *docs):
        words = [word.replace("VNI", "100") for word in shlex.split(rest)]
        try:
            parse([word for word in words if word != "--help"])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the operator gets
            wrong.append(f"{where}: upgrade {rest}: {error}")
    assert not wrong, "\n".join(wrong)
    assert len(source) > 40, "the search finds what it should"
    assert {"resume", "rollback", "status"} <= {rest.split()[0] for _, rest in source}
    assert len(docs) > 10


def test_a_command_that_cannot_be_typed_is_found() -> None:
    for words in (["status", "--bogus"], ["nonsense"], ["--restore"], ["run"]):
        with pytest.raises(typer.exceptions.TyperException):
            parse(words)


@pytest.mark.parametrize(
    ("options", "said", "typed"),
    [
        (Globals(), "upgrade resume   (on), or: upgrade rollback", "upgrade resume   (on), or: upgrade rollback"),
        (
            Globals(config=Path("/c d.toml")),
            "upgrade resume   (on), or: upgrade rollback",
            "upgrade --config '/c d.toml' resume   (on), or: upgrade --config '/c d.toml' rollback",
        ),
        (Globals(host="hv7", remote=True), "upgrade --host localhost --dry-run", "upgrade --host hv7 --dry-run"),
        (Globals(host="hv7", remote=True), "upgrade status --watch", "upgrade --host hv7 status --watch"),
        (Globals(host="localhost"), "upgrade status", "upgrade status"),
        (Globals(config=Path("/c")), "after the upgrade   (x)", "after the upgrade   (x)"),
        (Globals(config=Path("/c")), "to try it: upgrade lab up", "to try it: upgrade lab up"),
    ],
)
def test_what_to_type_next_reaches_the_same_host(options: Globals, said: str, typed: str) -> None:
    assert options.command(said) == typed


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["status", "--host", "h"], ["--host", "h", "status"]),
        (["status", "--host=h", "--json"], ["--host=h", "status", "--json"]),
        (["report", "-v", "7", "--config", "c"], ["-v", "--config", "c", "report", "7"]),
        (["run", "--", "--host"], ["run", "--", "--host"]),
        (["status", "--host"], ["--host", "status"]),
    ],
)
def test_host_and_config_may_stand_anywhere(typed: list[str], meant: list[str]) -> None:
    assert hoisted(typed) == meant
