"""Running VMs by libvirt, and the two vhost-user connections of their QEMU by QMP through libvirt.

The QMP commands are those of qemu-patches/; a QEMU without them answers CommandNotFound, which reads as "no second
connection" and not as an error.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import xml.etree.ElementTree as ET
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import structlog

from upgrader.core.errors import HostError
from upgrader.core.model import (
    CHARDEV_PREFIX,
    Ring,
    RingOwnership,
    Standby,
    SwitchResult,
    VmInterface,
    VmPort,
)
from upgrader.core.versions import Libvirt, can
from upgrader.ports import Fence

log = structlog.get_logger(__name__)


# "no such domain", and "it is not running" or on its way to that
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)


#: MigrationStatus (QEMU's qapi/migration.json) of a VM that is on no way, or no longer.
_AT_REST = ("none", "completed", "failed", "cancelled")


class _VmGoneError(HostError):
    """The VM ended meanwhile."""


@dataclass(frozen=True, slots=True)
class _EventFence:
    """An eventfd(2) that QEMU has, too. Each VM's is its own: a QEMU that was broken into speaks to no other by it."""

    name: str
    pid: int
    fd: int

    def say(self) -> None:
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)


def _quiet(_context: object, _error: object) -> None:
    """libvirt prints errors on stderr by itself; they all come as exceptions, too."""


libvirt.registerErrorHandler(_quiet, None)


