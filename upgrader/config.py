"""Configuration: a TOML file and conf.d/ beside it, validated by pydantic; every error names file, key, what is allowed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from upgrader.core.errors import UsageError
from upgrader.core.finding import Acceptable
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Policy
from upgrader.core.takeover import TakeoverPolicy

DEFAULT_PATH = Path("/etc/ovs-upgrade/config.toml")
PATH_VARIABLE = "OVS_UPGRADE_CONFIG"
_LONGEST_RUNDIR = 107 - len("/vhost/") - 15 - len(".sock")  # an interface's name has up to 15 (IFNAMSIZ)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # built once, when it is read


class SlotConfig(_Section):
    """One of the two switch instances; see `upgrader.core.model.Slot` for what each key means."""

    prefix: Path = Field(description="where its OVS is installed")
    rundir: Path = Field(description="directory of its sockets, pid files, database and logs")
    netns: str | None = Field(default=None, description="its network namespace, another one than the other slot's")
    vf: str = Field(description="netdev of its VF in that namespace, or PCI address of a VF bound to vfio-pci")
    representor: str | None = Field(
        default=None, description="netdev beside the PF through which steering reaches the VF"
    )
    devargs: str = Field(description="DPDK device of the uplink, e.g. 0000:3b:02.1")
    pmd_cpu_mask: str = Field(
        pattern=r"^0x0*[1-9a-fA-F][0-9a-fA-F]*$",
        description="cores of its PMD threads, a hexadecimal mask above 0, e.g. 0x6",
    )
    socket_mem_mib: str = Field(
        default="1024",
        pattern=r"^\d+(,\d+)*$",
        description='hugepage memory per NUMA node in MiB, e.g. "1024" or "1024,1024"',
    )
    dpdk_extra: str = Field(default="", description="further EAL arguments")
    env: dict[str, str] = Field(default={}, description="further environment of its daemons")


class NicConfig(_Section):
    """The NIC whose overlay traffic is steered."""

    pf: str = Field(description="netdev of the physical function")
    netns: str | None = Field(default=None, description="network namespace it is in; none: the host's")
    adapter: Literal["tc_u32", "ethtool", "tc_flower"] = Field(
        default="tc_u32",
        description="how rules reach it: tc_u32 in software, on any netdev; ethtool by the NIC's own rules (X710); "
        "tc_flower by a switchdev NIC (E810, ConnectX), to each slot's representor; the last two not run on hardware",
    )
    vxlan_port: int = Field(default=4789, ge=1, le=65535, description="UDP port of the overlay (RFC 7348: 4789)")
    underlay: Literal["ipv4", "ipv6"] = Field(
        default="ipv4", description="what carries the overlay: the family of the tunnels' addresses"
    )
    vfs: dict[SlotName, Annotated[int, Field(ge=0, le=254)]] = Field(
        default={}, description="ethtool: number of each slot's VF, as `ip link show PF` counts"
    )
    location: int = Field(default=1000, ge=0, lt=2**31, description="ethtool: place of our one rule in the NIC's table")
    mirror: bool = Field(default=False, description="tc_flower: the NIC can give a packet to two VFs")
    catch: Literal["gap", "window"] | None = Field(
        default=None,
        description="ethtool: what steering in software on the PF takes, to each slot's representor there: what arrives "
        "in the gap of a rule's turn, or all of the overlay while a window is open; none: what arrives is lost",
    )
    probe_from: tuple[str, ...] = Field(
        default=(),
        description="words behind which a command runs on another host of the fabric, which is made to send a probe "
        'whenever a rule of the NIC is turned, and by `nic probe`: e.g. ["ssh", "-o", "BatchMode=yes", "hv2"]',
    )

    @model_validator(mode="after")
    def _whole(self) -> NicConfig:
        if self.adapter == "ethtool" and self.underlay == "ipv6":
            raise ValueError(
                'the NIC\'s own rules take the overlay in IPv4 only; with nic.underlay = "ipv6": '
                'nic.adapter = "tc_u32" or "tc_flower"'
            )
        if self.adapter == "ethtool" and len(set(self.vfs.values())) != 2:
            raise ValueError(
                "steering by ethtool needs nic.vfs: a VF of its own for each slot, e.g. vfs = { a = 0, b = 1 }"
            )
        return self


class HostConfig(_Section):
    """What of the host is not a slot's."""

    libvirt_uri: str = Field(default="qemu:///system", description="libvirt that runs the VMs")
    uplink: str = Field(
        default="uplink0", description="OVS interface that stands on the VF, the same name in both slots"
    )
    catch_port: str | None = Field(
        default=None,
        description="OVS interface by which a switch is given what nic.catch takes, the same in both slots: its netdev "
        "has one name in both slots' namespaces, and leads to the slot's representor",
    )
    vni_external_id: str = Field(default="vni", description="key of Interface.external_ids that holds the VM's VNI")
    lock: Path = Field(default=Path("/run/ovs-upgrade.lock"), description="held while a coordinator runs")
    journal: Path = Field(default=Path("/var/lib/ovs-upgrade/journal.db"), description="what became of every run")
    socket: Path = Field(default=Path("/run/ovs-upgrade.sock"), description="where the daemon listens")
    supervisor: Literal["process", "systemd"] = Field(
        default="process", description="how a slot's daemons are run: plain processes, or units (upgrader/systemd/)"
    )
    metrics: Path | None = Field(
        default=None, description="file for Prometheus (node_exporter's textfile collector), written every few seconds"
    )
    well_known: Path = Field(
        default=Path("/run/openvswitch"),
        description="directory in which tools and clients look for the switch; its names follow the active slot",
    )


