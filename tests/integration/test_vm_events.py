"""What happens to a lab's VMs, as libvirt says it: heard at once, by a process that ends with whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.test_churn import gains_a_port, loses_a_port
from tests.integration.test_upgrade import all_reachable
from tests.support.killing import wait_until
from tests.support.lab_host import LabHost
from tests.support.migration import migrating
from tests.support.protection import restart_vm
from tests.support.slots import vsctl
from upgrader.daemon.vm_events import VmEvents
from upgrader.lab.libvirtd import virsh
from upgrader.lab.up import Lab

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
HEARD_S = 1.0  # the daemon looks by itself every two seconds


def listeners() -> set[int]:
    """Processes of ours that listen."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"upgrader.daemon.vm_events" in path.read_bytes():
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("lab", [{"tag": "v", "vms": 2}], indirect=True)
def test_what_happens_to_a_vm_is_heard_at_once(lab: Lab) -> None:
    host, other = LabHost(lab), lab.guests[1].name
    heard = threading.Event()
    events = VmEvents(lab.spec.libvirt_uri, heard.set)

    def hears(what: Callable[[], object]) -> None:
        time.sleep(0.2)
        heard.clear()
        what()
        assert heard.wait(HEARD_S)

    try:
        assert heard.wait(10), "that it listens"
        hears(lambda: restart_vm(lab, other))
        wait_until(lambda: all_reachable(lab), "the guest to run: one that boots lets no device go", 60)
        hears(lambda: gains_a_port(lab, host, other))
        hears(lambda: loses_a_port(lab, host, other))
        hears(lambda: virsh(lab.spec, "reset", other))
        vsctl(host.slots[host.active()], "del-port", "more0")
        with migrating(lab, other):  # which libvirt was not asked for: QEMU alone knows of it, and is asked
            pass
    finally:
        events.close()
    heard.clear()
    restart_vm(lab, other)
    assert not heard.wait(HEARD_S), "nobody listens any more"


def test_a_listener_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """Also where that is killed, or there is no libvirt."""
    before = listeners()
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    code = (
        "import time; from upgrader.daemon import vm_events as v; v._AGAIN_S = 0.1;"
        f"v.VmEvents({uri!r}, lambda: None); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "up\n"
        wait_until(lambda: listeners() - before != set(), "a listener, again and again", 20)
        owner.kill()
    wait_until(lambda: listeners() <= before, "its end", 10)


def test_closing_leaves_nothing(tmp_path: Path) -> None:
    before = listeners()
    for _ in range(3):
        VmEvents("test:///default", lambda: None).close()
    wait_until(lambda: listeners() <= before, "their end", 10)
