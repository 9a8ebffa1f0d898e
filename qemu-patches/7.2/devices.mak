# Devices of the QEMU the patches are built into: what a libvirt guest with
# vhost-user interfaces needs, and no more.  Chosen by
# --with-devices-x86_64=ovs-upgrade, see configure-flags.

# Machines
CONFIG_I440FX=y
CONFIG_Q35=y

# libvirt puts every device of a q35 guest behind a root port
CONFIG_PCIE_PORT=y
CONFIG_IOH3420=y
CONFIG_SERIAL_ISA=y

# Guest devices
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_VIRTIO_BALLOON=y

# QEMU's own tests start machines with their default devices
CONFIG_VGA_PCI=y
CONFIG_PARALLEL=y
