"""`--host other`: the real ssh, a real sshd in a network namespace, and there the real command on a simulated host."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upgrader.adapters.journal import SqliteJournal
from upgrader.cli.remote import COMMAND_VARIABLE, SSH_VARIABLE
from upgrader.core.errors import Exit
from upgrader.core.lifecycle import RunState

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
UPGRADE = [sys.executable, "-m", "upgrader.cli.app"]
NETNS = f"hotup-ssh-{os.getpid()}"
HERE, THERE = f"hus{os.getpid() % 100000}h", f"hus{os.getpid() % 100000}t"
OUR_ADDRESS, ADDRESS, NOBODY = "198.51.100.1", "198.51.100.2", "198.51.100.3"  # RFC 5737: for documentation


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def wait_for(what: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@dataclass
class Remote:
    """A host that is reached by ssh alone, and what a person types here."""

    directory: Path
    environment: dict[str, str]

    def argv(self, *words: str, host: str = ADDRESS) -> list[str]:
        return [*UPGRADE, "--host", host, *words]

    def types(self, *words: str, host: str = ADDRESS, command: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {**self.environment, **({COMMAND_VARIABLE: command} if command else {})}
        return subprocess.run(
            self.argv(*words, host=host), env=env, capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip

    def starts(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip


def _keys(directory: Path) -> None:
    for name in ("client", "server"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    shutil.copy(directory / "client.pub", directory / "authorized")
    (directory / "known").write_text(f"[{ADDRESS}]:2222 {(directory / 'server.pub').read_text()}")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A network namespace with an sshd in it, for the keys made here alone; all of it goes with the module."""
    directory = tmp_path_factory.mktemp("ssh")
    _keys(directory)
    (directory / "sshd.conf").write_text(
        f"""\
Port 2222
ListenAddress {ADDRESS}
HostKey {directory}/server
PidFile {directory}/sshd.pid
AuthorizedKeysFile {directory}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv PYTHONPATH={ROOT}
"""
    )
    (directory / "ssh.conf").write_text(
        f"""\
Port 2222
User root
IdentityFile {directory}/client
IdentitiesOnly yes
UserKnownHostsFile {directory}/known
StrictHostKeyChecking yes
ConnectTimeout 5
"""
    )
    environment = {**os.environ, SSH_VARIABLE: f"-F {directory}/ssh.conf", COMMAND_VARIABLE: shlex.join(UPGRADE)}
    environment.pop("OVS_UPGRADE_CONFIG", None)
    with ExitStack() as undo:
        made = not Path("/run/sshd").exists()
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd(8) wants it for its unprivileged child
        if made:
            undo.callback(Path("/run/sshd").rmdir)
        ip("netns", "add", NETNS)
        undo.callback(ip, "netns", "delete", NETNS)  # and with it both ends of the veth
        ip("link", "add", HERE, "type", "veth", "peer", "name", THERE, "netns", NETNS)
        ip("addr", "add", f"{OUR_ADDRESS}/24", "dev", HERE)
        ip("link", "set", HERE, "up")
        ip("-n", NETNS, "addr", "add", f"{ADDRESS}/24", "dev", THERE)
        ip("-n", NETNS, "link", "set", THERE, "up")
        sshd = subprocess.Popen(
            ["ip", "netns", "exec", NETNS, "/usr/sbin/sshd", "-D", "-e", "-f", str(directory / "sshd.conf")],
            stderr=(directory / "sshd.log").open("w"),
        )
        undo.callback(sshd.wait)
        undo.callback(sshd.terminate)
        ssh = ["ssh", *shlex.split(environment[SSH_VARIABLE]), ADDRESS, "true"]
        wait_for(lambda: subprocess.run(ssh, capture_output=True, check=False).returncode == 0)
        yield Remote(directory, environment)


