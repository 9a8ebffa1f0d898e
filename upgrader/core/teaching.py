"""Frames from which a switch learns what another one has learned, as hexadecimal digits; pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from upgrader.core.learned import QUERIER, Address, Group

_EXPERIMENTAL = 0x88B5  # EtherType for local experiments (IEEE 802)
_SHORTEST = 60  # bytes of an Ethernet frame without its checksum
_NOT_LEARNED = bytes.fromhex("010000000000")  # a source that is a group address is nobody's
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_IGMP, _ICMPV6 = 2, 58
_QUERY, _REPORT, _MLD_REPORT = 0x11, 0x16, 131
_ROUTER_ALERT = bytes.fromhex("94040000")  # RFC 2113
_ALL_HOSTS = IPv4Address("224.0.0.1")
_SOMEBODY, _SOMEBODY6 = IPv4Address("192.0.2.1"), IPv6Address("fe80::1")  # no querier is 0.0.0.0 (RFC 4541)


def turn(thing: Address | Group) -> tuple[bool, str]:
    """What to sort by: queriers come last, since no group is learned on a port that has one."""
    return isinstance(thing, Group) and thing.group == QUERIER, str(thing)


def frame(thing: Address | Group, vlan: int | None) -> str:
    """What is to come in at the port, tagged with `vlan` or not at all (None), for the switch to learn `thing`.

    An address by a frame to the address it comes from, which goes nowhere; a querier by a general query, a group by a
    membership report: IGMPv2 (RFC 2236), MLDv1 (RFC 2710).
    """
    if isinstance(thing, Address):
        mac = bytes.fromhex(thing.mac.replace(":", ""))
        return _ethernet(mac, mac, _EXPERIMENTAL, b"", vlan)
    if thing.group == QUERIER:
        return _igmp(_QUERY, IPv4Address(0), _ALL_HOSTS, vlan)
    group = ip_address(thing.group)
    if isinstance(group, IPv4Address):
        return _igmp(_REPORT, group, group, vlan)
    report = struct.pack("!BBH4x", _MLD_REPORT, 0, 0) + group.packed
    pseudo = _SOMEBODY6.packed + group.packed + struct.pack("!I3xB", len(report), _ICMPV6)
    head = struct.pack("!IHBB", 6 << 28, len(report), _ICMPV6, 1) + _SOMEBODY6.packed + group.packed
    destination = bytes.fromhex("3333") + group.packed[12:]
    return _ethernet(destination, _NOT_LEARNED, _IPV6, head + _summed(report, 2, pseudo), vlan)


def _igmp(kind: int, group: IPv4Address, to: IPv4Address, vlan: int | None) -> str:
    message = _summed(struct.pack("!BBH", kind, 0, 0) + group.packed, 2)
    length = 24 + len(message)  # of a header with one option
    head = struct.pack("!BBHHHBBH", 0x46, 0, length, 0, 0, 1, _IGMP, 0) + _SOMEBODY.packed + to.packed + _ROUTER_ALERT
    destination = bytes.fromhex("01005e") + bytes([to.packed[1] & 0x7F]) + to.packed[2:]
    return _ethernet(destination, _NOT_LEARNED, _IPV4, _summed(head, 10) + message, vlan)


def _ethernet(to: bytes, source: bytes, kind: int, payload: bytes, vlan: int | None) -> str:
    tag = b"" if vlan is None else struct.pack("!HH", _VLAN, vlan)
    return (to + source + tag + struct.pack("!H", kind) + payload).ljust(_SHORTEST, b"\0").hex()


def _summed(data: bytes, at: int, pseudo: bytes = b"") -> bytes:
    """With its Internet checksum (RFC 1071), over `pseudo` as well, in the two bytes that are 0 at `at`."""
    words = pseudo + data
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack("!H", ~total & 0xFFFF) + data[at + 2 :]
