"""How a host came to be what an operator finds: each scene is played on a fresh simulated one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.fake_nic import FakeNic, FakeVfs, build_shim, x710
from tests.support.operator import POLICY, Operator
from tests.support.runs import Killed, watch
from upgrader import wiring
from upgrader.core.errors import HostError
from upgrader.core.plan import PlanKind
from upgrader.daemon import client as daemon_client
from upgrader.engine.control import Request
from upgrader.engine.coordinator import make_plan
from upgrader.sim.host import refused

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
