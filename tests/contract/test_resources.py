"""Socket files, as the machine keeps them and as the simulated host does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from upgrader.adapters.host_resources import HostResources
from upgrader.ports import Resources
from upgrader.sim.host import SimResources, make_world

Look = Callable[[Path], Path | None]


@pytest.fixture(params=["machine", "simulated"])
def resources(request: pytest.FixtureRequest) -> tuple[Resources, Look, Look]:
    """The port; what a path leads to by a link; the path where a socket listens, None where there is none."""
    if request.param == "machine":
        return (
            HostResources(),
            lambda p: p.readlink() if p.is_symlink() else None,
            lambda p: p if p.is_socket() else None,
        )
    world = make_world(0)
    return SimResources(world), world.links.get, lambda p: p if p in world.listeners else None


def test_a_listener_is_there_until_it_is_removed(tmp_path: Path, resources: tuple[Resources, Look, Look]) -> None:
    port, _, listens = resources
    path = tmp_path / "x.sock"
    for _again in range(2):  # one that was left behind is replaced
        descriptor = port.listen(path)
        os.fstat(descriptor)
        os.close(descriptor)
        assert listens(path) == path
    for _again in range(2):
        port.remove(path)
        assert listens(path) is None


def test_a_redirect_replaces_what_was_there(tmp_path: Path, resources: tuple[Resources, Look, Look]) -> None:
    port, leads_to, _ = resources
    path = tmp_path / "x"
    for target in (tmp_path / "one", tmp_path / "other"):
        port.redirect(path, target)
        assert leads_to(path) == target
    port.remove(path)
    assert leads_to(path) is None


def test_the_hosts_own_namespace_is_there_and_pools_add_up(resources: tuple[Resources, Look, Look]) -> None:
    port = resources[0]
    assert port.netns_exists(None)
    for pool in port.hugepages():
        assert 0 <= pool.free <= pool.total
        assert pool.size_kib > 0
