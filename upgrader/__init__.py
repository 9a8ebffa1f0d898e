"""Hot upgrade of OVS-DPDK under running VMs, one VM at a time."""

__version__ = "0.1.0"
