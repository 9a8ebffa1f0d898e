"""Units of others that hold a switch of ours: they must not act by names that are another switch's by now."""

from __future__ import annotations

from pathlib import Path

from upgrader.adapters import gate

_UNITS = Path("/run/systemd/system")  # units of the running system, gone with it; there only where systemd is in charge
_FILE = "90-hot-upgrade.conf"
_LEAVE_ALONE = """\
# Written by ovs-hot-upgrade, gone with the next boot. The unit's commands go by the well-known pid file, which is that
# of another switch now: a stop would end the switch that serves the VMs, a start would bring a second one, and systemd
# removes a service's pid file when that has ended.
[Unit]
RefuseManualStart=yes
RefuseManualStop=yes
[Service]
PIDFile=
ExecStop=
ExecStopPost=
Restart=no
SuccessExitStatus=SIGKILL
"""


def unit_of(pid: int) -> str | None:
    """The service whose main process (or the monitor of it) a process is; None for any other, and without systemd.

    systemd runs ExecStop= also for a service that ended by itself (systemd.service(5)). That of a distribution's
    ovs-vswitchd.service is `ovs-ctl stop`, which ends whatever the pid file names.
    """
    if not _UNITS.is_dir():
        return None
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
    paths = [line.split(":", 2)[2] for line in groups if line.startswith("0::") or ":name=systemd:" in line]
    unit = next((n for p in paths if (n := Path(p).name).endswith(".service")), None)
    if unit is None:
        return None
    show = ["systemctl", "show", "--property=MainPID", "--value", unit]
    main = gate.run(show, check=False, timeout_s=5).stdout.strip()
    return unit if main in (str(pid), str(parent)) else None


def leave_alone(units: set[str]) -> None:
    """Keep systemd from stopping, restarting or reviving these services by their own commands. Idempotent."""
    files = [_UNITS / f"{unit}.d" / _FILE for unit in sorted(units)]
    missing = [f for f in files if not f.exists()]
    for file in missing:
        file.parent.mkdir(exist_ok=True)
        file.write_text(_LEAVE_ALONE)
    if missing:
        gate.run(["systemctl", "daemon-reload"])


def give_back(units: set[str]) -> None:
    """Undo `leave_alone`. Idempotent."""
    files = [f for unit in sorted(units) if (f := _UNITS / f"{unit}.d" / _FILE).exists()]
    for file in files:
        file.unlink()
    if files:
        gate.run(["systemctl", "daemon-reload"])
