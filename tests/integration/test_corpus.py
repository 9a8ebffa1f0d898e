"""A generated corpus on real switches: each is replicated and proved equal, each single mutation of it found and named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.corpus import BridgeCorpus, apply, corpora, mutate, mutations
from tests.support.slots import Pair, SlotFactory, vsctl
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb
from upgrader.core.proof import Difference

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", name="pair")
def pair_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with SlotFactory(tmp_path_factory.mktemp("corpus")) as factory:
        a = factory.start("a")
        vsctl(a, "init")
        yield Pair(a, factory.start_standby("b", a))


def follow(pair: Pair, corpus: tuple[BridgeCorpus, ...]) -> None:
    for _ in range(2):  # the second gives bridges that are new their fail_mode
        Ovsdb().sync(pair.a, pair.b, ())
    for bridge in corpus:
        Ofctl().sync(pair.a, pair.b, bridge.name, hold=True)


def differences(pair: Pair, corpus: tuple[BridgeCorpus, ...]) -> list[Difference]:
    found = list(Ovsdb().differences(pair.a, pair.b, ()))
    for bridge in corpus:
        found += Ofctl().differences(pair.a, pair.b, bridge.name, hold=True)
    return found


@pytest.mark.timeout(600)
@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_replicated_equal_and_every_mutation_named(pair: Pair, data: st.DataObject) -> None:
    corpus = data.draw(corpora())
    apply(pair.a, corpus)
    follow(pair, corpus)
    assert differences(pair, corpus) == []
    every = mutations(corpus)
    for mutation in data.draw(st.permutations(every))[:12]:
        mutate(pair.b, mutation)
        found = differences(pair, corpus)
        assert any(d.kind == mutation.kind and mutation.named in d.what for d in found), (
            mutation,
            list(map(str, found)),
        )
        follow(pair, corpus)
        assert differences(pair, corpus) == [], mutation
