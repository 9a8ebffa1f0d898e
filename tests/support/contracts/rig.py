"""A host under its ports, and what a test has to do to it besides: what operators, controllers and guests do."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from upgrader.core.errors import UpgradeError
from upgrader.core.inventory import active_slot, bindings, join
from upgrader.core.model import SLOTS, PortBinding, RingOwnership, Slot, SlotName, VmPort, other_slot
from upgrader.ports import Host

#: A bridge that only a test has.
BRIDGE = "br-test"
CONTROLLER = "tcp:127.0.0.1:1"  # where nobody listens


class Rig(ABC):
    """A host whose switch in slot `active` serves every VM; in slot `standby` there may be one beside it."""

    def __init__(self, host: Host, slots: Mapping[SlotName, Slot]) -> None:
        self.host = host
        vms = host.hypervisor.vm_interfaces()
        name = active_slot({n: host.processes.status(slots[n]) for n in SLOTS}, vms, ())
        assert name is not None
        self.active, self.standby = slots[name], slots[other_slot(name)]

    def pid(self, slot: Slot) -> int:
        pid = self.host.processes.status(slot).vswitchd_pid
        assert pid is not None
        return pid

    def vm_ports(self) -> tuple[VmPort, ...]:
        facts = self.host.database.read(self.active)
        return join(self.host.hypervisor.vm_interfaces(), facts, self.host.vni_key)[0]

    def bindings(self) -> tuple[PortBinding, ...]:
        """Where the standby's copies of the VMs' ports connect."""
        return bindings(self.vm_ports(), self.host.database.read(self.active), self.standby)

    def stop(self) -> None:
        """Nothing runs in the standby's slot."""
        self.host.processes.stop(self.standby)

    def start_database(self) -> None:
        """In the standby's slot a database runs that holds nothing."""
        self.stop()
        self.host.resources.remove(self.standby.db_file)
        self.host.processes.start_database(self.standby)

    def start(self) -> None:
        """In the standby's slot a switch runs that is what the active is."""
        host, active, standby = self.host, self.active, self.standby
        if host.processes.status(standby).vswitchd_pid is None:
            self.start_database()
            host.database.sync(active, standby, self.bindings(), applied=False)
            host.steering.prepare(standby.name)
            host.processes.start_switch(standby)
            host.database.wait_for_ports(standby, [standby.uplink], host.ready_timeout_s)
        for _ in range(2):  # the second gives bridges that are new their fail_mode
            copied = host.database.sync(active, standby, self.bindings())
        host.resources.copy_addresses(active, standby, copied.bridges)

    def attach(self, port: VmPort) -> str:
        """Give a VM its second connection, to the standby; returns its chardev."""
        binding = next(b for b in self.bindings() if b.interface == port.interface)
        assert binding.fresh
        assert binding.chardev
        self.host.hypervisor.drop_connection(port, binding.chardev)
        listener = self.host.resources.listen(binding.listener)
        try:
            self.host.resources.redirect(binding.socket, binding.listener)
            self.host.hypervisor.attach_standby(port, binding.chardev, listener, self.pid(self.standby))
        finally:
            os.close(listener)
        return binding.chardev

    def own(self, port: VmPort) -> RingOwnership:
        own = self.host.hypervisor.ownership(port)
        assert own is not None
        return own

    @abstractmethod
    def add_bridge(self, slot: Slot, controllers: Sequence[str] = ()) -> None:
        """BRIDGE, with fail_mode standalone, and no port but its own."""

    @abstractmethod
    def delete_bridge(self, slot: Slot) -> None: ...
    @abstractmethod
    def write(self, slot: Slot, *lines: str) -> None:
        """Flows and groups of BRIDGE, as lines of `ovs-ofctl bundle`."""

    @abstractmethod
    def write_meter(self, slot: Slot, meter: str) -> None:
        """A meter of BRIDGE, as `ovs-ofctl add-meter` takes it."""

    @abstractmethod
    def write_tlv(self, slot: Slot, mapping: str) -> None:
        """A TLV mapping of BRIDGE, as `ovs-ofctl add-tlv-map` takes it."""

    @abstractmethod
    def teach_neighbour(self, slot: Slot, bridge: str, ip: str, mac: str) -> None: ...
    @abstractmethod
    def teach_route(self, slot: Slot, bridge: str, prefix: str) -> None: ...
    @abstractmethod
    def on_link(self, slot: Slot, bridge: str) -> str:
        """An address of nobody's that the slot's switch reaches by this bridge with no gateway between."""

    @abstractmethod
    def chardevs(self, port: VmPort) -> set[str]:
        """Those of the VM's that are ours."""

    @abstractmethod
    def end_vm(self, port: VmPort) -> None: ...
    @abstractmethod
    def migrating(self, port: VmPort) -> AbstractContextManager[None]:
        """While inside, the VM is on its way to another host; then it stays."""

    @abstractmethod
    def listens(self, path: Path) -> bool:
        """Whether a socket is bound to that name."""

    @abstractmethod
    def leads_to(self, path: Path) -> Path | None:
        """What a symbolic link points to, None where there is none."""

    @abstractmethod
    def addresses(self, slot: Slot, netdev: str) -> set[str]:
        """Of a netdev in the slot's namespace, but for those the kernel makes; nothing where there is none."""


def a_pid_that_is_none() -> int:
    """Of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def refused(code: str = "") -> AbstractContextManager[pytest.ExceptionInfo[UpgradeError]]:
    """An error that an operator can do something with; with `code`, that one."""

    def fits(error: UpgradeError) -> bool:
        return bool(error.what and error.state and error.next) and (not code or error.code == code)

    return pytest.raises(UpgradeError, check=fits)
