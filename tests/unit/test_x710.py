"""Steering by an X710's rules, on a model of what its drivers answer. Not run on hardware."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fake_nic import LOCATION, FakeNeighbours, FakeNic, FakeProbe, FakeVfs, build_shim, x710
from upgrader.adapters.ethtool import Ethtool
from upgrader.adapters.ethtool_ioctl import EthtoolDevice
from upgrader.core import i40e, nfc
from upgrader.core.errors import HostError
from upgrader.core.i40e import Driver, Flavour
from upgrader.core.model import SlotName
from upgrader.core.nfc import Flow, RxRule, rule, to_vf
from upgrader.core.steering import Arrival, judge
from upgrader.sim.facts import vm_port


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def intel(tmp_path: Path, shim: Path) -> FakeNic:
    return FakeNic(tmp_path / "nic", shim, out_of_tree=True)


@pytest.fixture
def in_tree(tmp_path: Path, shim: Path) -> FakeNic:
    return FakeNic(tmp_path / "nic", shim, out_of_tree=False)


def device(nic: FakeNic) -> EthtoolDevice:
    return EthtoolDevice("pf0", None, nic.ioctl)


def targets(steering: Ethtool) -> list[tuple[SlotName, ...]]:
    return [r.targets for r in steering.rules()]


@pytest.mark.parametrize(
    ("name", "version", "flavour"),
    [
        ("i40e", "2.28.16", Flavour.OUT_OF_TREE),
        ("i40e", "2.22.18.1", Flavour.OUT_OF_TREE),
        ("i40e", "2.28.5_rc2", Flavour.OUT_OF_TREE),
        ("i40e", "6.1.0-56-amd64", Flavour.IN_TREE),
        ("i40e", "2.8.20-k", Flavour.IN_TREE),
        ("i40e", "6.18.44", Flavour.IN_TREE),  # the release of the kernel that runs
        ("i40e", "", Flavour.IN_TREE),
        ("i40e", "whatever", Flavour.IN_TREE),
        ("ixgbe", "5.19.6", Flavour.OTHER),
        ("ice", "1.12.7", Flavour.OTHER),
    ],
)
def test_the_drivers_flavour(name: str, version: str, flavour: Flavour) -> None:
    assert Driver(name, version, "", "").flavour("6.18.44") is flavour


class TestInTree:
    def test_a_probe_finds_that_it_does_not_steer(self, in_tree: FakeNic) -> None:
        with pytest.raises(HostError, match="nothing arrives") as caught:
            x710(in_tree, probe=FakeProbe()).steady("a")
        assert "goes to the PF" in caught.value.state
        assert in_tree.programmed() == ()

    def test_it_never_gets_a_cloud_rule(self, in_tree: FakeNic) -> None:
        steering = x710(in_tree)
        steering.steady("a")
        steering.open_window([(vm_port(0), "a"), (vm_port(1), "a")])
        steering.move_vm(vm_port(0), ("b",))
        steering.move_vm(vm_port(1), ("b",))
        steering.close_window("b")
        steering.failover("a")
        assert in_tree.count("inserts") >= 3
        assert in_tree.count("cloud_requests") == 0

    def test_the_model_makes_something_else_of_a_cloud_rule(self, in_tree: FakeNic) -> None:
        """Why it must not: it is taken without an error."""
        device(in_tree).insert(rule(Flow.UDP4, to_vf(0, 0), 7, dst_port=4789, user_def=i40e.cloud()))
        (made,) = in_tree.programmed()
        assert not made.cloud
        assert not i40e.is_cloud(made.rule)

    def test_counters_show_that_its_rule_does_not_steer(self, in_tree: FakeNic) -> None:
        vfs = FakeVfs(in_tree)
        steering = x710(in_tree, vfs)
        steering.steady("a")
        assert targets(steering) == [("a",)]  # all is well by what it answers
        before = steering.arrived()
        vfs.send(100)
        assert judge("a", before, steering.arrived()) is Arrival.SILENT

    def test_it_is_said_before_a_run(self, in_tree: FakeNic) -> None:
        assert "do not bring overlay traffic" in (x710(in_tree).capabilities().unproven or "")

    def test_a_second_rule_for_the_same_packets_is_refused(self, in_tree: FakeNic) -> None:
        device(in_tree).insert(rule(Flow.UDP4, 3, 5, dst_port=4789))
        with pytest.raises(HostError, match="rule 5 of pf0 takes the overlay already") as caught:
            x710(in_tree).steady("a")
        assert "ethtool -N pf0 delete 5" in caught.value.next
        assert in_tree.count("inserts") == 1

    def test_another_input_set_of_the_same_flow_type(self, in_tree: FakeNic) -> None:
        device(in_tree).insert(rule(Flow.UDP4, 3, 5, src_port=53))
        with pytest.raises(HostError, match="the driver of pf0 refused") as caught:
            x710(in_tree).steady("a")
        assert caught.value.state == "overlay traffic goes to the PF"

    def test_a_location_beyond_the_table(self, in_tree: FakeNic) -> None:
        with pytest.raises(HostError, match="refused"):
            x710(in_tree, location=512).steady("a")


class TestOutOfTree:
    def test_the_rule_steers_and_counters_say_so(self, intel: FakeNic) -> None:
        vfs = FakeVfs(intel)
        steering = x710(intel, vfs)
        for slot in ("a", "b"):
            steering.steady(slot)  # type: ignore[arg-type]
            before = steering.arrived()
            vfs.send(100)
            assert judge(slot, before, steering.arrived()) is Arrival.AS_SET  # type: ignore[arg-type]
        assert steering.capabilities().unproven is None

    def test_a_rule_that_was_queued_and_never_took_effect(self, intel: FakeNic) -> None:
        vfs = FakeVfs(intel)
        steering = x710(intel, vfs)
        steering.steady("a")
        intel.set(drop_next=1)
        steering.steady("b")  # no error
        assert targets(steering) == [("b",)]
        before = steering.arrived()
        vfs.send(100)
        assert judge("b", before, steering.arrived()) is Arrival.SILENT
        steering.steady("b", anew=True)
        vfs.send(100)
        assert judge("b", before, steering.arrived()) is Arrival.AS_SET

    def test_after_a_reset_of_the_vf_the_rule_points_to_nobody(self, intel: FakeNic) -> None:
        vfs = FakeVfs(intel)
        steering = x710(intel, vfs)
        steering.steady("a")
        intel.reset_vf(0)
        assert targets(steering) == [()]
        before = steering.arrived()
        vfs.send(10)
        assert judge("a", before, steering.arrived()) is Arrival.SILENT
        steering.steady("a")
        assert targets(steering) == [("a",)]
        vfs.send(10)
        assert judge("a", before, steering.arrived()) is Arrival.AS_SET

    def test_vfs_are_prepared_before_and_left_alone_afterwards(self, intel: FakeNic) -> None:
        vfs = FakeVfs(intel)
        steering = x710(intel, vfs)
        steering.prepare("a")
        steering.prepare("b")
        steering.steady("a")
        steering.prepare("a")  # as it should be: no reset
        assert targets(steering) == [("a",)]
        assert vfs.prepared == {0, 1}

    def test_a_driver_loaded_without_l4mode_is_named(self, tmp_path: Path, shim: Path) -> None:
        nic = FakeNic(tmp_path / "nic", shim, out_of_tree=True, l4mode=False)
        with pytest.raises(HostError) as caught:
            x710(nic).steady("a")
        assert "l4mode=0" in caught.value.what
        assert "modprobe i40e l4mode=0" in caught.value.next
        assert nic.programmed() == ()

    def test_a_refused_turn_puts_back_what_was_there(self, intel: FakeNic) -> None:
        steering = x710(intel)
        steering.steady("a")
        intel.set(refuse_next=1)
        with pytest.raises(HostError) as caught:
            steering.steady("b")
        assert caught.value.state == "overlay traffic goes to slot a as before"
        assert targets(steering) == [("a",)]
        intel.set(refuse_next=2)
        with pytest.raises(HostError) as caught:
            steering.steady("b")
        assert "goes to the PF" in caught.value.state
        assert targets(steering) == []
        steering.steady("b")
        assert targets(steering) == [("b",)]

    def test_one_filter_family_at_a_time(self, intel: FakeNic) -> None:
        device(intel).insert(rule(Flow.ETHER, to_vf(0, 0), 9, src=0x525400000005, user_def=i40e.cloud(vni=100)))
        with pytest.raises(HostError, match="makes invalid"):
            x710(intel).steady("a")
        assert all(p.effective for p in intel.programmed())

    def test_a_failover_fences_the_dead_and_prepare_lifts_it(self, intel: FakeNic) -> None:
        vfs = FakeVfs(intel)
        steering = x710(intel, vfs)
        steering.steady("a")
        steering.failover("b")
        assert targets(steering) == [("b",)]
        steering.fence("b")  # it is the one with the traffic: never
        assert vfs.fenced == set()
        steering.fence("a")
        assert vfs.fenced == {0}
        assert targets(steering) == [("b",)]
        steering.prepare("a")
        assert vfs.fenced == set()

    def test_a_driver_without_a_fence_does_not_spoil_a_failover(self, intel: FakeNic) -> None:
        class NoFence(FakeVfs):
            def fence(self, vf: int) -> None:
                raise HostError("VF_UNUSABLE", "not supported", state="-", next="-")

        steering = x710(intel, NoFence(intel))
        steering.steady("a")
        steering.failover("b")
        steering.fence("a")
        assert targets(steering) == [("b",)]
        intel.set(ntuple=0)
        device(intel).delete(LOCATION)
        intel.set(ntuple=1)
        device(intel).insert(rule(Flow.UDP4, 3, LOCATION, dst_port=53))  # a stranger's at our place
        vfs = FakeVfs(intel)
        x710(intel, vfs).fence("a")
        assert vfs.fenced == set()

    def test_a_probe_shows_on_a_quiet_host_what_a_rule_does(self, intel: FakeNic) -> None:
        """Nothing flows but what another host is made to send: a rule without effect is found, and the old one back."""
        probe = FakeProbe()
        steering = x710(intel, probe=probe)
        steering.steady("a")
        assert probe.probes == 1
        intel.set(drop_next=1)
        with pytest.raises(HostError, match="by the VFs' counters nothing arrives") as caught:
            steering.steady("b")
        assert caught.value.state == "overlay traffic goes to slot a as before"
        assert intel.target(4789) == 0
        steering.steady("b")
        assert intel.target(4789) == 1
        sent = probe.probes
        steering.failover("a")  # no time for that
        assert probe.probes == sent

    def test_broadcasts_do_not_make_a_rule_look_right(self, intel: FakeNic) -> None:
        """Each VF gets them: a packet a wait at the new slot is not the overlay's thousand a second."""
        steering = x710(intel, rate_pps=1000, broadcasts=1)
        steering.steady("a")
        intel.set(drop_next=1)
        with pytest.raises(HostError, match="by the VFs' counters"):
            steering.steady("b")
        assert intel.target(4789) == 0

    def test_the_whole_port_follows_the_majority(self, intel: FakeNic) -> None:
        steering = x710(intel)
        ports = [vm_port(i) for i in range(4)]
        steering.steady("a")
        steering.open_window([(p, "a") for p in ports])
        seen = []
        for p in ports:
            steering.move_vm(p, ("b",))
            seen += targets(steering)
        assert seen == [("a",), ("a",), ("b",), ("b",)]
        for p in ports[:3]:
            steering.move_vm(p, ("a",))
        assert targets(steering) == [("a",)]


