"""Where parked rings lie, on a machine with two NUMA nodes: the QEMU series' own tests of it, in a guest that has two.

    build/venv/bin/python -m tests.support.numa_guest    # make check-numa

The guest, its kernel and what it sees of this machine are `nic_guest`'s. The patched QEMU runs in it as its own tests
run it: the test is the guest's driver, and reads /proc/PID/numa_maps of QEMU and of the back-ends.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.show.items import Item, check
from tests.support import nic_guest
from upgrader.adapters import gate
from upgrader.core.errors import HostError

_STACK = nic_guest.ROOT / "build/stack"
_PROGRAM = "tests/qtest/vhost-user-standby-test"
_TESTS = "/x86_64/vhost-user-standby/guest/numa"
_NODE_MIB = 512
_LIMIT_S = 300
_TWO_NODES = [
    word
    for n in (0, 1)
    for word in ("-object", f"memory-backend-ram,id=node{n},size={_NODE_MIB}M", "-numa", f"node,memdev=node{n}")
]
_TURNS = [0, 1, 0, 1, 0, 1]  # one guest that begins on node 0, and one that begins on node 1
_LOOK = re.compile(
    r"^# queue pairs (\d), rings on node (\d): scratch region on (-?\d) in QEMU, "
    r"on (-?\d) in the parked (\w+); QEMU's heap on (-?\d)\r?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a test saw once: nodes of the guest's rings, and of the pages of three mappings in /proc/PID/numa_maps.

    parked  whose rings were parked: "standby", or "owner" after a switch
    heap    where QEMU's pages are that nobody has bound
    """

    pairs: int
    ring: int
    in_qemu: int
    in_backend: int
    parked: str
    heap: int


def looks(output: str) -> list[Look]:
    """In the order in which they were taken."""
    return [
        Look(int(pairs), int(ring), int(qemu), int(backend), parked, int(heap))
        for pairs, ring, qemu, backend, parked, heap in _LOOK.findall(output)
    ]


def judged(output: str) -> Iterator[Item]:
    """An item a case: one and two queue pairs, the rings on either node; and one for each test's own verdict."""
    seen = looks(output)
    for pairs in (1, 2):
        for node in (0, 1):
            case = [look for look in seen if (look.pairs, look.ring) == (pairs, node)]
            right = [look for look in case if look.in_qemu == look.in_backend == node]
            whose = sorted({look.parked for look in case})
            apart = sum(look.heap not in (node, -1) for look in case)
            yield Item(
                f"{pairs} queue pair{'s' * (pairs > 1)}, rings on node {node}: the region for parked rings",
                f"on node {node} in {len(right)} of {len(case)} looks, parked: {', '.join(whose) or 'nobody'}; "
                f"QEMU's own heap is on the other in {apart}",
                "every look, with each side parked, and some with the heap elsewhere",
                bool(case) and right == case and whose == ["owner", "standby"] and apart > 0,
            )
        turns = [node for node, _ in groupby(look.ring for look in seen if look.pairs == pairs)]
        verdict = re.search(
            rf"^((?:not )?ok) \d+ {_TESTS}/{'one-pair' if pairs == 1 else 'two-pairs'}\b(.*)$", output, re.M
        )
        said = f"{verdict[1]}{verdict[2].rstrip()}" if verdict else "not run"
        yield Item(
            f"{pairs} queue pair{'s' * (pairs > 1)}: the rings go to the other node and back when the guest resets",
            f"nodes {turns}, the test: {said}",
            f"nodes {_TURNS}, ok",
            turns == _TURNS and said == "ok",
        )


def program() -> Path:
    """The series' test program, built in the tree that the patched QEMU comes from. Raises HostError, CommandError."""
    prefix = (_STACK / "qemu").resolve()
    tree = prefix.parent / "work" / prefix.name / "obj"
    if not tree.is_dir():
        raise HostError(
            "STACK_NO_BUILD_TREE",
            f"{prefix.name} is installed, but its build tree {tree} is gone",
            state="the installed build is untouched",
            next=f"rm -r {prefix}, then make stack",
        )
    gate.run(["ninja", "-C", str(tree), _PROGRAM], timeout_s=900)
    return tree / _PROGRAM


def items() -> Iterator[Item]:
    """What was seen in the guest, and whether it came to its end."""
    qemu = _STACK / "qemu/bin/qemu-system-x86_64"
    # memory is bound to a node in a tmpfs only, and that is what /run is there
    environment = [f"QTEST_QEMU_BINARY={qemu}", "TMPDIR=/run"]
    release, output = nic_guest.boot(
        ["env", *environment, str(program()), "--tap", "-p", _TESTS],
        (),
        qemu=("qemu-system-x86_64", "-M", "q35", *_TWO_NODES),
        memory_mib=2 * _NODE_MIB,
        limit_s=_LIMIT_S,
    )
    yield from judged(output)
    ended = re.search(r"^guest-exit 0\b", output, re.MULTILINE) is not None
    figure = "came to its end" if ended else f"broke off: {output[-1500:]}"
    yield Item(f"a guest with two NUMA nodes, kernel {release}", figure, "its end", ended)


if __name__ == "__main__":
    sys.exit(check(items()))
