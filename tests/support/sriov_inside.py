"""Inside the guest of `sriov_guest`: a lab whose slots have VFs of an emulated SR-IOV NIC.

Without an upgrade: on this kind of machine one did not come to its end in the time there was (docs/adr/0012).

    fabric                    host                                   slot a / slot b
    bridge == virtio_net ~~ igb PF <- VTEP address, ARP              igb VF 0 / 1 on vfio-pci: DPDK, all that is sent
                              |`-- overlay, by tc_u32 -> vf1r / vf2r ==== vf1 / vf2: DPDK's AF_PACKET, what comes

The emulated NIC has no rules, so what comes for the PF's address stays with the PF, and tc on it brings it to a second
port of each switch: as with `nic.catch = "window"`. Everything else is the lab's and the coordinator's own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from upgrader.adapters import gate
from upgrader.adapters.vf import Vfs
from upgrader.core.errors import HostError
from upgrader.core.model import SlotName
from upgrader.lab import domains, libvirtd, overlay, settings, topology
from upgrader.lab import spec as names
from upgrader.lab.spec import LabSpec
from upgrader.lab.up import Lab

_PCI = Path("/sys/bus/pci/devices")
_PF, _VIRTIO = ("0x8086", "0x10c9"), "virtio_net"
_IN_PORT = 2  # of br-phy: where what tc brings comes in
_SLOW = 40  # how much longer everything may take: this is emulated twice
_DRIVER = "net_e1000_igb_vf"
SLOTS: tuple[SlotName, SlotName] = ("a", "b")


def item(what: str, figure: object, limit: str, holds: bool) -> None:
    """For `sriov_guest`, which reads it from the console."""
    print("item " + json.dumps([what, str(figure), limit, holds]), flush=True)


def bound() -> tuple[str, str, dict[SlotName, str]]:
    """Make two VFs and bind them to vfio-pci: names of the PF and of the netdev at its wire's end, and the VFs' addresses."""
    (pf,) = [
        d for d in _PCI.iterdir() if ((d / "vendor").read_text().strip(), (d / "device").read_text().strip()) == _PF
    ]
    netdevs = Path("/sys/class/net").iterdir()
    (wire,) = [n.name for n in netdevs if (n / "device/driver").resolve().name == _VIRTIO]
    (name,) = [n.name for n in (pf / "net").iterdir()]
    (pf / "sriov_drivers_autoprobe").write_text("0")
    (pf / "sriov_numvfs").write_text("2")
    vfs = {}
    groups = set()
    for number, slot in enumerate(SLOTS):
        device = (pf / f"virtfn{number}").resolve()
        (device / "driver_override").write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(device.name)
        groups.add((device / "iommu_group").resolve().name)
        vfs[slot] = device.name
    drivers = {(_PCI / address / "driver").resolve().name for address in vfs.values()}
    figure = f"{', '.join(vfs.values())} on {', '.join(drivers)}, {len(groups)} IOMMU groups"
    item("two VFs of the emulated NIC", figure, "vfio-pci, 2 groups", drivers == {"vfio-pci"} and len(groups) == 2)
    return name, wire, vfs


def attributes(pf: str) -> None:
    """VF attributes on a real driver, by our adapter, read back by iproute2."""
    gate.run(["ip", "link", "set", pf, "up"])
    for n in (0, 1):  # this driver gives them none, and a VF without is not let in
        gate.run(["ip", "link", "set", pf, "vf", str(n), "mac", f"02:09:00:00:01:0{n}"])
    adapter = Vfs(pf, None)
    changed = [adapter.prepare(n) for n in (0, 1)]
    again = [adapter.prepare(n) for n in (0, 1)]
    (link,) = json.loads(gate.run(["ip", "-json", "link", "show", pf]).stdout)
    shown = [(v["trust"], v["spoofchk"]) for v in link["vfinfo_list"]]
    figure = f"changed {changed}, then {again}; ip shows (trust, spoofchk) {shown}"
    holds = all(changed) and again == [(), ()] and shown == [(True, False)] * 2
    item("VF attributes set for real, and nothing said twice", figure, "trust on, spoofchk off, then nothing", holds)
    refused = []
    for act in (lambda: adapter.prepare(9), lambda: adapter.fence(0)):
        try:
            act()
        except HostError as error:
            refused.append(error.what)
    item(
        "a VF that is not there, and a fence that this driver has not, are said", refused, "2 errors", len(refused) == 2
    )


@contextmanager
def lab_on(lab: LabSpec, pf: str, wire: str, vfs: dict[SlotName, str]) -> Iterator[None]:
    """The lab's own functions, but for what VFs change: while inside."""
    ns = lab.namespaces
    its_settings, its_build, its_ports, its_flows = (
        settings.settings, topology.build, overlay.bridge_options, overlay.phy_flows
    )  # fmt: skip

    def vf_settings(lab: LabSpec) -> dict[str, Any]:
        made = its_settings(lab)
        for slot, address in vfs.items():
            keys = made["slots"][slot]
            keys |= {"vf": address, "devargs": address}
            keys["dpdk_extra"] = keys["dpdk_extra"].replace("--no-pci", f"-a {address}")
        made["host"]["catch_port"] = "in0"
        made["policy"]["ready_timeout_s"] = 300.0
        return made

    def vf_build(lab: LabSpec) -> None:
        its_build(lab)
        gate.run(["ip", "-n", ns.fabric, "link", "del", "to-host"])  # and pf0 with it
        gate.run(["ip", "link", "set", wire, "netns", ns.fabric])
        gate.run(["ip", "-n", ns.fabric, "link", "set", wire, "master", "fabric", "up"])
        gate.run(["ip", "link", "set", pf, "down"])
        gate.run(["ip", "link", "set", pf, "netns", ns.host])
        gate.run(["ip", "-n", ns.host, "link", "set", pf, "name", names.PF])
        gate.run(["ip", "-n", ns.host, "link", "set", names.PF, "up"])
        gate.run(["ip", "-n", ns.host, "addr", "add", f"{names.HOST_VTEP}/24", "dev", names.PF])
        of_pf = [w for w in topology.wiring_batch().splitlines() if re.match(rf"\w+ add dev {names.PF} ", w)]
        gate.run(["tc", "-n", ns.host, "-batch", "-"], stdin="\n".join(of_pf) + "\n")
        for slot, name in ((ns.slot_a, "vf1"), (ns.slot_b, "vf2")):
            # the same name in both, as the database of one slot becomes the other's
            gate.run(["ip", "-n", slot, "link", "set", name, "down"])
            gate.run(["ip", "-n", slot, "link", "set", name, "name", "in0"])
            gate.run(["ip", "-n", slot, "link", "set", "in0", "up"])

    def vf_ports(lab: LabSpec, slot: Any) -> list[str]:
        devargs = 'options:dpdk-devargs="net_af_packet0,iface=in0"'
        port = ["--", "add-port", names.BR_PHY, "in0", "--", "set", "Interface", "in0", "type=dpdk", devargs]
        return [*its_ports(lab, slot), *port, f"ofport_request={_IN_PORT}"]

    with ExitStack() as stack:
        for module, name, new in (
            (settings, "settings", vf_settings),
            (topology, "build", vf_build),
            (overlay, "bridge_options", vf_ports),
            (overlay, "phy_flows", lambda: its_flows() + f"table=0,priority=100,in_port={_IN_PORT},actions=LOCAL\n"),
            (overlay, "_UPLINK_UP_S", overlay._UPLINK_UP_S * _SLOW),
            (domains, "_READY_S", domains._READY_S * _SLOW),
            (domains, "_CREATE_S", domains._CREATE_S * _SLOW),
            (libvirtd, "_START_S", libvirtd._START_S * _SLOW),
        ):
            stack.enter_context(mock.patch.object(module, name, new))
        yield


