"""The collection in ansible/, where Ansible finds it by name; its modules and playbooks run as Ansible runs them.

python -m tests.support.collection lint     # ansible-lint, production profile, and every playbook's syntax
python -m tests.support.collection sanity   # ansible-test sanity, on a copy; its checkers come from the index that pip uses
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "ansible"
NAME = "ovs.hot_upgrade"
PLAYBOOKS = ("install", "preflight", "rolling_upgrade", "rollback", "standby", "status")
_BIN = Path(sys.executable).parent
_ANSIBLE_TESTS_PIP = "24.2"  # the one it asks for; another one makes `sanity` fail, not pass


def installed_in(folder: Path) -> Path:
    """A path of collections in which ours is the one in the source."""
    at = folder / "collections" / "ansible_collections" / Path(*NAME.split("."))
    at.parent.mkdir(parents=True, exist_ok=True)
    if not at.is_symlink():
        at.symlink_to(SOURCE)
    return folder / "collections"


def environment(folder: Path) -> dict[str, str]:
    """For Ansible, with whatever it writes in `folder`, and no settings of this machine's."""
    settings = folder / "ansible.cfg"
    settings.write_text("[defaults]\n")
    return {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(installed_in(folder)),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": str(folder / "tmp"),
        "ANSIBLE_CONFIG": str(settings),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_PIPELINING": "1",
        "PATH": f"{_BIN}:{os.environ['PATH']}",
    }


@dataclass
class Collection:
    """In a folder of its own."""

    folder: Path

    def start(self, module: str, *, check: bool = False, **parameters: Any) -> subprocess.Popen[str]:
        """A module, with its arguments as Ansible hands them over: JSON, on stdin."""
        given = {**parameters, "_ansible_check_mode": check, "_ansible_diff": True}
        paths = f"{installed_in(self.folder)}:{ROOT}"
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, f"ansible_collections.{NAME}.plugins.modules.{module}"],
            env={**environment(self.folder), "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
        process.stdin.close()
        process.stdin = None
        return process

    def module(self, module: str, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
        """The same, to its end: its result."""
        return result(self.start(module, check=check, **parameters))


# Ansible's own wrapper names the serialization profile, too; what a module is told and prints is the same
_RUN = """
import importlib, sys
from ansible.module_utils import basic
basic._ANSIBLE_PROFILE = "legacy"
module = importlib.import_module(sys.argv[1])
sys.argv[1:] = []
module.main()
"""


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a module printed; its exit code has to say the same."""
    out, err = process.communicate(timeout=120)
    assert out, err
    found: dict[str, Any] = json.loads(out)
    assert process.returncode == (1 if found.get("failed") else 0)
    return found


@dataclass
class Fleet:
    """An inventory of local connections, each with the configuration of a host of its own."""

    folder: Path
    hosts: dict[str, Path]
    variables: dict[str, object] = field(default_factory=dict)

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "report" / "report.json").read_text())
        return found

    def kinds(self) -> dict[str, str]:
        """How each host ended, by the report."""
        return {h["host"]: h["kind"] for h in self.report["hosts"]}

    def inventory(self) -> dict[str, Any]:
        """Variables of all hosts, and of each."""
        return {
            "vars": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "rollout_become": False,
                "rollout_executable": str(_BIN / "upgrade"),
                "rollout_report_dir": str(self.folder / "report"),
            },
            "hosts": {name: {"rollout_config": str(config)} for name, config in self.hosts.items()},
        }

    def play(
        self, playbook: str, *arguments: str, before: Sequence[str] = (), timeout_s: float = 240, **variables: object
    ) -> subprocess.CompletedProcess[str]:
        """One of the collection's playbooks; `before`: what the command is run by, as `ip netns exec NAME`."""
        file = self.folder / "inventory.json"
        file.write_text(json.dumps({"all": self.inventory()}))
        extra = json.dumps({**self.variables, **variables})
        program = [str(_BIN / "ansible-playbook"), "-i", str(file), f"{NAME}.{playbook}", "-e", extra]
        return subprocess.run(
            [*before, *program, *arguments],
            env=environment(self.folder),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def lint(folder: Path) -> int:
    """Exit code of the first of them that is not content."""
    around = environment(folder)
    files = [str(SOURCE / "playbooks" / f"{name}.yml") for name in PLAYBOOKS]
    for argv in (
        [str(_BIN / "ansible-playbook"), "--syntax-check", "-i", "localhost,", *files],
        [str(_BIN / "ansible-lint"), "--offline", "--profile", "production", "--strict", "--nocolor"],
    ):
        done = subprocess.run(argv, env=around, cwd=SOURCE, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            return done.returncode
    return 0


# ansible-test fetches pip for its environments from a site of its own; the one that Python brings along does it, too
_GET_PIP = """
import subprocess, sys, ensurepip
ensurepip.bootstrap()
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", "pip==%s"]))
"""


def sanity(folder: Path) -> int:
    """Exit code of `ansible-test sanity`, every test of it, on a copy (it wants the path to have the collection's name)."""
    at = folder / "ansible_collections" / Path(*NAME.split("."))
    shutil.copytree(SOURCE, at)
    cache = folder / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True)
    (cache / f"get_pip_{_ANSIBLE_TESTS_PIP.replace('.', '_')}.py").write_text(_GET_PIP % _ANSIBLE_TESTS_PIP)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return subprocess.run(
        [str(_BIN / "ansible-test"), "sanity", "--color", "no", "--python", python],
        env={**environment(folder), "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        cwd=at,
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode


if __name__ == "__main__":
    checks = {"lint": lint, "sanity": sanity}
    assert len(sys.argv) == 2 and sys.argv[1] in checks, __doc__
    with tempfile.TemporaryDirectory(prefix="collection-") as name:
        sys.exit(checks[sys.argv[1]](Path(name)))
