"""What a slot's database says, by python-ovs' IDL (RFC 7047)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ovs.db.idl
import ovs.poller

from upgrader.adapters import gate
from upgrader.adapters.ovsdb.session import unreachable
from upgrader.core.errors import HostError
from upgrader.core.model import Bridge, Interface, Slot, SwitchFacts

# what is looked at; a switch of many ports tells thousands of counters besides
_COLUMNS = {
    "Open_vSwitch": "bridges manager_options other_config ovs_version",
    "Bridge": """name datapath_type fail_mode controller protocols ports stp_enable rstp_enable mirrors
        netflow sflow ipfix""",
    "Port": "name interfaces lacp qos",
    "Interface": "name type options external_ids ofport link_state error bfd cfm_mpid",
    "Controller": "target",
    "Manager": "target",
    "Mirror": "name",
    "NetFlow": "targets",
    "sFlow": "targets",
    "IPFIX": "targets",
    "Flow_Sample_Collector_Set": "bridge ipfix",
    "QoS": "type",
}
_CONNECT_S = 5.0


def read(slot: Slot) -> SwitchFacts:
    """What the switch is configured to do."""
    with _idl(slot) as idl:
        root = next(iter(idl.tables["Open_vSwitch"].rows.values()), None)
        if root is None:
            return SwitchFacts("", (), ())
        bridges = []
        interfaces = []
        speakers: list[str] = []
        for bridge in root.bridges:
            bridges.append(
                Bridge(
                    name=bridge.name,
                    datapath_type=bridge.datapath_type,
                    fail_mode=_optional(bridge.fail_mode),
                    controllers=tuple(sorted(c.target for c in bridge.controller)),
                    protocols=tuple(sorted(bridge.protocols)),
                )
            )
            samples = idl.tables["Flow_Sample_Collector_Set"].rows.values()
            speakers += _speakers(bridge, [s for s in samples if s.bridge == bridge])
            interfaces += [_interface(bridge.name, i) for port in bridge.ports for i in port.interfaces]
        return SwitchFacts(
            version=_optional(root.ovs_version) or "",
            bridges=tuple(sorted(bridges, key=lambda b: b.name)),
            interfaces=tuple(sorted(interfaces, key=lambda i: i.name)),
            managers=tuple(sorted(m.target for m in root.manager_options)),
            speakers=tuple(sorted(speakers)),
            vhost_iommu=root.other_config.get("vhost-iommu-support") == "true",
        )


def wait_for_ports(slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
    """Return once each interface has its ofport and its link is up. Raises HostError naming those that lack it."""

    def lacking(idl: Any) -> list[str]:
        rows = {r.name: r for r in idl.tables["Interface"].rows.values()}
        return [
            f"{n} ({_state(rows.get(n))})"
            for n in interfaces
            if n not in rows or (_optional(rows[n].ofport) or -1) < 0 or _optional(rows[n].link_state) != "up"
        ]

    with _idl(slot) as idl:
        deadline = time.monotonic() + timeout_s
        while missing := lacking(idl):
            if not _wait(idl, deadline):
                raise HostError(
                    "PORTS_NOT_READY",
                    f"slot {slot.name} did not bring up {', '.join(missing)} within {timeout_s:g} s",
                    state=f"no VM was moved to slot {slot.name} for it",
                    next=f"tail {slot.rundir / 'ovs-vswitchd.log'}",
                )


def unready(slot: Slot, expected_up: Sequence[str]) -> tuple[str, ...]:
    """What ports lack, in words: each an OpenFlow number, those named a link as well; DPDK's among them a memory pool."""
    with _idl(slot) as idl:
        rows = {r.name: r for r in idl.tables["Interface"].rows.values()}
        found = [f"{n}: the slot has no such interface" for n in expected_up if n not in rows]
        for name, row in sorted(rows.items()):
            number, link = _optional(row.ofport), _optional(row.link_state)
            if number is None or number < 0:
                found.append(f"{name}: no OpenFlow number")
            elif name in expected_up and link != "up":
                found.append(f"{name}: link {link or 'unknown'}")
            elif name in expected_up and row.type.startswith("dpdk") and not _has_pool(slot, name):
                found.append(f"{name}: no memory pool")
        return tuple(found)


