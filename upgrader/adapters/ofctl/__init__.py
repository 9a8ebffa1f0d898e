"""What controllers and the network taught a slot's bridges, by ovs-ofctl and ovs-appctl."""

from upgrader.adapters.ofctl.bridges import Ofctl

__all__ = ["Ofctl"]
