"""A NIC of veth pairs in a namespace of its own, packets at a constant rate through it, and rules turned meanwhile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.fake_nic import VFS, FakeNic, FakeVfs, build_shim, x710
from upgrader.adapters import gate
from upgrader.adapters.netlink import Requests, route_socket
from upgrader.adapters.tc_u32 import TcU32
from upgrader.core import tc
from upgrader.core.model import SlotName, VmPort
from upgrader.core.tc import Underlay
from upgrader.sim.facts import vm_port

SOURCE = Path(__file__).with_name("steer_gen.c")
RATE_PPS = 50_000
GAP_US = 150  # what a delete and an add by netlink took on this kind of machine, about 6 packets at 40,000 a second
SIDES: tuple[SlotName, SlotName] = ("b", "a")


@dataclass
class Nic:
    """A PF and two VFs as veth pairs; `vf1`/`vf2` are the VFs' far ends.

    Plain: `wire` is the PF's other end. Wired: `wire` leads to `nicp`, where a `Wiring` puts what the NIC's own rules
    say in front of the PF.
    """

    netns: str

    def tc(self, *arguments: str) -> str:
        return gate.run(["tc", *arguments], netns=self.netns).stdout

    def index(self, name: str) -> int:
        (link,) = json.loads(gate.run(["ip", "-json", "link", "show", name], netns=self.netns).stdout)
        return int(link["ifindex"])


@contextmanager
def veth_nic(label: str = "nic", *, wired: bool = False) -> Iterator[Nic]:
    """The NIC, taken down in the end whatever happens."""
    netns = f"t{os.getpid()}-{label}"
    pairs = [("vf1r", "vf1"), ("vf2r", "vf2"), *([("pf0", "pf0x"), ("nicp", "wire")] if wired else [("pf0", "wire")])]
    gate.run(["ip", "netns", "add", netns])
    try:
        for left, right in pairs:
            gate.run(["ip", "-n", netns, "link", "add", left, "type", "veth", "peer", "name", right])
            for name in (left, right):
                gate.run(["ip", "-n", netns, "link", "set", name, "up"])
        yield Nic(netns)
    finally:
        gate.run(["ip", "netns", "del", netns])


def software(nic: Nic, underlay: Underlay = Underlay.IPV4) -> TcU32:
    return TcU32("pf0", nic.netns, {"a": "vf1r", "b": "vf2r"}, 4789, underlay)


class Wiring:
    """Gives the packets on `nicp` to whom a fake NIC's rules send them: to a VF, else to the PF.

    A rule is turned as the drivers do: deleted and then added, `gap_us` apart at least; in between the PF has the packets.
    """

    _INDEX = 77  # of the one mirred action that says where to

    def __init__(self, nic: Nic, fake: FakeNic, gap_us: int = 0) -> None:
        self._fake = fake
        self._gap_us = gap_us
        self._pf = nic.index("pf0x")
        self._vfs = (nic.index("vf1r"), nic.index("vf2r"))
        self._requests = Requests(route_socket(nic.netns))
        self._now: int | None = None
        nic.tc("qdisc", "add", "dev", "nicp", "ingress")
        nic.tc("filter", "add", "dev", "nicp", "parent", "ffff:", "protocol", "ip", "prio", "9", "u32", "match", "u32", "0",
               "0", "action", "mirred", "egress", "redirect", "dev", "pf0x", "index", str(self._INDEX))  # fmt: skip
        fake.on_change = self.follow
        self.turns = 0

    def follow(self) -> None:
        target = self._fake.target(4789)
        if target == self._now:
            return
        if self._now is not None:
            self._send_to(self._pf)
            until = time.perf_counter() + self._gap_us / 1e6
            while time.perf_counter() < until:
                os.sched_yield()  # the generator may need this CPU; a sleep would be far longer
        if target is not None:
            self._send_to(self._vfs[target])
            self.turns += 1
        self._now = target

    def _send_to(self, ifindex: int) -> None:
        self._requests.send(tc.change_actions([tc.Mirred(ifindex, index=self._INDEX).encode()]))


class WiredVfs(FakeVfs):
    """VFs whose counters are those of the netdevs that packets for them really leave by."""

    def __init__(self, fake: FakeNic, nic: Nic) -> None:
        super().__init__(fake)
        self._counters = software(nic)

    def received(self, vf: int) -> int:
        return self._counters.arrived()["a" if vf == VFS["a"] else "b"]


def build_generator(folder: Path) -> Path:
    target = folder / "steer_gen"
    if not target.exists():
        gate.run(["gcc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", str(target), str(SOURCE), "-lpthread"])
    return target


@dataclass(frozen=True)
class Passed:
    """What became of the packets while rules were turned so often."""

    turns: int
    took_s: float
    sent: int
    lost: int
    duplicated: int
    reordered: int
    sinks: dict[str, int]


def under_traffic(
    nic: Nic, generator: Path, port: VmPort, turn: Callable[[int], None], turns: int, *, rate_pps: int, seconds: float
) -> Passed:
    """Turn so often, spread over the traffic's time, or as often as fits; the generator ends by itself after `seconds`."""
    argv = [str(generator), "wire", "vf1", "vf2", str(rate_pps), str(seconds), str(port.vni), port.mac]
    process = gate.spawn(argv, netns=nic.netns, stdout_pipe=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        started = time.monotonic()
        every = (seconds - 0.7) / max(turns, 1)
        done = 0
        for number in range(turns):
            if time.monotonic() - started > seconds - 0.7:
                break
            turn(number)
            done += 1
            ahead = started + (number + 1) * every - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        took_s = time.monotonic() - started
        figures: dict[str, Any] = json.loads(process.stdout.read())
    finally:
        process.kill()
        process.wait()
    del figures["longest_burst"]
    return Passed(done, took_s, **figures)


def one_vm_turned(generator: Path, turns: int, seconds: float) -> Passed:
    """One VM's rule to and fro, by the ready message."""
    with veth_nic("flips") as nic:
        return _to_and_fro(nic, generator, turns, seconds)


def _to_and_fro(nic: Nic, generator: Path, turns: int, seconds: float) -> Passed:
    port = vm_port(1)
    steering = software(nic)
    steering.steady("a")
    steering.open_window([(port, "a")])
    return under_traffic(
        nic,
        generator,
        port,
        lambda n: steering.move_vm(port, (SIDES[n % 2],)),
        turns,
        rate_pps=RATE_PPS,
        seconds=seconds,
    )


def one_vm_handed_over(generator: Path, turns: int, seconds: float) -> Passed:
    """One VM's rule to both slots and on to the other, as a hand-over with dual delivery does."""
    port = vm_port(1)
    to: tuple[tuple[SlotName, ...], ...] = (("b", "a"), ("b",), ("a", "b"), ("a",))
    with veth_nic("dual") as nic:
        steering = software(nic)
        steering.steady("a")
        steering.open_window([(port, "a")])
        return under_traffic(
            nic, generator, port, lambda n: steering.move_vm(port, to[n % 4]), turns, rate_pps=RATE_PPS, seconds=seconds
        )


def whole_port_turned(generator: Path, folder: Path, turns: int, seconds: float, *, catch: bool) -> Passed:
    """The one rule of a modelled X710 to and fro, with the gap that its drivers have; caught on the PF, or not."""
    fake = FakeNic(folder / f"nic-{catch}", build_shim(folder), out_of_tree=True)
    with veth_nic("port", wired=True) as nic:
        wiring = Wiring(nic, fake, GAP_US)
        steering = x710(fake, WiredVfs(fake, nic), catch=software(nic) if catch else None)
        steering.steady("a")
        passed = under_traffic(
            nic,
            generator,
            vm_port(1),
            lambda n: steering.steady(SIDES[n % 2]),
            turns,
            rate_pps=RATE_PPS,
            seconds=seconds,
        )
    return replace(passed, turns=wiring.turns - 1)


def in_tree_turned(generator: Path, folder: Path, turns: int, seconds: float) -> Passed:
    """An X710 with the kernel's driver: its rule stands, and brings no packet to a VF; tc on its PF turns a VM's to and fro."""
    fake = FakeNic(folder / "nic-in-tree", build_shim(folder), out_of_tree=False)
    with veth_nic("tree", wired=True) as nic:
        Wiring(nic, fake)
        x710(fake, WiredVfs(fake, nic)).steady("a")
        return _to_and_fro(nic, generator, turns, seconds)


def detoured(generator: Path, folder: Path, windows: int, seconds: float) -> Passed:
    """Windows opened, the VM moved, closed: from the NIC to the PF, there to the other switch, and onto the NIC again."""
    fake = FakeNic(folder / "nic-detour", build_shim(folder), out_of_tree=True)
    port = vm_port(1)
    with veth_nic("detour", wired=True) as nic:
        wiring = Wiring(nic, fake, GAP_US)
        steering = x710(fake, WiredVfs(fake, nic), catch=software(nic), detour=True)
        steering.steady("a")

        def turn(number: int) -> None:
            to, old = SIDES[number // 3 % 2], SIDES[(number // 3 + 1) % 2]
            match number % 3:
                case 0:
                    steering.open_window([(port, old)])
                case 1:
                    steering.move_vm(port, (to,))
                case 2:
                    steering.close_window(to)

        passed = under_traffic(nic, generator, port, turn, 3 * windows, rate_pps=RATE_PPS, seconds=seconds)
    return replace(passed, turns=wiring.turns - 1)
