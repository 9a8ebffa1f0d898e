"""Steering tests in a guest whose kernel has flower (Debian's own, under QEMU's emulation), on this machine's files.

    build/venv/bin/python -m tests.support.nic_guest    # make check-flower

The guest sees the whole file system, read-only, under an overlay in its memory; it has no network but what the tests
make. The first time the kernel's package is downloaded (70 MB) into build/nic-guest, and not installed.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from upgrader.adapters import gate
from upgrader.core.errors import CommandError

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "nic-guest"
# two lots, one for each of the guest's CPUs
TESTS = (
    ("tests/integration/test_steering.py", "-k", "flower or (tc_u32 and test_contract)"),
    ("tests/integration/test_steering_runs.py", "-k", "flower"),
)
LIMIT_S = 900
_ROOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
TC_MODULES = ("veth", "sch_ingress", "cls_u32", "cls_flower", "act_mirred")
#: Mounts what virtfs shows of the machine at /new, under an overlay in memory.
ROOT_OF_GUEST = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /sbin /usr/bin /usr/sbin /host /rw /new
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
while read -r module; do insmod "/modules/$module" || echo "guest: $module was refused"; done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host
mount -t tmpfs tmpfs /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new
mount -t tmpfs tmpfs /new/run && mkdir /new/run/netns
mount -t proc proc /new/proc; mount -t sysfs sysfs /new/sys; mount -t devtmpfs devtmpfs /new/dev
ip link set lo up
"""
_INIT = f"""{ROOT_OF_GUEST}
cp /command /new/run/command
chroot /new /bin/sh /run/command
echo "guest-exit $?"
poweroff -f
"""


@dataclass(frozen=True)
class Result:
    """How the tests in the guest ended, and what it wrote on its console."""

    code: int | None
    passed: int
    skipped: int
    kernel: str
    output: str

    @property
    def whole(self) -> bool:
        return self.code == 0 and self.skipped == 0 and self.passed > 0


def kernel() -> tuple[str, Path]:
    """Release of Debian's standard kernel, and a folder with its package unpacked."""
    depends = gate.run(["apt-cache", "depends", "linux-image-amd64"]).stdout
    found = re.search(r"Depends: linux-image-(\S+)", depends)
    if not found:
        raise RuntimeError(f"apt knows no kernel for linux-image-amd64: {depends}")
    release = found[1]
    folder = CACHE / release
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        gate.run(["apt-get", "download", "-q", f"linux-image-{release}"], cwd=CACHE, timeout_s=600)
        (package,) = CACHE.glob(f"linux-image-{release}_*.deb")
        unpacked = CACHE / f".{release}"
        gate.run(["dpkg-deb", "-x", str(package), str(unpacked)], timeout_s=120)
        gate.run(["depmod", "-b", str(unpacked), release])
        unpacked.rename(folder)
        package.unlink()
    return release, folder


def initramfs(
    release: str, folder: Path, modules: Sequence[str], command: str, *, init: str = _INIT, work: Path = CACHE
) -> Path:
    """Busybox, the modules with what they need, in order, and what to run; made in `work`."""
    root = work / "root"
    shutil.rmtree(root, ignore_errors=True)
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    order: list[str] = []
    for module in (*_ROOT_MODULES, *modules):
        shown = gate.run(["modprobe", "-d", str(folder), "-S", release, "--show-depends", module]).stdout
        for path in (Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod")):
            if path.name not in order:
                order.append(path.name)
                shutil.copy(path, root / "modules")
    (root / "modules/order").write_text("".join(f"{name}\n" for name in order))
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    (root / "command").write_text(command)
    image = work / "initramfs"
    files = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
    gate.run(["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", "-O", str(image)], stdin=f".\n{files}\n", cwd=root)
    return image


def boot(
    command: Sequence[str],
    modules: Sequence[str],
    *,
    qemu: Sequence[str] = ("qemu-system-x86_64", "-M", "q35"),
    memory_mib: int = 1024,
    kernel_words: str = "",
    limit_s: float = LIMIT_S,
) -> tuple[str, str]:
    """Boot, run the command on this repository, power off; the kernel's release, and what was on the console.

    Meanwhile that is to be seen in build/nic-guest/console.

    qemu   the emulator, its machine, and devices beside the one for the file system
    """
    release, folder = kernel()
    path = f"export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH={ROOT}"
    console = CACHE / "console"
    console.write_text("")
    image = initramfs(release, folder, modules, f"{path}\ncd {ROOT}\n{gate.paste([*command])}\n")
    argv = [
        *(*qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(memory_mib)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{console}"),
        *("-kernel", str(folder / f"boot/vmlinuz-{release}"), "-initrd", str(image)),
        *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        *("-append", f"console=ttyS0 quiet mitigations=off panic=-1 {kernel_words}"),
    ]
    try:
        gate.run(argv, timeout_s=limit_s)
    except CommandError as error:  # QEMU said no, or the guest was not done in time: what it wrote by then tells more
        return release, f"{console.read_text(errors='replace')}\n{error}"
    return release, console.read_text(errors="replace")


def run_tests() -> Result:
    """The tests in the guest. Takes some minutes under emulation."""
    release, output = boot([sys.executable, "-m", "tests.support.nic_guest", "--inside"], TC_MODULES)
    passed, skipped = (sum(map(int, re.findall(rf"(\d+) {what}", output))) for what in ("passed", "skipped"))
    ended = re.search(r"guest-exit (\d+)", output)
    return Result(int(ended[1]) if ended else None, passed, skipped, release, output)


def inside() -> int:
    """In the guest: both lots at once, each one's output in one piece; 0 where both are whole."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", "--durations=5"]
    outputs = [Path(f"/run/lot-{n}") for n in range(len(TESTS))]
    lots = [
        gate.spawn([*pytest, f"--basetemp={output}.tmp", *tests], output=output, cwd=ROOT)
        for tests, output in zip(TESTS, outputs, strict=True)
    ]
    codes = [lot.wait() for lot in lots]
    for output in outputs:
        print(output.read_text(), flush=True)
    return 1 if any(codes) else 0


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if "--inside" in sys.argv:
        return inside()
    result = run_tests()
    sys.stderr.write(result.output)
    print(f"kernel {result.kernel}: {result.passed} passed, {result.skipped} skipped, exit code {result.code}")
    return 0 if result.whole else 1


if __name__ == "__main__":
    sys.exit(main())
