"""What libvirt says by itself: that a VM came or went, or was given a device or lost one. For a process of its own.

libvirt's event loop belongs to a process, and every call over any of its connections goes by it from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import libvirt

_KEEPALIVE_S, _KEEPALIVE_COUNT = 5, 3
_KINDS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,  # started, stopped, came or went by a migration
    libvirt.VIR_DOMAIN_EVENT_ID_REBOOT,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
)


def listen(uri: str, tell: Callable[[], object]) -> None:
    """Call `tell` for each event, and once when events are to be had; returns when the connection is lost, or there is none.

    Not twice in a process but one after the other.
    """
    libvirt.virEventRegisterDefaultImpl()
    try:
        connection = libvirt.openReadOnly(uri)
        with suppress(libvirt.libvirtError):  # a driver without a daemon has nobody to be kept alive
            connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)
        for kind in _KINDS:
            connection.domainEventRegisterAny(None, kind, lambda *_: tell(), None)
        tell()  # what happened before nobody has heard of
        while connection.isAlive():
            libvirt.virEventRunDefaultImpl()
    except libvirt.libvirtError:
        return
