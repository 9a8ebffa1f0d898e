"""A host in a box: a fabric, a remote hypervisor, and a host with a PF, two VFs, two slots and real guests.

Reading order: `spec` (what is built, every name and address), `topology` (namespaces and links), `overlay` (what the
running switch is told), `guest` and `domains` (image and libvirt), `up` (the `Lab`, in the order in which it is
built), `state` and `teardown` (why nothing stays behind).
"""
