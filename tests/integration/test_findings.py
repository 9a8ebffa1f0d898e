"""Each finding about a switch from the facts of a real one that is configured so: its code, what it means, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.slots import SlotFactory, ofctl, vsctl
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.adapters.slot_process import SlotProcesses
from upgrader.core.findings import Finding, find
from upgrader.core.model import Slot, SlotName
from upgrader.engine.facts import gather
from upgrader.ports import Host
from upgrader.sim.host import make

pytestmark = pytest.mark.integration
BR = "br-int"


@dataclass(frozen=True)
class Real:
    """A slot that runs and one that does not; virtual machines and steering are simulated."""

    host: Host
    slots: dict[SlotName, Slot]

    def findings(self, *, ask_switches: bool) -> tuple[Finding, ...]:
        return find(gather("h1", self.slots, self.host, vni_key="vni", adapter="simulated", ask_switches=ask_switches))


@pytest.fixture(scope="module", name="real")
def real_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder: Path = tmp_path_factory.mktemp("findings")
    with SlotFactory(folder) as factory:
        a = factory.start("a")
        b = factory.make("b")
        simulated = make(folder / "sim", vms=0)[1]
        host = replace(
            simulated, processes=SlotProcesses(), database=Ovsdb(), openflow=Ofctl(), resources=HostResources()
        )
        yield Real(host, {"a": a, "b": b})


def sound(slot: Slot) -> None:
    """A bridge with three ports, configured as a host's is that can be upgraded; whatever else there was is gone."""
    bridges = vsctl(slot, "list-br").split()
    vsctl(
        slot,
        "emer-reset",
        "--",
        "--all",
        "destroy",
        "Flow_Sample_Collector_Set",
        *(word for b in bridges for word in ("--", "del-br", b)),
    )
    vsctl(slot, "add-br", BR, "--", "set", "bridge", BR, "datapath_type=netdev", "fail_mode=secure",
          *(word for p in (slot.uplink, "p1", "p2")
            for word in ("--", "add-port", BR, p, "--", "set", "interface", p, "type=internal")))  # fmt: skip


EXPORT = {
    "NetFlow": ("--", "--id=@x", "create", "NetFlow", "targets=192.0.2.9\\:2055", "--", "set", "bridge", BR, "netflow=@x"),
    "sFlow": ("--", "--id=@x", "create", "sFlow", "targets=127.0.0.1\\:6343", "--", "set", "bridge", BR, "sflow=@x"),
    "IPFIX": ("--", "--id=@x", "create", "IPFIX", "targets=127.0.0.1\\:4739", "--", "set", "bridge", BR, "ipfix=@x"),
    # to which flows report by sample(), and no column of the bridge says so
    "IPFIX of flows": ("--", "--id=@x", "create", "IPFIX", "targets=127.0.0.1\\:4739",
                       "--", "--id=@b", "get", "bridge", BR,
                       "--", "create", "Flow_Sample_Collector_Set", "id=1", "bridge=@b", "ipfix=@x"),
}  # fmt: skip
BOND = (
    "--",
    "add-bond",
    BR,
    "bond0",
    "b1",
    "b2",
    *(w for b in ("b1", "b2") for w in ("--", "set", "interface", b, "type=internal")),
)
MIRROR = ("--", "--id=@m", "create", "Mirror", "name=m0", "select_all=true", "--", "set", "bridge", BR, "mirrors=@m")
QOS = (
    "--",
    "--id=@q",
    "create",
    "QoS",
    "type=egress-policer",
    "other_config:cir=1000",
    "--",
    "set",
    "port",
    "p1",
    "qos=@q",
)
CONTROLLER = ("set-controller", BR, "tcp:127.0.0.1:6653")