class LibvirtQmp:
    """One connection to libvirtd; reopened when it was lost."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._handles: dict[str, Any] = {}  # by UUID; whether that VM runs is told by what is asked of it
        self._versions: dict[tuple[str, int], str] = {}  # of QEMU, by UUID and the number libvirtd gave that process

    def vm_interfaces(self) -> tuple[VmInterface, ...]:
        found = []
        domains = self._domains()
        running = {_process(d) for d in domains}
        self._versions = {process: v for process, v in self._versions.items() if process in running}
        version = self._version() if domains else None
        for domain in domains:
            try:
                xml = ET.fromstring(domain.XMLDesc())  # noqa: S314 - libvirtd's own output, over a root-only socket
                elements = _vhost_user(xml)
                connections = self._ownerships(domain) if elements else {}
                qemu = self._qemu_version(domain) if connections else None
                root = _runs_as_root(xml)
            except (libvirt.libvirtError, _VmGoneError) as error:
                if isinstance(error, _VmGoneError) or error.get_error_code() in _GONE:
                    continue  # it ended between the list and the look
                raise self._error(domain.name(), error) from error
            found += [
                replace(_vm_interface(domain, element, connections), qemu=qemu, libvirt=version, root=root)
                for element in elements
            ]
        return tuple(sorted(found, key=lambda i: (i.domain, i.netdev)))

    def _domains(self) -> list[Any]:
        try:
            return list(self._open().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE))
        except libvirt.libvirtError as error:
            raise self._error("its domains", error) from error

    def ownership(self, port: VmPort) -> RingOwnership | None:
        try:
            return self._ownerships(self._domain(port)).get(port.netdev)
        except _VmGoneError:
            return None

    def migrating(self, port: VmPort) -> bool:
        try:
            status = self._qmp(self._domain(port), "query-migrate", {}).get("status", "none")
        except _VmGoneError:
            return False
        return status not in _AT_REST

    def attach_standby(self, port: VmPort, chardev: str, listener_fd: int | None, peer_pid: int) -> None:
        """Give the netdev its standby connection; with `listener_fd` the socket is handed over as a new chardev.

        Only the process `peer_pid`, under the user it runs as, is let in. Where QEMU refuses, the new chardev goes again.
        Where libvirt hands no descriptors on, QEMU binds the socket's path anew by itself, and fails where its user may
        not.
        """
        domain = self._domain(port)
        try:
            peer = {"peer-pid": peer_pid, "peer-uid": Path(f"/proc/{peer_pid}").stat().st_uid}
        except OSError as error:
            raise HostError(
                "PEER_GONE",
                f"the switch that was to stand by on {port.label} (process {peer_pid}) does not run any more",
                state="the VM keeps the connections it had",
                next="upgrade status",
            ) from error
        if listener_fd is not None:
            if can(Libvirt.PASS_FDS, self._version()) is False:
                address = {"type": "unix", "data": {"path": _bound_to(listener_fd)}}
            else:
                name = f"{chardev}-socket"
                self._qmp(domain, "getfd", {"fdname": name}, fds=[listener_fd])
                address = {"type": "fd", "data": {"str": name}}
            backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
            self._qmp(domain, "chardev-add", {"id": chardev, "backend": backend})
        try:
            self._qmp(domain, "netdev-vhost-user-standby-attach", {"id": port.netdev, "chardev": chardev, **peer})
        except HostError:
            if listener_fd is not None:
                with suppress(HostError):  # what was refused is what has to be told of
                    self._qmp(domain, "chardev-remove", {"id": chardev})
            raise

    def drop_connection(self, port: VmPort, chardev: str) -> None:
        try:
            domain = self._domain(port)
            now = self._ownerships(domain).get(port.netdev)
            if now and now.standby and now.standby.chardev == chardev:
                self._qmp(domain, "netdev-vhost-user-standby-detach", {"id": port.netdev})
            if chardev.startswith(CHARDEV_PREFIX) and chardev in self._chardevs(domain):
                self._qmp(domain, "chardev-remove", {"id": chardev})
        except _VmGoneError:
            return

    def switch(self, port: VmPort, owner: str, generation: int, *, fenced: bool = False) -> SwitchResult:
        arguments = {"id": port.netdev, "owner": owner, "generation": generation, "fenced": fenced}
        return _switch_result(self._qmp(self._domain(port), "netdev-vhost-user-switch", arguments))

    def give_fence(self, port: VmPort, pid: int) -> Fence | None:
        if can(Libvirt.PASS_FDS, self._version()) is False:
            return None
        domain = self._domain(port)
        now = self._ownerships(domain).get(port.netdev)
        if now is not None and now.fence is None:
            return None
        fence = _EventFence(f"fence-{secrets.token_hex(8)}", pid, os.eventfd(0, os.EFD_CLOEXEC))
        try:
            self._qmp(domain, "getfd", {"fdname": fence.name}, fds=[fence.fd])
            self._qmp(domain, "netdev-vhost-user-fence", {"id": port.netdev, "owner-pid": pid, "fdname": fence.name})
        except HostError:
            fence.close()
            raise
        return fence

    def _version(self) -> str:
        """Of libvirtd, e.g. ``7.0.0``."""
        try:
            number = self._open().getLibVersion()
        except libvirt.libvirtError as error:
            raise self._error("its version", error) from error
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    def _ownerships(self, domain: Any) -> dict[str, RingOwnership]:
        """By netdev id; empty for a QEMU without the patches."""
        try:
            answer = self._qmp(domain, "query-netdev-vhost-user", {})
        except HostError as error:
            if error.code == "QMP_COMMANDNOTFOUND":
                return {}
            raise
        return {entry["id"]: _ownership(entry) for entry in answer}

    def _qemu_version(self, domain: Any) -> str:
        """Asked once of each QEMU: it is another process when the VM is started again."""
        process = _process(domain)
        if process not in self._versions:
            numbers = self._qmp(domain, "query-version", {})["qemu"]
            self._versions[process] = f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"
        return self._versions[process]

    def _chardevs(self, domain: Any) -> set[str]:
        return {c["label"] for c in self._qmp(domain, "query-chardev", {})}

    def _qmp(self, domain: Any, command: str, arguments: dict[str, Any], fds: list[int] | None = None) -> Any:
        message = json.dumps({"execute": command, "arguments": arguments})
        try:
            if fds is None:
                text = libvirt_qemu.qemuMonitorCommand(domain, message, 0)
            else:
                text, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, message, fds, 0)
        except libvirt.libvirtError as error:
            raise self._error(domain.name(), error) from error
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            kind, what = answer["error"]["class"], answer["error"]["desc"]
            raise HostError(
                f"QMP_{kind.upper()}",
                f"QEMU of {domain.name()} refused {command}: {what}",
                state="the VM keeps the connections it had",
                next=f"virsh -c '{self._uri}' qemu-monitor-command {domain.name()} --pretty "
                '\'{"execute": "query-netdev-vhost-user"}\'',
            )
        return answer["return"]

    def _domain(self, port: VmPort) -> Any:
        try:
            connection = self._open()
            if port.domain_uuid not in self._handles:
                self._handles[port.domain_uuid] = connection.lookupByUUIDString(port.domain_uuid)
            return self._handles[port.domain_uuid]
        except libvirt.libvirtError as error:
            raise self._error(port.domain, error) from error

    def _open(self) -> Any:
        try:
            if self._connection is None or not self._connection.isAlive():
                self._handles, self._versions = {}, {}  # a libvirtd that was restarted may give out its numbers again
                self._connection = libvirt.open(self._uri)
        except libvirt.libvirtError as error:
            raise HostError(
                "LIBVIRT_UNREACHABLE",
                f"no libvirt answers at {self._uri}: {error.get_error_message()}",
                state="nothing was changed",
                next=f"virsh -c '{self._uri}' list",
            ) from error
        return self._connection

    def _error(self, domain: str, error: libvirt.libvirtError) -> HostError:
        kind = _VmGoneError if error.get_error_code() in _GONE else HostError
        return kind(
            "LIBVIRT_FAILED",
            f"libvirt about {domain}: {error.get_error_message()}",
            state="the VM keeps the connections it had",
            next=f"virsh -c '{self._uri}' domstate {domain}",
        )


def _process(domain: Any) -> tuple[str, int]:
    """What is the same as long as the domain's QEMU is: its UUID, and its number at this libvirtd."""
    return domain.UUIDString(), domain.ID()


