"""VFs that were reset while no run is on, as by a switch that was started anew: a rule keeps the target that is gone."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from upgrader.core.errors import HostError
from upgrader.core.inventory import active_slot
from upgrader.core.model import Slot, SlotName
from upgrader.ports import Host

log = structlog.get_logger(__name__)


class ResetWatch:
    """`look` now and then: the rule of the switch that serves the host is written anew when its VF was reset.

    A reset is seen by a rule that points to nobody any more, or by a counter that began anew. Only where the NIC itself
    steers: a netdev does not forget.
    """

    def __init__(self) -> None:
        self._arrived: Mapping[SlotName, int] = {}
        self._latest: object = None
        self._said = ""

    def look(self, host: Host, slots: Mapping[SlotName, Slot], latest: object) -> None:
        """`latest`: the last run and how it ended; what one has reset since it has written anew.

        Never raises for a NIC that cannot be asked: what it says is logged once.
        """
        if latest != self._latest:
            self._latest, self._arrived = latest, {}
        try:
            if host.steering.capabilities().hardware:
                self._look(host, slots)
            self._said = ""
        except HostError as error:
            if str(error) != self._said:
                log.warning("steering cannot be looked at", error=str(error), next=error.next)
            self._said = str(error)

    def _look(self, host: Host, slots: Mapping[SlotName, Slot]) -> None:
        before, self._arrived = self._arrived, host.steering.arrived()
        fell = {slot for slot, count in before.items() if self._arrived[slot] < count}
        astray = [r for r in host.steering.rules() if not r.targets or fell.intersection(r.targets)]
        if not astray:
            return
        status = {name: host.processes.status(slot) for name, slot in slots.items()}
        slot = active_slot(status, host.hypervisor.vm_interfaces(), ())
        if slot is None:  # nobody is there to be given packets, or it is not one
            return
        host.steering.steady(slot, anew=True)
        log.warning("a VF was reset: its rule was written anew", slot=slot)
