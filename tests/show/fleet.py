"""What there is of the fleet's tools, run for real: a line an item with figure and limit, non-zero if one falls short.

make show-fleet                  # all of it
make show-fleet PARTS="fleet"    # some of it

Ansible, its playbooks, and the command, daemon and journal on each host are real. So are the hosts of the part `hosts`, which
are labs, and of `systemd` and `guest`, on which packages and units are run; those of the other parts are simulated ones.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.show.fleet_hosts import hosts
from tests.show.fleet_systemd import guest, systemd
from tests.show.items import ROOT, Item, show, tested
from tests.show.packages import packages
from tests.support.collection import NAME, SOURCE, environment, lint, sanity
from upgrader.adapters import gate

FLEET_LIMIT_S = 120
SIMULATED, SIMULATED_LIMIT_S, SIMULATED_LIMIT_MIB = 10_000, 1_200, 1_024


def modules() -> Iterator[Item]:
    """Every exit code of the command, check mode, idempotence; what is decided without a host."""
    yield from tested("tests/ansible/test_modules.py")
    yield from tested("tests/ansible/test_takeover_module.py")
    yield from tested("tests/unit/test_ansible_decisions.py")


def fleet() -> Iterator[Item]:
    """Six hosts: two fail on purpose, the rest is untouched, a second run finishes, all go back."""
    began = time.monotonic()
    yield from tested("tests/ansible/test_fleet.py")
    took_s = time.monotonic() - began
    yield Item("the fleet's tests", f"{took_s:.0f} s", f"{FLEET_LIMIT_S} s", took_s < FLEET_LIMIT_S)


def simulation() -> Iterator[Item]:
    """10,000 hosts in memory with failures put in: what each play has to come to is asserted; its time and memory."""
    yield from tested("tests/ansible/test_simulated_fleet.py")
    argv = [sys.executable, "-m", "tests.support.sim_rollout", str(SIMULATED)]
    done = gate.run(argv, cwd=ROOT, check=False, timeout_s=2 * SIMULATED_LIMIT_S)
    what = f"{SIMULATED} simulated hosts upgraded and rolled back"
    if done.returncode:
        yield Item(what, done.stderr[-500:], "exit code 0", False)
        return
    told = json.loads(done.stdout)
    plays = "; ".join(f"{p['failed']} failed, {p['untouched']} untouched" for p in told["plays"])
    yield Item(what, f"{told['hosts']} hosts, plays: {plays}", "as worked out beforehand", told["hosts"] == SIMULATED)
    took_s, mib = told["took_s"], told["peak_mib"]
    yield Item("their time", f"{took_s:.0f} s", f"{SIMULATED_LIMIT_S} s", took_s < SIMULATED_LIMIT_S)
    yield Item("their memory", f"{mib} MiB", f"{SIMULATED_LIMIT_MIB} MiB", mib < SIMULATED_LIMIT_MIB)


def install() -> Iterator[Item]:
    """The role `install`, into a folder."""
    yield from tested("tests/ansible/test_install.py")


def checks() -> Iterator[Item]:
    """ansible-lint, ansible-test sanity, what ansible-doc makes of the modules, and a tarball that Ansible accepts."""
    with tempfile.TemporaryDirectory(prefix="show-") as name:
        folder = Path(name)
        code = lint(folder)
        yield Item("ansible-lint (production profile) and --syntax-check", f"exit code {code}", "0", code == 0)
        code = sanity(folder / "sanity")
        yield Item("ansible-test sanity", f"exit code {code}", "0", code == 0)
        around = environment(folder)
        for module in sorted(p.stem for p in (SOURCE / "plugins" / "modules").glob("*.py")):
            done = gate.run(["ansible-doc", f"{NAME}.{module}"], env=around, check=False, timeout_s=60)
            heads = [h for h in ("OPTIONS", "EXAMPLES", "RETURN VALUES") if h in done.stdout]
            yield Item(f"ansible-doc {module}", ", ".join(heads), "options, examples, return values", len(heads) == 3)
        build = ["ansible-galaxy", "collection", "build", str(SOURCE), "--output-path", name]
        done = gate.run(build, env=around, check=False, timeout_s=60)
        made = [p.name for p in folder.glob("*.tar.gz")]
        yield Item(
            "ansible-galaxy collection build", ", ".join(made) or done.stderr[-300:], "one tarball", len(made) == 1
        )


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "modules": modules,
    "fleet": fleet,
    "simulation": simulation,
    "install": install,
    "hosts": hosts,
    "packages": packages,
    "systemd": systemd,
    "guest": guest,
    "checks": checks,
}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # hosts and guests are taken down
    sys.exit(show(__doc__, PARTS))
