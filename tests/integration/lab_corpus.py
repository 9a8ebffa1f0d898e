"""The largest switch that is promised, made up by hypothesis: replicated, proved equal, every mutation of it named.

Run by ``make show-replication PARTS=corpus``, and not by ``make test``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.test_corpus import become, pair_fixture, require_all
from tests.support.corpus import LARGEST, corpora
from tests.support.slots import Pair
from upgrader.adapters.ofctl import Ofctl
from upgrader.adapters.ovsdb import Ovsdb

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
__all__ = ["pair_fixture"]
FLOWS, PORTS = LARGEST


@settings(
    max_examples=1,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_as_many_flows_and_ports_as_are_promised(
    pair: Pair, record_property: Callable[[str, object], None], data: st.DataObject
) -> None:
    become(pair, data.draw(corpora(FLOWS, PORTS)))
    flows = sum(len(Ofctl().flows(pair.b, bridge.name)) for bridge in Ovsdb().read(pair.b).bridges)
    ports = len(Ovsdb().read(pair.b).interfaces)
    assert (flows >= FLOWS, ports >= PORTS) == (True, True)
    named = require_all(pair, singles=2)
    record_property("flows", flows)
    record_property("ports", ports)
    record_property("mutations named", named)
