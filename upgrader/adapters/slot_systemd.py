"""The two daemons of a slot as systemd units, ovs-slot@.service and ovs-slot-db@.service (upgrader/systemd/).

systemd starts them, so that they share nothing with the coordinator: not its sandbox, not its control group, not its
end. What differs from slot to slot is in an environment file that is written before each start.
"""

from __future__ import annotations

from pathlib import Path

from upgrader.adapters import gate
from upgrader.adapters.slot_control import (
    DATABASE,
    SWITCH,
    SlotControl,
    end_commands,
    prepare_database,
    require_started,
    slot_env,
)
from upgrader.core.errors import CommandError, HostError
from upgrader.core.model import Slot, SlotName, other_slot

ENVIRONMENT = Path("/etc/ovs-upgrade/slots")  # EnvironmentFile= of both units
_STOP_S = 150.0  # the unit's time for an exit, and the kernel's for the memory
_DATABASE_S = 30.0


class SlotSystemd(SlotControl):
    """Starts and stops the daemons of slots by systemctl(1)."""

    def start_database(self, slot: Slot, image: Path | None = None) -> int:
        """Start ovsdb-server and return its pid; `image` as `prepare_database` takes it."""
        prepare_database(slot, image)
        _write_environment(slot)
        _start(slot, _database_unit(slot), _DATABASE_S)
        return require_started(slot, DATABASE)

    def start_switch(self, slot: Slot, timeout_s: float = 60.0) -> int:
        """Start ovs-vswitchd on the slot's database and return its pid, once it has applied the configuration."""
        _write_environment(slot)
        _start(slot, _switch_unit(slot), timeout_s)
        return require_started(slot, SWITCH)

    def stop(self, slot: Slot) -> None:
        """End both units, then whatever daemons of the slot a unit did not start (an adopted switch). Idempotent."""
        self.stop_switch(slot)
        _stop(_database_unit(slot))
        super().stop(slot)

    def stop_switch(self, slot: Slot) -> None:
        _stop(_switch_unit(slot))
        super().stop_switch(slot)

    def start_at_boot(self, slot: Slot) -> None:
        """Enable this slot's units and disable the other's.

        Units that have no environment never ran: an adopted switch is started at boot by whoever started it before.
        """
        wanted = [(slot.name, "enable")] if _environment(slot.name).exists() else []
        for name, verb in [*wanted, (other_slot(slot.name), "disable")]:
            _systemctl("--quiet", verb, f"ovs-slot-db@{name}.service", f"ovs-slot@{name}.service")


def _switch_unit(slot: Slot) -> str:
    return f"ovs-slot@{slot.name}.service"


def _database_unit(slot: Slot) -> str:
    return f"ovs-slot-db@{slot.name}.service"


def _start(slot: Slot, unit: str, timeout_s: float) -> None:
    """Start a unit, also one that failed before. Raises HostError; a start that takes too long is called off."""
    _systemctl("reset-failed", unit, check=False)
    try:
        _systemctl("start", unit, timeout_s=timeout_s)
    except CommandError as error:
        _systemctl("stop", unit, timeout_s=_STOP_S, check=False)  # systemd would go on with it
        raise HostError(
            "SLOT_START_FAILED",
            f"{unit} did not start: {error.reason}",
            state=f"slot {slot.name} is down, the other slot was not touched",
            next=f"journalctl -u {unit} -n 20; tail {slot.rundir}/*.log; are the units of upgrader/systemd/ installed?",
        ) from error


def _stop(unit: str) -> None:
    """Stop a unit, also one that is being started; a command that is about to ask for its start does not come to that."""
    end_commands("systemctl", "start", unit)
    _systemctl("stop", unit, timeout_s=_STOP_S)


def _systemctl(*arguments: str, timeout_s: float = 30.0, check: bool = True) -> None:
    gate.run(["systemctl", *arguments], timeout_s=timeout_s, check=check)


def _environment(slot: SlotName) -> Path:
    return ENVIRONMENT / f"{slot}.env"


def _write_environment(slot: Slot) -> None:
    """The slot's variables in the syntax of EnvironmentFile= (systemd.exec(5)), by rename, for root's eyes only."""
    variables = {
        **slot_env(slot),
        "SLOT_PREFIX": str(slot.prefix),
        "SLOT_NETNS": f"/run/netns/{slot.netns}" if slot.netns else "/proc/1/ns/net",
    }
    lines = [f"{key}={_quoted(key, value)}" for key, value in sorted(variables.items())]
    path = _environment(slot.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text("\n".join(["# Written by ovs-hot-upgrade from its configuration.", *lines]) + "\n")
        new.replace(path)
    except OSError as error:
        raise HostError(
            "SLOT_START_FAILED",
            f"{path} could not be written: {error.strerror}",
            state=f"slot {slot.name} is down, the other slot was not touched",
            next=f"ls -la {path.parent}",
        ) from error


def _quoted(key: str, value: str) -> str:
    if "\n" in value:
        raise HostError(
            "SLOT_ENVIRONMENT",
            f"the variable {key} has a line break, which a unit's environment cannot have",
            state="nothing was changed",
            next="correct slots.*.env in the configuration",
        )
    for special in ("\\", '"', "$", "`"):
        value = value.replace(special, "\\" + special)
    return f'"{value}"'
