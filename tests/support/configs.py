"""A configuration in which nothing is wrong, and nothing said that need not be."""

from __future__ import annotations

SOUND = """
[nic]
pf = "eth0"
[slots.a]
prefix = "/usr"
rundir = "/run/openvswitch"
vf = "vf1"
representor = "vf1r"
devargs = "0000:01:02.0"
pmd_cpu_mask = "0x6"
[slots.b]
prefix = "/opt/ovs"
rundir = "/run/ovs-b"
netns = "ovs-b"
vf = "vf2"
representor = "vf2r"
devargs = "0000:01:02.1"
pmd_cpu_mask = "0x18"
"""
