"""An X710 that is a file: state and behaviour for tests/support/ethtool_shim.c, which plays it to any program.

Programs that are preloaded with the shim (the real `ethtool`) and our own adapter, through `FakeNic.ioctl`, see the
same NIC. It models what drivers answer; only a `wiring` gives it packets, those of a real netdev.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upgrader.adapters import gate
from upgrader.adapters.ethtool import Ethtool, Neighbours
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.core import nfc
from upgrader.core.model import SlotName
from upgrader.core.nfc import RxRule
from upgrader.ports import Steering

SOURCE = Path(__file__).with_name("ethtool_shim.c")
MAX_RULES, MAX_VFS = 1024, 8
_TEXTS = struct.Struct("=32s32s32s32s")
_KNOBS = ("out_of_tree", "l4mode", "ntuple", "table", "vfs", "gap_us", "drop_next", "refuse_next")
_GENERATION_AT = _TEXTS.size + 4 * len(_KNOBS)
_COUNTS_AT = _GENERATION_AT + 4 * MAX_VFS
_COUNTS = ("count", "inserts", "deletes", "cloud_requests")
_RULES_AT = _COUNTS_AT + 4 * len(_COUNTS)
_RULE = struct.Struct("=168sIIII")
KERNEL = "6.1.0-56-amd64"
VFS: dict[SlotName, int] = {"a": 0, "b": 1}
LOCATION = 100  # of our one rule


def build_shim(folder: Path) -> Path:
    """Compile the shim, once a folder."""
    target = folder / "ethtool_shim.so"
    if not target.exists():
        gate.run(["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", str(target), str(SOURCE)])
    return target


@dataclass(frozen=True)
class Programmed:
    """A rule as the NIC holds it: whether the hardware took it, and whether its VF is still the one it was made for."""

    rule: RxRule
    cloud: bool
    effective: bool
    stale: bool


class FakeNic:
    """One NIC in the file `path`.

    out_of_tree  Intel's own driver, else the kernel's
    l4mode       it was loaded so that cloud filters look at ports
    """

    def __init__(self, path: Path, shim: Path, *, out_of_tree: bool, l4mode: bool = True, table: int = 512) -> None:
        self.path = path
        self.shim = shim
        version = "2.28.16" if out_of_tree else KERNEL
        texts = ("i40e", version, "8.30 0x8000b8d3 1.2829.0", "0000:3b:00.0")
        knobs = {"out_of_tree": out_of_tree, "l4mode": l4mode, "ntuple": 1, "table": table, "vfs": 2}
        numbers = [int(knobs.get(name, 0)) for name in _KNOBS]
        head = _TEXTS.pack(*(t.encode() for t in texts)) + struct.pack(f"={len(numbers)}I", *numbers)
        path.write_bytes(head.ljust(_RULES_AT, b"\0") + bytes(_RULE.size * MAX_RULES))
        self._library = ctypes.CDLL(str(shim), use_errno=True)
        self.on_change: Callable[[], None] = lambda: None  # a wiring hears of every insert and delete

    def environment(self, record: Path | None = None) -> Mapping[str, str]:
        """For a program that is to see this NIC on every netdev."""
        env = {"LD_PRELOAD": str(self.shim), "NIC_STATE": str(self.path)}
        return {**env, "NIC_RECORD": str(record)} if record else env

    def ioctl(self, descriptor: int, request: int, ifreq: bytes) -> object:
        """As fcntl.ioctl, for `EthtoolDevice`."""
        os.environ["NIC_STATE"] = str(self.path)
        try:
            buffer = ctypes.create_string_buffer(ifreq, len(ifreq))
            code = self._library.ioctl(descriptor, ctypes.c_ulong(request), buffer)
            error = ctypes.get_errno()
        finally:
            del os.environ["NIC_STATE"]
        (address,) = struct.unpack_from("=Q", ifreq, 16)
        command = ctypes.c_uint32.from_address(address).value
        if command in (nfc.Command.INSERT, nfc.Command.DELETE):
            self.on_change()
        if code != 0:
            raise OSError(error, os.strerror(error))
        return buffer.raw

    def set(self, **knobs: int) -> None:
        """Change how it behaves: see the fields of `struct nic`."""
        with self.path.open("r+b") as f:
            for name, value in knobs.items():
                f.seek(_TEXTS.size + 4 * _KNOBS.index(name))
                f.write(struct.pack("=I", value))

    def count(self, what: str) -> int:
        return int(self._numbers()[_COUNTS.index(what) + MAX_VFS])

    def _numbers(self) -> tuple[int, ...]:
        """The VFs' generations, then the counts."""
        with self.path.open("rb") as f:
            f.seek(_GENERATION_AT)
            return struct.unpack(f"={MAX_VFS + len(_COUNTS)}I", f.read(_RULES_AT - _GENERATION_AT))

    def reset_vf(self, vf: int) -> None:
        """As a change of its MAC, trust or link state does, or its being closed."""
        with self.path.open("r+b") as f:
            f.seek(_GENERATION_AT + 4 * vf)
            (now,) = struct.unpack("=I", f.read(4))
            f.seek(-4, os.SEEK_CUR)
            f.write(struct.pack("=I", now + 1))

    def programmed(self) -> tuple[Programmed, ...]:
        """What the NIC holds, whatever it would tell a program, by location."""
        generations = self._numbers()
        with self.path.open("rb") as f:
            f.seek(_RULES_AT)
            data = f.read(_RULE.size * self.count("count"))
        rules = []
        for spec, cloud, effective, generation, _ in _RULE.iter_unpack(data):
            rule = nfc.decode_spec(spec)
            stale = rule.vf is not None and generations[rule.vf] != generation
            rules.append(Programmed(rule, bool(cloud), bool(effective), stale))
        return tuple(sorted(rules, key=lambda p: p.rule.location))

    def target(self, dst_port: int) -> int | None:
        """The VF that gets a UDP packet addressed to the PF, None for the PF itself.

        n-tuple rules do not bring it into a VF, as the in-tree driver's documentation says.
        """
        for p in self.programmed():
            port = p.rule.get("dst-port")
            works = p.cloud and p.effective and not p.stale and p.rule.flow is nfc.Flow.UDP4
            if works and port is not None and port.value == dst_port:
                return p.rule.vf
        return None


