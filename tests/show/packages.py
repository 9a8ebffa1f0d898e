"""The packages on a fresh, minimal Debian 12: installed, used, upgraded, kept from harm, purged without a trace."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.show.items import ROOT, Item
from tests.support.debian_root import DebianRoot, debian_root
from upgrader.adapters import gate
from upgrader.lab.packages import ROOT as INSTALLED
from upgrader.lab.packages import SWITCH

NAMES = ("ovs-hot-upgrade", f"ovs-hot-upgrade-{SWITCH}", "ovs-hot-upgrade-qemu")
EXAMPLES = "/usr/share/doc/ovs-hot-upgrade/examples"
CACHE = ROOT / "build/packages/debian"
REVISIONS = ("1", "2")
_BUILD_S = 1_800.0

# Each has to exit with 0; what it prints is the figure.
USED = {
    "upgrade --version": "upgrade --version",
    "upgrade --help": "upgrade --help | head -n 1",
    "the example is valid": f"mkdir -p /etc/ovs-upgrade; cp {EXAMPLES}/host.toml /etc/ovs-upgrade/config.toml; "
    "upgrade config validate; upgrade config show | grep supervisor",
    "a whole upgrade of the simulated host": f"upgrade --config {EXAMPLES}/simulated.toml --host localhost --yes 2>&1 "
    "| tail -n 4; rm -r /var/tmp/ovs-upgrade-simulated",
    "man page and completion": "test -e /usr/share/man/man1/upgrade.1.gz; "
    "grep -c _upgrade_completion /usr/share/bash-completion/completions/upgrade",
    "the switch": f"{INSTALLED / SWITCH}/sbin/ovs-vswitchd --version",
    "its librte_vhost is its own, DPDK the distribution's": f"ldd {INSTALLED / SWITCH}/sbin/ovs-vswitchd "
    f"| grep -E '{SWITCH}/lib/dpdk/librte_vhost|x86_64-linux-gnu/librte_eal' | wc -l | grep -x 2",
    "a database of its schema": f"cd /tmp; {INSTALLED / SWITCH}/bin/ovsdb-tool create new.db "
    f"{INSTALLED / SWITCH}/share/openvswitch/vswitch.ovsschema; "
    f"{INSTALLED / SWITCH}/bin/ovsdb-tool db-version new.db; {INSTALLED / SWITCH}/bin/ovs-vsctl --version | head -n 1",
    "the distribution's switch beside it": "/usr/sbin/ovs-vswitchd --version",
    "QEMU": f"{INSTALLED}/qemu/bin/qemu-system-x86_64 --version | head -n 1",
    "it has KVM": f"{INSTALLED}/qemu/bin/qemu-system-x86_64 -accel help | tr '\\n' ' ' | grep kvm",
    "it knows the standby's commands": f"{INSTALLED}/qemu/bin/qemu-system-x86_64 -machine none -nodefaults -display none "
    "-qmp stdio <<'Q' | grep -o 'netdev-vhost-user-[a-z-]*' | sort -u | tr '\\n' ' ' | grep standby-attach\n"
    '{"execute":"qmp_capabilities"}\n{"execute":"query-commands"}\n{"execute":"quit"}\nQ',
}
GUARDED = f"""\
sed 's/^effect_s.*/effect_s = 0.5/' {EXAMPLES}/simulated.toml >/etc/ovs-upgrade/config.toml
upgrade --host localhost --yes >/tmp/run.log 2>&1 &
until upgrade status --json 2>/dev/null | grep -q '"outcome": "running"'; do sleep 0.2; done
if dpkg -i /root/2/{NAMES[0]}_*.deb >/tmp/dpkg.log 2>&1; then echo 'upgraded under a run'; exit 1; fi
grep -q 'upgrade run goes on' /tmp/dpkg.log
if dpkg -r {NAMES[0]} >/tmp/dpkg.log 2>&1; then echo 'removed under a run'; exit 1; fi
dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' {NAMES[0]} | grep '^installed .*-1$'
wait $!; tail -n 1 /tmp/run.log
rm -r /var/tmp/ovs-upgrade-simulated /etc/ovs-upgrade/config.toml
"""
UPGRADED = f"""\
echo '# of this host' >>/etc/ovs-upgrade/conf.d/10-systemd.toml
dpkg -i /root/2/*.deb
grep -q 'of this host' /etc/ovs-upgrade/conf.d/10-systemd.toml
for script in /var/lib/dpkg/info/{NAMES[0]}*.postinst; do $script configure 0; done
upgrade --version
dpkg-query -W -f '${{Package}} ${{Version}}, ' '{NAMES[0]}*'
"""
REMOVED = f"""\
mkdir -p /var/lib/ovs-upgrade/slot-a; echo x >/var/lib/ovs-upgrade/journal.db; echo x >/etc/ovs-upgrade/config.toml
dpkg -r {" ".join(NAMES)}
grep -q 'of this host' /etc/ovs-upgrade/conf.d/10-systemd.toml
test -e /var/lib/ovs-upgrade/journal.db
test ! -e /usr/bin/upgrade
dpkg -P {" ".join(NAMES)}
"""


def packages() -> Iterator[Item]:
    """`make packages` twice, the second of a higher revision, and what a fresh Debian 12 does with them."""
    with tempfile.TemporaryDirectory(prefix="show-packages-") as name:
        folder = Path(name)
        yield from made(folder)
        with debian_root(CACHE, folder / "root") as root:
            for revision in REVISIONS:
                shutil.copytree(folder / revision, root.folder / "root" / revision)
            yield from _tried(root, folder)


def made(folder: Path) -> Iterator[Item]:
    """The packages of both revisions, in folders of that name."""
    for revision in REVISIONS:
        argv = [sys.executable, "-m", "upgrader.lab.packages", "--revision", revision]
        done = gate.run(argv, cwd=ROOT, check=False, timeout_s=_BUILD_S)
        files = [Path(line) for line in done.stdout.split()]
        said = f"{len(files)} packages" if done.returncode == 0 else done.stderr[-800:]
        yield Item(f"make packages REVISION={revision}, lintian with it", said, "3 packages", len(files) == 3)
        (folder / revision).mkdir()
        for file in files:
            shutil.copy2(file, folder / revision)


def depends(folder: Path) -> str:
    """What the packages of the first revision need, as `apt-get satisfy` takes it."""
    return ", ".join(gate.run(["dpkg-deb", "-f", str(f), "Depends"]).stdout.strip() for f in (folder / "1").iterdir())


def _tried(root: DebianRoot, folder: Path) -> Iterator[Item]:
    root.sh(
        f"apt-get update -qq; apt-get satisfy -y -qq --no-install-recommends '{depends(folder)}'; "
        "apt-get install -y -qq --no-install-recommends openvswitch-switch"
    )
    before = root.files()
    yield _item("installed, with no network needed", root, "dpkg -i /root/1/*.deb")
    for what, script in USED.items():
        yield _item(what, root, script)
    yield _item("while a run goes on it is neither upgraded nor removed", root, GUARDED)
    yield _item("upgraded; what the host changed is kept, scripts can run again", root, UPGRADED)
    yield _item("removed, then purged", root, REMOVED)
    after = root.files()
    left = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    which = "".join(f"; {p}: {before.get(p)} -> {after.get(p)}" for p in left[:8])
    figure = f"{len(left)} of {len(before)} paths differ{which}"
    yield Item("nothing of it is left", figure, "0 differ", not left)


def _item(what: str, root: DebianRoot, script: str) -> Item:
    done = root.sh(f"set -e; {script}", check=False)
    said = " | ".join((done.stdout if done.returncode == 0 else done.stdout + done.stderr).strip().splitlines()[-6:])
    return Item(what, said[-400:], "exit code 0", done.returncode == 0)
