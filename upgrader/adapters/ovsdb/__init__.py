"""The OVSDB of a slot (RFC 7047), by python-ovs."""

from upgrader.adapters.ovsdb.database import Ovsdb

__all__ = ["Ovsdb"]
