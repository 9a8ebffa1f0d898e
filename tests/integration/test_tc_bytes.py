"""Our netlink messages against iproute2's: the attributes that `tc` and `ip` hand the kernel are in ours, the same."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_nic import build_shim
from tests.support.steer_bench import Nic, veth_nic
from upgrader.adapters import gate
from upgrader.core import tc
from upgrader.core.tc import Mirred, Underlay

pytestmark = pytest.mark.integration

NEW_LINK = 16  # RTM_NEWLINK
PORT, VNI, MAC = 4789, 100, "52:54:00:00:00:05"
_U32_OVERLAY = ["match", "u32", "0x05000000", "0x0f000000", "at", "0", "match", "u32", "0", "0x1fff", "at", "4", "match", "u32",
                "0x00110000", "0x00ff0000", "at", "8", "match", "u32", "0x12b5", "0xffff", "at", "20"]  # fmt: skip
_U32_VM = ["match", "u32", "0x6400", "0xffffff00", "at", "32", "match", "u32", "0x52540000", "0xffffffff", "at", "36", "match",
           "u32", "0x00050000", "0xffff0000", "at", "40"]  # fmt: skip
_TO_A = ["action", "mirred", "egress", "redirect", "dev", "vf1r"]
_TO_BOTH = [
    "action",
    "mirred",
    "egress",
    "mirror",
    "dev",
    "vf1r",
    "action",
    "mirred",
    "egress",
    "redirect",
    "dev",
    "vf2r",
]
_FLOWER = ["flower", "ip_proto", "udp", "dst_port", "4789"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def nic() -> Iterator[Nic]:
    with veth_nic("bytes") as made:
        made.tc("qdisc", "add", "dev", "pf0", "ingress")
        yield made


def sent(argv: list[str], nic: Nic, shim: Path, record: Path, kind: int) -> bytes:
    """The body of the message of that type which the program sends, the last one; the kernel may refuse it."""
    gate.run(argv, netns=nic.netns, env={"LD_PRELOAD": str(shim), "NIC_NETLINK": str(record)}, check=False)
    messages = [bytes.fromhex(line) for line in record.read_text().splitlines()]
    return [m for m in messages if struct.unpack_from("=H", m, 4)[0] == kind][-1][16:]


Tree = dict[int, "Tree | bytes"]


def tree(payload: bytes, nested: dict[int, dict]) -> Tree:  # type: ignore[type-arg]
    """Attributes by type, those that hold attributes as such."""
    return {
        k: tree(v, nested[k] if k in nested else nested[-1]) if k in nested or -1 in nested else v
        for k, v in tc.attributes(payload).items()
    }


_ACTIONS = {-1: {2: {}}}  # a list of actions: kind, and options that hold attributes
_U32 = {2: {7: _ACTIONS}}
_FLOWER_TREE = {2: {3: _ACTIONS}}


@pytest.mark.parametrize(
    ("words", "match", "both"),
    [
        ([*_U32_OVERLAY, *_TO_A], (None, None), False),
        ([*_U32_OVERLAY, *_TO_BOTH], (None, None), True),
        ([*_U32_OVERLAY, *_U32_VM, *_TO_A], (VNI, MAC), False),
        ([*_U32_OVERLAY, *_U32_VM, *_TO_BOTH], (VNI, MAC), True),
    ],
    ids=["overlay", "overlay to both", "one VM", "one VM to both"],
)
def test_u32(
    words: list[str], match: tuple[int | None, str | None], both: bool, nic: Nic, shim: Path, tmp_path: Path
) -> None:
    argv = ["tc", "filter", "add", "dev", "pf0", "parent", "ffff:", "protocol", "ip", "prio", "20", "u32", *words]
    theirs = sent(argv, nic, shim, tmp_path / "record", tc.NEW_FILTER)
    to = [nic.index("vf1r"), nic.index("vf2r")][: 2 if both else 1]
    options = tc.u32_options(tc.overlay_words(PORT, *match), tc.deliver(to))
    ours = message(nic, "u32", options)
    assert ours[:20] == theirs[:20]  # struct tcmsg
    assert tree(ours[20:], _U32) == tree(theirs[20:], _U32)


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("skip_sw", [False, True], ids=["any", "in hardware"])
def test_flower(both: bool, skip_sw: bool, nic: Nic, shim: Path, tmp_path: Path) -> None:
    words = [*_FLOWER, *(["skip_sw"] if skip_sw else []), *(_TO_BOTH if both else _TO_A)]
    argv = [
        "tc",
        "filter",
        "add",
        "dev",
        "pf0",
        "parent",
        "ffff:",
        "protocol",
        "ip",
        "prio",
        "20",
        "handle",
        "1",
        *words,
    ]
    theirs = sent(argv, nic, shim, tmp_path / "record", tc.NEW_FILTER)
    to = [nic.index("vf1r"), nic.index("vf2r")][: 2 if both else 1]
    ours = message(nic, "flower", tc.flower_options(PORT, tc.deliver(to), skip_sw=skip_sw), handle=1)
    assert ours[:20] == theirs[:20]
    assert tree(ours[20:], _FLOWER_TREE) == tree(theirs[20:], _FLOWER_TREE)
    read = tc.read_flower(tc.attributes(theirs[20:])[2], PORT)
    assert (read.takes_overlay, read.ifindexes) == (True, tuple(to))


@pytest.mark.parametrize("classifier", ["u32", "flower"])
def test_in_ipv6(classifier: str, nic: Nic, shim: Path, tmp_path: Path) -> None:
    """Two words of u32's are its own there: what protocol follows, at 4, and the port, at 40."""
    here = ["tc", "filter", "add", "dev", "pf0", "parent", "ffff:", "protocol", "ipv6", "prio", "21"]
    if classifier == "u32":
        words = ["u32", "match", "u32", "0x1100", "0xff00", "at", "4", "match", "u32", "0x12b5", "0xffff", "at", "40",
                 "match", "u32", "0x6400", "0xffffff00", "at", "52", "match", "u32", "0x52540000", "0xffffffff", "at", "56",
                 "match", "u32", "0x00050000", "0xffff0000", "at", "60"]  # fmt: skip
    else:
        words = ["handle", "1", *_FLOWER]
    theirs = sent([*here, *words, *_TO_A], nic, shim, tmp_path / "record", tc.NEW_FILTER)
    to = tc.deliver([nic.index("vf1r")])
    if classifier == "u32":
        options = tc.u32_options(tc.overlay_words(PORT, VNI, MAC, Underlay.IPV6), to)
    else:
        options = tc.flower_options(PORT, to, skip_sw=False, underlay=Underlay.IPV6)
    ours = message(nic, classifier, options, handle=int(classifier == "flower"), prio=21, underlay=Underlay.IPV6)
    assert ours[:20] == theirs[:20]
    nested = _U32 if classifier == "u32" else _FLOWER_TREE
    assert tree(ours[20:], nested) == tree(theirs[20:], nested)
    if classifier == "flower":
        options = tc.attributes(theirs[20:])[2]
        assert tc.read_flower(options, PORT, Underlay.IPV6).takes_overlay
        assert not tc.read_flower(options, PORT).takes_overlay