def _bound_to(listener_fd: int) -> str:
    """The path that a listening socket was bound to."""
    with socket.socket(fileno=os.dup(listener_fd)) as listener:
        return str(listener.getsockname())


def _vhost_user(xml: ET.Element) -> list[ET.Element]:
    return [e for e in xml.iterfind("./devices/interface[@type='vhostuser']") if e.find("source") is not None]


def _runs_as_root(xml: ET.Element) -> bool | None:
    """By the label ``+UID:+GID`` of libvirt's DAC driver; None where that is off."""
    label = xml.findtext("./seclabel[@model='dac']/label")
    return label.startswith("+0:") if label else None


def _vm_interface(domain: Any, element: ET.Element, connections: dict[str, RingOwnership]) -> VmInterface:
    """libvirt derives QEMU's ids from the alias: netdev ``host<alias>``, chardev ``char<alias>``."""
    alias = _attribute(element, "alias", "name")
    netdev = f"host{alias}"
    return VmInterface(
        domain=domain.name(),
        domain_uuid=domain.UUIDString(),
        mac=_attribute(element, "mac", "address").lower(),
        socket=Path(_attribute(element, "source", "path")),
        netdev=netdev,
        chardev=f"char{alias}",
        ownership=connections.get(netdev),
    )


def _attribute(element: ET.Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""


def _ownership(entry: dict[str, Any]) -> RingOwnership:
    standby = entry.get("standby")
    return RingOwnership(
        owner=entry["owner"],
        owner_connected=entry["owner-connected"],
        owner_pid=entry.get("owner-pid"),
        generation=entry["generation"],
        standby=None
        if standby is None
        else Standby(
            chardev=standby["chardev"],
            connected=standby["connected"],
            ready=standby["ready"],
            reason=standby.get("reason"),
            pid=standby.get("pid"),
            expected_pid=standby.get("expected-pid"),
        ),
        in_doubt=entry.get("state") == "in-doubt",
        rings=tuple(
            Ring(r["index"], r["num"], r["avail-idx"], r["used-idx"], r["enabled"]) for r in entry.get("rings", [])
        ),
        fence=entry.get("fence"),
    )


def _switch_result(answer: dict[str, Any]) -> SwitchResult:
    return SwitchResult(
        from_chardev=answer["from"],
        to_chardev=answer["to"],
        generation=answer["generation"],
        reason=answer["reason"],
        fenced=answer["fenced"],
        quiesce_ns=answer["quiesce-ns"],
        index_ns=answer["index-ns"],
        activate_ns=answer["activate-ns"],
        notify_ns=answer["notify-ns"],
        blackout_ns=answer["blackout-ns"],
    )
