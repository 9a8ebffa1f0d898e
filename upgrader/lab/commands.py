"""`upgrade lab up | status | traffic | down`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from upgrader.core.errors import Exit
from upgrader.lab import spec as names
from upgrader.lab.documents import lab_document
from upgrader.lab.interrupts import raise_once
from upgrader.lab.spec import LabSpec
from upgrader.lab.traffic.command import traffic
from upgrader.lab.up import Lab, LabStatus
from upgrader.terminal import consoles, print_json

lab_app = typer.Typer(
    name="lab",
    help="A host in a box: real OVS-DPDK and real guests, in namespaces of this machine.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Option("--name", help="Name of the lab; several can be up side by side.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]


def _say(text: str) -> None:
    """Progress for a person. That nobody reads it any more must not stop a lab from being built or taken down."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _guarded(action: Callable[[], None], interrupted: str) -> None:
    """Run a command that has something to take down when it is interrupted."""
    raise_once(lambda: _say("still taking down what was made"))
    try:
        action()
    except KeyboardInterrupt:
        _say(f"interrupted: {interrupted}")
        raise typer.Exit(int(Exit.STOPPED)) from None


@lab_app.command()
def up(
    vms: Annotated[int, typer.Option(help="Guests.")] = 4,
    queues: Annotated[int, typer.Option(help="Queue pairs, and vCPUs, of each guest.")] = 1,
    pages: Annotated[str, typer.Option(help="What guest memory stands on: 4k or 2m.")] = "4k",
    name: Name = "lab",
    json_out: Json = False,
    ovs_prefix: Annotated[
        Path, typer.Option(help="Where the OVS-DPDK of the slots is installed.")
    ] = names.DEFAULT_OVS_PREFIX,
    qemu_binary: Annotated[Path, typer.Option(help="The QEMU of the guests.")] = names.DEFAULT_QEMU_BINARY,
    new_prefix: Annotated[Path | None, typer.Option(help="Where that of slot b is, if it is another one.")] = None,
    libvirtd: Annotated[Path, typer.Option(help="The libvirtd, for a QEMU that the machine's refuses.")] = Path(
        "libvirtd"
    ),
) -> None:
    """Build the lab. One that is up and healthy is left alone; a broken one is taken down first."""

    def action() -> None:
        start = time.monotonic()
        # A wrong value of --pages is refused by the spec, in the words every error has.
        new = new_prefix.absolute() if new_prefix else None
        spec = LabSpec(name, vms, queues, pages, ovs_prefix.absolute(), qemu_binary.absolute(), new, libvirtd)  # type: ignore[arg-type]
        lab = Lab(spec, _say)
        built = lab.up()
        took_s = time.monotonic() - start
        _say(f"the lab {name!r} is up ({took_s:.1f} s)" if built else f"the lab {name!r} is up already")
        if json_out:
            print_json(lab_document(lab.status(), built=built, took_s=round(took_s, 3)))
        else:
            sys.stdout.write(f"next: upgrade --config {lab.config_path} --host localhost\n")

    _guarded(action, "nothing of the lab is left")


@lab_app.command()
def status(name: Name = "lab", json_out: Json = False) -> None:
    """What runs: slots, libvirtd, guests, and whether they are ready."""

    def action() -> None:
        seen = Lab.existing(name).status()
        if json_out:
            print_json(lab_document(seen))
        else:
            _show(seen)

    _guarded(action, "nothing was changed")


@lab_app.command()
def down(name: Name = "lab") -> None:
    """Take the lab down, whatever there is of it; nothing stays behind."""

    def action() -> None:
        gone = Lab.existing(name, _say).down()
        _say(f"the lab {name!r} is gone" if gone else f"there was nothing of a lab {name!r}")

    _guarded(action, f"parts of the lab may be left; next: upgrade lab down --name {name}")


lab_app.command()(traffic)


def _show(seen: LabStatus) -> None:
    console, _ = consoles()
    if seen.phase is None:
        console.print(f"there is no lab {seen.spec.name!r}\nnext: upgrade lab up --name {seen.spec.name}")
        return
    console.print(f"lab {seen.spec.name!r}: {'healthy' if seen.healthy else 'not healthy'}")
    for problem in seen.problems:
        console.print(f"  {problem}")
    table = Table("part", "where", "pid", "state")
    for slot in seen.slots:
        up_now = slot.vswitchd_pid is not None
        table.add_row(
            f"slot {slot.name}",
            slot.netns,
            str(slot.vswitchd_pid or "-"),
            f"up, OVS {slot.version}" if up_now else "down",
        )
    table.add_row(
        "libvirtd", str(seen.spec.libvirt_socket), str(seen.libvirtd_pid or "-"), "up" if seen.libvirtd_pid else "down"
    )
    for guest in seen.guests:
        state = "down" if guest.qemu_pid is None else "ready" if guest.ready else "booting"
        table.add_row(guest.vm.name, guest.vm.ip, str(guest.qemu_pid or "-"), state)
    console.print(table)
    if seen.healthy:
        console.print(f"next: upgrade --config {seen.spec.config_path} --host localhost")
    else:
        console.print(f"next: upgrade lab up --name {seen.spec.name}, or upgrade lab down --name {seen.spec.name}")