@pytest.fixture
def daemon(remote: Remote, tmp_path: Path) -> Iterator[Path]:
    """A simulated host there, its daemon running; returns its directory."""
    directory = tmp_path / "host"
    argv = [sys.executable, "-m", "tests.support.sim_daemon", str(directory), "--pace", "0.05", "--soak", "0.2"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield directory
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def state(directory: Path) -> RunState | None:
    view = SqliteJournal(directory / "journal.db", read_only=True).latest()
    return view.state if view else None


def test_exit_codes_and_output_pass_through(remote: Remote) -> None:
    helped = remote.types("status", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: upgrade status" in helped.stdout
    refused = remote.types("status", "--config", "/none.toml")
    assert (refused.returncode, refused.stdout) == (Exit.USAGE, "")
    assert "CONFIG_MISSING" in refused.stderr
    for code in (0, 3, 4, 5, 6, 7, 10):
        assert remote.types("status", command=f"sh -c 'exit {code}'").returncode == code


def test_json_comes_alone_on_stdout(remote: Remote, daemon: Path) -> None:
    done = remote.types("run", str(daemon / "plan.json"), "--yes", "--json", "--config", str(daemon / "config.toml"))
    assert done.returncode == Exit.DONE, done.stderr
    told = json.loads(done.stdout)
    assert (told["kind"], told["outcome"], len(told["moves"])) == ("run", "done", 4)
    assert "attach" in done.stderr or "parked" in done.stderr  # what a person reads went the other way
    seen = remote.types("--config", str(daemon / "config.toml"), "status", "--json")
    assert json.loads(seen.stdout)["run"]["outcome"] == "done"
    refused = remote.types("resume", "--json", "--config", str(daemon / "config.toml"))
    assert refused.returncode == Exit.BLOCKED
    assert json.loads(refused.stdout)["code"] == "NOTHING_TO_RESUME"


@pytest.mark.parametrize("where", ["before", "behind"])
def test_a_host_that_is_not_there(remote: Remote, where: str) -> None:
    words: list[str] = ["status", "--json"]
    typed = ["--host", NOBODY, *words] if where == "before" else [*words, "--host", NOBODY]
    done = subprocess.run(
        [*UPGRADE, *typed], env=remote.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == Exit.UNEXPECTED
    error: dict[str, Any] = json.loads(done.stdout)
    assert error["code"] == "HOST_UNREACHABLE"
    assert (error["state"], error["next"]) == ("nothing was changed", f"ssh {NOBODY} true")
    assert "No route to host" in done.stderr or "timed out" in done.stderr


def test_a_host_that_does_not_let_us_in(remote: Remote, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True)
    conf = (remote.directory / "ssh.conf").read_text().replace(f"{remote.directory}/client", str(stranger))
    (tmp_path / "ssh.conf").write_text(conf)
    other = Remote(tmp_path, {**remote.environment, SSH_VARIABLE: f"-F {tmp_path}/ssh.conf"})
    done = other.types("status")
    assert done.returncode == Exit.UNEXPECTED
    assert "Permission denied" in done.stderr
    assert "HOST_UNREACHABLE" in done.stderr


def test_a_host_without_the_command(remote: Remote) -> None:
    done = remote.types("status", command="no-such-upgrade")
    assert done.returncode == Exit.UNEXPECTED
    assert "NOT_INSTALLED_THERE" in done.stderr


@pytest.mark.parametrize("word", ["two words", "it's", 'say "so"', "$HOME; exit 9", "a\\b", "*", "né", ""])
def test_arguments_arrive_as_they_are(remote: Remote, tmp_path: Path, word: str) -> None:
    recorder = tmp_path / "record"
    recorder.write_text(f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], sys.stdout)\n")
    recorder.chmod(0o755)
    done = remote.types("plan", "--out", word, command=str(recorder))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["--here", "--host", ADDRESS, "plan", "--out", word]


def test_what_to_type_next_is_typed_here(remote: Remote, daemon: Path) -> None:
    config = str(daemon / "config.toml")
    done = remote.types("status", "--config", config)
    assert f"next:  upgrade --config {config} --host {ADDRESS} --dry-run" in done.stdout


def test_a_connection_that_is_lost_leaves_the_run_going(remote: Remote, daemon: Path) -> None:
    config = str(daemon / "config.toml")
    process = remote.starts("run", str(daemon / "plan.json"), "--yes", "--config", config)
    wait_for(lambda: state(daemon) is RunState.RUNNING)
    os.killpg(process.pid, signal.SIGKILL)  # the command here and its ssh
    process.communicate()
    assert state(daemon) is RunState.RUNNING
    watched = remote.types("status", "--watch", "--config", config)
    assert watched.returncode == Exit.DONE, watched.stderr
    assert "run 1 on h1: done" in watched.stdout
    assert state(daemon) is RunState.DONE


def test_a_network_that_is_gone_leaves_the_run_going(remote: Remote, daemon: Path) -> None:
    config = str(daemon / "config.toml")
    quick = {**remote.environment, SSH_VARIABLE: f"{remote.environment[SSH_VARIABLE]} -o ServerAliveInterval=1"}
    quick[SSH_VARIABLE] += " -o ServerAliveCountMax=1"
    process = Remote(remote.directory, quick).starts("run", str(daemon / "plan.json"), "--yes", "--config", config)
    wait_for(lambda: state(daemon) is RunState.RUNNING)
    ip("link", "set", HERE, "down")
    try:
        _, err = process.communicate(timeout=30)
        assert process.returncode == Exit.UNEXPECTED
        assert "HOST_UNREACHABLE" in err
        assert "it goes on" in err
        wait_for(lambda: state(daemon) is RunState.DONE)
    finally:
        ip("link", "set", HERE, "up")