@pytest.mark.parametrize(
    ("configured", "codes"),
    [
        ((*BOND, "--", "set", "port", "bond0", "lacp=active"), {"LACP_IN_USE"}),
        (BOND, {"BOND_IN_USE"}),
        (("--", "set", "bridge", BR, "stp_enable=true"), {"STP_IN_USE"}),
        (("--", "set", "bridge", BR, "rstp_enable=true"), {"STP_IN_USE"}),
        (("--", "set", "interface", "p1", "bfd:enable=true"), {"BFD_IN_USE"}),
        (("--", "set", "interface", "p1", "cfm_mpid=7"), {"BFD_IN_USE"}),
        (MIRROR, {"MIRRORS_IN_USE"}),
        (QOS, {"QOS_RESTARTS"}),
        (EXPORT["NetFlow"], {"FLOW_EXPORT_IN_USE"}),
        (EXPORT["sFlow"], {"FLOW_EXPORT_LOOPBACK"}),
        (EXPORT["IPFIX"], {"FLOW_EXPORT_LOOPBACK"}),
        (EXPORT["IPFIX of flows"], {"FLOW_EXPORT_LOOPBACK"}),
        (CONTROLLER, {"CONTROLLER_LOOPBACK", "CONTROLLER_STATE_NOT_CARRIED"}),
        (("set-controller", BR, "tcp:192.0.2.9:6653"), {"CONTROLLER_STATE_NOT_CARRIED"}),
        (("set-manager", "ptcp:6640:127.0.0.1"), {"MANAGER_LOOPBACK"}),
        (("set-manager", "ptcp:6640"), {"MANAGER_LOOPBACK"}),
        (("add-br", "br-kernel"), {"KERNEL_DATAPATH"}),
        (("--", "set", "bridge", BR, "protocols=OpenFlow10"), {"OPENFLOW_TOO_OLD"}),
        (("--", "set", "interface", "p1", "type=quantum"), {"INTERFACE_TYPE_UNKNOWN"}),
        (("--", "set", "interface", "p1", "type=dpdk"), {"INTERFACE_NOT_SHARED"}),
        (("--", "set", "interface", "p1", "type=tap"), {"INTERFACE_NOT_SHARED"}),
        (("--", "set", "interface", "p1", "type=dpdkvhostuser"), {"VHOST_SERVER_MODE"}),
    ],
    ids=lambda value: " ".join(w for w in value if w != "--")[:60] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_the_database_of_a_real_switch_says(real: Real, configured: tuple[str, ...], codes: set[str]) -> None:
    a = real.slots["a"]
    sound(a)
    before = {f.code for f in real.findings(ask_switches=False)}
    assert not codes & before
    # the datapath or the DPDK that some of it needs may not be here: what counts is what the database says
    vsctl(a, "--no-wait", *configured)
    found = real.findings(ask_switches=False)
    assert {f.code for f in found} - before == codes
    require_told(found, codes)


@pytest.mark.parametrize(
    ("command", "argument", "codes"),
    [
        ("add-flow", "ip,actions=ct(commit),output:1", {"CONNTRACK_IN_USE"}),
        ("add-flow", "ct_state=+trk,ip,actions=drop", {"CONNTRACK_IN_USE"}),
        ("add-group", "group_id=1,type=all,bucket=actions=ct(table=1)", {"CONNTRACK_IN_USE"}),
        ("add-flow", "actions=NORMAL", {"LEARNING_IN_USE"}),
        ("add-flow", "actions=learn(table=2,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])", {"LEARNING_IN_USE"}),
        ("add-group", "group_id=1,type=all,bucket=actions=NORMAL", {"LEARNING_IN_USE"}),
        ("add-flow", "actions=CONTROLLER:128", {"CONTROLLER_ACTIONS"}),
        ("add-flow", "actions=controller(reason=no_match,userdata=00.11)", {"CONTROLLER_ACTIONS"}),
        ("add-group", "group_id=1,type=all,bucket=actions=CONTROLLER:128", {"CONTROLLER_ACTIONS"}),
        ("mod-port", "p1 no-forward", {"SETTINGS_IN_USE"}),
        ("mod-port", "p1 no-receive", {"SETTINGS_IN_USE"}),
        ("mod-port", "p1 up", set()),
        ("set-frags", "drop", {"SETTINGS_IN_USE"}),
    ],
)
def test_what_the_tables_of_a_real_switch_say(real: Real, command: str, argument: str, codes: set[str]) -> None:
    a = real.slots["a"]
    sound(a)
    before = {f.code for f in real.findings(ask_switches=True)}
    assert not codes & before
    ofctl(a, command, BR, *argument.split(maxsplit=1) if command == "mod-port" else [argument])
    found = real.findings(ask_switches=True)
    assert {f.code for f in found} - before == codes
    require_told(found, codes)


def require_told(found: tuple[Finding, ...], codes: set[str]) -> None:
    for finding in found:
        if finding.code in codes:
            assert len(finding.what.split()) > 4, "what it means for the upgrade"
            assert finding.remedy, "what to do"
