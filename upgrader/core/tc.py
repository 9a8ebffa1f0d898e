"""Netlink messages of tc as bytes, built beforehand, so that turning a rule is one system call. Pure.

Layouts: linux/netlink.h, rtnetlink.h, pkt_cls.h, tc_act/tc_mirred.h. Numbers are in the machine's order, except those
that are compared with a packet.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from upgrader.core.errors import HostError
from upgrader.core.model import SlotName

# Where the filters of a netdev hang: the old ingress qdisc, or the ingress side of clsact (linux/pkt_sched.h)
INGRESS, CLSACT_INGRESS = 0xFFFF0000, 0xFFFFFFF2
NEW_FILTER, DEL_FILTER, GET_FILTER, NEW_ACTION = 44, 45, 46, 48  # RTM_*
REQUEST, ACK, REPLACE, EXCLUSIVE, CREATE = 0x1, 0x4, 0x100, 0x200, 0x400  # NLM_F_*
_HEADER = struct.Struct("=IHHII")
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS = 1, 2  # the same numbers for TCA_ and for TCA_ACT_
_U32_SEL, _U32_ACT = 5, 7
_FLOWER_ACT, _FLOWER_ETH_TYPE, _FLOWER_IP_PROTO, _FLOWER_UDP_DST, _FLOWER_FLAGS = 3, 8, 9, 21, 22
_FLOWER_UDP_DST_MASK = 38
_FLOWER_KEYS = frozenset({*range(4, 22), *range(23, 71), *range(72, 110)})  # TCA_FLOWER_KEY_*: not flags, not counts
_SKIP_SW = 2  # TCA_CLS_FLAGS_SKIP_SW: in the NIC, or not at all
_KIND_MASK = 0x3FFF  # of an attribute's type; the rest are flags
_ACT_STATS, _STATS_BASIC = 4, 1
_MIRRED_PARMS = 2
_ACT_TAB = 1
_UNSPEC, _PIPE, _STOLEN = -1, 3, 4  # TC_ACT_*: go on to the next filter; to the next action; the packet is gone
_REDIRECT, _MIRROR = 1, 2  # TCA_EGRESS_*
_ACTIONS_A_MESSAGE = 32  # TCA_ACT_MAX_PRIO

# words a filter compares, by offset into the IP header: (value, mask), 32 bits each
Words = Mapping[int, tuple[int, int]]


class Underlay(Enum):
    """What carries the overlay, as u32 tells it.

    ethertype   of its frames
    header      words that its IP header has where UDP follows at once: no options, no extension headers, no later fragment
    udp_offset  of the UDP header (RFC 768); VXLAN (RFC 7348) and the inner Ethernet header are 8 and 16 bytes behind it
    """

    IPV4 = (0x0800, ((0, 0x05000000, 0x0F000000), (4, 0, 0x00001FFF), (8, 17 << 16, 0x00FF0000)), 20)  # RFC 791
    IPV6 = (0x86DD, ((4, 17 << 8, 0x0000FF00),), 40)  # RFC 8200

    def __init__(self, ethertype: int, header: tuple[tuple[int, int, int], ...], udp_offset: int) -> None:
        self.ethertype = ethertype
        self.header = header
        self.udp_offset = udp_offset

    @property
    def version(self) -> int:
        """IP's."""
        return int(self.name[-1])

    @property
    def vni_offset(self) -> int:
        return self.udp_offset + 12

    @property
    def mac_offset(self) -> int:
        return self.udp_offset + 16

    @property
    def protocol(self) -> bytes:
        """As a packet has it."""
        return struct.pack(">H", self.ethertype)


class Answers(Enum):
    """What neighbours answer, by which a switch knows the next hop of its tunnels, as u32 tells it.

    ethertype  of its frames
    prio       place of its filter; the kernel wants another one for each protocol
    words      an ARP reply (RFC 826); a neighbour advertisement right behind the IPv6 header (RFC 4861, section 4.4)
    """

    ARP = (0x0806, 30, ((4, 0x0002, 0xFFFF),))
    ND = (0x86DD, 31, ((4, 58 << 8, 0x0000FF00), (40, 136 << 24, 0xFF000000)))

    def __init__(self, ethertype: int, prio: int, words: tuple[tuple[int, int, int], ...]) -> None:
        self.prio = prio
        self.words: Words = {offset: (value, mask) for offset, value, mask in words}
        self.protocol = struct.pack(">H", ethertype)


def attribute(kind: int, payload: bytes) -> bytes:
    """`struct nlattr` and its payload, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """`struct nlmsghdr` and its body; the sender fills in the sequence number."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


