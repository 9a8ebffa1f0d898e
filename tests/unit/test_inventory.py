"""Joining libvirt's VMs with OVSDB's ports, and where each port of the new switch connects."""

from __future__ import annotations

from pathlib import Path

from upgrader.core.inventory import active_slot, bindings, join
from upgrader.core.model import ORIGIN_KEY, SlotStatus
from upgrader.sim.facts import PID, ovs_interface, ownership, slot, switch_facts, vm_interface, vm_port

DOWN = SlotStatus(None, None)


def test_ports_are_joined_by_the_socket() -> None:
    ports, orphans = join([vm_interface(1), vm_interface(0)], switch_facts(2), "vni")
    assert [(p.domain, p.interface, p.ofport, p.vni) for p in ports] == [
        ("vm1", "vhu1", 11, 100),
        ("vm0", "vhu0", 10, 100),
    ]
    assert orphans == ()


def test_a_port_that_was_moved_before_is_joined_by_its_origin() -> None:
    moved = ovs_interface(
        0,
        options=(("vhost-server-path", "/run/slot-b/vhost/vhu0"),),
        external_ids=((ORIGIN_KEY, "/run/vm0.sock"), ("vni", "100")),
    )
    ports, _ = join([vm_interface(0)], switch_facts(0, interfaces=(moved,)), "vni")
    assert [p.label for p in ports] == ["vm0/vhu0"]


def test_orphans_of_both_kinds() -> None:
    ports, orphans = join([vm_interface(5)], switch_facts(1), "vni")
    assert ports == ()
    assert [(o.domain, o.interface) for o in orphans] == [("vm5", None), (None, "vhu0")]


def test_an_interface_that_ovs_could_not_make_is_an_orphan() -> None:
    broken = ovs_interface(0, ofport=-1, error="could not add network device")
    ports, orphans = join([vm_interface(0)], switch_facts(0, interfaces=(broken,)), "vni")
    assert ports == ()
    assert orphans[0].interface == "vhu0"


def test_a_vni_is_24_bits_or_none() -> None:
    for text, vni in (("16777215", 16777215), ("16777216", None), ("-1", None), ("0x64", None), ("", None)):
        interface = ovs_interface(0, external_ids=(("vni", text),))
        ports, _ = join([vm_interface(0)], switch_facts(0, interfaces=(interface,)), "vni")
        assert ports[0].vni == vni, text


def test_the_active_slot() -> None:
    a, b = SlotStatus(PID["a"], 1), SlotStatus(PID["b"], 2)
    on_a = vm_interface(0)
    on_b = vm_interface(1, ownership=ownership("x", PID["b"]))
    assert active_slot({"a": DOWN, "b": DOWN}, [on_a], ()) is None
    assert active_slot({"a": DOWN, "b": b}, [], ("a",)) == "b"
    assert active_slot({"a": a, "b": b}, [on_a], ("b",)) == "a"
    assert active_slot({"a": a, "b": b}, [on_a, on_b], ("a",)) is None
    assert active_slot({"a": a, "b": b}, [], ("b",)) == "b"
    assert active_slot({"a": a, "b": b}, [], ("a", "b")) is None


def test_bindings_are_paths_of_the_slots_own_whoever_serves_the_vm() -> None:
    switch = switch_facts(2)
    there = bindings([vm_port(0), vm_port(1)], switch, slot("b"))
    assert there[0].socket == Path("/run/slot-b/vhost/vhu0")
    assert (there[0].origin, there[0].chardev, there[0].fresh) == (Path("/run/vm0.sock"), "hotup-b-hostnet0", True)
    moved = [vm_port(i, ownership=ownership("hotup-b-hostnet0", PID["b"])) for i in range(2)]
    back = bindings(moved, switch, slot("a"))
    assert back[0].socket == Path("/run/slot-a/vhost/vhu0")
    assert (back[0].origin, back[0].chardev, back[0].fresh) == (Path("/run/vm0.sock"), "hotup-a-hostnet0", True)


def test_a_port_without_a_running_vm_connects_nowhere_while_it_stands_by() -> None:
    (binding,) = bindings([], switch_facts(1), slot("b"))
    assert binding.socket == Path("/run/slot-b/vhost/vhu0")
    assert (binding.chardev, binding.fresh) == (None, False)
