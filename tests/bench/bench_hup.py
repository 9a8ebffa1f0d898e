"""How long after the death of the switch its vhost peers learn of it, patched beside unpatched in the same run.

``python -m tests.bench.bench_hup [rounds]`` as root, with the stack built. Both builds take turns, so that both see
the same noise. The switch has what a slot has: hugepages (without them the time to unmap its memory comes on top), a
bridge, and an uplink by packet sockets that was added after the VM.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from pathlib import Path

import structlog

from tests.support import vhost_user
from tests.support.switch import eventually, running
from upgrader.lab.stack import BUILD_DIR, build_stack

MEMORY_MB = 192
PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def hup_ms(prefix: Path, directory: Path) -> float:
    """Start a switch, connect a VM, kill the switch; return the milliseconds until the VM's socket hangs up."""
    with running(prefix, directory / "switch", memory_mb=MEMORY_MB, small_pools=True, hugepages=True) as switch:
        server = vhost_user.listen(directory / "vm")
        switch.add_client_port("vm", directory / "vm", number=1)
        vm = vhost_user.accept(server)
        vm.negotiate()
        vm.start()
        switch.in_namespace("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "far")
        devargs = "options:dpdk-devargs=net_af_packet0,iface=uplink"
        switch.vsctl("add-port", "br0", "up", "--", "set", "interface", "up", "type=dpdk", devargs)
        eventually(lambda: switch.interface("vm", "link_state") == "up", "the VM's link")
        killed = switch.kill()
        elapsed_ms = (vhost_user.wait_for_hangup(vm) - killed) * 1e3
        server.close()
        vm.close()
    return elapsed_ms


def main() -> int:
    """Print the times of both builds and the ratio of their medians."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    wanted = MEMORY_MB // 2
    if int(PAGES.read_text()) < wanted:
        print(f"{wanted} free hugepages of 2 MiB are needed: raise vm.nr_hugepages by as many", file=sys.stderr)
        return 1
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    builds = {
        "patched": build_stack(BUILD_DIR, parts=["ovs"])[-1].link.resolve(),
        "unpatched": build_stack(BUILD_DIR, parts=["ovs"], patched=False)[-1].link.resolve(),
    }
    times: dict[str, list[float]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(rounds):
            for name, prefix in builds.items():
                times[name].append(hup_ms(prefix, Path(scratch) / f"{name}-{round_}"))
    for name, values in times.items():
        median, worst = statistics.median(values), max(values)
        print(f"{name:10} kill to hang-up: median {median:6.2f} ms, min {min(values):6.2f}, max {worst:6.2f}")
    ratio = statistics.median(times["unpatched"]) / statistics.median(times["patched"])
    print(f"unpatched / patched: {ratio:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
