"""What writes to a switch while it is replicated: processes that say what they did, and a way for a controller to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upgrader.adapters import gate
from upgrader.core.model import Slot

CONTROLLER_IP = "10.99.0.1"


class Said:
    """A process that prints JSON lines, and what it has said so far."""

    def __init__(self, argv: list[str], folder: Path, netns: str | None = None) -> None:
        self._output = folder / f"{argv[1]}.out"
        command = [sys.executable, *argv]
        self._process: subprocess.Popen[bytes] = gate.spawn(command, netns=netns, output=self._output)

    def lines(self, what: str) -> list[dict[str, Any]]:
        text = self._output.read_text().splitlines()
        said = [json.loads(line) for line in text if line.startswith("{") and line.endswith("}")]
        return [line for line in said if line["what"] == what]

    def last(self, what: str) -> int:
        return max((int(line["which"]) for line in self.lines(what)), default=0)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def controllers_network() -> Iterator[Callable[[Slot], str]]:
    """A namespace for a controller, at CONTROLLER_IP; yields how to lay a cable from a slot, which returns its name."""
    name = f"t{os.getpid()}-ctl"
    gate.run(["ip", "netns", "add", name])
    try:
        for command in ("link add ctlbr type bridge", "link set ctlbr up", f"address add {CONTROLLER_IP}/24 dev ctlbr"):
            gate.run(["ip", *command.split()], netns=name)

        def lay(slot: Slot) -> str:
            end = f"to-{slot.name}"
            gate.run(["ip", "link", "add", "ctl", "netns", str(slot.netns), "type", "veth", "peer", end, "netns", name])
            gate.run(["ip", "link", "set", end, "master", "ctlbr", "up"], netns=name)
            gate.run(["ip", "link", "set", "ctl", "up"], netns=slot.netns)
            number = 2 if slot.name == "a" else 3
            gate.run(["ip", "address", "add", f"10.99.0.{number}/24", "dev", "ctl"], netns=slot.netns)
            return name

        yield lay
    finally:
        gate.run(["ip", "netns", "del", name])
