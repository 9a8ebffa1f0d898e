"""What a slot needs of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.contracts.rig import Rig


class SocketsContract:
    """Socket files, for which no switch is needed."""

    def test_a_listener_is_there_until_it_is_removed(self, rig: Rig, tmp_path: Path) -> None:
        port, path = rig.host.resources, tmp_path / "x.sock"
        for _again in range(2):  # one that was left behind is replaced
            descriptor = port.listen(path)
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
            assert rig.listens(path)
        for _again in range(2):
            port.remove(path)
            assert not rig.listens(path)

    def test_a_redirect_replaces_what_was_there(self, rig: Rig, tmp_path: Path) -> None:
        port, path = rig.host.resources, tmp_path / "x"
        os.close(port.listen(path))
        for target in (tmp_path / "one", tmp_path / "other", tmp_path / "other"):
            port.redirect(path, target)
            assert rig.leads_to(path) == target
            assert not rig.listens(path), "who listened there is not found by that name any more"
        os.close(port.listen(tmp_path / "other"))
        for _again in range(2):
            port.remove(path)
            assert rig.leads_to(path) is None
        assert rig.listens(tmp_path / "other"), "what it led to is left alone"

    def test_pools_add_up(self, rig: Rig) -> None:
        for pool in rig.host.resources.hugepages():
            assert 0 <= pool.free <= pool.total
            assert pool.size_kib > 0


class ResourcesContract(SocketsContract):
    def test_namespaces_and_vfs(self, rig: Rig) -> None:
        port = rig.host.resources
        assert port.netns_exists(None)
        for slot in (rig.active, rig.standby):
            assert port.netns_exists(slot.netns)
            assert port.vf_exists(slot.netns, slot.vf)
            assert not port.vf_exists(slot.netns, "no-such-vf")
        assert not port.netns_exists("no-such-namespace")
        assert not port.vf_exists("no-such-namespace", rig.active.vf)

    def test_a_standby_is_given_the_addresses_of_the_active(self, rig: Rig) -> None:
        rig.start()
        port, active, standby = rig.host.resources, rig.active, rig.standby
        bridges = [b.name for b in rig.host.database.read(active).bridges]
        before = {b: rig.addresses(active, b) for b in bridges}
        assert any(before.values())
        port.copy_addresses(active, standby, ["no-such-bridge"])
        for _again in range(2):
            port.copy_addresses(active, standby, bridges)
            assert {b: rig.addresses(standby, b) for b in bridges} == before
        assert {b: rig.addresses(active, b) for b in bridges} == before
