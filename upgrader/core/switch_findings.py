"""What a switch is configured to do that an upgrade cannot carry, or that both switches would do at once; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from upgrader.core.finding import Finding, Severity, blocking, some, target_slot
from upgrader.core.model import HostFacts, other_slot

_OPENFLOW_WITH_GROUPS_AND_METERS = {"OpenFlow13", "OpenFlow14", "OpenFlow15"}
# conntrack as an action, or as a match on its state; a flow on it depends on what one process remembers
_CT = re.compile(r"\bct\(|\bct_(state|zone|mark|label|nw_|ipv6_|tp_)|\bct_clear\b")

_CONTROLLER = re.compile(r"actions=.*\b(CONTROLLER\b|controller\()")
_LOOPBACK = re.compile(r"(?:^|[:\s,])(?:127\.|\[::1\]|localhost)")
# listens at every address of its namespace: who is on this host comes by loopback
_ANYWHERE = re.compile(r"^p(?:tcp|ssl):\d*(?::0\.0\.0\.0|:\[::\])?$")
# what acts of its own accord, by the first words in which the database adapter tells of it: its code, whether it
# stands in the way, what it means for an upgrade, and what to do
_SPEAKERS: tuple[tuple[str, str, str, str, str], ...] = (
    ("LACP", "LACP_IN_USE", "blocking", "two switches would negotiate one link at once", "bond below OVS (the PF)"),
    ("a bond", "BOND_IN_USE", "blocking", "which member a flow takes is not carried", "bond below OVS (the PF)"),
    ("STP", "STP_IN_USE", "blocking", "both would speak as one bridge; states begin anew", "do without a loop there"),
    ("RSTP", "STP_IN_USE", "blocking", "both would speak as one bridge; states begin anew", "do without a loop there"),
    ("BFD", "BFD_IN_USE", "blocking", "both would speak in one session, which would flap", "watch the PF instead"),
    ("CFM", "BFD_IN_USE", "blocking", "both would speak in one session, which would flap", "watch the PF instead"),
    ("mirrors", "MIRRORS_IN_USE", "blocking", "both mirror what they see, copies of packets too", "take them off"),
    (
        "QoS",
        "QOS_RESTARTS",
        "warning",
        "queues and token buckets begin full on the new switch",
        "nothing, if a burst may pass",
    ),
)
_EXPORTERS = ("sFlow", "IPFIX", "NetFlow")
# types that exist twice when two databases name them; tunnels are built in the switch
_DUPLICABLE = frozenset(
    [
        "internal",
        "patch",
        "dpdkvhostuser",
        "dpdkvhostuserclient",
        "vxlan",
        "geneve",
        "gre",
        "erspan",
        "ip6gre",
        "ip6erspan",
        "gtpu",
        "bareudp",
        "lisp",
        "stt",
        "srv6",
        "null",
        "dummy",
    ]
)
_KERNEL = frozenset({"", "system", "tap", "afxdp", "afxdp-nonpmd", "dpdk"})  # there once on a host

# what makes a switch send to ports it was not told of, or remember what it saw
_LEARNING = re.compile(r"actions=.*\b(NORMAL|FLOOD|ALL|learn\()")


def _switch_config(facts: HostFacts) -> Iterator[Finding]:
    switch = facts.switch
    if switch is None:
        return
    for bridge in switch.bridges:
        stateful = next((f for f in (*bridge.flows, *bridge.groups) if _CT.search(f)), None)
        if stateful:
            yield blocking(
                "CONNTRACK_IN_USE",
                f"bridge {bridge.name} uses connection tracking, which cannot be carried to another process: {stateful}",
                "take ct() out of the flows: forwarding has to be stateless",
            )
        learning = next((f for f in (*bridge.flows, *bridge.groups) if _LEARNING.search(f)), None)
        if learning:
            yield blocking(
                "LEARNING_IN_USE",
                f"bridge {bridge.name} learns or floods, and a standby that gets copies of packets would, too: {learning}",
                'forward by flow tables, or accept duplicates and moved MACs: policy.accept = ["LEARNING_IN_USE"]',
            )
        if bridge.settings:
            yield blocking(
                "SETTINGS_IN_USE",
                f"on bridge {bridge.name} OpenFlow has set {some(bridge.settings)}, which is not carried to another switch",
                "do so by flows instead (ovs-ofctl mod-port, set-frags), or set it on the new switch when it has control, "
                'and accept the time between: policy.accept = ["SETTINGS_IN_USE"]',
            )
        if bridge.protocols and not set(bridge.protocols) & _OPENFLOW_WITH_GROUPS_AND_METERS:
            yield blocking(
                "OPENFLOW_TOO_OLD",
                f"bridge {bridge.name} allows {', '.join(bridge.protocols)} only, by which groups and meters cannot be read",
                f"ovs-vsctl add bridge {bridge.name} protocols OpenFlow14",
            )
        if bridge.datapath_type != "netdev":
            yield blocking(
                "KERNEL_DATAPATH",
                f"bridge {bridge.name} is not a userspace (netdev) bridge",
                f"ovs-vsctl set Bridge {bridge.name} datapath_type=netdev, or take it out of this switch",
            )
    server_mode = [i.name for i in switch.interfaces if i.type == "dpdkvhostuser"]
    if server_mode:
        yield blocking(
            "VHOST_SERVER_MODE",
            f"{some(server_mode)}: the switch is the vhost-user server there, and the connection dies with it",
            "make them dpdkvhostuserclient ports, with QEMU as the server",
        )
    target = target_slot(facts)
    if target and not any(i.name == target.slot.uplink for i in switch.interfaces):
        yield blocking(
            "UPLINK_UNKNOWN",
            f"the switch has no interface {target.slot.uplink} that stands on the VF",
            "correct host.uplink in the configuration: the name of the type=dpdk interface of the overlay",
        )


def _control(facts: HostFacts) -> Iterator[Finding]:
    """Who is in control, what of it goes over, and who would not be reached."""
    switch, target = facts.switch, target_slot(facts)
    if switch is None or target is None:
        return
    elsewhere = target.slot.netns != facts.slot(other_slot(target.slot.name)).slot.netns
    led = {b.name: b.controllers for b in switch.bridges if b.controllers}
    for code, what, targets, key in (
        *(("CONTROLLER_LOOPBACK", f"the controller of bridge {n}", t, "controllers") for n, t in led.items()),
        ("MANAGER_LOOPBACK", "the database's manager", switch.managers, "managers"),
    ):
        local = [t for t in targets if _LOOPBACK.search(t) or _ANYWHERE.search(t)]
        if local and elsewhere:
            yield blocking(
                code,
                f"{what} is {some(local)}: by loopback, which in slot {target.slot.name}'s network namespace is another one",
                f"give {key} an address that both slots reach, or accept it where one listens there: "
                f'policy.accept = ["{code}"]',
            )
    if led:
        yield Finding(
            "CONTROLLER_STATE_NOT_CARRIED",
            Severity.INFO,
            f"controllers of {some(led.keys())} are handed over after the last VM; roles, asynchronous settings, flow "
            "counters and ages begin anew",
            "nothing: they connect once more, and set what they want as after any reconnection",
        )
    asking = {b.name: f for b in switch.bridges for f in (*b.flows, *b.groups) if _CONTROLLER.search(f)}
    for name, flow in asking.items():
        yield Finding(
            "CONTROLLER_ACTIONS",
            Severity.WARNING,
            f"bridge {name} sends packets to its controller, which those of a moved VM do not reach until control has "
            f"moved as well: {flow}",
            "nothing, if the first packets of new connections may wait for the end of the run",
        )


def _speakers(facts: HostFacts) -> Iterator[Finding]:
    """What acts of its own accord or remembers what is not carried, each under a code of its own."""
    switch = facts.switch
    if switch is None:
        return
    for begins, code, severity, means, remedy in _SPEAKERS:
        named = [s for s in switch.speakers if s.startswith(f"{begins} ")]
        if named:
            accepting = f', or accept it: policy.accept = ["{code}"]' if severity == "blocking" else ""
            yield Finding(code, Severity(severity), f"the switch has {some(named)}: {means}", f"{remedy}{accepting}")
    exporting = [s for s in switch.speakers if s.startswith(_EXPORTERS)]
    near = [s for s in exporting if _LOOPBACK.search(s)]
    if near:
        yield blocking(
            "FLOW_EXPORT_LOOPBACK",
            f"the switch has {some(near)}: a collector on loopback is not there in the namespace of another slot",
            'give it an address that both slots reach, or accept the gap: policy.accept = ["FLOW_EXPORT_LOOPBACK"]',
        )
    if far := [s for s in exporting if s not in near]:
        yield blocking(
            "FLOW_EXPORT_IN_USE",
            f"the switch has {some(far)}: both switches report while they run side by side, and counters begin anew",
            'take it off for the upgrade, or accept it: policy.accept = ["FLOW_EXPORT_IN_USE"]',
        )


def _interfaces(facts: HostFacts) -> Iterator[Finding]:
    """Ports that a second switch cannot have as well."""
    switch, target = facts.switch, target_slot(facts)
    if switch is None or target is None:
        return
    if target.slot.uplink not in {i.name for i in switch.interfaces}:
        return  # a finding of its own, and which of them it should be is not known
    bridges = {b.name for b in switch.bridges}
    others = [i for i in switch.interfaces if i.name not in bridges and i.name != target.slot.uplink]
    catch = target.slot.catch_port
    if catch and catch not in {i.name for i in switch.interfaces}:
        yield blocking(
            "CATCH_PORT_MISSING",
            f"the switch has no interface {catch} (host.catch_port), so nobody would get what is caught on the PF",
            f"add it to the overlay's bridge as {target.slot.uplink} is, on a netdev that leads to slots.*.representor",
        )
    once = [f"{i.name} ({i.type or 'system'})" for i in others if i.type in _KERNEL and i.name != catch]
    if once:
        yield blocking(
            "INTERFACE_NOT_SHARED",
            f"{some(once)}: a netdev or device that only one switch can have, and the slots' own is {target.slot.uplink}",
            "take it out of this switch, or reach it by way of the uplink",
        )
    if strange := [f"{i.name} ({i.type})" for i in others if i.type not in _KERNEL | _DUPLICABLE]:
        yield blocking(
            "INTERFACE_TYPE_UNKNOWN",
            f"{some(strange)}: it is not known what such a port does when two switches have it",
            "take it out of this switch; and say so, that it can be learned",
        )


SWITCH_CHECKS: tuple[Callable[[HostFacts], Iterator[Finding]], ...] = (
    _switch_config,
    _control,
    _speakers,
    _interfaces,
)
