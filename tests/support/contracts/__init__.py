"""What `upgrader.ports` promises, as tests that the simulated host and the real adapters are both held to.

A suite is a class whose tests take a `rig`; tests/contract gives them one of the simulated host, tests/integration one
of a lab. Where the two differ the real one is right.
"""

from tests.support.contracts.database import DatabaseContract
from tests.support.contracts.hypervisor import HypervisorContract
from tests.support.contracts.openflow import OpenFlowContract
from tests.support.contracts.processes import ProcessesContract
from tests.support.contracts.resources import ResourcesContract, SocketsContract
from tests.support.contracts.rig import Rig
from tests.support.contracts.well_known import WellKnownContract

__all__ = [
    "DatabaseContract",
    "HypervisorContract",
    "OpenFlowContract",
    "ProcessesContract",
    "ResourcesContract",
    "Rig",
    "SocketsContract",
    "WellKnownContract",
]
