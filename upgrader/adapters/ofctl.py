"""OpenFlow state by ovs-ofctl, over each bridge's management socket; neighbours by ovs-appctl."""

from __future__ import annotations

import re

from upgrader.adapters import gate
from upgrader.core.errors import CommandError
from upgrader.core.model import Slot

# ovs-ofctl negotiates the highest version that the bridge allows
_VERSIONS = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15"
_TIMEOUT_S = 60


class Ofctl:
    """Reads, copies and compares what controllers put into bridges."""

    def flows(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """Every flow as ovs-ofctl prints it, without statistics and with port numbers."""
        return _body(self._ofctl(slot, "--no-stats", "--no-names", "dump-flows", _mgmt(slot, bridge)))

    def groups(self, slot: Slot, bridge: str) -> tuple[str, ...]:
        """Every group as ovs-ofctl prints it, with port numbers."""
        return _body(self._ofctl(slot, "--no-names", "dump-groups", _mgmt(slot, bridge)))

    def copy(self, source: Slot, target: Slot, bridge: str) -> int:
        from_, to = _mgmt(source, bridge), _mgmt(target, bridge)
        self._copy_tlv_map(source, target, bridge)
        present = {_meter_id(m) for m in _meters(self._ofctl(target, "dump-meters", to))}
        for meter in _meters(self._ofctl(source, "dump-meters", from_)):
            self._ofctl(target, "mod-meter" if _meter_id(meter) in present else "add-meter", to, meter)
        groups = self.groups(source, bridge)
        self._ofctl(target, "del-groups", to)
        if groups:
            self._ofctl(target, "--bundle", "add-groups", to, "-", stdin="\n".join(groups) + "\n")
        flows = self.flows(source, bridge)
        self._ofctl(target, "--bundle", "replace-flows", to, "-", stdin="\n".join(flows) + "\n")
        return len(flows)

    def difference(self, source: Slot, target: Slot, bridge: str) -> str:
        done = gate.run(
            [
                _program(target),
                "-O",
                _VERSIONS,
                "--no-names",
                "diff-flows",
                _mgmt(target, bridge),
                _mgmt(source, bridge),
            ],
            check=False,
            timeout_s=_TIMEOUT_S,
        )
        if done.returncode not in (0, 2):
            raise CommandError(gate.paste(done.argv), f"exited with {done.returncode}", done.stderr)
        lines = [done.stdout.strip()] if done.stdout.strip() else []
        for what in ("dump-groups", "dump-meters", "dump-tlv-map"):
            ours = sorted(_body(self._ofctl(target, what, _mgmt(target, bridge))))
            theirs = sorted(_body(self._ofctl(source, what, _mgmt(source, bridge))))
            lines += [f"+{x}" for x in ours if x not in theirs] + [f"-{x}" for x in theirs if x not in ours]
        return "\n".join(lines)

    def copy_neighbours(self, source: Slot, target: Slot) -> int:
        count = 0
        for line in self._appctl(source, "tnl/neigh/show").splitlines():
            if found := re.match(r"(\S+)\s+((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\s+(\S+)\s*$", line):
                address, mac, bridge = found.groups()
                self._appctl(target, "tnl/neigh/set", bridge, address, mac)
                count += 1
        return count

    def _copy_tlv_map(self, source: Slot, target: Slot, bridge: str) -> None:
        """Tunnel metadata fields (TLV map); existing ones stay, as flows of the target may stand on them."""
        have = set(_tlv_maps(self._ofctl(target, "dump-tlv-map", _mgmt(target, bridge))))
        for entry in _tlv_maps(self._ofctl(source, "dump-tlv-map", _mgmt(source, bridge))):
            if entry not in have:
                self._ofctl(target, "add-tlv-map", _mgmt(target, bridge), entry)

    def _ofctl(self, slot: Slot, *arguments: str, stdin: str | None = None) -> str:
        return gate.run([_program(slot), "-O", _VERSIONS, *arguments], stdin=stdin, timeout_s=_TIMEOUT_S).stdout

    def _appctl(self, slot: Slot, *command: str) -> str:
        return gate.run(
            [str(slot.prefix / "bin/ovs-appctl"), "--timeout=10", "-t", str(slot.vswitchd_ctl), *command]
        ).stdout


def _program(slot: Slot) -> str:
    return str(slot.prefix / "bin/ovs-ofctl")


def _mgmt(slot: Slot, bridge: str) -> str:
    return f"unix:{slot.rundir}/{bridge}.mgmt"


def _body(dump: str) -> tuple[str, ...]:
    """A dump without the line that names the reply (``NXST_FLOW reply (xid=0x4):``)."""
    return tuple(
        s for line in dump.splitlines() if (s := line.strip()) and " reply " not in s and not s.startswith("OFPST")
    )


def _meters(dump: str) -> tuple[str, ...]:
    """Meters in the form add-meter takes: a dump prints the bands of a meter on lines of their own."""
    joined: list[str] = []
    for line in _body(dump):
        if line.startswith("meter="):
            joined.append(line)
        elif joined:
            joined[-1] += (" " if joined[-1].endswith("=") else ",") + line.removeprefix("type=")
    return tuple(re.sub(r"bands=\s*,?\s*", "band=type=", m) for m in joined)


def _meter_id(meter: str) -> str:
    return meter.split(maxsplit=1)[0]


def _tlv_maps(dump: str) -> tuple[str, ...]:
    """TLV mappings in the form add-tlv-map takes: ``{class=0xffff,type=0,len=4}->tun_metadata0``."""
    found = re.findall(r"^\s*(0x[0-9a-f]+)\s+(0x[0-9a-f]+|\d+)\s+(\d+)\s+(tun_metadata\d+)\s*$", dump, re.M)
    return tuple(f"{{class={c},type={t},len={n}}}->{f}" for c, t, n, f in found)
