"""A generated corpus on real switches: each is replicated and proved equal, each single mutation of it found and named."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.corpus import BridgeCorpus, apply, corpora
from tests.support.mutations import Mutation, at_once, mutate, mutations, untold
from tests.support.slots import Pair, SlotFactory, vsctl
from tests.support.switch import eventually
from upgrader.adapters import gate
from upgrader.adapters.host_resources import HostResources
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ofctl.programs import appctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.core.proof import Difference

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", name="pair")
def pair_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with SlotFactory(tmp_path_factory.mktemp("corpus")) as factory:
        a = factory.start("a")
        vsctl(a, "init")
        pair = Pair(a, factory.start_standby("b", a))
        for slot in (pair.a, pair.b):  # what a kernel says of its own accord would be learned from
            gate.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"],
                     netns=slot.netns)  # fmt: skip
        yield pair


def become(pair: Pair, corpus: tuple[BridgeCorpus, ...]) -> None:
    """Make the active that, and the standby what it is; neighbours that it had before are none of its own."""
    apply(pair.a, corpus)
    appctl(pair.b, "tnl/neigh/flush")
    follow(pair)
    require_equal(pair, "replicated")


def follow(pair: Pair) -> None:
    """One round of all of it, as the step replicate makes it; the second look at the database gives new bridges their fail_mode."""
    for _ in range(2):
        bridges = Ovsdb().sync(pair.a, pair.b, ()).bridges
    HostResources().copy_addresses(pair.a, pair.b, bridges)
    for bridge in bridges:
        Ofctl().sync(pair.a, pair.b, bridge, hold=True)
    Ofctl().sync_learned(pair.a, pair.b, bridges)


def differences(pair: Pair) -> list[Difference]:
    bridges = [b.name for b in Ovsdb().read(pair.a).bridges]
    there = {b.name for b in Ovsdb().read(pair.b).bridges}
    found = list(Ovsdb().differences(pair.a, pair.b, ()))
    for bridge in there.intersection(bridges):
        found += Ofctl().differences(pair.a, pair.b, bridge, hold=True)
    return [*found, *Ofctl().learned_differences(pair.a, pair.b, bridges)]


def require_equal(pair: Pair, after: object) -> None:
    """Now; but for routes of the kernel, of which each switch is told in its own time."""
    found = differences(pair)
    assert [str(d) for d in found if not d.what.startswith("kernel ")][:9] == [], after
    if found:
        eventually(lambda: differences(pair) == [], "the kernel's routes")


def require_named(pair: Pair, made: list[Mutation], how: str) -> None:
    """Carry these out; each is told, and nothing else. Then the next round mends it all."""
    mutate(pair.b, made)
    found = differences(pair)
    missing, strange = untold(found, made)
    assert not missing, (how, sorted(missing)[:9], list(map(str, found))[:9])
    assert not strange, (how, list(map(str, strange))[:9])
    follow(pair)
    require_equal(pair, how)


def require_all(pair: Pair, singles: int) -> int:
    """Every thing of the standby changed or removed, those that concern different things at once; and some all by themselves."""
    every = mutations(pair.b)
    for how, made in at_once(every).items():
        require_named(pair, made, how)
    alone = random.Random(0).sample(sorted(every), min(singles, len(every)))
    for how in alone:
        require_named(pair, [every[how][len(every[how]) // 2]], f"{how}, alone")
    return sum(map(len, every.values()))


@pytest.mark.timeout(600)
@settings(
    max_examples=5,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_replicated_equal_and_every_mutation_named(pair: Pair, data: st.DataObject) -> None:
    become(pair, data.draw(corpora(*data.draw(st.sampled_from([(300, 12), (0, 0)])))))
    require_all(pair, singles=4)
