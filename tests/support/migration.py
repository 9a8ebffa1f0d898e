"""A migration of a lab's guest that goes on until it is cancelled: to a socket that nobody reads."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.switch import eventually
from upgrader.lab.libvirtd import virsh
from upgrader.lab.up import Lab


def qmp(lab: Lab, domain: str, command: str, **arguments: Any) -> Any:
    """One command to the guest's QEMU, by way of libvirt."""
    said = virsh(lab.spec, "qemu-monitor-command", domain, json.dumps({"execute": command, "arguments": arguments}))
    answer = json.loads(said)
    assert "error" not in answer, answer
    return answer["return"]


@contextmanager
def migrating(lab: Lab, domain: str) -> Iterator[None]:
    """While inside, the guest is on its way to nowhere; then it stays."""
    path = lab.spec.directory / "migration.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        qmp(lab, domain, "migrate", uri=f"unix:{path}")
        try:
            eventually(lambda: qmp(lab, domain, "query-migrate").get("status") == "active", "the migration to begin")
            yield
        finally:
            qmp(lab, domain, "migrate_cancel")
            eventually(
                lambda: qmp(lab, domain, "query-migrate").get("status") == "cancelled", "the migration to be cancelled"
            )
            path.unlink(missing_ok=True)
