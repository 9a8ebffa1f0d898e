"""What replicating and proving a large switch takes, beside what ovs-ofctl alone takes for its flows, in the same run.

``python -m tests.bench.bench_replication [flows] [ports] [rounds]`` as root, with the stack built. Two real slots
without DPDK: no packet flows, the work is that of the control plane. Prints JSON on stdout, a table on stderr.
"""

from __future__ import annotations

import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import structlog

from tests.support.slots import SlotFactory, carry_out, context_of, ofctl, vsctl
from upgrader.adapters import gate
from upgrader.adapters.ofctl import Ofctl
from upgrader.core.model import Slot
from upgrader.core.plan import StepKind

BRIDGE = "br-int"


@dataclass(frozen=True)
class Figures:
    """Seconds, medians over the rounds; memory of the coordinator at its largest, MiB."""

    flows: int
    ports: int
    ofctl_bundle_s: float
    replicate_s: float
    prove_s: float
    follow_changed_s: float  # a round that brings one flow over
    follow_idle_s: float  # a round after nothing was changed
    peak_rss_mib: float
    mutations_named: int  # of one flow changed on the standby in each round, how many were told, and nothing else

    @property
    def ratio(self) -> float:
        """Replicating and proving, in units of ``ovs-ofctl --bundle add-flows`` of the same flows."""
        return (self.replicate_s + self.prove_s) / self.ofctl_bundle_s


def flow_lines(number: int, ports: int) -> list[str]:
    """Flows as an overlay has them: classified, rewritten, sent on; 8 tables, ten priorities, a cookie each."""
    return [
        f"table={i % 8},priority={i % 10 + 10},cookie={i:#x},ip,nw_src=10.{i >> 16}.{i >> 8 & 255}.{i & 255},"
        f"nw_dst=172.16.{i % 7}.0/24 actions=set_field:{i:#x}->tun_id,output:{i % ports + 1}"
        for i in range(number)
    ]


def add_ports(slot: Slot, number: int) -> None:
    """A bridge and its ports, in one transaction."""
    command = ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev", "fail_mode=secure"]
    for i in range(1, number + 1):
        command += ["--", "add-port", BRIDGE, f"p{i}", "--", "set", "interface", f"p{i}", "type=internal"]
        command += [f"ofport_request={i}", f"external_ids:iface-id=vm{i}"]
    vsctl(slot, *command)


def measure(flows: int, ports: int, rounds: int, folder: Path) -> Figures:
    """Fresh switches, filled, replicated and proved, several times."""
    times: dict[str, list[float]] = {"ofctl": [], "replicate": [], "prove": [], "changed": [], "idle": []}
    named = 0
    text = folder / "flows"
    text.write_text("\n".join(flow_lines(flows, ports)) + "\n")
    for number in range(rounds):
        with SlotFactory(folder / str(number)) as factory:
            a = factory.start("a")
            add_ports(a, ports)
            add = [
                str(a.prefix / "bin/ovs-ofctl"),
                "--bundle",
                "add-flows",
                f"unix:{a.rundir}/{BRIDGE}.mgmt",
                str(text),
            ]
            times["ofctl"].append(_timed(lambda add=add: gate.run([*add[:1], "-O", "OpenFlow15", *add[1:]])))  # type: ignore[misc]
            b = factory.start_standby("b", a)
            gate.run(["ip", "link", "set", BRIDGE, "up"], netns=a.netns)
            context = context_of(folder / str(number), *(replace(s, uplink=BRIDGE) for s in (a, b)))
            times["replicate"].append(_timed(lambda c=context: carry_out(c, StepKind.REPLICATE)))  # type: ignore[misc]
            gate.run(["ip", "link", "set", BRIDGE, "up"], netns=b.netns)
            times["prove"].append(_timed(lambda c=context: carry_out(c, StepKind.PROVE)))  # type: ignore[misc]
            victim = flow_lines(flows, ports)[flows * 2 // 3].partition(" actions=")[0]
            ofctl(b, "add-flow", BRIDGE, f"{victim},actions=drop")
            (found, *more) = Ofctl().differences(a, b, BRIDGE, hold=True)
            named += not more and f"priority={(flows * 2 // 3) % 10 + 10}" in found.what
            times["changed"].append(_timed(lambda c=context: carry_out(c, StepKind.REPLICATE)))  # type: ignore[misc]
            carry_out(context, StepKind.REPLICATE)  # finds what the last one wrote, and that it was all
            times["idle"].append(_timed(lambda c=context: carry_out(c, StepKind.REPLICATE)))  # type: ignore[misc]
    median = {name: round(statistics.median(values), 4) for name, values in times.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Figures(
        flows,
        ports,
        ofctl_bundle_s=median["ofctl"],
        replicate_s=median["replicate"],
        prove_s=median["prove"],
        follow_changed_s=median["changed"],
        follow_idle_s=median["idle"],
        peak_rss_mib=round(peak, 1),
        mutations_named=named,
    )


def _timed(work: Callable[[], object]) -> float:
    before = time.monotonic()
    work()
    return time.monotonic() - before


def in_process(flows: int, ports: int, rounds: int) -> Figures:
    """The same in a process of its own, whose memory is that of the coordinator alone."""
    argv = [sys.executable, "-m", "tests.bench.bench_replication", str(flows), str(ports), str(rounds)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    return Figures(**json.loads(done.stdout))


def main() -> int:
    """Measure, and print."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    given = [int(n) for n in sys.argv[1:4]]
    flows, ports, rounds = given + [50_000, 50, 3][len(given) :]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures = measure(flows, ports, rounds, Path(folder))
    print(json.dumps(asdict(figures)))
    print(
        f"{figures.flows} flows, {figures.ports} ports: ovs-ofctl --bundle {figures.ofctl_bundle_s:.2f} s, "
        f"replicate {figures.replicate_s:.2f} s, prove {figures.prove_s:.2f} s ({figures.ratio:.1f} times), "
        f"a round with one change {figures.follow_changed_s:.2f} s, with none {figures.follow_idle_s:.3f} s, {figures.peak_rss_mib:.0f} MiB",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