class PolicyConfig(_Section):
    """What a run may take, and what becomes of it when a step fails; see `upgrader.core.plan.Policy`."""

    blackout_budget_us: int = Field(default=20_000, gt=0, description="a hand-over above it stops the run")
    canary_check_s: float = Field(
        default=2.0, ge=0, le=3600, description="the first VM is watched so long before the others move"
    )
    soak_s: float = Field(
        default=10.0, ge=0, le=86400, description="all are watched so long before the old switch is given up"
    )
    on_failure: Literal["back", "stay", "ask"] = Field(
        default="back", description="what becomes of the run when a step fails"
    )
    keep_old: bool = Field(default=False, description="the old switch goes on standing by, for a rollback")
    ready_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="a switch or a standby may take so long to be ready"
    )
    accept: tuple[Acceptable, ...] = Field(
        default=(), description="codes of blocking findings that are accepted on this host"
    )


class SimulatedConfig(_Section):
    """A simulated host in the place of a real one; see `upgrader.sim.stored`."""

    state: Path = Field(description="folder that keeps it, with its journal and socket; made where there is none")
    vms: int = Field(default=4, ge=0, le=10_000, description="how many VMs it has when it is made")
    dual_delivery: bool = Field(default=True, description="whether its NIC can give traffic to both slots")
    effect_s: float = Field(default=0.0, ge=0, le=60, description="how long each call with an effect takes, seconds")
    fail_at: tuple[str, ...] = Field(default=(), description="calls that fail each time")
    dies_at: dict[SlotName, str] = Field(default={}, description="by slot, the call at which its switch dies")

    @field_validator("state")
    @classmethod
    def _absolute(cls, state: Path) -> Path:
        if not state.is_absolute():
            raise ValueError(f"{state} is no absolute path: the coordinator may be started in another folder")
        return state

    def places(self) -> dict[str, Any]:
        """The sections that describe a real host, filled in for this one."""
        folder = self.state
        slots = {
            n: {
                "prefix": folder / "ovs",
                "rundir": folder / n,
                "netns": f"slot-{n}",
                "vf": vf,
                "devargs": f"simulated,iface={vf}",
                "pmd_cpu_mask": mask,
                "socket_mem_mib": "64",
            }
            for n, vf, mask in (("a", "vf1", "0x1"), ("b", "vf2", "0x2"))
        }
        host = {"lock": folder / "lock", "journal": folder / "journal.db", "socket": folder / "socket"}
        return {"nic": {"pf": "simulated"}, "slots": slots, "host": host}


