"""A UDP relay that loses, doubles and delays exactly the packets it was told to: what the self-test measures against.

`python -m upgrader.lab.traffic.relay LISTEN_PORT TARGET_PORT RULES`: from any address to 127.0.0.1, rules as JSON.
It prints "ready" once it listens and ends with its stdin, after one JSON line: what it forwarded, each as
[sequence number, CLOCK_MONOTONIC in ns before the sending, and after it]. Over loopback the kernel stamps a packet
during its sending, so the receiver's timestamp has to lie between the two.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

# The agent's packets begin with u32 magic, u32 flow, u64 sequence (pktflow.h).
_HEAD = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to which sequence numbers.

    drop   never forwarded
    twice  forwarded two times
    hold   sequence number -> by how many later ones it is overtaken
    """

    drop: frozenset[int] = frozenset()
    twice: frozenset[int] = frozenset()
    hold: dict[int, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """For the command line."""
        hold = {str(k): v for k, v in self.hold.items()}
        return json.dumps({"drop": sorted(self.drop), "twice": sorted(self.twice), "hold": hold})

    @classmethod
    def from_json(cls, text: str) -> Rules:
        """The reverse."""
        raw = json.loads(text)
        hold = {int(k): int(v) for k, v in raw["hold"].items()}
        return cls(frozenset(raw["drop"]), frozenset(raw["twice"]), hold)


class Relay:
    """The rules at work, without sockets: a packet in, the packets that go out now."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._held: list[tuple[int, bytes]] = []  # (leaves behind this sequence number, packet)

    def pass_on(self, packet: bytes) -> Iterator[bytes]:
        """What is to be forwarded on the arrival of `packet`, in this order."""
        sequence = _HEAD.unpack_from(packet)[2]
        if sequence in self._rules.hold:
            self._held.append((sequence + self._rules.hold[sequence], packet))
            return
        if sequence not in self._rules.drop:
            yield packet
            if sequence in self._rules.twice:
                yield packet
        for entry in [entry for entry in self._held if entry[0] <= sequence]:
            self._held.remove(entry)
            yield entry[1]


def main() -> None:
    """Forward until stdin closes."""
    listen, target, rules = int(sys.argv[1]), int(sys.argv[2]), Rules.from_json(sys.argv[3])
    relay = Relay(rules)
    incoming = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    incoming.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    incoming.bind(("", listen))
    outgoing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    log: list[tuple[int, int, int]] = []
    while True:
        readable, _, _ = select.select([incoming, sys.stdin], [], [])
        if sys.stdin in readable and not os.read(sys.stdin.fileno(), 1):
            json.dump(log, sys.stdout)
            return
        if incoming in readable:
            for out in relay.pass_on(incoming.recv(2048)):
                before_ns = time.monotonic_ns()
                outgoing.sendto(out, ("127.0.0.1", target))
                log.append((_HEAD.unpack_from(out)[2], before_ns, time.monotonic_ns()))


if __name__ == "__main__":
    main()
