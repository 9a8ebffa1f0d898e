"""A lab for tests: brought up once for all tests that ask for the same options, and always taken down.

    def test_something(lab): ...                                   # four guests, one queue pair, 4 KiB pages

    @pytest.mark.parametrize("lab", [{"vms": 2, "pages": "2m"}], indirect=True)
    def test_something_else(lab): ...

`OVS_UPGRADE_TEST_OVS` and `OVS_UPGRADE_TEST_QEMU` name another OVS prefix or QEMU than those that `make stack` builds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upgrader.adapters import gate
from upgrader.lab import spec as names
from upgrader.lab.host import lab_processes
from upgrader.lab.spec import LabSpec
from upgrader.lab.up import Lab

OVS_PREFIX = Path(os.environ.get("OVS_UPGRADE_TEST_OVS", names.DEFAULT_OVS_PREFIX))
QEMU_BINARY = Path(os.environ.get("OVS_UPGRADE_TEST_QEMU", names.DEFAULT_QEMU_BINARY))


def lab_spec(tag: str = "", **options: Any) -> LabSpec:
    """Options of a lab under a name that no other test run on this machine has."""
    name = f"t{os.getpid() % 1_000_000}{tag}"
    return LabSpec(**{"name": name, "ovs_prefix": OVS_PREFIX, "qemu_binary": QEMU_BINARY, **options})


@pytest.fixture(scope="session", name="lab")
def lab_fixture(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that is up and healthy; `request.param` holds options of `LabSpec`, where there are any."""
    it = Lab(lab_spec(**getattr(request, "param", {})), say=lambda text: print(text, file=sys.stderr))
    it.up()
    try:
        yield it
    finally:
        it.down()


@dataclass(frozen=True)
class Traces:
    """What of a lab can be seen on the machine."""

    namespaces: tuple[str, ...]
    processes: tuple[str, ...]
    mounts: tuple[str, ...]
    files: tuple[str, ...]
    links: tuple[str, ...]
    hugepages: int


def traces(spec: LabSpec) -> Traces:
    """Look for everything that a lab of this name could leave, whole machine counters among it."""
    mounts = [
        line
        for line in Path("/proc/mounts").read_text().splitlines()
        if f"{spec.name}-" in line or f"/{spec.name}/" in line
    ]
    roots = (spec.directory, spec.directory.parent / f".{spec.name}.lock", *Path("/run/dpdk").glob(f"{spec.name}-*"))
    return Traces(
        namespaces=tuple(n for n in gate.run(["ip", "netns", "list"]).stdout.split() if n.startswith(f"{spec.name}-")),
        processes=tuple(Path(f"/proc/{p.pid}/cmdline").read_text() for p in lab_processes(spec)),
        mounts=tuple(mounts),
        files=tuple(str(p) for p in roots if p.exists()),
        links=tuple(sorted(p.name for p in Path("/sys/class/net").iterdir())),
        hugepages=int(Path("/proc/sys/vm/nr_hugepages").read_text()) - _hugepages_of_other_labs(spec),
    )


def _hugepages_of_other_labs(spec: LabSpec) -> int:
    """Somebody else's lab may come or go on this machine while a test runs."""
    try:
        book = json.loads((spec.directory.parent / ".hugepages.json").read_text())
    except FileNotFoundError:
        return 0
    return sum(pages for name, pages in book["labs"].items() if name != spec.name)
