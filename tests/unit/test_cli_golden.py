"""Every verb as a person sees it, on a terminal and off it, against tests/golden.

After a change that is meant: `UPDATE_GOLDEN=1 build/venv/bin/python -m pytest -q tests/unit/test_cli_golden.py`, and read
the difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.fake_nic import FakeNic, FakeVfs, build_shim, x710
from tests.support.operator import POLICY, Operator, readable, seen
from tests.support.runs import Killed, watch
from upgrader import wiring
from upgrader.core.errors import HostError
from upgrader.core.plan import PlanKind
from upgrader.daemon import client as daemon_client
from upgrader.engine.control import Request
from upgrader.engine.coordinator import make_plan
from upgrader.lab.spec import LabSpec
from upgrader.lab.state import Phase
from upgrader.lab.up import GuestStatus, Lab, LabStatus, SlotView
from upgrader.sim.host import refused

GOLDEN = Path(__file__).parents[1] / "golden"
Scene = Callable[[Operator], None]


def fresh(_: Operator) -> None:
    """A host on which nothing has been done."""


def blocked(host: Operator) -> None:
    """What stands against a run, in all three severities."""
    world = host.sim.world
    first = world.vms["vm0"]
    world.vms["vm0"] = replace(first, ownership=None)
    world.vms["guest[7]"] = replace(first, domain="guest[7]", socket=Path("/run/other.sock"))
    bridge = replace(world.switch.bridges[0], controllers=("tcp:192.0.2.1:6653",))
    world.switch = replace(world.switch, bridges=(bridge, *world.switch.bridges[1:]))


def accepted(host: Operator) -> None:
    """A blocking finding that is accepted is a warning."""
    setup = host.sim.setup
    slots = {n: replace(s, pmd_cpu_mask="0x6") for n, s in setup.slots.items()}
    host.sim.setup = replace(setup, slots=slots)
    host.config.write_text(host.config.read_text() + '[policy]\naccept = ["PMD_CORES_SHARED"]\n')


def at(name: str, act: Callable[[Operator], BaseException | None]) -> Scene:
    """A run in which something happens at one effect."""

    def scene(host: Operator) -> None:
        def fault(called: str, _: int) -> BaseException | None:
            return act(host) if called == name else None

        host.sim.world.fault = fault
        with suppress(Killed):
            host.sim.begin().forward()
        disarm_world(host)

    return scene


def disarm_world(host: Operator) -> None:
    host.sim.world.fault = lambda name, count: None


def asks(request: Request) -> Callable[[Operator], None]:
    return lambda host: host.sim.control.ask(request)


def killed(_: Operator) -> BaseException:
    return Killed()


def fails(_: Operator) -> BaseException:
    return refused("the new switch does not answer on /run/slot-b/ovs-vswitchd.ctl")


def running(host: Operator) -> None:
    at("switch vm1", killed)(host)
    host.coordinator_runs(4711)


dead = at("switch vm1", killed)


def died(host: Operator) -> None:
    """The coordinator was killed, and another one has started."""
    dead(host)
    host.sim.again()


paused = at("switch vm1", asks(Request.PAUSE))
aborted = at("switch vm1", asks(Request.BACK))
stayed = at("switch vm1", asks(Request.STAY))
restored = at("switch vm1", fails)


def done(host: Operator) -> None:
    host.sim.begin().forward()


def kept(host: Operator) -> None:
    host.sim.setup = replace(host.sim.setup, policy=replace(POLICY, keep_old=True))
    done(host)


def over_budget(host: Operator) -> None:
    host.sim.setup = replace(host.sim.setup, policy=replace(POLICY, blackout_budget_us=700))
    done(host)


def halted(host: Operator) -> None:
    host.sim.setup = replace(host.sim.setup, policy=replace(POLICY, on_failure="stay"))
    restored(host)


def stuck(host: Operator) -> None:
    """Neither on nor back: the second VM's move fails, so does the first one's way back, and the new switch cannot be ended."""
    world = host.sim.world
    moves = 0

    def fault(called: str, _: int) -> BaseException | None:
        nonlocal moves
        moves += called == "switch vm0"
        return fails(host) if called == "switch vm1" or moves > 1 else None

    world.fault = fault
    host.sim.begin().forward()
    disarm_world(host)


def at_work(host: Operator) -> None:
    """Another command's run is under way."""
    planned(host)
    host.daemon_runs("switch vm1")


