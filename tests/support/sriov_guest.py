"""Two VFs of an SR-IOV NIC that QEMU emulates (igb), each on vfio-pci, DPDK on one, in a guest with a virtual IOMMU.

    build/venv/bin/python -m tests.support.sriov_guest    # make check-sriov

QEMU has that NIC since version 8: that of Debian's backports is downloaded the first time (35 MB) into build/nic-guest,
unpacked and not installed; the kernel as for the guest of tc flower. What is done inside is in `sriov_inside`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.show.items import Item, check
from tests.support import nic_guest
from upgrader.adapters import gate

_PACKAGES = ("qemu-system-x86", "qemu-system-data")
_MODULES = (*nic_guest.TC_MODULES, "bridge", "vxlan", "virtio_net", "tun", "igb", "vfio-pci", "vfio_iommu_type1")
_LIMIT_S = 1200
# the NIC and the far end of its wire, a netdev of another kind, on one hub
_HUB = (
    *("-netdev", "hubport,id=p0,hubid=1", "-netdev", "hubport,id=w0,hubid=1"),
    *("-device", "igb,netdev=p0,mac=02:09:00:00:00:01", "-device", "virtio-net-pci,netdev=w0,mac=02:09:00:00:00:99"),
)


def newer_qemu() -> tuple[str, Path]:
    """Version of the QEMU in the backports of this Debian, and the folder it is unpacked in. Raises CommandError."""
    found = sorted(nic_guest.CACHE.glob("qemu-*/usr/bin/qemu-system-x86_64"))
    if not found:
        shown = gate.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]
        ).stdout
        archive, codename = next(line.split() for line in shown.splitlines() if not re.search(r"\w-", line.split()[1]))
        apt = nic_guest.CACHE / "apt"
        for folder in ("lists/partial", "cache/archives/partial", "deb"):
            (apt / folder).mkdir(parents=True, exist_ok=True)
        (apt / "sources.list").write_text(f"deb {archive} {codename}-backports main\n")
        options = [
            f"Dir::Etc::sourcelist={apt}/sources.list",
            "Dir::Etc::sourceparts=/dev/null",
            f"Dir::State::lists={apt}/lists",
            f"Dir::Cache={apt}/cache",
            "APT::Sandbox::User=root",
        ]
        words = [word for option in options for word in ("-o", option)]
        gate.run(["apt-get", *words, "update", "-q"], timeout_s=300)
        gate.run(["apt-get", *words, "download", "-q", *_PACKAGES], cwd=apt / "deb", timeout_s=600)
        for package in sorted((apt / "deb").glob("*.deb")):
            gate.run(["dpkg-deb", "-x", str(package), str(apt / "unpacked")], timeout_s=120)
        said = gate.run([str(apt / "unpacked/usr/bin/qemu-system-x86_64"), "--version"]).stdout
        version = said.split()[3]
        (apt / "unpacked").rename(nic_guest.CACHE / f"qemu-{version}")
        found = [nic_guest.CACHE / f"qemu-{version}/usr/bin/qemu-system-x86_64"]
    folder = found[-1].parents[2]
    return folder.name.removeprefix("qemu-"), folder


def items() -> Iterator[Item]:
    """What was seen inside, and whether it came to its end."""
    version, folder = newer_qemu()
    data = folder / "usr/share/qemu"
    qemu = (
        *(str(folder / "usr/bin/qemu-system-x86_64"), "-L", str(data), "-L", "/usr/share/seabios"),
        *("-M", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on,caching-mode=on"),
        *("-global", "q35-pcihost.pci-hole64-size=0"),  # of a VF's BAR above 4 GiB it takes the lower half (adr/0012)
        *_HUB,
    )
    release, output = nic_guest.boot(
        [sys.executable, "-m", "tests.support.sriov_inside"],
        _MODULES,
        qemu=qemu,
        memory_mib=2560,
        kernel_words="intel_iommu=on",
        limit_s=_LIMIT_S,
    )
    found = re.findall(r"^item (\[.*\])\r?$", output, re.MULTILINE)
    yield from (Item(*json.loads(line)) for line in found)
    ended = re.search(r"guest-exit 0\b", output) is not None
    what = f"two VFs of an igb, emulated by QEMU {version}, kernel {release} (not run on hardware)"
    yield Item(what, "came to its end" if ended else f"broke off: {output[-1500:]}", "its end", ended and bool(found))


if __name__ == "__main__":
    sys.exit(check(items()))
