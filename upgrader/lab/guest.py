"""The guest: Debian's cloud kernel as it is, and an initramfs of busybox, the virtio modules and the traffic agent."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from upgrader.adapters import gate
from upgrader.core.errors import HostError
from upgrader.lab import spec as names
from upgrader.lab.spec import Vm
from upgrader.lab.traffic.build import build_agent

_PACKAGES: Final = "apt-get install -y linux-image-cloud-amd64 busybox-static cpio gcc libc6-dev"
_BUSYBOX: Final = Path("/usr/bin/busybox")
_INIT: Final = Path(__file__).with_name("guest") / "init"
#: In the order of insmod: each one after those it needs.
_MODULES: Final = (
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/net/virtio_net",
    "drivers/char/virtio_console",
)
READY_LINE: Final = "guest-ready"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def kernel_command_line(vm: Vm, *, tickless: bool = False) -> str:
    """Command line of one guest; `lab.*` are read by its init.

    The rest spares instructions: every one of them is emulated. No mitigations, no self-relocation, no calibration of
    clocks against each other; no stopping and restarting of the tick around every packet, unless `tickless`: an idle
    guest takes 7 or 8 % of a CPU with a tick and 1 % without; no hardening of a guest that runs one program of ours
    (memory zeroed, copies checked, security modules asked at every send). Interrupts, timers and the network driver are
    as they come: they are what is measured.
    """
    return (
        "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on "
        f"nohz={'on' if tickless else 'off'} preempt=none init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off "
        "lsm=capability apparmor=0 audit=0 cgroup_disable=memory "
        f"lab.name={vm.name} lab.mac={vm.mac} lab.ip={vm.ip}/24 lab.mtu={names.OVERLAY_MTU}"
    )


def build(cache: Path = names.BUILD_DIR / "guest") -> GuestImage:
    """The image, made where none of these very inputs is in `cache` yet. Raises HostError, CommandError."""
    kernel = _newest_kernel()
    modules = Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-") / "kernel"
    parts = [kernel, _BUSYBOX, _INIT, *(modules / f"{m}.ko" for m in _MODULES)]
    missing = [str(p) for p in parts if not p.exists()]
    if missing:
        raise _not_installed(f"the guest image needs {', '.join(missing)}")
    agent = build_agent(cache.parent / "pktflow")
    digest = hashlib.sha256()
    for part in (*parts, agent, Path(__file__)):
        digest.update(part.name.encode() + b"\0" + hashlib.sha256(part.read_bytes()).digest())
    target = cache / digest.hexdigest()[:16]
    image = GuestImage(target / "kernel", target / "initramfs")
    if image.initramfs.exists():
        return image

    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        _fill(work, parts, agent)
        work.chmod(0o755)
        # Two builders at once make the same thing: whoever is second finds the name taken by an equal directory.
        try:
            work.rename(target)
        except OSError:
            if not image.initramfs.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return image


def _newest_kernel() -> Path:
    kernels = list(Path("/boot").glob("vmlinuz-*-cloud-amd64"))
    if not kernels:
        raise _not_installed("there is no Debian cloud kernel in /boot")
    return max(kernels, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])


def _not_installed(what: str) -> HostError:
    return HostError("GUEST_PARTS_MISSING", what, state="nothing was changed", next=_PACKAGES)


def _fill(work: Path, parts: list[Path], agent: Path) -> None:
    """Lay out the root file system in `work/root` and pack it, uncompressed: unpacking would be emulated as well."""
    kernel, busybox, init, *modules = parts
    root = work / "root"
    (root / "bin").mkdir(parents=True)
    (root / "lib/modules").mkdir(parents=True)
    shutil.copyfile(kernel, work / "kernel")
    shutil.copyfile(init, root / "init")
    (root / "init").chmod(0o755)
    shutil.copyfile(busybox, root / "bin/busybox")
    (root / "bin/busybox").chmod(0o755)
    for module in modules:
        shutil.copyfile(module, root / "lib/modules" / module.name)
    (root / "lib/modules/order").write_text("".join(f"{m.name}\n" for m in modules))
    shutil.copy(agent, root / "bin/pktflow")
    listing = "\n".join(sorted(str(p.relative_to(root)) for p in root.rglob("*")))
    gate.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", "-O", str(work / "initramfs")],
        stdin=f".\n{listing}\n",
        cwd=root,
    )
    shutil.rmtree(root)