def interrupted(host: Operator) -> None:
    planned(host)
    host.interrupts("switch vm1")


def will(name: str, act: Callable[[Operator], BaseException | None], before: Scene) -> Scene:
    """As `before`, and then something happens at one effect."""

    def scene(host: Operator) -> None:
        before(host)
        host.sim.world.fault = lambda called, _: act(host) if called == name else None

    return scene


def will_stay(host: Operator) -> None:
    host.sim.setup = replace(host.sim.setup, policy=replace(POLICY, on_failure="stay"))
    will("switch vm1", fails, planned)(host)


def will_be_stuck(host: Operator) -> None:
    """As `stuck`, and it is still to come."""
    planned(host)
    moves = 0

    def fault(called: str, _: int) -> BaseException | None:
        nonlocal moves
        moves += called == "switch vm0"
        return fails(host) if called == "switch vm1" or moves > 1 else None

    host.sim.world.fault = fault


def will_not_go_back(host: Operator) -> None:
    """A run whose old switch is kept; nothing of the new one can be had any more once a VM is to leave it."""
    kept(host)
    lost = False

    def fault(called: str, _: int) -> BaseException | None:
        nonlocal lost
        lost = lost or called == "switch vm1"
        return fails(host) if lost else None

    host.sim.world.fault = fault


def ended_too_far(host: Operator) -> None:
    """Its coordinator was killed when the old switch had been ended already."""

    def fault(_called: str, _: int) -> BaseException | None:
        return Killed() if host.sim.world.pids["a"] is None else None

    host.sim.world.fault = fault
    with suppress(Killed):
        host.sim.begin().forward()
    disarm_world(host)
    host.sim.again()


def planned(host: Operator) -> None:
    assert host.types("plan", "--out", "plan.json")[0] == 0


def stale(host: Operator) -> None:
    planned(host)
    host.sim.world.pids["a"] = 1003
    for name, vm in host.sim.world.vms.items():
        host.sim.world.vms[name] = replace(vm, ownership=replace(vm.ownership, owner_pid=1003))  # type: ignore[type-var]


def halted_with_a_plan(host: Operator) -> None:
    planned(host)
    halted(host)


def several(host: Operator) -> None:
    """A history: restored, then done, then one that stopped."""
    restored(host)
    done(host)
    host.sim.setup = replace(host.sim.setup, policy=replace(POLICY, on_failure="stay"))
    at("switch vm1", fails)(host)


def no_plan(host: Operator) -> None:
    (host.directory / "plan.json").write_text('{"id": 1}')


def wrong_config(host: Operator) -> None:
    text = host.config.read_text().replace('pf = "eth0"', 'port = 4789\nadapter = "magic"')
    host.config.write_text(text.replace('"0x6"', '"6"'))


def conf_d(host: Operator) -> None:
    (host.directory / "conf.d").mkdir()
    (host.directory / "conf.d/10-nic.toml").write_text("[nic]\nvxlan_port = 4790\n")
    (host.directory / "conf.d/20-site.toml").write_text("[policy]\nsoak_s = -1\n")


def conf_d_sound(host: Operator) -> None:
    conf_d(host)
    (host.directory / "conf.d/20-site.toml").write_text("[policy]\nsoak_s = 1\n")


def two_slots_alike(host: Operator) -> None:
    host.config.write_text(host.config.read_text().replace("/run/ovs-b", "/run/openvswitch"))


def garbled_config(host: Operator) -> None:
    host.config.write_text("[nic\n")


def no_config(host: Operator) -> None:
    host.config.unlink()


