"""The guests as libvirt domains: their XML, their start, and the share of the cores they get."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from upgrader.core.errors import HostError
from upgrader.lab import spec as names
from upgrader.lab import vintage
from upgrader.lab.guest import READY_LINE, GuestImage, kernel_command_line
from upgrader.lab.host import Process, look_up
from upgrader.lab.libvirtd import virsh
from upgrader.lab.spec import LabSpec, Vm

_CREATE_S: Final = 60.0
_READY_S: Final = 90.0
_VCPU_NICE: Final = 5
_QEMU_AUTOGROUP_NICE: Final = -10  # what a slot's switch gets, too
_RX_RING: Final = 1024
_HOTPLUG_SLOTS: Final = 2


def domain_xml(lab: LabSpec, vm: Vm, image: GuestImage) -> str:
    """Domain XML of one guest (libvirt.org/formatdomain.html)."""
    domain = Element("domain", type="qemu")
    SubElement(domain, "name").text = vm.name
    # Room for memory hotplug: it changes the table that every vhost-user connection holds.
    most = names.GUEST_MEMORY_MIB * (1 + _HOTPLUG_SLOTS)
    SubElement(domain, "maxMemory", slots=str(_HOTPLUG_SLOTS), unit="MiB").text = str(most)
    SubElement(domain, "memory", unit="MiB").text = str(names.GUEST_MEMORY_MIB)
    backing = SubElement(domain, "memoryBacking")
    if lab.pages == "2m":
        SubElement(SubElement(backing, "hugepages"), "page", size=str(names.HUGEPAGE_KIB), unit="KiB")
    if vintage.has_memfd(lab.qemu_binary):
        SubElement(backing, "source", type="memfd")
    elif lab.pages == "4k":
        SubElement(backing, "source", type="file")
    SubElement(backing, "access", mode="shared")
    # A vCPU for each queue pair: the guest's driver opens one pair per vCPU.
    SubElement(domain, "vcpu").text = str(lab.queues)
    system = SubElement(domain, "os")
    # The older machine has fewer devices to walk through, and boots a little faster emulated.
    SubElement(system, "type", arch="x86_64", machine="pc").text = "hvm"
    SubElement(system, "kernel").text = str(image.kernel)
    SubElement(system, "initrd").text = str(image.initramfs)
    SubElement(system, "cmdline").text = kernel_command_line(vm, tickless=lab.tickless)
    SubElement(SubElement(domain, "features"), "acpi")
    cpu = SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    SubElement(cpu, "model", fallback="allow").text = "qemu64"  # the fewest features, hence the fewest to emulate
    cell = SubElement(SubElement(cpu, "numa"), "cell", id="0", cpus=f"0-{lab.queues - 1}")
    for key, value in (("memory", str(names.GUEST_MEMORY_MIB)), ("unit", "MiB"), ("memAccess", "shared")):
        cell.set(key, value)
    SubElement(domain, "on_crash").text = "preserve"
    _add_devices(domain, lab, vm)
    return ElementTree.tostring(domain, encoding="unicode")


def _add_devices(domain: Element, lab: LabSpec, vm: Vm) -> None:
    devices = SubElement(domain, "devices")
    SubElement(devices, "emulator").text = str(lab.qemu_binary)
    SubElement(devices, "controller", type="usb", model="none")
    SubElement(devices, "memballoon", model="none")
    nic = SubElement(devices, "interface", type="vhostuser")
    SubElement(nic, "mac", address=vm.mac)
    # QEMU listens and the switch connects: a switch that restarts finds its guests again.
    SubElement(nic, "source", type="unix", path=str(vm.vhost_socket), mode="server")
    SubElement(nic, "model", type="virtio")
    # The longest ring there is: an emulated guest on a busy machine stands still for tens of milliseconds, and what then
    # overflows would be counted as the switch's loss.
    SubElement(nic, "driver", queues=str(lab.queues), rx_queue_size=str(_RX_RING))
    SubElement(nic, "rom", enabled="no")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "source", mode="bind", path=str(vm.channel))
    SubElement(channel, "target", type="virtio", name=names.TRAFFIC_CHANNEL)
    serial = SubElement(devices, "serial", type="file")
    SubElement(serial, "source", path=str(vm.console))
    SubElement(serial, "target", port="0")


def start_all(lab: LabSpec, image: GuestImage) -> None:
    """Start every guest and return once each of them says that it is ready. Raises CommandError, HostError.

    All at once: QEMU waits for the switch's first connection, and the switch tries once a second.
    """
    pool = ThreadPoolExecutor(max_workers=lab.vms, thread_name_prefix="guest")
    try:
        for start in [pool.submit(_start, lab, vm, image) for vm in lab.guests]:
            start.result()
    finally:
        # Not waited for: when one has failed the others may hang until libvirtd is taken down.
        pool.shutdown(wait=False, cancel_futures=True)
    _wait_until_ready(lab)


def _start(lab: LabSpec, vm: Vm, image: GuestImage) -> None:
    xml = lab.directory / "guests" / f"{vm.name}.xml"
    xml.write_text(domain_xml(lab, vm, image))
    virsh(lab, "create", str(xml), timeout_s=_CREATE_S)
    process = qemu_process(lab, vm)
    if process:
        schedule(process)


def qemu_process(lab: LabSpec, vm: Vm) -> Process | None:
    """The QEMU of one guest, None where it does not run."""
    try:
        return look_up(int((lab.libvirt_directory / "run/qemu" / f"{vm.name}.pid").read_text()))
    except (OSError, ValueError):
        return None


def schedule(qemu: Process) -> None:
    """Let a guest run before whatever else the machine does, and its vCPU threads give way to QEMU's other threads.

    On a real host a PMD has a core to itself, guests run on cores that nothing else uses, and the coordinator beside
    them. Here all share two cores, and what a starved guest misses would be measured as the switch's doing.

    Against the rest of the machine: with autogroups (sched(7)) a nice value counts within its session only, and each
    QEMU is a session; the session's own niceness is that of the switches. Measured with four guests and 12 flows of
    1 kpps beside compilers (load 10 to 12), longest gaps of a control run from / to the fabric, median of the VMs: as
    it comes 120 / 2500 ms and a tenth of the packets lost, with -10 17 / 25 ms and none lost.

    Within one QEMU: its main thread hands the rings over, answers QMP and delivers interrupts, in slices of well under a
    millisecond; behind vCPUs it waited for 30 % of the time, behind none for 1 %. Hence round robin for all threads but
    the vCPUs, and batch and nice 5 for those: a batch thread does not preempt on waking.
    """
    with suppress(OSError):  # a kernel without autogroups
        Path(f"/proc/{qemu.pid}/autogroup").write_text(str(_QEMU_AUTOGROUP_NICE))
    for task in Path(f"/proc/{qemu.pid}/task").iterdir():
        tid = int(task.name)
        try:
            # QEMU names them "CPU 0/TCG" (-name …,debug-threads=on, which libvirt gives).
            if (task / "comm").read_text().startswith("CPU "):
                os.sched_setscheduler(tid, os.SCHED_BATCH, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, tid, _VCPU_NICE)
            else:
                with suppress(PermissionError):  # a container without real-time priorities
                    os.sched_setscheduler(tid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        except (FileNotFoundError, ProcessLookupError):
            continue


def ready(vm: Vm) -> bool:
    """Whether the guest has come to the end of its boot."""
    try:
        return READY_LINE in vm.console.read_text(errors="replace")
    except OSError:
        return False


def _wait_until_ready(lab: LabSpec) -> None:
    deadline = time.monotonic() + _READY_S
    waiting = list(lab.guests)
    while waiting:
        waiting = [vm for vm in waiting if not ready(vm)]
        lost = [vm for vm in waiting if qemu_process(lab, vm) is None]
        if lost or (waiting and time.monotonic() > deadline):
            vm = (lost or waiting)[0]
            try:
                said = "\n".join(vm.console.read_text(errors="replace").splitlines()[-8:])
            except OSError:
                said = ""
            raise HostError(
                "GUEST_FAILED",
                f"guest {vm.name} {'ended' if lost else f'was not ready within {_READY_S:g} s'} while it booted:\n{said}",
                state="the lab is half built and is taken down",
                next="upgrade lab up",
            )
        time.sleep(0.05)
