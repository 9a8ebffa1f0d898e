"""The original versions, run for real: OVS 2.9.0 on DPDK 17.11.x and QEMU 2.9.0, each with its series.

    make show-versions OLD_OVS=PREFIX OLD_QEMU=BINARY OLD_LIBVIRTD=PROGRAM              # an hour and a half
    make show-versions … PARTS="pair crash" TRIPS=5 PAGES=4k

They are built by hand, from the exact tags (`make patches-check`); nothing here builds them. OLD_OVS is where that OVS is
installed, OLD_LIBVIRTD one that takes a QEMU this old. Programs that need another distribution's libraries can be scripts
that exec them in a mount namespace with those. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.show.items import OUT, Item, show, tested
from tests.show.takeover import one_death
from tests.support.killing import verb
from tests.support.lab_host import LabHost, upgrade
from tests.support.labs import lab_spec
from tests.support.protection import await_state, takeover_policy
from tests.support.transcript import Transcript, canonical, load
from tests.support.vhost_recorder import record_to
from tests.support.vhost_rules import violations
from upgrader.core.errors import Exit
from upgrader.lab.exercise import Exercise, Exercised
from upgrader.lab.figures import FABRIC, Felt
from upgrader.lab.overlay import vsctl
from upgrader.lab.qemu_events import qemu_events
from upgrader.lab.spec import DEFAULT_OVS_PREFIX, DEFAULT_QEMU_BINARY
from upgrader.lab.traffic.connect import lab_session
from upgrader.lab.up import Lab

TRIPS, MODERN_TRIPS = int(os.environ.get("TRIPS", "50")), int(os.environ.get("MODERN_TRIPS", "10"))
MIXED_TRIPS, KILLS = int(os.environ.get("MIXED_TRIPS", "5")), int(os.environ.get("KILLS", "5"))
PAGES = os.environ.get("PAGES", "4k 2m").split()
VMS, RATE_PPS, CONTROL_S = 2, 1000, 10.0
TIMES = 3.0
AT_ONCE = 5  # trips in one run of traffic
TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


@dataclass(frozen=True)
class Old:
    """What the operator built: where that OVS is installed, that QEMU, a libvirtd that takes it."""

    ovs: Path
    qemu: Path
    libvirtd: Path


def old() -> Old:
    """From the variables. Exits where one is not set, or names nothing."""
    named = {name: os.environ.get(name, "") for name in ("OLD_OVS", "OLD_QEMU", "OLD_LIBVIRTD")}
    lacking = [n for n, value in named.items() if not value or not Path(value).exists()]
    if lacking:
        sys.exit(f"{', '.join(lacking)}: not set, or nothing is there; docs/versions.md says what each names")
    return Old(*(Path(named[n]) for n in ("OLD_OVS", "OLD_QEMU", "OLD_LIBVIRTD")))


def form() -> Iterator[Item]:
    """Form and pins of the series, the transcripts; what CI runs."""
    for file in ("test_patches_check", "test_versions", "test_transcripts"):
        yield from tested(f"tests/unit/{file}.py")


@contextmanager
def lab_of(tag: str, pages: str = "4k", **options: object) -> Iterator[Lab]:
    lab = Lab(lab_spec(tag, vms=VMS, pages=pages, **options), say=lambda text: print(f"{tag}: {text}", file=sys.stderr))
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


def moved(lab: Lab, trips: int) -> tuple[list[Felt], dict[str, str]]:
    """There and back so often under traffic; what each VM felt, and what guests saw of their NICs."""
    with lab_session(lab.spec, rate_pps=RATE_PPS) as session:
        exercise = Exercise(lab.spec, session)
        control = exercise.control(CONTROL_S)
        done: list[Exercised] = []
        for first in range(0, trips, AT_ONCE):
            done.append(exercise.upgrade(control, 2 * min(AT_ONCE, trips - first)))
            print(f"{lab.spec.name}: {min(first + AT_ONCE, trips)} of {trips} trips", file=sys.stderr)
    return [f for d in done for f in d.felt], {vm: what for d in done for vm, what in d.disturbed.items()}


def judged(what: str, felt: Sequence[Felt], disturbed: dict[str, str], trips: int) -> Iterator[Item]:
    """That every move was made, and no guest noticed; losses and gaps are told."""
    figure = f"{len(felt)} moves" + "".join(f"; {vm}: {seen}" for vm, seen in disturbed.items())
    yield Item(f"{what}: {trips} times there and back", figure, f"{2 * trips * VMS}", len(felt) == 2 * trips * VMS)
    yield Item(f"{what}: guests that noticed", str(len(disturbed)), "none", not disturbed)
    lost = [f.lost for m in felt for d, f in m.directions.items() if d in FABRIC]
    beyond = [m.beyond_control_us() / 1000 for m in felt]
    figure = (
        f"blackout {blackout(felt)}; longest gap beyond the control's median {median(beyond):.1f} ms, worst "
        f"{max(beyond):.1f}; lost per move and direction median {median(lost):.0f}, worst {max(lost)}"
    )
    yield Item(f"{what}: felt", figure, "told", True)


def blackout(felt: Sequence[Felt]) -> str:
    us = [m.blackout_us for m in felt]
    return f"median {median(us) / 1000:.2f} ms, worst {max(us) / 1000:.2f}"


def pair() -> Iterator[Item]:
    """The old pair there and back, and the modern one in the same run; guest pages of 4 KiB and 2 MiB."""
    o = old()
    report: dict[str, object] = {"rate_pps": RATE_PPS, "vms": VMS}
    for pages in PAGES:
        with lab_of("m", pages) as lab:
            modern, _ = moved(lab, MODERN_TRIPS)
        with lab_of("o", pages, ovs_prefix=o.ovs, qemu_binary=o.qemu, libvirtd=o.libvirtd) as lab:
            felt, disturbed = moved(lab, TRIPS)
        yield from judged(f"old pair, {pages} pages", felt, disturbed, TRIPS)
        ours, theirs = median(m.blackout_us for m in felt), median(m.blackout_us for m in modern)
        figure = f"{ours / theirs:.2f} times ({blackout(felt)}; modern, {len(modern)} moves: {blackout(modern)})"
        yield Item(
            f"{pages} pages: blackout, median against the modern pair's", figure, f"{TIMES:g}", ours <= TIMES * theirs
        )
        report[pages] = {"old": [m.to_json() for m in felt], "modern": [m.to_json() for m in modern]}
        (OUT / "versions.json").write_text(json.dumps(report, indent=2) + "\n")


def crash() -> Iterator[Item]:
    """The active of an armed host of the old pair is killed under traffic, so often, alternating sides."""
    o = old()
    with (
        lab_of("k", ovs_prefix=o.ovs, qemu_binary=o.qemu, libvirtd=o.libvirtd) as lab,
        lab_session(lab.spec, rate_pps=RATE_PPS) as session,
        takeover_policy(lab, "automatic"),
    ):
        done = verb(lab, "arm", "--yes")
        yield Item("upgrade arm, exit code", str(done.returncode), "0", done.returncode == 0)
        await_state(lab, "armed", 120)
        control = Exercise(lab.spec, session).control(CONTROL_S)
        log = lab.spec.directory / "events.log"
        with qemu_events(lab.spec):
            found = [one_death(lab, session, control, log, "SIGKILL") for _ in range(KILLS)]
        verb(lab, "disarm", "--yes")
    gaps = [us / 1000 for k in found for us in k.gap_us.values()]
    rings = [us / 1000 for k in found for us in k.moved_us.values()]
    figure = (
        f"{sum(k.whole for k in found)} of {KILLS}; rings moved after median {median(rings):.1f} ms, "
        f"longest gap median {median(gaps):.1f} ms, worst {max(gaps):.1f}"
    )
    yield Item("old pair: killed and taken over, whole", figure, "all", all(k.whole for k in found))


def mixed() -> Iterator[Item]:
    """2.9.0 to 3.1.0 and back, under the modern QEMU and under the old one."""
    o = old()
    for qemu, what, options in (
        (DEFAULT_QEMU_BINARY, "QEMU 7.2", {}),
        (o.qemu, "QEMU 2.9.0", {"libvirtd": o.libvirtd}),
    ):
        with lab_of("x", ovs_prefix=o.ovs, new_prefix=DEFAULT_OVS_PREFIX, qemu_binary=qemu, **options) as lab:
            felt, disturbed = moved(lab, MIXED_TRIPS)
        yield from judged(f"OVS 2.9.0 and 3.1.0, VMs on {what}", felt, disturbed, MIXED_TRIPS)


def refused() -> Iterator[Item]:
    """What does not go together is a finding, and nothing is changed."""
    o = old()
    with lab_of("r", ovs_prefix=o.ovs, new_prefix=DEFAULT_OVS_PREFIX) as lab:
        host = LabHost(lab)
        slot = host.slots["a"]
        vsctl(slot, "remove", "Open_vSwitch", ".", "other_config", "vhost-iommu-support")
        before = host.see()
        done = upgrade(lab.config_path, "--yes")
        said = "ANSWERS_HIDDEN" in done.stdout + done.stderr
        same = host.see() == before
    figure = f"exit {done.returncode}, {'names' if said else 'does not name'} ANSWERS_HIDDEN, host {'as before' if same else 'CHANGED'}"
    yield Item(
        "QEMU 7.2 over OVS 2.9.0 without vhost-iommu-support",
        figure,
        f"exit {int(Exit.BLOCKED)}, host as before",
        done.returncode == Exit.BLOCKED and said and same,
    )


def transcripts() -> Iterator[Item]:
    """The old QEMU is recorded afresh, with the old switch and with the new one, and compared with what is stored."""
    o = old()
    for prefix, stored in ((o.ovs, "qemu-2.9.0-dpdk-17.11"), (DEFAULT_OVS_PREFIX, "qemu-2.9.0-dpdk-22.11")):
        fresh = record_to(o.qemu, prefix, OUT / f"{stored}.jsonl")
        yield same_as_stored(stored, fresh)


def same_as_stored(stored: str, fresh: Transcript) -> Item:
    known = load(TRANSCRIPTS / f"{stored}.jsonl")
    differ = [name for name in "ab" if canonical(fresh, name) != canonical(known, name)]
    broken = violations(fresh)
    figure = (
        f"differs on {', '.join(differ)}" if differ else f"equal, {len(list(fresh.messages()))} messages"
    ) + "".join(f"; {b}" for b in broken[:3])
    return Item(f"{stored}, recorded afresh", figure, "equal, grammar kept", not differ and not broken)


PARTS: dict[str, Callable[[], Iterator[Item]]] = {
    "form": form,
    "pair": pair,
    "crash": crash,
    "mixed": mixed,
    "refused": refused,
    "transcripts": transcripts,
}


if __name__ == "__main__":
    sys.exit(show(__doc__, PARTS))
