"""Options of a lab, and the names and paths that follow from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from upgrader.core.errors import UsageError
from upgrader.lab.spec import LabSpec

_UNIX_PATH_MAX = 107  # unix(7), without the closing zero


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "Lab"},
        {"name": "-lab"},
        {"name": "a/../b"},
        {"name": "lab name"},
        {"name": "a-name-too-long"},
        {"name": "lab\n"},
        {"vms": 0},
        {"vms": 17},
        {"vms": -1},
        {"queues": 0},
        {"queues": 5},
        {"pages": "1g"},
        {"pages": ""},
    ],
)
def test_a_bad_option_is_refused_with_a_command_that_works(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        LabSpec(**options)
    assert refused.value.next.startswith("upgrade lab up --")
    assert refused.value.state == "nothing was changed"


def test_socket_paths_fit_at_the_longest_name() -> None:
    spec = LabSpec(name="a" * 12, vms=16)
    vm = spec.guests[-1]
    longest = [vm.vhost_socket, vm.channel, spec.libvirt_socket]
    # libvirt's monitor and the coordinator's standby socket, which carries the interface's name and more
    longest += [spec.libvirt_directory / f"lib/qemu/domain-999-{vm.name}/monitor.sock"]
    longest += [spec.directory / "slot-b/vhost" / f"{vm.port}-standby-generation.sock"]
    for path in longest:
        assert len(str(path)) <= _UNIX_PATH_MAX, path


def test_guests_share_nothing() -> None:
    guests = LabSpec(vms=16).guests
    for key in ("name", "mac", "ip", "port", "ofport", "vhost_socket", "channel", "console"):
        assert len({getattr(vm, key) for vm in guests}) == 16, key


def test_two_labs_share_no_name_and_no_path() -> None:
    one, two = LabSpec(name="one"), LabSpec(name="two")
    assert not set(one.namespaces.all()) & set(two.namespaces.all())
    assert one.directory != two.directory


def test_guests_on_hugepages_are_reserved_for() -> None:
    slots_only = LabSpec(vms=4, pages="4k").hugepages
    assert LabSpec(vms=1, pages="4k").hugepages == slots_only
    assert LabSpec(vms=4, pages="2m").hugepages == slots_only + 4 * 64  # 128 MiB each


def test_options_survive_the_state_file() -> None:
    spec = LabSpec("x", 3, 2, "2m", Path("/opt/ovs"), Path("/opt/qemu"))
    assert LabSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
