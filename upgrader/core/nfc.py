"""Receive classification rules as the kernel's ethtool interface takes them: bytes of `struct ethtool_rxnfc`. Pure.

Offsets and values: linux/ethtool.h, x86-64 and arm64 (the struct has no pointers). Numbers within a match are in network
order, all others in the machine's. A mask's 1 means "compare", which `ethtool -N` on its command line turns round.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

RXNFC_BYTES = 192
_SPEC_BYTES = 168
_FLOW_EXT, _FLOW_MAC_EXT = 1 << 31, 1 << 30  # the h_ext of a rule counts: VLAN and user data, or a MAC
_SPEC = struct.Struct("=I52s20s52s20s4xQI4x")
_RXNFC = struct.Struct("=IIQ168sI4x")
_H_U, _H_EXT = 52, 20
_IP_VERSION_AT, _IPV4 = 13, 1  # ethtool_usrip4_spec.ip_ver = ETH_RX_NFC_IP4


class Command(IntEnum):
    """ETHTOOL_GRXCLSR* and ETHTOOL_SRXCLSR*."""

    COUNT = 0x2E
    RULE = 0x2F
    ALL = 0x30
    DELETE = 0x31
    INSERT = 0x32


class Flow(IntEnum):
    """The flow types a rule can have, named as `ethtool -N … flow-type` names them; OTHER for what is not known here."""

    OTHER = 0
    TCP4 = 1
    UDP4 = 2
    SCTP4 = 3
    TCP6 = 5
    UDP6 = 6
    SCTP6 = 7
    AH4 = 9
    ESP4 = 10
    IP4 = 13
    IP6 = 14
    ETHER = 18


_PORTS4 = {"src-ip": (0, 4), "dst-ip": (4, 4), "src-port": (8, 2), "dst-port": (10, 2), "tos": (12, 1)}
_PORTS6 = {"src-ip": (0, 16), "dst-ip": (16, 16), "src-port": (32, 2), "dst-port": (34, 2), "tclass": (36, 1)}
_SPI4 = {"src-ip": (0, 4), "dst-ip": (4, 4), "spi": (8, 4), "tos": (12, 1)}
_IP6 = {"src-ip": (0, 16), "dst-ip": (16, 16), "l4data": (32, 4), "tclass": (36, 1), "l4proto": (37, 1)}
# field -> (offset, bytes) in h_u and m_u
_FIELDS: Mapping[Flow, Mapping[str, tuple[int, int]]] = MappingProxyType(
    {
        **dict.fromkeys((Flow.TCP4, Flow.UDP4, Flow.SCTP4), _PORTS4),
        **dict.fromkeys((Flow.TCP6, Flow.UDP6, Flow.SCTP6), _PORTS6),
        **dict.fromkeys((Flow.AH4, Flow.ESP4), _SPI4),
        Flow.IP4: {"src-ip": (0, 4), "dst-ip": (4, 4), "l4data": (8, 4), "tos": (12, 1), "l4proto": (14, 1)},
        Flow.IP6: _IP6,
        Flow.ETHER: {"dst": (0, 6), "src": (6, 6), "proto": (12, 2)},
        Flow.OTHER: {},
    }
)
# the same in h_ext and m_ext (struct ethtool_flow_ext), for every flow type
_EXT: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"dst-mac": (2, 6), "vlan-etype": (8, 2), "vlan": (10, 2), "user-def": (12, 8)}
)


@dataclass(frozen=True, slots=True)
class Match:
    """One field of a rule: big-endian numbers; a bit that is 1 in `mask` is compared."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class RxRule:
    """One rule of a NIC.

    matches   by the field's name on ethtool's command line, in the order of their offsets
    cookie    where to: ``(vf + 1) << 32 | queue`` for a VF, the queue alone for the PF
    location  its place in the NIC's table, and its name
    """

    flow: Flow
    matches: tuple[tuple[str, Match], ...]
    cookie: int
    location: int

    @property
    def vf(self) -> int | None:
        """Number of the VF it sends to, None for the PF."""
        number = self.cookie >> 32 & 0xFF
        return number - 1 if number else None

    def get(self, field: str) -> Match | None:
        return dict(self.matches).get(field)

    def __str__(self) -> str:
        """As words of ethtool's command line, masks as the kernel has them."""
        words = [f"{name} {m.value:#x}/{m.mask:#x}" for name, m in self.matches]
        target = f"vf {self.vf} queue {self.cookie & 0xFFFFFFFF}" if self.vf is not None else f"action {self.cookie}"
        return " ".join([f"flow-type {self.flow.name.lower()}", *words, target, f"loc {self.location}"])