class TakeoverConfig(_Section):
    """What is done when a switch dies; see `upgrader.core.takeover.TakeoverPolicy`. Read anew every few seconds."""

    policy: Literal["off", "manual", "automatic"] = Field(
        default="manual", description="what is done when the active dies"
    )
    max_per_hour: int = Field(
        default=3, ge=1, le=1000, description="after so many takeovers within an hour nothing more is done by itself"
    )
    rearm: bool = Field(default=True, description="a new standby is started after a takeover")
    maintenance: bool = Field(default=False, description="nothing is done by itself")


class Config(_Section):
    """The whole file."""

    host: HostConfig = HostConfig()
    nic: NicConfig
    slots: dict[SlotName, SlotConfig]
    policy: PolicyConfig = PolicyConfig()
    takeover: TakeoverConfig = TakeoverConfig()
    simulated: SimulatedConfig | None = Field(
        default=None, description="a simulated host in the place of `nic` and `slots`"
    )

    @model_validator(mode="before")
    @classmethod
    def _simulated(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("simulated"), dict):
            return data
        if given := [name for name in ("nic", "slots") if name in data]:
            raise ValueError(f"[simulated] stands in the place of {' and '.join(f'[{g}]' for g in given)}")
        try:
            places = SimulatedConfig.model_validate(data["simulated"]).places()
        except ValidationError:  # what is wrong with it is said by key, when the field is read
            places = SimulatedConfig(state=Path("/")).places()
        return {**places, **data, "host": {**places["host"], **data.get("host", {})}}

    @model_validator(mode="after")
    def _two_slots_apart(self) -> Config:
        if set(self.slots) != {"a", "b"}:
            raise ValueError("both [slots.a] and [slots.b] must be there")
        a, b = self.slots["a"], self.slots["b"]
        for name in self.slots:
            if len(str(self.rundir(name))) > _LONGEST_RUNDIR:
                raise ValueError(
                    f"slots.{name}.rundir is longer than {_LONGEST_RUNDIR} characters: a unix socket in it needs the "
                    "rest of the 107 a path may have"
                )
        if a.rundir == b.rundir or self.rundir("a") == self.rundir("b"):
            raise ValueError(f"slots.a.rundir and slots.b.rundir are the same ({a.rundir}): two switches would collide")
        if a.netns == b.netns:
            raise ValueError(
                f"slots.a.netns and slots.b.netns are the same ({a.netns or 'the host'}): "
                "two vswitchds in one namespace collide on the ovs-netdev tap"
            )
        if a.vf == b.vf:
            raise ValueError(f"slots.a.vf and slots.b.vf are the same ({a.vf}): each slot needs a VF of its own")
        if self.nic.catch and not self.host.catch_port:
            raise ValueError(
                "nic.catch needs host.catch_port: the OVS interface by which each switch gets what is caught"
            )
        return self

    def run_policy(self) -> Policy:
        """The part of [policy] that a plan carries with it."""
        p = self.policy
        return Policy(p.blackout_budget_us, p.canary_check_s, p.soak_s, p.on_failure, p.keep_old)

    def takeover_policy(self) -> TakeoverPolicy:
        t = self.takeover
        return TakeoverPolicy(t.policy, t.max_per_hour, t.rearm, t.maintenance)

    def adopted(self) -> SlotName | None:
        """The slot whose switch was started in the well-known directory itself, as a distribution does it."""
        return next((n for n, s in self.slots.items() if s.rundir == self.host.well_known), None)

    def rundir(self, name: SlotName) -> Path:
        """Where the slot is reached, whoever has the well-known names: an adopted one in a folder of that directory."""
        configured = self.slots[name].rundir
        return configured / f"slot-{name}" if name == self.adopted() else configured

    def slot(self, name: SlotName) -> Slot:
        """The slot as the core knows it."""
        c = self.slots[name]
        return Slot(
            name=name,
            prefix=c.prefix,
            rundir=self.rundir(name),
            netns=c.netns,
            vf=c.vf,
            representor=c.representor,
            uplink=self.host.uplink,
            devargs=c.devargs,
            pmd_cpu_mask=c.pmd_cpu_mask,
            socket_mem_mib=c.socket_mem_mib,
            dpdk_extra=c.dpdk_extra,
            env=tuple(sorted(c.env.items())),
            catch_port=self.host.catch_port,
        )