def _has_pool(slot: Slot, interface: str) -> bool:
    argv = [str(slot.prefix / "bin/ovs-appctl"), "--timeout=10", "-t", str(slot.vswitchd_ctl)]
    done = gate.run([*argv, "netdev-dpdk/get-mempool-info", interface], check=False)
    return done.returncode == 0 and "mempool <" in done.stdout


def _speakers(bridge: Any, samples: Sequence[Any]) -> list[str]:
    """What on a bridge acts of its own accord or remembers, so that a standby with the same rows would do it, too.

    `samples`: where its flows' sample() actions report to.
    """
    found = [
        f"{what} on bridge {bridge.name}"
        for what, column in (
            ("STP", bridge.stp_enable),
            ("RSTP", bridge.rstp_enable),
            ("mirrors", bridge.mirrors),
        )
        if column
    ]
    ipfix = {row for by in (bridge, *samples) for row in by.ipfix}
    for what, rows in (("NetFlow", bridge.netflow), ("sFlow", bridge.sflow), ("IPFIX", ipfix)):
        found += [f"{what} to {', '.join(sorted(row.targets))} on bridge {bridge.name}" for row in rows]
    for port in bridge.ports:
        if _optional(port.lacp) in ("active", "passive"):
            found.append(f"LACP on port {port.name}")
        elif len(port.interfaces) > 1:
            found.append(f"a bond on port {port.name}")
        if port.qos:
            found.append(f"QoS on port {port.name}")
        for interface in port.interfaces:
            if interface.bfd.get("enable") == "true":
                found.append(f"BFD on interface {interface.name}")
            if interface.cfm_mpid:
                found.append(f"CFM on interface {interface.name}")
    return found


def _state(row: Any) -> str:
    if row is None:
        return "no such interface"
    error = _optional(row.error)
    return error or f"ofport {_optional(row.ofport)}, link {_optional(row.link_state) or 'unknown'}"


def _interface(bridge: str, row: Any) -> Interface:
    return Interface(
        name=row.name,
        bridge=bridge,
        type=row.type,
        options=tuple(sorted(row.options.items())),
        external_ids=tuple(sorted(row.external_ids.items())),
        ofport=_optional(row.ofport),
        link_state=_optional(row.link_state),
        error=_optional(row.error),
    )


def _optional(value: Any) -> Any:
    """An optional column is an empty or one-element list in the IDL."""
    if isinstance(value, list):
        return value[0] if value else None
    return value


@contextmanager
def _idl(slot: Slot) -> Iterator[Any]:
    """A connected IDL that holds what we look at."""
    schema = slot.prefix / "share/openvswitch/vswitch.ovsschema"
    if not schema.exists():
        raise HostError(
            "SCHEMA_MISSING",
            f"there is no OVSDB schema at {schema}",
            state="nothing was changed",
            next=f"correct slots.{slot.name}.prefix in the configuration",
        )
    if not slot.db_socket.exists():  # it is there before whoever started the server goes on
        raise unreachable(slot, "there is no such socket")
    helper = ovs.db.idl.SchemaHelper(schema_json=json.loads(schema.read_text()))  # python-ovs' own parser takes longer
    for table, columns in _COLUMNS.items():
        helper.register_columns(table, columns.split())
    idl = ovs.db.idl.Idl(f"unix:{slot.db_socket}", helper)
    try:
        deadline = time.monotonic() + _CONNECT_S
        while not idl.has_ever_connected():
            if not _wait(idl, deadline):
                raise unreachable(slot, f"no answer within {_CONNECT_S:g} s")
        yield idl
    finally:
        idl.close()


def _wait(idl: Any, deadline: float) -> bool:
    """Run the IDL until something came or the deadline passed; False when it passed."""
    seqno = idl.change_seqno
    while True:
        idl.run()
        if idl.change_seqno != seqno:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        poller = ovs.poller.Poller()
        idl.wait(poller)
        poller.timer_wait(max(1, int(left * 1000)))
        poller.block()