def driver_of(lab: LabSpec, slot: SlotName) -> str:
    """The DPDK driver of the slot's VF."""
    found = re.search(
        r"driver_name=(\w+)", overlay.vsctl(settings.config(lab).slot(slot), "get", "Interface", names.UPLINK, "status")
    )
    return found[1] if found else "none"


def arrived(lab: LabSpec, slot: SlotName) -> int:
    """Packets so far at the switch's port for what the PF's rule brings."""
    s = settings.config(lab).slot(slot)
    ofctl = [
        str(s.prefix / "bin/ovs-ofctl"),
        "-O",
        "OpenFlow14",
        "dump-ports",
        f"unix:{s.rundir}/{names.BR_PHY}.mgmt",
        str(_IN_PORT),
    ]
    found = re.search(r"rx pkts=(\d+)", gate.run(ofctl).stdout)
    return int(found[1]) if found else 0


def looked_at(lab: LabSpec, slot: SlotName) -> None:
    """A switch on its VF, and what comes from the remote hypervisor for a VM of this host."""
    driver = driver_of(lab, slot)
    item(f"DPDK of slot {slot} on a VF, under the virtual IOMMU", driver, _DRIVER, driver == _DRIVER)
    before = arrived(lab, slot)
    gate.run(["ping", "-i", "0.3", "-c", "5", "-W", "1", lab.guests[0].ip], netns=lab.namespaces.remote, check=False)
    came = arrived(lab, slot) - before
    item(f"packets of the overlay that reach slot {slot}, by the PF and tc", came, "5", came == 5)
    ping = ["ping", "-i", "0.5", "-c", "10", "-W", "5", lab.guests[0].ip]
    said = gate.run(ping, netns=lab.namespaces.remote, check=False, timeout_s=60).stdout
    found = re.search(r"(\d+) received", said)
    answered = int(found[1]) if found else 0
    item(f"pings from the remote host to the VM, by slot {slot}'s VF", f"{answered} of 10", "9 of 10", answered >= 9)


def main() -> int:
    pf, wire, vfs = bound()
    attributes(pf)
    lab = LabSpec(name="vfs", vms=1)
    with lab_on(lab, pf, wire, vfs):
        up = Lab(lab, lambda text: print(f"lab: {text}", flush=True))
        up.up()
        try:
            looked_at(lab, "a")
        finally:
            for slot in SLOTS:
                log = lab.directory / f"slot-{slot}/ovs-vswitchd.log"
                print(log.read_text(errors="replace")[-3000:] if log.exists() else f"no log of slot {slot}", flush=True)
            up.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
