"""A switch that a distribution's units started, under a real systemd: after its names are another's, they do no harm.

A unit's stop command goes by the pid file in the well-known directory, and systemd runs it also when the service ends
by itself: at its retirement the old switch would take the new one with it.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.test_promote import daemons, new_database, setup
from tests.support.slots import PREFIX
from tests.support.systemd_box import in_a_box
from upgrader.adapters import gate
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind

pytestmark = [pytest.mark.integration, in_a_box]
UNITS = ("ovsdb-server", "ovs-vswitchd")
_OVS_CTL = PREFIX / "share/openvswitch/scripts/ovs-ctl"


def as_a_distribution_does(directory: Path, slot: Slot) -> None:
    """Two units with ovs-ctl(8) as their stop command."""
    env = new_database(directory)
    for program, arguments in daemons(directory).items():
        other = "ovs-vswitchd" if program == "ovsdb-server" else "ovsdb-server"
        lines = [
            "[Service]",
            "Type=forking",
            f"PIDFile={directory}/{program}.pid",
            "Restart=on-failure",
            f"NetworkNamespacePath=/run/netns/{slot.netns}",
            *(f"Environment={key}={value}" for key, value in env.items()),
            f"ExecStart={PREFIX}/sbin/{program} {' '.join(arguments)}",
            f"ExecStop={_OVS_CTL} --no-{other} stop",
        ]
        Path(f"/etc/systemd/system/{program}.service").write_text("\n".join(lines) + "\n")
    gate.run(["systemctl", "daemon-reload"])
    for unit in UNITS:
        gate.run(["systemctl", "start", unit])


def state(unit: str) -> str:
    return gate.run(["systemctl", "is-active", unit], check=False).stdout.strip()


def test_the_old_units_touch_neither_the_new_switch_nor_its_names(tmp_path: Path) -> None:
    with setup(tmp_path, adopted=True, start=as_a_distribution_does) as it:
        processes, target = it.context.host.processes, it.context.target
        new = processes.status(target)
        assert [state(u) for u in UNITS] == ["active", "active"]
        it.carry_out(StepKind.PROMOTE)
        for verb in ("stop", "restart"):
            refused = gate.run(["systemctl", verb, "ovs-vswitchd"], check=False)
            assert refused.returncode != 0
            assert "refused" in refused.stderr
        assert it.tools.slots() == {"b"}

        it.undo(StepKind.PROMOTE)
        assert it.tools.slots() == {"a"}
        assert "ovs-ctl" in gate.run(["systemctl", "show", "-P", "ExecStop", "ovs-vswitchd"]).stdout

        it.carry_out(StepKind.PROMOTE)
        it.carry_out(StepKind.RETIRE)
        time.sleep(2)
        assert processes.status(target) == new
        assert it.tools.slots() == {"b"}
        assert [state(u) for u in UNITS] == ["inactive", "inactive"]
