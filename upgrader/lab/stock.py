"""The distribution's own OVS-DPDK, unpacked beside ours, and a restart of it as its packages would do one.

The baseline of every figure: what a VM feels when the switch is simply restarted.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses, slot_env
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot

PACKAGES = ("openvswitch-switch-dpdk", "openvswitch-switch", "openvswitch-common")
_DPDK_DAEMON = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"


def stock_prefix(build: Path) -> Path:
    """Unpack Debian's binary packages under `build` (once for each version) and return their prefix.

    They are not installed: no service is started and no file of the machine changes. The libraries they need are
    there since our own build needs them too. Raises CommandError.
    """
    gate.run(["apt-get", "update", "-qq"], timeout_s=300, check=False)  # lists may be empty; what is cached may do
    policy = gate.run(["apt-cache", "policy", PACKAGES[0]]).stdout
    found = re.search(r"Candidate: (\S+)", policy)
    version = re.sub(r"[^\w.+~-]", "_", found.group(1)) if found else "unknown"
    target = build / f"ovs-stock-{version}"
    if (target / "usr/sbin/ovs-vswitchd").exists():
        return target / "usr"
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix=".stock-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        # a download may be said again; an archive now and then takes too long to answer
        again = Retrying(
            retry=retry_if_exception_type(CommandError), stop=stop_after_attempt(3), wait=wait_fixed(2), reraise=True
        )
        again(gate.run, ["apt-get", "download", "-qq", *PACKAGES], cwd=work, timeout_s=300)
        for package in work.glob("*.deb"):
            gate.run(["dpkg-deb", "-x", str(package), str(work / "root")])
        daemon = work / "root/usr/sbin/ovs-vswitchd"
        daemon.unlink(missing_ok=True)
        daemon.symlink_to(Path("../..") / _DPDK_DAEMON)
        shutil.rmtree(target, ignore_errors=True)
        (work / "root").rename(target)
    return target / "usr"


def restart(slot: Slot, prefix: Path) -> None:
    """Restart the slot's vswitchd as `ovs-ctl restart` does: flows saved, the daemon replaced, flows put back.

    The new daemon is the one under `prefix`. The database goes on running, which a packaged restart does not
    even grant: the baseline is the better for it.
    """
    processes, openflow, database = SlotProcesses(), Ofctl(), Ovsdb()
    bridges = [b.name for b in database.read(slot).bridges]
    saved = {b: openflow.flows(slot, b) for b in bridges}
    _vsctl(slot, "set", "Open_vSwitch", ".", "other_config:flow-restore-wait=true")
    processes.stop_switch(slot)
    new = replace(slot, prefix=prefix)
    processes.start_switch(new)
    for bridge, flows in saved.items():
        gate.run(
            [str(prefix / "bin/ovs-ofctl"), "-O", "OpenFlow14", "--bundle", "replace-flows",
             f"unix:{slot.rundir}/{bridge}.mgmt", "-"],
            stdin="\n".join(flows) + "\n",
        )  # fmt: skip
    _vsctl(slot, "--if-exists", "remove", "Open_vSwitch", ".", "other_config", "flow-restore-wait=true")


def _vsctl(slot: Slot, *command: str) -> None:
    gate.run([str(slot.prefix / "bin/ovs-vsctl"), "--timeout=10", "--no-wait", *command], env=slot_env(slot))
