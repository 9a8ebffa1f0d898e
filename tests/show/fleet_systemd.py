"""A host with systemd, on which packages, roles and the daemon's unit are run for real, by Ansible over ssh."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.show.items import Item
from tests.show.packages import CACHE, NAMES, depends, made
from tests.support.debian_root import debian_root
from tests.support.systemd_guest import SystemdGuest
from tests.support.systemd_host import SystemdHost
from tests.support.systemd_root import SystemdRoot

#: A host without a NIC: what is real here are packages, units, ssh, daemon and journal.
CONFIG = {
    "simulated": {"state": "/var/lib/ovs-upgrade/simulated", "vms": 2, "effect_s": 0.01},
    "policy": {"soak_s": 0.5, "canary_check_s": 0.1, "keep_old": True},
}
UNIT = "/lib/systemd/system/ovs-upgraded.service"
_PID = "systemctl show -p MainPID --value ovs-upgraded"


def systemd() -> Iterator[Item]:
    """In namespaces with a systemd of their own, at this machine's speed."""
    yield from _on(SystemdRoot, "Debian 12 with systemd as PID 1 of namespaces")


def guest() -> Iterator[Item]:
    """The same in a guest with a kernel of its own, emulated."""
    yield from _on(SystemdGuest, "Debian 12 with systemd in a guest under emulation")


def _on(kind: type[SystemdHost], what: str) -> Iterator[Item]:
    """Roles and units on it: installed, upgraded by a playbook, armed, the package upgraded under the daemon, purged."""
    with tempfile.TemporaryDirectory(prefix="show-host-") as name:
        folder = Path(name)
        yield from made(folder)
        (folder / "host").mkdir()
        with debian_root(CACHE, folder / "root") as root:
            root.sh(f"apt-get update -qq; apt-get satisfy -y -qq --no-install-recommends '{depends(folder)}'")
            with kind(root, folder / "host") as here:
                yield Item(what, f"up in {here.boot_s:.0f} s", f"{here.limit_s:.0f} s", here.boot_s < here.limit_s)
                yield from _lived(here, folder)


def _lived(here: SystemdHost, folder: Path) -> Iterator[Item]:
    def install(revision: str) -> subprocess.CompletedProcess[str]:
        files = [str(f) for f in sorted((folder / revision).iterdir())]
        return here.play("install", install_packages=files, install_config=CONFIG, install_recommends=False)

    yield _played("role install, from packages", install("1"))
    yield _played("a second time", install("1"), changed=0)
    yield _said(here, "the daemon's unit", "systemctl is-active ovs-upgraded; systemctl is-enabled ovs-upgraded")
    yield _said(
        here, "who holds the host is that daemon", f"upgrade status --json | grep -o '\"coordinator_pid\": '$({_PID})"
    )
    yield _played("rolling_upgrade", here.play("rolling_upgrade", rollout_slot="b"))
    told = 'grep -o -m 1 \'"outcome": "[a-z]*"\' | grep done'
    yield _said(here, "its run", f"upgrade report --json | {told}")
    yield _played("rollback", here.play("rollback", rollout_slot="a"))
    yield _played("role standby", here.play("standby", standby_policy="automatic"))
    yield _played("a second time", here.play("standby", standby_policy="automatic"), changed=0)
    before = here.sh(_PID).stdout.strip()
    yield _played("role install, from newer packages", install("2"))
    yield _said(here, "the daemon is another one", f"now=$({_PID}); test $now != {before}; echo {before} became $now")
    yield _said(
        here, "it is killed, and systemd starts it", f"kill -9 $({_PID}); sleep 5; systemctl is-active ovs-upgraded"
    )
    armed = "until upgrade status | grep 'protection: armed'; do sleep 1; done"
    yield _said(here, "and the host is armed", f'timeout 60 sh -c "{armed}"')
    yield _played("playbook status", here.play("status"))
    purge = f"upgrade disarm --yes >/dev/null 2>&1; dpkg -P {' '.join(NAMES)} >/dev/null; "
    gone = "".join(
        f"test ! -e {path}; " for path in ("/etc/ovs-upgrade", "/var/lib/ovs-upgrade", UNIT, "/usr/bin/upgrade")
    )
    # what the role copied, and dpkg's and apt's logs aside
    left = "find / -xdev -path /var/cache -prune -o -path /var/log -prune -o -name '*ovs-hot-upgrade*' -print"
    yield _said(here, "purged", f'{purge}{gone}left=$({left}); echo "left: $left"; test -z "$left"')


def _played(what: str, done: subprocess.CompletedProcess[str], *, changed: int | None = None) -> Item:
    recap = next((line for line in done.stdout.splitlines() if re.match(r"host +: ok=", line)), "")
    good = done.returncode == 0 and (changed is None or f"changed={changed} " in recap)
    figure = " ".join(recap.split()[2:6]) if good else done.stdout[-900:]
    return Item(what, figure, "exit code 0" if changed is None else f"exit code 0, changed={changed}", good)


def _said(here: SystemdHost, what: str, script: str) -> Item:
    done = here.sh(script, check=False)
    said = " | ".join((done.stdout if done.returncode == 0 else done.stdout + done.stderr).split("\n"))[-300:]
    return Item(what, said.strip(" |"), "exit code 0", done.returncode == 0)