def test_an_action_is_changed_as_tc_does(nic: Nic, shim: Path, tmp_path: Path) -> None:
    argv = ["tc", "actions", "replace", *_TO_A, "index", "9"]
    theirs = sent(argv, nic, shim, tmp_path / "record", tc.NEW_ACTION)
    (ours,) = tc.change_actions([Mirred(nic.index("vf1r"), index=9).encode()])
    nested = {1: _ACTIONS}
    mine, his = tree(ours[20:], nested), tree(theirs[4:], nested)
    assert mine[1] == his[1]


@pytest.mark.parametrize(
    ("words", "change"),
    [
        (["trust", "on"], {"vf": 1, "trust": 1}),
        (["spoofchk", "off"], {"vf": 1, "spoofchk": 0}),
        (["state", "disable"], {"vf": 1, "link_state": 2}),
        (["state", "auto"], {"vf": 1, "link_state": 0}),
    ],
)
def test_vf_attributes(words: list[str], change: dict[str, int], nic: Nic, shim: Path, tmp_path: Path) -> None:
    """A veth has no VFs and refuses; what was asked of it is what counts here."""
    theirs = sent(["ip", "link", "set", "pf0", "vf", "1", *words], nic, shim, tmp_path / "theirs", NEW_LINK)
    script = f"from upgrader.adapters.vf import Vfs\nVfs('pf0', None)._set({change})\n"
    ours = sent([sys.executable, "-c", script], nic, shim, tmp_path / "ours", NEW_LINK)
    nested = {22: {1: {}}}  # IFLA_VFINFO_LIST, IFLA_VF_INFO
    assert tree(ours[16:], nested)[22] == tree(theirs[16:], nested)[22]


def message(
    nic: Nic, classifier: str, options: bytes, *, handle: int = 0, prio: int = 20, underlay: Underlay = Underlay.IPV4
) -> bytes:
    """The body of the message that adds a filter as `argv` above does."""
    made = tc.filter_message(
        tc.NEW_FILTER,
        tc.CREATE | tc.EXCLUSIVE,
        ifindex=nic.index("pf0"),
        parent=tc.INGRESS,
        prio=prio,
        handle=handle,
        classifier=classifier,
        underlay=underlay,
        options=options,
    )
    return made[16:]
