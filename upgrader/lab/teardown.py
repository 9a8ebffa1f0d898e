"""Taking a lab down, whatever there is of it.

Nothing here trusts that `up` came to its end: the names follow from the lab's name, the processes are found in /proc,
and every part may be gone already. The state directory goes last, so that a `down` that is itself cut short can be
repeated.
"""

from __future__ import annotations

import shutil

from upgrader.core.errors import HostError
from upgrader.lab import host, libvirtd, topology, vintage
from upgrader.lab.host import Hugepages
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import LabState, Phase, path_of, write

_ROUNDS = 3


def anything_left(lab: LabSpec) -> bool:
    """Whether there is anything of this lab on the machine."""
    return bool(
        lab.directory.exists() or topology.present(lab) or host.lab_processes(lab) or Hugepages().reserved(lab.name)
    )


def take_down(state: LabState) -> None:
    """End the lab's processes, remove its namespaces and files, give its hugepages back. Idempotent. Raises HostError."""
    lab = state.spec
    if path_of(lab).exists():
        write(LabState(lab, Phase.GOING_DOWN, state.processes))
    host.end(host.coordinators(lab))  # before what it may be at work on
    # More than once: a process may have started another one while the first list was made.
    for _ in range(_ROUNDS):
        recorded = [p.process for p in state.processes]
        left = host.end({*recorded, *host.lab_processes(lab)})
        if left:
            pids = ", ".join(str(p.pid) for p in left)
            raise HostError(
                "LAB_STUCK",
                f"processes of the lab do not end, even when killed: {pids}",
                state="the rest of the lab is still there",
                next=f"grep State /proc/{left[0].pid}/status, then: upgrade lab down --name {lab.name}",
            )
        if not host.lab_processes(lab):
            break
    topology.destroy(lab)
    vintage.unmount(lab)
    libvirtd.unmount(lab)
    Hugepages().release(lab.name)
    shutil.rmtree(lab.directory, ignore_errors=True)
    if lab.directory.exists():
        shutil.rmtree(lab.directory)  # again, to say what is in the way
