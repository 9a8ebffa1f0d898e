"""From a lab that is up to a session on it: one agent of ours in the remote's namespace, one in each guest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address

from upgrader.core.errors import UsageError
from upgrader.lab import spec as names
from upgrader.lab import state
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import Phase
from upgrader.lab.traffic.analysis import Direction
from upgrader.lab.traffic.build import build_agent
from upgrader.lab.traffic.protocol import Agent
from upgrader.lab.traffic.session import Node, TrafficSession

# The only network device of a lab guest, whose initramfs renames nothing.
GUEST_INTERFACE = "eth0"

# The namespace's agent stands for another machine, and shares two CPUs with polling PMDs and emulated guests.
# Measured with 4 flows each way at 1 kpps on 2 CPUs at a load of 5 to 8, longest gap of a control run (3 runs each):
# no priority 9.0 to 10.0 ms, nice -5 9.7 to 13.1 ms, nice -15 7.6 to 9.1 ms, SCHED_FIFO 1 1.4 to 2.6 ms. It takes
# 6 % of a CPU in slices well under a millisecond, so it does not starve what it measures.
FABRIC_OPTIONS = ("--fifo", "1", "--memory-mib", "256")


def lab_named(name: str) -> LabSpec:
    """The options of a lab that is up. Raises UsageError if there is none of that name."""
    found = state.read(LabSpec(name=name))
    if found is None or found.phase is not Phase.UP:
        raise UsageError(
            "LAB_NOT_UP",
            f"there is no lab {name!r}" if found is None else f"the lab {name!r} is {found.phase}",
            state="nothing was changed",
            next=f"upgrade lab up --name {name}",
        )
    return found.spec


@contextlib.contextmanager
def lab_session(
    lab: LabSpec,
    *,
    rate_pps: int = 1000,
    payload_bytes: int = 64,
    directions: Sequence[Direction] = tuple(Direction),
    fabric_options: Sequence[str] = FABRIC_OPTIONS,
) -> Iterator[TrafficSession]:
    """Reach every agent of a lab; let go of them at the end. Raises AgentError when one does not answer.

    Whatever an earlier client left running in a guest is ended when the session starts.
    """
    with contextlib.ExitStack() as stack:
        argv = [str(build_agent()), "--serve", "-", *fabric_options]
        fabric = Agent.spawn("fabric", argv, netns=lab.namespaces.remote)
        stack.callback(fabric.close)
        vms = []
        for vm in lab.guests:
            agent = Agent.connect(vm.name, vm.channel)
            stack.callback(agent.close)
            vms.append(Node(vm.name, IPv4Address(vm.ip), agent, interface=GUEST_INTERFACE))
        remote = Node("fabric", IPv4Address(names.REMOTE_OVERLAY_IP), fabric, same_clock=True)
        session = TrafficSession(remote, vms, rate_pps=rate_pps, payload_bytes=payload_bytes, directions=directions)
        stack.callback(session.abandon)
        yield session
