"""What labs could leave on a machine, so that before and after can be compared."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from upgrader.adapters import gate
from upgrader.lab.host import look_up, program
from upgrader.lab.spec import RUN_ROOT

PROGRAMS = (
    *("ovs-vswitchd", "ovsdb-server", "ovs-", "qemu-system-", "libvirtd", "virtlogd", "virsh", "pktflow", "dnsmasq"),
    "testpmd",
)
_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
_NETNS = Path("/run/netns")


def left_on_machine() -> dict[str, frozenset[str]]:
    """Processes, namespaces, netdevs, tc rules, unix sockets, mounts, folders and hugepages, each as lines to compare.

    Processes are told by pid and start time, so that one with a pid given out anew is another one. Netdevs, tc rules and
    sockets are looked for in our network namespace and in every named one; those of nameless ones are reached through
    the processes in them.
    """
    processes, sockets = set(), set()
    seen: set[int] = set()
    for pid in _pids():
        if pid != os.getpid() and (found := _of_a_lab(pid)):
            processes.add(found)
        try:
            inode = Path(f"/proc/{pid}/ns/net").stat().st_ino
            if inode not in seen:
                sockets |= {f"{inode} {path}" for path in _lab_sockets(Path(f"/proc/{pid}/net/unix").read_text())}
                seen.add(inode)
        except OSError:
            continue  # it has ended meanwhile, or is a zombie
    namespaces = sorted(p.name for p in _NETNS.iterdir()) if _NETNS.is_dir() else []
    netdevs, rules = set(), set()
    for netns in (None, *namespaces):
        where = netns or "ours"
        links = gate.run(["ip", "-details", "-json", "link", "show"], netns=netns, check=False)
        if links.returncode != 0:
            continue  # a name whose namespace is gone: counted among the names
        for link in json.loads(links.stdout or "[]"):
            kind = link.get("linkinfo", {}).get("info_kind", "")
            netdevs.add(f"{where} {link['ifname']} {kind}")
            for parent in ("ingress", "root"):
                filters = gate.run(["tc", "filter", "show", "dev", link["ifname"], parent], netns=netns, check=False)
                rules |= {f"{where} {link['ifname']} {parent} {line}" for line in filters.stdout.splitlines()}
        qdiscs = gate.run(["tc", "qdisc", "show"], netns=netns, check=False).stdout.splitlines()
        rules |= {f"{where} {line}" for line in qdiscs if "ingress" in line or "clsact" in line}
        if netns:
            listed = gate.run(["cat", "/proc/self/net/unix"], netns=netns, check=False).stdout
            sockets |= {f"{where} {path}" for path in _lab_sockets(listed)}
    return {
        "processes": frozenset(processes),
        "namespaces": frozenset(namespaces),
        "netdevs": frozenset(netdevs),
        "tc rules": frozenset(rules),
        "sockets": frozenset(sockets),
        "mounts": frozenset(
            f"{kind} {where}"
            for _, where, kind, *_ in (line.split() for line in Path("/proc/mounts").read_text().splitlines())
            if kind in ("nsfs", "hugetlbfs") or where.startswith(str(RUN_ROOT))
        ),
        "folders": frozenset(
            str(p) for root in (RUN_ROOT, Path("/run/dpdk"), Path("/dev/hugepages")) for p in root.glob("*")
        ),
        "hugepages": frozenset(
            f"{size.name} {count} {(size / count).read_text().strip()}"
            for size in _HUGEPAGES.glob("hugepages-*")
            for count in ("nr_hugepages", "nr_overcommit_hugepages")
        ),
    }


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _of_a_lab(pid: int) -> str | None:
    """A line for a process that a lab runs: by its name as started, its comm, its binary, or the lab's paths in its arguments."""
    process = look_up(pid)
    if process is None:
        return None
    try:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    if not arguments:
        return None  # a kernel thread
    try:
        binary = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        binary = ""
    names = (program(pid), comm, binary)
    if any(n.startswith(PROGRAMS) for n in names) or os.fsencode(str(RUN_ROOT)) in arguments:
        return f"{pid} since {process.start_ticks} {comm}"
    return None


def _lab_sockets(proc_net_unix: str) -> set[str]:
    """Paths of the labs' sockets in the text of /proc/net/unix (proc(5)), bound ones only."""
    lines = (line.split(maxsplit=7) for line in proc_net_unix.splitlines()[1:])
    return {fields[7] for fields in lines if len(fields) == 8 and fields[7].startswith(f"{RUN_ROOT}/")}
