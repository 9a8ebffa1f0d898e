"""What steering by tc has in common, whatever the classifier: a PF's netdevs, its qdisc, and what its VFs were given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from upgrader.adapters.netlink import netlink
from upgrader.core import tc
from upgrader.core.errors import HostError
from upgrader.core.model import SlotName


@dataclass(frozen=True, slots=True)
class Links:
    """A PF and its representors as ifindexes, while a socket in their namespace is open.

    parent   where filters hang; None while the PF has no qdisc for them
    """

    ipr: IPRoute
    pf: int
    representors: dict[SlotName, int]
    parent: int | None

    def attach_ingress(self) -> int:
        """Where filters hang, made where it is not there yet."""
        if self.parent is None:
            self.ipr.tc("add", "ingress", index=self.pf, handle=tc.INGRESS)
        return self.parent or tc.INGRESS


class TcLinks:
    """One PF by name, in the network namespace `netns` (None: the host's), and the netdev that leads to each slot."""

    def __init__(self, pf: str, netns: str | None, representors: dict[SlotName, str]) -> None:
        self.pf = pf
        self.netns = netns
        self.representors = representors

    @contextmanager
    def open(self) -> Iterator[Links]:
        """Look them up. What the kernel refuses meanwhile is raised as HostError."""
        try:
            with netlink(self.netns) as ipr:
                pf = self._index(ipr, self.pf)
                representors = {slot: self._index(ipr, name) for slot, name in self.representors.items()}
                kinds = {q.get_attr("TCA_KIND") for q in ipr.get_qdiscs(index=pf)}
                yield Links(ipr, pf, representors, tc.ingress_parent(kinds))
        except FileNotFoundError as error:
            raise self.error(f"there is no network namespace {self.netns}") from error
        except (NetlinkError, OSError) as error:
            raise self.error(f"the kernel or the NIC refused a tc rule on {self.pf}: {error}") from error

    def arrived(self) -> dict[SlotName, int]:
        """Packets that left by each representor so far."""
        with self.open() as links:
            counters = {s: links.ipr.get_links(i)[0].get_attr("IFLA_STATS64") for s, i in links.representors.items()}
        return {slot: int(c["tx_packets"]) for slot, c in counters.items()}

    def error(self, what: str) -> HostError:
        return tc.failed(self.pf, self.netns, what)

    def _index(self, ipr: IPRoute, name: str) -> int:
        found = ipr.link_lookup(ifname=name)
        if not found:
            raise self.error(f"there is no netdev {name} in {f'namespace {self.netns}' if self.netns else 'the host'}")
        return int(found[0])