def config_path(given: Path | None) -> Path:
    """The file to read: `--config`, else the environment, else the default."""
    return given or Path(os.environ.get(PATH_VARIABLE, DEFAULT_PATH))


def files(path: Path) -> tuple[Path, ...]:
    """The files that are read, in order: the one that was named, then conf.d/*.toml beside it; a later one counts."""
    return (path, *sorted((path.parent / "conf.d").glob("*.toml")))


def load(path: Path) -> Config:
    """Read, merge and validate. Raises UsageError; changes nothing."""
    read: dict[str, Any] = {}
    said_in: dict[tuple[str, ...], Path] = {}
    for file in files(path):
        _merge(read, _toml(file), said_in, file)
    try:
        return Config.model_validate(read)
    except ValidationError as error:
        problems = tuple(_problem(e, said_in, path) for e in error.errors(include_url=False))
        said = [f"{file}: {words}" for file, words in problems]
        wrong = dict.fromkeys(str(file) for file, _ in problems)
        raise UsageError(
            "CONFIG_INVALID",
            "\n    ".join(("", *said)) if len(said) > 1 else said[0],
            state="nothing was changed",
            next=f"mend {' and '.join(wrong)}, then: upgrade config validate",
        ) from error


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "CONFIG_MISSING",
            f"there is no configuration at {file}",
            state="nothing was changed",
            next=f"write {file} (docs/config.md), or name another with --config; to try it in a box: upgrade lab up",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            "CONFIG_UNREADABLE",
            f"{file} could not be read: {error}",
            state="nothing was changed",
            next=f"mend {file}, then: upgrade config validate",
        ) from error


def _merge(
    into: dict[str, Any],
    more: dict[str, Any],
    said_in: dict[tuple[str, ...], Path],
    file: Path,
    at: tuple[str, ...] = (),
) -> None:
    """Tables key by key, everything else as a whole; `said_in` notes where each key was said last."""
    for key, value in more.items():
        place = (*at, key)
        said_in[place] = file
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value, said_in, file, place)
        else:
            into[key] = value


def _problem(error: ErrorDetails, said_in: dict[tuple[str, ...], Path], path: Path) -> tuple[Path, str]:
    """In which file, and: key, what is wrong, what is allowed."""
    where = tuple(str(part) for part in error["loc"])
    file = next((said_in[where[:n]] for n in range(len(where), 0, -1) if where[:n] in said_in), path)
    key = ".".join(where)
    parent, field = _field(where)
    allowed = f": {field.description}" if field and field.description else ""
    match error["type"]:
        case "extra_forbidden":
            names = ", ".join(parent.model_fields) if parent else ""
            return file, f"{key}: there is no such key; here may stand: {names}"
        case "missing":
            return file, f"{key}: it has to be there{allowed}"
        case "value_error":
            words = str(error["ctx"]["error"])
            return file, words if not key or key in words else f"{key}: {words}"
        case "string_pattern_mismatch":
            return file, f"{key}: {error['input']!r} will not do{allowed}"
    return file, f"{key}: {error['msg']}, not {error['input']!r}"


def _field(where: tuple[str, ...]) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The section a key stands in, and the key, if there is one of that name."""
    section: type[BaseModel] | None = Config
    field: FieldInfo | None = None
    slot = where[:1] == ("slots",)
    for name in where[:1] + where[2:] if slot and len(where) > 2 else where:
        if section is None:
            break
        parent, field = section, section.model_fields.get(name)
        kind = SlotConfig if name == "slots" else field.annotation if field else None
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    else:
        return (parent if where else None), field
    return None, field