def test_rules_switched_off(intel: FakeNic) -> None:
    intel.set(ntuple=0)
    with pytest.raises(HostError, match="switched off") as caught:
        x710(intel).steady("a")
    assert caught.value.next == "ethtool -K pf0 ntuple on"


def test_a_netdev_that_is_not_there_or_has_no_rules() -> None:
    vfs = FakeVfs.__new__(FakeVfs)
    for name, words in (("no-such-nic", "there is no netdev"), ("lo", "cannot be asked|has no receive rules")):
        with pytest.raises(HostError, match=words):
            Ethtool(EthtoolDevice(name, None), vfs, FakeNeighbours(), {"a": 0, "b": 1}, 4789, 1).rules()


def test_room_is_counted(tmp_path: Path, shim: Path) -> None:
    nic = FakeNic(tmp_path / "nic", shim, out_of_tree=False, table=3)
    for location in range(3):
        device(nic).insert(rule(Flow.TCP4, 1, location, dst_port=location + 1))
    assert x710(nic, location=2).capabilities().capacity == 0


MATCHES = st.one_of(
    st.builds(lambda port, loc: rule(Flow.TCP4, 1, loc, dst_port=port), st.integers(1, 65535), st.integers(0, 99)),
    st.builds(
        lambda port, loc: rule(Flow.UDP4, to_vf(1, 1), loc, dst_port=port), st.integers(1, 4788), st.integers(101, 511)
    ),
    st.builds(
        lambda address, loc: rule(Flow.IP4, to_vf(0, 0), loc, dst_ip=address, user_def=i40e.cloud()),
        st.integers(1, 2**32 - 1),
        st.integers(101, 511),
    ),
)
VERBS = st.lists(
    st.tuples(
        st.sampled_from(
            ("steady", "anew", "open", "move", "close", "failover", "fence", "prepare", "reset", "drop", "refuse")
        ),
        st.sampled_from(("a", "b")),
    ),
    max_size=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(foreign=st.lists(MATCHES, max_size=6), verbs=VERBS, out_of_tree=st.booleans())
def test_rules_of_others_are_never_touched(
    foreign: list[RxRule], verbs: list[tuple[str, SlotName]], out_of_tree: bool, shim: Path
) -> None:
    """Whatever is done, whatever fails on the way: the rules that were there before are there, as they were."""
    with tempfile.TemporaryDirectory() as folder:
        nic = FakeNic(Path(folder) / "nic", shim, out_of_tree=out_of_tree)
        for r in foreign:
            try:
                device(nic).insert(r)
            except OSError:
                continue  # a duplicate
        before = [(p.rule, p.effective) for p in nic.programmed()]
        steering, ports = x710(nic), [vm_port(i) for i in range(3)]
        for verb, slot in verbs:
            try:
                match verb:
                    case "steady" | "anew":
                        steering.steady(slot, anew=verb == "anew")
                    case "open":
                        steering.open_window([(p, slot) for p in ports])
                    case "move":
                        steering.move_vm(ports[0], (slot,))
                    case "close":
                        steering.close_window(slot)
                    case "failover":
                        steering.failover(slot)
                    case "fence":
                        steering.fence(slot)
                    case "prepare":
                        steering.prepare(slot)
                    case "reset":
                        nic.reset_vf(0 if slot == "a" else 1)
                    case "drop":
                        nic.set(drop_next=1)
                    case "refuse":
                        nic.set(refuse_next=1)
            except HostError:
                continue
        assert [(p.rule, p.effective) for p in nic.programmed() if p.rule.location != LOCATION] == before
        assert len(nic.programmed()) <= len(before) + 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    taken=st.one_of(MATCHES, st.builds(lambda port: rule(Flow.UDP4, 2, 5, dst_port=port), st.just(4789))),
    out=st.booleans(),
)
def test_a_foreign_rule_at_our_place_stays(taken: RxRule, out: bool, shim: Path) -> None:
    at = taken.location
    with tempfile.TemporaryDirectory() as folder:
        nic = FakeNic(Path(folder) / "nic", shim, out_of_tree=out)
        device(nic).insert(taken)
        before = nic.programmed()
        steering = x710(nic, location=at)
        if not i40e.same_match(taken, Flavour.OUT_OF_TREE if out else Flavour.IN_TREE, 4789):
            for act in (steering.steady, steering.close_window, steering.failover):
                with pytest.raises(HostError, match="somebody else"):
                    act("a")
            assert nic.programmed() == before


