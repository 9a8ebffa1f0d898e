"""From options to what the programs are given: flows, ports, domains, links, the coordinator's configuration."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from upgrader.config import Config
from upgrader.lab import overlay, settings, topology
from upgrader.lab import spec as names
from upgrader.lab.domains import domain_xml
from upgrader.lab.guest import GuestImage, kernel_command_line
from upgrader.lab.spec import LabSpec

IMAGE = GuestImage(Path("/k"), Path("/i"))


def test_forwarding_is_stateless() -> None:
    text = (overlay.int_flows(LabSpec()) + overlay.phy_flows()).lower()
    assert not re.search(r"normal|learn|\bct\b|conjunction|controller|flood", text)


@pytest.mark.parametrize("vms", [1, 4, 16])
def test_every_guest_is_reached_from_both_sides_by_its_port_only(vms: int) -> None:
    lab = LabSpec(vms=vms)
    flows = overlay.int_flows(lab).splitlines()
    for vm in lab.guests:
        deliver = [f for f in flows if f"dl_dst={vm.mac}" in f]
        assert sorted(re.findall(r"table=(\d+)", " ".join(deliver))) == ["10", "20"]
        assert all(f.endswith(f"actions=output:{vm.ofport}") and f"tun_id={names.VNI}" in f for f in deliver)
        speak = [f for f in flows if f.startswith("table=0,") and f"in_port={vm.ofport}," in f]
        assert speak
        assert all(f"dl_src={vm.mac}" in f for f in speak)


def test_each_table_ends_in_a_drop() -> None:
    flows = overlay.int_flows(LabSpec()).splitlines()
    tables = {m[1] for f in flows if (m := re.match(r"table=(\d+)", f))}
    for table in tables:
        assert f"table={table},priority=0,actions=drop" in flows


def test_the_switch_connects_where_the_guest_listens() -> None:
    lab = LabSpec(vms=2, queues=2)
    ports = overlay.bridge_options(lab, settings.config(lab).slot("a"))
    for vm in lab.guests:
        domain = ElementTree.fromstring(domain_xml(lab, vm, IMAGE))
        source = domain.find("devices/interface/source")
        assert source is not None
        assert source.get("mode") == "server"
        assert f'options:vhost-server-path="{source.get("path")}"' in ports
        assert f'external_ids:attached-mac="{vm.mac}"' in ports


@pytest.mark.parametrize("queues", [1, 2, 4])
@pytest.mark.parametrize("pages", ["4k", "2m"])
def test_domain_memory_is_shared_and_every_queue_has_a_vcpu(queues: int, pages: str) -> None:
    lab = LabSpec(queues=queues, pages=pages)  # type: ignore[arg-type]
    domain = ElementTree.fromstring(domain_xml(lab, lab.guests[0], IMAGE))
    assert domain.findtext("vcpu") == str(queues)
    driver = domain.find("devices/interface/driver")
    assert driver is not None
    assert driver.get("queues") == str(queues)
    access, cell = domain.find("memoryBacking/access"), domain.find("cpu/numa/cell")
    assert access is not None
    assert cell is not None
    assert (access.get("mode"), cell.get("memAccess")) == ("shared", "shared")
    assert (domain.find("memoryBacking/hugepages") is not None) == (pages == "2m")


def test_a_guest_is_told_its_addresses() -> None:
    vm = LabSpec().guests[2]
    line = kernel_command_line(vm).split()
    assert f"lab.ip={vm.ip}/24" in line
    assert f"lab.mac={vm.mac}" in line
    assert "nohz=off" in line
    assert "nohz=on" in kernel_command_line(vm, tickless=True).split()
    assert f"lab.mtu={names.UNDERLAY_MTU - 14 - 20 - 8 - 8}" in line


def test_the_configuration_is_what_the_coordinator_reads() -> None:
    lab = LabSpec(name="x", ovs_prefix=Path('/odd "path\\'))
    read = Config.model_validate(tomllib.loads(settings.render(lab)))
    assert read == settings.config(lab)
    a, b = read.slot("a"), read.slot("b")
    assert a.prefix == lab.ovs_prefix
    assert (a.netns, b.netns) == (lab.namespaces.slot_a, lab.namespaces.slot_b)
    assert int(a.pmd_cpu_mask, 16) & int(b.pmd_cpu_mask, 16) == 0
    assert a.dpdk_extra != b.dpdk_extra


def test_a_vf_sends_to_the_wire() -> None:
    batch = topology.wiring_batch()
    for representor in ("vf1r", "vf2r"):
        assert re.search(
            rf"filter add dev {representor} .*u32 match u32 0 0 action mirred egress redirect dev pf0", batch
        )
    # 1 to 49 are the coordinator's
    assert all(int(prio) >= 100 for prio in re.findall(r"prio (\d+)", batch))


def test_the_remote_knows_every_guest_beforehand() -> None:
    lab = LabSpec(vms=3)
    neighbours, entries = topology.remote_forwarding(lab)
    for vm in lab.guests:
        assert f"neigh add {vm.ip} lladdr {vm.mac}" in neighbours
        assert f"fdb add {vm.mac} dev vx dst {names.HOST_VTEP}" in entries