@dataclass(frozen=True, slots=True)
class Mirred:
    """One mirred action: to a netdev, as a copy (the packet goes on to the next action) or for good.

    index   an action that is there is meant; 0: a new one
    passes  behind the copy the packet goes on to the next filter
    """

    ifindex: int
    copy: bool = False
    index: int = 0
    passes: bool = False

    def encode(self) -> bytes:
        """TCA_ACT_KIND and TCA_ACT_OPTIONS with `struct tc_mirred`."""
        control, how = (_UNSPEC if self.passes else _PIPE, _MIRROR) if self.copy else (_STOLEN, _REDIRECT)
        parms = struct.pack("=IIiiiiI", self.index, 0, control, 0, 0, how, self.ifindex)
        return attribute(_KIND, b"mirred\0") + attribute(_OPTIONS, attribute(_MIRRED_PARMS, parms))


def deliver(ifindexes: Sequence[int]) -> tuple[Mirred, ...]:
    """The actions that give a packet to each of these netdevs."""
    *copies, last = ifindexes
    return (*(Mirred(i, copy=True) for i in copies), Mirred(last))


def copy_to(ifindexes: Sequence[int]) -> tuple[Mirred, ...]:
    """The actions that give each of these netdevs a copy; the packet goes where it went without."""
    *first, last = ifindexes
    return (*(Mirred(i, copy=True) for i in first), Mirred(last, copy=True, passes=True))


def change_actions(encoded: Sequence[bytes]) -> list[bytes]:
    """RTM_NEWACTION messages that change actions (`Mirred.encode`, each with its index), up to 32 a message.

    The kernel swaps the netdev of a mirred in one step, so a packet goes to the old one or to the new one.
    """
    messages = []
    for start in range(0, len(encoded), _ACTIONS_A_MESSAGE):
        table = b"".join(attribute(n, a) for n, a in enumerate(encoded[start : start + _ACTIONS_A_MESSAGE], 1))
        messages.append(message(NEW_ACTION, REQUEST | ACK | REPLACE | CREATE, bytes(4) + attribute(_ACT_TAB, table)))
    return messages


def filter_message(
    kind: int,
    flags: int,
    *,
    ifindex: int,
    parent: int,
    prio: int,
    handle: int,
    classifier: str,
    underlay: Underlay | Answers = Underlay.IPV4,
    options: bytes = b"",
) -> bytes:
    """RTM_NEWTFILTER, RTM_DELTFILTER or RTM_GETTFILTER of a filter on such packets; what is got is its own answer."""
    info = prio << 16 | int.from_bytes(underlay.protocol, sys.byteorder)
    attributes = attribute(_KIND, classifier.encode() + b"\0")
    if options:
        attributes += attribute(_OPTIONS, options)
    answered = 0 if kind == GET_FILTER else ACK
    return message(kind, REQUEST | answered | flags, _TCMSG.pack(0, ifindex, handle, parent, info) + attributes)


def action_list(actions: Iterable[Mirred]) -> bytes:
    """The payload of TCA_U32_ACT, TCA_FLOWER_ACT and their like."""
    return b"".join(attribute(n, a.encode()) for n, a in enumerate(actions, 1))


def overlay_words(
    vxlan_port: int, vni: int | None = None, mac: str | None = None, underlay: Underlay = Underlay.IPV4
) -> dict[int, tuple[int, int]]:
    """What a u32 filter compares to take the overlay (VXLAN, see `Underlay`), or one VM's part of it."""
    words = {offset: (value, mask) for offset, value, mask in underlay.header}
    words[underlay.udp_offset] = (vxlan_port, 0xFFFF)
    if vni is not None:
        words[underlay.vni_offset] = (vni << 8, 0xFFFFFF00)
    if mac is not None:
        address = bytes.fromhex(mac.replace(":", ""))
        words[underlay.mac_offset] = (int.from_bytes(address[:4], "big"), 0xFFFFFFFF)
        words[underlay.mac_offset + 4] = (int.from_bytes(address[4:], "big") << 16, 0xFFFF0000)
    return words


def read_overlay(
    words: Words, vxlan_port: int, underlay: Underlay = Underlay.IPV4
) -> tuple[int | None, str | None] | None:
    """VNI and inner MAC of a filter made of `overlay_words`; None for any other filter."""
    vni_at, mac_at = underlay.vni_offset, underlay.mac_offset
    vni = words[vni_at][0] >> 8 if vni_at in words else None
    mac = None
    if {mac_at, mac_at + 4} <= words.keys():
        high, low = words[mac_at][0], words[mac_at + 4][0] >> 16
        mac = (high.to_bytes(4, "big") + low.to_bytes(2, "big")).hex(":")
    return (vni, mac) if words == overlay_words(vxlan_port, vni, mac, underlay) else None


