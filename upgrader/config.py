"""Configuration: one TOML file, validated by pydantic; every error names the file, the key and what is allowed."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from upgrader.core.errors import UsageError
from upgrader.core.model import Slot, SlotName
from upgrader.core.plan import Policy

DEFAULT_PATH = Path("/etc/ovs-upgrade/config.toml")
PATH_VARIABLE = "OVS_UPGRADE_CONFIG"
_LONGEST_RUNDIR = 107 - len("/vhost/") - 15 - len(".sock")  # an interface's name has up to 15 (IFNAMSIZ)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SlotConfig(_Section):
    """One of the two switch instances; see `upgrader.core.model.Slot` for what each key means."""

    prefix: Path
    rundir: Path
    netns: str | None = None
    vf: str
    representor: str | None = None
    devargs: str
    pmd_cpu_mask: Annotated[str, Field(pattern=r"^0x0*[1-9a-fA-F][0-9a-fA-F]*$")]
    socket_mem_mib: Annotated[str, Field(pattern=r"^\d+(,\d+)*$")] = "1024"
    dpdk_extra: str = ""
    env: dict[str, str] = {}


class NicConfig(_Section):
    """The NIC whose overlay traffic is steered.

    pf          netdev of the physical function, in `netns` (None: the host's)
    adapter     how rules reach it: `tc_u32` in software, on any netdev; `ethtool` by the NIC's own rules (X710)
    vxlan_port  UDP port of the overlay (RFC 7348: 4789)
    vfs         `ethtool`: number of each slot's VF, as `ip link show PF` counts
    location    `ethtool`: place of our one rule in the NIC's table
    catch       `ethtool`: what steering in software on the PF takes, to each slot's representor there: what arrives in
                the `gap` of a rule's turn, or all of the overlay while a `window` is open; None: what arrives is lost
    """

    pf: str
    netns: str | None = None
    adapter: Literal["tc_u32", "ethtool"] = "tc_u32"
    vxlan_port: Annotated[int, Field(ge=1, le=65535)] = 4789
    vfs: dict[SlotName, Annotated[int, Field(ge=0, le=254)]] = {}
    location: Annotated[int, Field(ge=0, lt=2**31)] = 1000
    catch: Literal["gap", "window"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> NicConfig:
        if self.adapter == "ethtool" and len(set(self.vfs.values())) != 2:
            raise ValueError(
                "steering by ethtool needs nic.vfs: a VF of its own for each slot, e.g. vfs = { a = 0, b = 1 }"
            )
        return self


class HostConfig(_Section):
    """What of the host is not a slot's.

    supervisor  how a slot's daemons are run: plain processes, or units (upgrader/systemd/)
    well_known  directory in which tools and clients look for the switch; its names follow the active slot
    """

    libvirt_uri: str = "qemu:///system"
    uplink: str = Field(
        default="uplink0", description="OVS interface that stands on the VF, the same name in both slots"
    )
    vni_external_id: str = Field(default="vni", description="key of Interface.external_ids that holds the VM's VNI")
    lock: Path = Path("/run/ovs-upgrade.lock")
    journal: Path = Path("/var/lib/ovs-upgrade/journal.db")
    socket: Path = Path("/run/ovs-upgrade.sock")
    supervisor: Literal["process", "systemd"] = "process"
    well_known: Path = Path("/run/openvswitch")


class PolicyConfig(_Section):
    """What a run may take, and what becomes of it when a step fails; see `upgrader.core.plan.Policy`.

    ready_timeout_s     how long a switch or a standby may take to be ready
    accept              codes of blocking findings that are accepted on this host
    """

    blackout_budget_us: Annotated[int, Field(gt=0)] = 20_000
    canary_check_s: Annotated[float, Field(ge=0, le=3600)] = 2.0
    soak_s: Annotated[float, Field(ge=0, le=86400)] = 10.0
    on_failure: Literal["back", "stay", "ask"] = "back"
    keep_old: bool = False
    ready_timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    accept: tuple[Literal["PMD_CORES_SHARED", "LEARNING_IN_USE", "SPEAKS_BY_ITSELF", "STEERING_UNPROVEN"], ...] = ()


class SimulatedConfig(_Section):
    """A simulated host in the place of a real one; `upgrader.sim.stored` says what the keys do.

    state          folder that keeps it, and its journal and socket; made where there is none
    vms            how many VMs it has when it is made
    dual_delivery  whether its NIC can give traffic to both slots
    """

    state: Path
    vms: Annotated[int, Field(ge=0, le=10_000)] = 4
    dual_delivery: bool = True
    effect_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    fail_at: tuple[str, ...] = ()
    dies_at: dict[SlotName, str] = {}

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


class Config(_Section):
    """The whole file."""

    host: HostConfig = HostConfig()
    nic: NicConfig
    slots: dict[SlotName, SlotConfig]
    policy: PolicyConfig = PolicyConfig()
    simulated: SimulatedConfig | None = None

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
        return self

    def run_policy(self) -> Policy:
        """The part of [policy] that a plan carries with it."""
        p = self.policy
        return Policy(p.blackout_budget_us, p.canary_check_s, p.soak_s, p.on_failure, p.keep_old)

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
        )


def config_path(given: Path | None) -> Path:
    """The file to read: `--config`, else the environment, else the default."""
    return given or Path(os.environ.get(PATH_VARIABLE, DEFAULT_PATH))


def load(path: Path) -> Config:
    """Read and validate one file. Raises UsageError; changes nothing."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "CONFIG_MISSING",
            f"there is no configuration at {path}",
            state="nothing was changed",
            next=f"write {path} (docs/config.md), or name one: upgrade --config FILE …; to try it in a box: upgrade lab up",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            "CONFIG_UNREADABLE",
            f"{path} could not be read: {error}",
            state="nothing was changed",
            next=f"mend {path} and run the same command again",
        ) from error
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise UsageError(
            "CONFIG_INVALID",
            f"{path}: {problems}",
            state="nothing was changed",
            next=f"mend {path} and run the same command again",
        ) from error