class FakeVfs:
    """VFs as `adapters.vf.Vfs` shows them, of a fake NIC; changes reset them as on an i40e, spoofchk aside.

    history  what befell them, in order
    """

    def __init__(self, nic: FakeNic) -> None:
        self._nic = nic
        self.prepared: set[int] = set()
        self.fenced: set[int] = set()
        self.packets = {0: 0, 1: 0}
        self.history: list[tuple[str, int | None]] = []

    def prepare(self, vf: int) -> tuple[str, ...]:
        if vf in self.prepared and vf not in self.fenced:
            return ()
        self.prepared.add(vf)
        self.fenced.discard(vf)
        self._reset("prepared", vf)
        return ("trust",)

    def fence(self, vf: int) -> None:
        self.fenced.add(vf)
        self._reset("fenced", vf)

    def opened(self, vf: int) -> None:
        """By a switch that starts."""
        self._reset("opened", vf)

    def closed(self, vf: int) -> None:
        """By a switch that ends, however."""
        self._reset("closed", vf)

    def _reset(self, why: str, vf: int) -> None:
        self.history.append((why, vf))
        self.packets[vf] = 0
        self._nic.reset_vf(vf)

    def received(self, vf: int) -> int:
        return self.packets[vf]

    def send(self, count: int, dst_port: int = 4789) -> None:
        """Packets from the fabric, to whoever the NIC gives them."""
        vf = self._nic.target(dst_port) if count else None
        if vf is not None and vf not in self.fenced:
            self.packets[vf] += count


class FakeNeighbours:
    """What the PF's kernel knows, and whether it keeps answers to what it did not ask."""

    def __init__(self) -> None:
        self.accepts = False
        self.entries: dict[str, str] = {}

    def accept(self) -> None:
        self.accepts = True

    def known(self) -> Mapping[str, str]:
        return self.entries


class FakeProbe:
    """Another host that sends packets of the overlay, as `adapters.overlay_probe` makes one."""

    def __init__(self) -> None:
        self.rate_pps = 0
        self.probes = 0

    @contextmanager
    def sending(self) -> Iterator[None]:
        self.probes += 1
        self.rate_pps = 1000
        try:
            yield
        finally:
            self.rate_pps = 0


def x710(
    nic: FakeNic,
    vfs: FakeVfs | None = None,
    *,
    catch: Steering | None = None,
    detour: bool = False,
    location: int = LOCATION,
    rate_pps: int = 0,
    probe: FakeProbe | None = None,
    broadcasts: int = 0,
    known: Neighbours | None = None,
) -> Ethtool:
    """The adapter on a fake NIC; while it waits, packets of the overlay come at that rate, and those of a probe that sends.

    broadcasts  packets that each VF is given at each wait, whatever the rules are
    """
    given = vfs or FakeVfs(nic)

    def wait(seconds: float) -> None:
        given.send(int(seconds * (rate_pps + (probe.rate_pps if probe else 0))))
        for vf in given.packets:
            given.packets[vf] += broadcasts

    return Ethtool(
        EthtoolDevice("pf0", None, nic.ioctl),
        given,
        known or FakeNeighbours(),
        VFS,
        4789,
        location,
        catch=catch,
        detour=detour,
        probe=probe,
        kernel_release=KERNEL,
        sleep=wait,
    )
