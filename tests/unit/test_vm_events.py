"""libvirt's events, from the driver that libvirt has for tests: it needs no daemon, and no VM."""

from __future__ import annotations

import json
import subprocess
import sys

#: In a process of its own: libvirt's event loop is a process's for good.
LISTENS = """\
import json, sys, threading, time, libvirt
from upgrader.adapters.libvirt_events import listen
told = []
threading.Thread(target=listen, args=("test:///default", lambda: told.append(1)), daemon=True).start()

def after(what):
    before = len(told)
    what()
    end = time.monotonic() + 5
    while len(told) == before and time.monotonic() < end:
        time.sleep(0.01)
    return len(told) - before

found = [after(lambda: None)]
vm = libvirt.open("test:///default").lookupByName("test")
found += [after(vm.destroy), after(vm.create)]
json.dump(found, sys.stdout)
"""


def test_a_vm_that_stops_and_starts_is_told_of() -> None:
    done = subprocess.run([sys.executable, "-c", LISTENS], capture_output=True, text=True, timeout=60, check=True)
    listening, stopped, started = json.loads(done.stdout)
    assert listening == 1, "once, when it listens"
    assert stopped >= 1
    assert started >= 1


def test_without_a_libvirt_it_returns() -> None:
    code = "from upgrader.adapters.libvirt_events import listen; listen('qemu+unix:///system?socket=/none', print)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