def broken_journal(host: Operator) -> None:
    (host.directory / "journal.db").write_bytes(b"no database at all" * 100)
    for tail in ("-wal", "-shm"):
        (host.directory / f"journal.db{tail}").unlink(missing_ok=True)


def guarded(host: Operator) -> None:
    host.daemon_guards()


def armed(host: Operator) -> None:
    """A standby is kept, and a daemon looks after it."""
    made = make_plan(host.sim.setup, None, host.sim.setup.policy, PlanKind.ARM)[1]
    host.sim.coordinator.begin(made, host.sim.control, watch).forward()
    guarded(host)


def armed_without_a_daemon(host: Operator) -> None:
    armed(host)
    host._patch.setattr(daemon_client, "connect", lambda path: None)


def armed_and_the_active_is_dead(host: Operator) -> None:
    armed(host)
    host.sim.world.die("a")


def armed_and_the_standby_is_dead(host: Operator) -> None:
    armed(host)
    host.sim.world.die("b")
    host.sim.world.fault = lambda called, _: fails(host) if called == "start_switch b" else None


def armed_but_for_one_vm(host: Operator) -> None:
    """A VM has just come, and the old switch is dead: nobody stands by on it."""
    armed(host)
    world = host.sim.world
    world.restart("vm1")
    world.die("a")


def takeover_off(host: Operator) -> None:
    host.config.write_text(host.config.read_text() + '[takeover]\npolicy = "off"\n')


class Fabric(FakeVfs):
    """From which packets of the overlay come all the time."""

    def received(self, vf: int) -> int:
        self.send(10)
        return super().received(vf)


@cache
def shim() -> tuple[TemporaryDirectory[str], Path]:
    """Compiled once; the folder goes with the process."""
    folder = TemporaryDirectory()
    return folder, build_shim(Path(folder.name))


def x710_of(*, out_of_tree: bool = True, vfs: type[FakeVfs] = Fabric, rule: bool = True) -> Scene:
    """A host whose overlay an X710 steers, to slot a where there is a `rule`."""

    def scene(host: Operator) -> None:
        host.config.write_text(
            host.config.read_text().replace("[nic]", '[nic]\nadapter = "ethtool"\nvfs = { a = 0, b = 1 }')
        )
        nic = FakeNic(host.directory / "nic", shim()[1], out_of_tree=out_of_tree)
        steering = x710(nic, vfs(nic))
        if rule:
            steering.steady("a")
        host._patch.setattr(wiring, "steering", lambda settings: steering)

    return scene


def lab(problem: str = "", *, phase: Phase | None = Phase.UP) -> Scene:
    """A lab of two guests that runs; with a problem, one of them does not."""
    spec = LabSpec(vms=2)
    slots = (
        SlotView("a", spec.namespaces.slot_a, 71, 70, "3.1.0"),
        SlotView("b", spec.namespaces.slot_b, None, None, None),
    )
    well = [not problem or vm.index == 0 for vm in spec.guests]
    guests = tuple(
        GuestStatus(vm, 80 + vm.index if up else None, ready=up) for vm, up in zip(spec.guests, well, strict=True)
    )
    problems = (problem,) if problem else ()
    status = LabStatus(spec, phase, 60, slots, guests, problems)

    def scene(host: Operator) -> None:
        host._patch.setattr(Lab, "status", lambda self: status)

    return scene


def x710_elsewhere(host: Operator) -> None:
    """What the rule says goes to slot a comes to slot b."""

    class Crossed(FakeVfs):
        def received(self, vf: int) -> int:
            self.packets[1] += 10
            return super().received(vf)

    x710_of(vfs=Crossed)(host)


def several_kinds(host: Operator) -> None:
    """A history: an upgrade, then armed, then taken over."""
    done(host)
    armed(host)
    assert host.types("takeover", "--yes")[0] == 0