def to_vf(vf: int, queue: int) -> int:
    """The cookie of a VF's queue."""
    return (vf + 1) << 32 | queue


def rule(flow: Flow, cookie: int, location: int, **fields: int | Match) -> RxRule:
    """A rule from its fields (``dst_port=4789``); a bare number is compared in full. Raises ValueError."""
    known = {**_FIELDS[flow], **_EXT}
    matches = []
    for name, (_, size) in known.items():
        given = fields.pop(name.replace("-", "_"), None)
        if given is None:
            continue
        full = (1 << 8 * size) - 1
        match = given if isinstance(given, Match) else Match(given, full)
        if not 0 <= match.value <= full or not 0 <= match.mask <= full:
            raise ValueError(f"{name} has {size} bytes: {match.value:#x}/{match.mask:#x}")
        matches.append((name, match))
    if fields:
        raise ValueError(f"{flow.name} has no {', '.join(fields)}")
    if not 0 <= cookie < 1 << 64 or not 0 <= location < 1 << 32:
        raise ValueError(f"cookie {cookie:#x} or location {location:#x} does not fit")
    return RxRule(flow, tuple(matches), cookie, location)


def encode_spec(r: RxRule) -> bytes:
    """`struct ethtool_rx_flow_spec`, 168 bytes. Raises ValueError for a rule of a kind that is not known here."""
    if r.flow is Flow.OTHER:
        raise ValueError(f"rule {r.location} is of a kind that is not known here")
    fields = _FIELDS[r.flow]
    header, header_mask, ext, ext_mask = bytearray(_H_U), bytearray(_H_U), bytearray(_H_EXT), bytearray(_H_EXT)
    flow = int(r.flow)
    if r.flow is Flow.IP4:
        header[_IP_VERSION_AT] = _IPV4
    for name, m in r.matches:
        if name in fields:
            (at, size), value, mask = fields[name], header, header_mask
        else:
            (at, size), value, mask = _EXT[name], ext, ext_mask
            flow |= _FLOW_MAC_EXT if name == "dst-mac" else _FLOW_EXT
        value[at : at + size] = m.value.to_bytes(size, "big")
        mask[at : at + size] = m.mask.to_bytes(size, "big")
    return _SPEC.pack(flow, bytes(header), bytes(ext), bytes(header_mask), bytes(ext_mask), r.cookie, r.location)


def decode_spec(spec: bytes) -> RxRule:
    """The rule in a `struct ethtool_rx_flow_spec`.

    A field is there when its value or its mask is anything but 0: some drivers give values back without masks.
    """
    flow, header, ext, header_mask, ext_mask, cookie, location = _SPEC.unpack(spec)
    try:
        kind = Flow(flow & ~(_FLOW_EXT | _FLOW_MAC_EXT))
    except ValueError:
        kind = Flow.OTHER
    matches = []
    for fields, values, masks in ((_FIELDS[kind], header, header_mask), (_EXT, ext, ext_mask)):
        for name, (at, size) in fields.items():
            m = Match(*(int.from_bytes(b[at : at + size], "big") for b in (values, masks)))
            if m.value or m.mask:
                matches.append((name, m))
    return RxRule(kind, tuple(matches), cookie, location)


def request(command: Command, *, rule: RxRule | None = None, location: int = 0, count: int = 0) -> bytes:
    """`struct ethtool_rxnfc`, 192 bytes. `count`: how many locations the buffer behind it has room for (ALL)."""
    spec = encode_spec(rule) if rule else bytes(_SPEC_BYTES - 8) + struct.pack("=I4x", location)
    return _RXNFC.pack(command, 0, 0, spec, count)


def answer(reply: bytes) -> tuple[RxRule, int, int, tuple[int, ...]]:
    """The kernel's answer: rule (RULE), table size (ALL), number of rules (COUNT), their locations (ALL)."""
    _, _, size, spec, count = _RXNFC.unpack(reply[:RXNFC_BYTES])
    room = (len(reply) - RXNFC_BYTES + 4) // 4  # rule_locs begins in the struct's padding
    locations = struct.unpack_from(f"={min(count, room)}I", reply, RXNFC_BYTES - 4)
    return decode_spec(spec), size, count, locations