@given(
    st.sampled_from([f for f in Flow if f is not Flow.OTHER]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_every_rule_survives_its_bytes(flow: Flow, cookie: int, location: int, data: st.DataObject) -> None:
    known = {**nfc._FIELDS[flow], **nfc._EXT}
    names = data.draw(st.sets(st.sampled_from(sorted(known))))
    fields = {}
    for name in names:
        full = 2 ** (8 * known[name][1]) - 1
        fields[name.replace("-", "_")] = nfc.Match(data.draw(st.integers(0, full)), data.draw(st.integers(1, full)))
    made = rule(flow, cookie, location, **fields)  # type: ignore[arg-type]
    assert nfc.decode_spec(nfc.encode_spec(made)) == made


def test_what_does_not_fit_is_refused() -> None:
    for bad in ({"dst_port": 65536}, {"dst_port": -1}, {"vni": 1}):
        with pytest.raises(ValueError):
            rule(Flow.UDP4, 0, 0, **bad)
    with pytest.raises(ValueError):
        rule(Flow.UDP4, 2**64, 0)
    with pytest.raises(ValueError):
        i40e.cloud(vni=2**24)
    with pytest.raises(ValueError):
        nfc.encode_spec(RxRule(Flow.OTHER, (), 0, 3))


def test_a_rule_of_an_unknown_kind_is_seen_and_counts_as_foreign() -> None:
    spec = bytearray(nfc.encode_spec(rule(Flow.UDP4, 0, 9, dst_port=1)))
    spec[0] = 0x4D
    assert nfc.decode_spec(bytes(spec)) == RxRule(Flow.OTHER, (), 0, 9)