def no_libvirt(host: Operator) -> None:
    def ask() -> None:
        raise HostError(
            "LIBVIRT_UNREACHABLE",
            "no libvirt answers at qemu:///system: Failed to connect socket to '/var/run/libvirt/libvirt-sock'",
            state="nothing was changed",
            next="virsh -c 'qemu:///system' list",
        )

    host._patch.setattr(host.sim.setup.host.hypervisor, "vm_interfaces", ask)


def a_mistake_of_ours(host: Operator) -> None:
    def ask() -> None:
        raise KeyError("owner-pid")

    host._patch.setattr(host.sim.setup.host.hypervisor, "vm_interfaces", ask)


def not_root(host: Operator) -> None:
    host._patch.setattr("upgrader.cli.here.os.geteuid", lambda: 1000)


#: name of the golden file, how the host came to be, VMs, what is typed
CASES: tuple[tuple[str, Scene, int, str], ...] = (
    ("check", fresh, 2, "check"),
    ("check-blocked", blocked, 3, "check"),
    ("check-accepted", accepted, 2, "check"),
    ("check-json", blocked, 2, "check --json"),
    ("check-1000", fresh, 1000, "check"),
    ("plan", fresh, 2, "plan"),
    ("plan-out", fresh, 2, "plan --out plan.json --keep-old --on-failure ask"),
    ("plan-json", fresh, 2, "plan --json"),
    ("plan-blocked", blocked, 2, "plan"),
    ("plan-pending", fresh, 2, "plan --detailed-exitcode"),
    ("plan-1000", fresh, 1000, "plan"),
    ("dry-run", fresh, 2, "--host localhost --dry-run"),
    ("run", planned, 2, "run plan.json --yes"),
    ("run-json", planned, 1, "run plan.json --yes --json"),
    ("run-200", planned, 200, "run plan.json --yes"),
    ("short-way", fresh, 2, "--host localhost --yes"),
    ("status-none", fresh, 2, "status"),
    ("status-running", running, 3, "status"),
    ("status-running-1000", running, 1000, "status"),
    ("status-json", running, 2, "status --json"),
    ("status-none-json", fresh, 2, "status --json"),
    ("status-coordinator-dead", dead, 3, "status"),
    ("status-coordinator-died", died, 3, "status"),
    ("status-paused", paused, 3, "status"),
    ("status-halted", halted, 3, "status"),
    ("status-halted-on-request", stayed, 3, "status"),
    ("status-over-budget", over_budget, 2, "status"),
    ("status-done", done, 2, "status"),
    ("status-done-kept", kept, 2, "status"),
    ("status-restored", restored, 2, "status"),
    ("status-restored-on-request", aborted, 2, "status"),
    ("status-operator-needed", stuck, 2, "status"),
    ("status-watch-done", done, 2, "status --watch"),
    ("run-fails", will("switch vm1", fails, planned), 2, "run plan.json --yes"),
    ("run-stays", will_stay, 2, "run plan.json --yes"),
    ("run-stuck", will_be_stuck, 2, "run plan.json --yes"),
    ("run-interrupted", interrupted, 2, "run plan.json --yes"),
    ("pause", at_work, 3, "pause"),
    ("pause-json", at_work, 2, "pause --json"),
    ("abort", at_work, 3, "abort"),
    ("abort-stay", at_work, 3, "abort --stay"),
    ("resume", paused, 3, "resume --yes"),
    ("resume-died", died, 3, "resume --yes"),
    ("resume-fails", will("switch vm2", fails, paused), 3, "resume --yes"),
    ("resume-fails-json", will("switch vm2", fails, paused), 3, "resume --yes --json"),
    ("rollback", kept, 2, "rollback --yes"),
    ("rollback-killed-switch", will("switch vm0", fails, kept), 2, "rollback --yes"),
    ("rollback-stuck", will_not_go_back, 2, "rollback --yes"),
    ("rollback-died", died, 3, "rollback --yes"),
    ("rollback-too-late", ended_too_far, 2, "rollback --yes"),
    ("rollback-halted", halted, 2, "rollback --yes"),
    ("history", several, 2, "history"),
    ("history-kinds", several_kinds, 2, "history"),
    ("history-none", fresh, 2, "history"),
    ("history-json", several, 2, "history --json"),
    ("report", done, 2, "report"),
    ("report-json", done, 1, "report --json"),
    ("report-restored", restored, 2, "report"),
    ("report-over-budget", over_budget, 2, "report"),
    ("report-200", done, 200, "report"),
    ("arm", guarded, 2, "arm --yes"),
    ("arm-json", guarded, 1, "arm --yes --json"),
    ("arm-again", armed, 2, "arm --yes"),
    ("arm-fails", will("attach vm1", fails, guarded), 2, "arm --yes"),
    ("disarm", armed, 2, "disarm --yes"),
    ("disarm-json", armed, 1, "disarm --yes --json"),
    ("takeover-dry-run", armed, 2, "takeover --dry-run"),
    ("takeover-dry-run-json", armed, 1, "takeover --dry-run --json"),
    ("takeover-dry-run-blocked", fresh, 2, "takeover --dry-run"),
    ("takeover", armed, 2, "takeover --yes"),
    ("takeover-json", armed, 1, "takeover --yes --json"),
    ("takeover-dead", armed_and_the_active_is_dead, 2, "takeover --yes"),
    ("takeover-left-behind", armed_but_for_one_vm, 2, "takeover --yes"),
    ("status-armed", armed, 2, "status"),
    ("status-armed-json", armed, 1, "status --json"),
    ("status-armed-no-daemon", armed_without_a_daemon, 2, "status"),
    ("status-active-dead", armed_and_the_active_is_dead, 2, "status"),
    ("status-standby-dead", armed_and_the_standby_is_dead, 2, "status"),
    ("nic-show", x710_of(), 2, "nic show"),
    ("nic-show-json", x710_of(), 2, "nic show --json"),
    ("nic-show-in-tree", x710_of(out_of_tree=False), 2, "nic show --vms 8"),
    ("nic-check", x710_of(), 2, "nic check --vms 2"),
    ("nic-check-blocked", x710_of(out_of_tree=False), 2, "nic check --vms 2"),
    ("nic-check-json", x710_of(out_of_tree=False), 2, "nic check --json"),
    ("nic-probe", x710_of(), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-json", x710_of(), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2 --json"),
    ("nic-probe-silent", x710_of(vfs=FakeVfs), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-elsewhere", x710_elsewhere, 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("nic-probe-no-rule", x710_of(rule=False), 2, "nic probe --vni 100 --mac 52:54:00:00:00:01 --for 0.2"),
    ("lab-status", lab(), 2, "lab status"),
    ("lab-status-none", lab(phase=None), 2, "lab status"),
    ("lab-status-broken", lab("guest vm1 does not run"), 2, "lab status"),
    ("lab-status-json", lab("guest vm1 does not run"), 2, "lab status --json"),
    ("config-show", fresh, 2, "config show"),
    ("config-validate", fresh, 2, "config validate"),
    ("config-validate-conf-d", conf_d_sound, 2, "config validate"),
    ("refused-config-missing", no_config, 2, "status"),
    ("refused-config-missing-json", no_config, 2, "status --json"),
    ("refused-config-unreadable", garbled_config, 2, "config validate"),
    ("refused-config-invalid", wrong_config, 2, "config validate"),
    ("refused-config-two-slots", two_slots_alike, 2, "config validate"),
    ("refused-config-conf-d", conf_d, 2, "config validate"),
    ("refused-no-host", fresh, 2, ""),
    ("refused-no-verb", fresh, 2, "upgrade"),
    ("refused-no-option", fresh, 2, "status --colour"),
    ("refused-no-option-json", fresh, 2, "status --colour --json"),
    ("refused-no-shell", fresh, 2, "--show-completion tcsh"),
    ("refused-no-argument", fresh, 2, "run"),
    ("refused-option-of-the-short-way", planned, 2, "--dry-run run plan.json"),
    ("refused-no-slot", fresh, 2, "--host localhost --restore c"),
    ("refused-no-policy", fresh, 2, "plan --on-failure panic"),
    ("refused-not-root", not_root, 2, "check"),
    ("refused-not-confirmed", fresh, 2, "--host localhost"),
    ("refused-blocked", blocked, 2, "--host localhost --yes"),
    ("refused-arm-off", takeover_off, 2, "arm --yes"),
    ("refused-arm-not-confirmed", fresh, 2, "arm"),
    ("refused-arm-blocked", blocked, 2, "arm --yes"),
    ("refused-disarm-nothing", fresh, 2, "disarm --yes"),
    ("refused-takeover-not-confirmed", armed, 2, "takeover"),
    ("refused-takeover-no-standby", fresh, 2, "takeover --yes"),
    ("refused-takeover-no-standby-json", fresh, 2, "takeover --yes --json"),
    ("refused-nic-no-mac", x710_of(), 2, "nic probe --vni 100 --mac vm1"),
    ("refused-nic-no-vni", x710_of(), 2, "nic probe --mac 52:54:00:00:00:01"),
    ("refused-no-libvirt", no_libvirt, 2, "check"),
    ("refused-no-libvirt-json", no_libvirt, 2, "plan --json"),
    ("refused-unexpected", a_mistake_of_ours, 2, "check"),
    ("refused-no-plan-file", fresh, 2, "run plan.json --yes"),
    ("refused-plan-unreadable", no_plan, 2, "run plan.json --yes"),
    ("refused-plan-stale", stale, 2, "run plan.json --yes"),
    ("refused-busy", at_work, 2, "run plan.json --yes"),
    ("refused-busy-json", at_work, 2, "run plan.json --yes --json"),
    ("refused-busy-short-way", at_work, 2, "--host localhost --yes"),
    ("refused-busy-resume", at_work, 2, "resume --yes"),
    ("refused-unfinished", halted_with_a_plan, 2, "run plan.json --yes"),
    ("refused-nothing-to-resume", done, 2, "resume --yes"),
    ("refused-nothing-to-roll-back", done, 2, "rollback --yes"),
    ("refused-no-run-to-pause", done, 2, "pause"),
    ("refused-no-run-to-abort", done, 2, "abort"),
    ("refused-no-such-run", done, 2, "report 7"),
    ("refused-unwritable", fresh, 2, "plan --out none/plan.json"),
    ("refused-journal", broken_journal, 2, "status"),
)  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is as long wherever tests run: lines are broken by its length."""
    with TemporaryDirectory(prefix="golden-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize(("name", "scene", "vms", "typed"), CASES, ids=[c[0] for c in CASES])
def test_as_it_was(name: str, scene: Scene, vms: int, typed: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_host(number: int) -> Operator:
        directory = place / str(number)
        directory.mkdir()
        host = Operator(directory, monkeypatch, vms)
        scene(host)
        return host

    words = typed.split()
    host = at_the_host(0)
    only_looks = words[:1] in (["check"], ["status"], ["history"], ["report"])
    code, out, err = host.types(*words)
    host.ends()
    assert "\x1b" not in out + err, "off a terminal there are no escape sequences"
    on = []
    for number, colour in ((1, True), (2, False)):
        if not only_looks:
            host = at_the_host(number)
        on.append(host.types_on_a_terminal(*words, colour=colour))
        host.ends()
    assert {c for c, _ in on} == {code}
    show = seen if "\x1b[?25l" in on[0][1] else readable  # a bar was drawn: what it left
    text = f"$ upgrade {typed}\nexit {code}\n"
    for title, part in (
        ("stdout", out),
        ("stderr", err),
        ("on a terminal", show(on[0][1])),
        ("on a terminal, NO_COLOR", show(on[1][1])),
    ):
        text += f"\n----- {title}\n{part}"
    for number in range(3):
        text = text.replace(str(place / str(number)), "/etc/ovs-upgrade")
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_no_golden_without_a_case() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {c[0] for c in CASES}
