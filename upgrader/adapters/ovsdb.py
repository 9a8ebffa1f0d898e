"""The OVSDB of a slot, by python-ovs' IDL (RFC 7047); copies by ovsdb-client, which keeps row UUIDs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ovs.db.idl
import ovs.poller
import structlog

from upgrader.adapters import gate
from upgrader.core.errors import HostError
from upgrader.core.model import ORIGIN_KEY, Bridge, Interface, PortBinding, Slot, SwitchFacts

log = structlog.get_logger(__name__)

_TABLES = (
    "Open_vSwitch",
    "Bridge",
    "Port",
    "Interface",
    "Controller",
    "Manager",
    "Mirror",
    "NetFlow",
    "sFlow",
    "IPFIX",
)
_CONNECT_S = 5.0


class Ovsdb:
    """Reads and writes the databases of slots through their unix sockets."""

    def read(self, slot: Slot) -> SwitchFacts:
        with _idl(slot) as idl:
            root = _root(idl)
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
                speakers += _speakers(bridge)
                interfaces += [_interface(bridge.name, i) for port in bridge.ports for i in port.interfaces]
            return SwitchFacts(
                version=_optional(root.ovs_version) or "",
                bridges=tuple(sorted(bridges, key=lambda b: b.name)),
                interfaces=tuple(sorted(interfaces, key=lambda i: i.name)),
                managers=tuple(sorted(m.target for m in root.manager_options)),
                speakers=tuple(sorted(speakers)),
            )

    def backup(self, slot: Slot, target: Path) -> None:
        done = gate.run([str(slot.prefix / "bin/ovsdb-client"), "backup", f"unix:{slot.db_socket}", "Open_vSwitch"])
        target.write_text(done.stdout, encoding="utf-8")

    def rehome(self, slot: Slot, bindings: Sequence[PortBinding]) -> None:
        by_name = {b.interface: b for b in bindings}
        with _idl(slot) as idl:

            def edit(idl: Any) -> None:
                root = _root(idl)
                root.other_config = {**root.other_config, **_dpdk_options(slot)}
                root.manager_options = []
                for bridge in root.bridges:
                    bridge.controller = []
                    bridge.fail_mode = "secure"
                for row in idl.tables["Interface"].rows.values():
                    if (number := _optional(row.ofport)) and number > 0:
                        row.ofport_request = number
                    # what the other switch said of its own ports must not be taken for what this one says
                    row.ofport, row.link_state, row.error = [], [], []
                    if row.name == slot.uplink:
                        row.options = {**row.options, "dpdk-devargs": slot.devargs}
                    if binding := by_name.get(row.name):
                        row.options = {**row.options, "vhost-server-path": str(binding.socket)}
                        row.external_ids = {**row.external_ids, ORIGIN_KEY: str(binding.origin)}

            _commit(idl, slot, edit)

    def set_fail_modes(self, slot: Slot, modes: dict[str, str | None]) -> None:
        with _idl(slot) as idl:

            def edit(idl: Any) -> None:
                for bridge in _root(idl).bridges:
                    if bridge.name in modes:
                        mode = modes[bridge.name]
                        bridge.fail_mode = [] if mode is None else mode

            _commit(idl, slot, edit)

    def wait_for_ports(self, slot: Slot, interfaces: Sequence[str], timeout_s: float) -> None:
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


def _speakers(bridge: Any) -> list[str]:
    """What on a bridge sends packets of its own accord, so that a standby with the same rows would speak, too."""
    found = [
        f"{what} on bridge {bridge.name}"
        for what, column in (
            ("STP", bridge.stp_enable),
            ("RSTP", bridge.rstp_enable),
            ("mirrors", bridge.mirrors),
            ("NetFlow", bridge.netflow),
            ("sFlow", bridge.sflow),
            ("IPFIX", bridge.ipfix),
        )
        if column
    ]
    for port in bridge.ports:
        if _optional(port.lacp) in ("active", "passive"):
            found.append(f"LACP on port {port.name}")
        elif len(port.interfaces) > 1:
            found.append(f"a bond on port {port.name}")
        for interface in port.interfaces:
            if interface.bfd.get("enable") == "true":
                found.append(f"BFD on interface {interface.name}")
            if interface.cfm_mpid:
                found.append(f"CFM on interface {interface.name}")
    return found


def _dpdk_options(slot: Slot) -> dict[str, str]:
    return {
        "dpdk-init": "true",
        "dpdk-extra": slot.dpdk_extra,
        "dpdk-socket-mem": slot.socket_mem_mib,
        "dpdk-socket-limit": slot.socket_mem_mib,
        "pmd-cpu-mask": slot.pmd_cpu_mask,
    }


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


def _root(idl: Any) -> Any:
    return next(iter(idl.tables["Open_vSwitch"].rows.values()))


@contextmanager
def _idl(slot: Slot) -> Iterator[Any]:
    """A connected IDL that holds the tables we look at, whole."""
    schema = slot.prefix / "share/openvswitch/vswitch.ovsschema"
    if not schema.exists():
        raise HostError(
            "SCHEMA_MISSING",
            f"there is no OVSDB schema at {schema}",
            state="nothing was changed",
            next=f"correct slots.{slot.name}.prefix in the configuration",
        )
    helper = ovs.db.idl.SchemaHelper(location=str(schema))
    for table in _TABLES:
        helper.register_table(table)
    idl = ovs.db.idl.Idl(f"unix:{slot.db_socket}", helper)
    try:
        deadline = time.monotonic() + _CONNECT_S
        while not (idl.has_ever_connected() and idl.tables["Open_vSwitch"].rows):
            if not _wait(idl, deadline):
                raise _unreachable(slot)
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


def _commit(idl: Any, slot: Slot, edit: Callable[[Any], None]) -> None:
    """Apply `edit` in one transaction; tried again when another writer was in between (RFC 7047, "verify")."""
    for _ in range(10):
        txn = ovs.db.idl.Transaction(idl)
        edit(idl)
        status = txn.commit_block()
        if status in (txn.SUCCESS, txn.UNCHANGED):
            return
        if status != txn.TRY_AGAIN:
            break
        _wait(idl, time.monotonic() + 1)
    raise HostError(
        "DATABASE_REFUSED",
        f"the database of slot {slot.name} refused a transaction: {txn.get_error()}",
        state=f"slot {slot.name} keeps the configuration it had",
        next=f"ovs-vsctl --db=unix:{slot.db_socket} show",
    )


def _unreachable(slot: Slot) -> HostError:
    return HostError(
        "DATABASE_UNREACHABLE",
        f"no answer from the database of slot {slot.name} at {slot.db_socket} within {_CONNECT_S:g} s",
        state="nothing was changed",
        next=f"ovs-vsctl --db=unix:{slot.db_socket} show",
    )
