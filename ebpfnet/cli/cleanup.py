"""``ebpfnet cleanup``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from ebpfnet import abi
from ebpfnet.cli import instances as nodes
from ebpfnet.exits import EbpfnetError, NotRoot


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@nodes.options
def cleanup(instances: list[nodes.Instance], *, dry_run: bool) -> None:
    """Remove everything of ours from this node: filters, programs on a cgroup, pinned maps and programs, run directory.

    Other tools' filters, routes and interfaces stay. Refused while an agent runs. A lab is removed with `lab down`.
    """
    from ebpfnet.alone import alone

    if os.geteuid() != 0:
        raise NotRoot("cleanup needs root (CAP_BPF and CAP_NET_ADMIN)")
    for instance in instances:
        if instance.node:
            raise EbpfnetError("cleanup is for a node; `ebpfnet lab down` removes a lab")
        # The locks, not the socket: an agent may be starting, too busy to answer, or run with another --run.
        with alone(instance.run, instance.pins, make=False):
            _clean(instance, dry_run=dry_run)


def _clean(instance: nodes.Instance, *, dry_run: bool) -> None:
    from ebpfnet.datapath import attach, cgroup, loopback

    verb = "would remove" if dry_run else "removed"
    nothing = True
    for interface, names in attach.everywhere(remove=not dry_run):
        click.echo(f"{verb} {', '.join(names)} from {interface}")
        nothing = False
    if kept := loopback.admitted(instance.run):
        if not dry_run:
            loopback.restore(instance.run)
        click.echo(f"{verb} our settings of lo, kept in {kept}")
        nothing = False
    ours = _ours(instance)
    if not dry_run:
        cgroup.detach(instance.pins)
    for path in ours:
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        click.echo(f"{verb} {path}")
        nothing = False
    if nothing:
        click.echo("nothing of ours is here")


def _ours(instance: nodes.Instance) -> list[Path]:
    """Return our pins by name (others may be beside them), the directory when it is then empty, and run files."""
    from ebpfnet.datapath import cgroup

    replaced = (*abi.PROGRAMS, *cgroup.PINS)
    names = {*abi.TABLES, *replaced, *(f"{name}_new" for name in replaced)}
    pinned = list(instance.pins.iterdir()) if instance.pins.is_dir() else []
    ours = sorted(path for path in pinned if path.name in names)
    if instance.pins.is_dir() and len(ours) == len(pinned):
        ours.append(instance.pins)
    return ours + [path for name in ("agent.sock", "agent.lock") if (path := instance.run / name).exists()]