def u32_options(words: Words, actions: Iterable[Mirred]) -> bytes:
    """TCA_OPTIONS of a u32 filter: `struct tc_u32_sel`, terminal, with a `struct tc_u32_key` a word, and its actions."""
    keys = b"".join(
        struct.pack(">II", mask, value) + struct.pack("=ii", off, 0) for off, (value, mask) in words.items()
    )
    sel = struct.pack("=BBBxHHhhI", 1, 0, len(words), 0, 0, 0, 0, 0) + keys
    return attribute(_U32_ACT, action_list(actions)) + attribute(_U32_SEL, sel)


def read_u32_keys(sel: bytes) -> dict[int, tuple[int, int]]:
    """The words of a u32 filter, from the payload of TCA_U32_SEL."""
    count = sel[2]
    return {
        struct.unpack_from("=i", sel, 24 + 16 * i)[0]: (value, mask)
        for i in range(count)
        for mask, value in (struct.unpack_from(">II", sel, 16 + 16 * i),)
    }


def flower_options(
    vxlan_port: int, actions: Iterable[Mirred], *, skip_sw: bool, underlay: Underlay = Underlay.IPV4
) -> bytes:
    """TCA_OPTIONS of a flower filter that takes the overlay (UDP to that port)."""
    return (
        attribute(_FLOWER_ETH_TYPE, underlay.protocol)
        + attribute(_FLOWER_IP_PROTO, bytes([17]))
        + attribute(_FLOWER_UDP_DST, struct.pack(">H", vxlan_port))
        + attribute(_FLOWER_FLAGS, struct.pack("=I", _SKIP_SW if skip_sw else 0))
        + attribute(_FLOWER_ACT, action_list(actions))
    )


def attributes(payload: bytes) -> dict[int, bytes]:
    """Attributes by their type; of two with the same type the last."""
    found = {}
    at = 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            break
        found[kind & _KIND_MASK] = payload[at + 4 : at + length]
        at += -(-length // 4) * 4
    return found


@dataclass(frozen=True, slots=True)
class FlowerFilter:
    """A flower filter as read back: what it takes, the netdevs its mirred actions send to, packets so far."""

    takes_overlay: bool
    ifindexes: tuple[int, ...]
    packets: int


def read_flower(options: bytes, vxlan_port: int, underlay: Underlay = Underlay.IPV4) -> FlowerFilter:
    """From the payload of TCA_OPTIONS. It takes the overlay when that port, and nothing else, is what it compares."""
    found = attributes(options)
    keys = {k: v for k, v in found.items() if k in _FLOWER_KEYS}
    wanted = {
        _FLOWER_ETH_TYPE: underlay.protocol,
        _FLOWER_IP_PROTO: bytes([17]),
        _FLOWER_UDP_DST: struct.pack(">H", vxlan_port),
    }
    masks = {k: v for k, v in keys.items() if k not in wanted and any(v)}
    targets: list[int] = []
    packets = 0
    for action in attributes(found.get(_FLOWER_ACT, b"")).values():
        parts = attributes(action)
        parms = attributes(parts.get(_OPTIONS, b"")).get(_MIRRED_PARMS)
        if parts.get(_KIND) != b"mirred\0" or parms is None:
            continue
        if not targets:
            basic = attributes(parts.get(_ACT_STATS, b"")).get(_STATS_BASIC, bytes(12))
            (packets,) = struct.unpack_from("=8xI", basic)
        targets.append(struct.unpack_from("=24xI", parms)[0])
    same = {k: keys.get(k) for k in wanted} == wanted and masks.keys() <= {_FLOWER_UDP_DST_MASK}
    return FlowerFilter(same, tuple(targets), packets)


def ingress_parent(qdiscs: Collection[str | None]) -> int | None:
    """Where filters hang on a netdev with qdiscs of these kinds; None where it has none that takes them yet."""
    if "clsact" in qdiscs:
        return CLSACT_INGRESS
    return INGRESS if "ingress" in qdiscs else None


def slots_behind(ifindexes: Sequence[int], representors: Mapping[SlotName, int]) -> tuple[SlotName, ...]:
    """The slots behind netdevs; none at all when one of them is a stranger: such a rule is not as we set it."""
    by_index = {index: slot for slot, index in representors.items()}
    return tuple(by_index[i] for i in ifindexes) if all(i in by_index for i in ifindexes) else ()


def failed(pf: str, netns: str | None, what: str) -> HostError:
    """The error of a filter that could not be read or set; a filter is set in one step or not at all."""
    inside = f"ip netns exec {netns} " if netns else ""
    return HostError(
        "STEERING_FAILED",
        what,
        state="overlay traffic goes where it went before",
        next=f"{inside}tc -s filter show dev {pf} ingress",
    )
