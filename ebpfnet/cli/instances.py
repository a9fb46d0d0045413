"""Whose tables are read: this node's, or those of the nodes of a lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ebpfnet.cli import candidates
from ebpfnet.exits import NotRunning
from ebpfnet.maps import pins
from ebpfnet.places import LABS, RUN


@dataclass(frozen=True, slots=True)
class Instance:
    """One node: its pinned tables and its agent's socket; ``node`` is empty outside a lab."""

    node: str
    pins: Path
    run: Path


def _pins_of(name: str) -> list[Path]:
    try:
        return sorted((LABS / name).glob("bpf/*/"))
    except OSError:  # it is being taken down
        return []


def labs() -> list[str]:
    """Return the labs with nodes."""
    try:
        return sorted(path.name for path in LABS.iterdir() if _pins_of(path.name))
    except OSError:  # the last one was just taken down
        return []


def of_lab(name: str) -> list[Instance]:
    """Return the nodes of a lab; raises ``NotRunning``."""
    root = LABS / name
    nodes = _pins_of(name)
    if not nodes:
        known = ", ".join(labs()) or "none"
        raise NotRunning(f"no lab {name!r} with nodes is up (up: {known}); `ebpfnet lab up` starts one")
    # A bpffs has no names with dots, and a node's name no underscore.
    names = [path.name.replace("_", ".") for path in nodes]
    return [Instance(name, path, root / "nodes" / name) for name, path in zip(names, nodes, strict=True)]


def find(directory: Path | None, run: Path | None, lab: str | None, node: str | None) -> list[Instance]:
    """Return the instances that the options mean.

    Without any option: this node's, or else those of the only lab that is up.
    """
    if directory or run:
        return [Instance("", directory or pins.DEFAULT, run or RUN)]
    if lab is None and (node is not None or not pins.DEFAULT.is_dir()):
        up = labs()
        if len(up) > 1:
            raise NotRunning(f"several labs are up, say which with --lab: {', '.join(up)}")
        lab = up[0] if up else None
        if lab is None and node is not None:
            raise NotRunning(f"--node {node}: no lab is up")
    if lab is None:
        return [Instance("", pins.DEFAULT, RUN)]
    found = of_lab(lab)
    if node is None:
        return found
    chosen = [instance for instance in found if instance.node == node]
    if not chosen:
        raise NotRunning(f"lab {lab} has no node {node!r} (it has {', '.join(each.node for each in found)})")
    return chosen


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say whose tables to read; the command gets ``instances``."""

    def chosen(ctx: click.Context, _: click.Parameter, node: str | None) -> list[Instance]:
        names = ("pins", "run", "lab")
        directory, run, lab = (ctx.params.pop(name, None) for name in names)
        if (directory or run) and (lab or node):
            raise click.UsageError("--pins and --run mean one node, --lab and --node those of a lab: not both")
        return find(directory, run, lab, node)

    path = click.Path(path_type=Path)
    for option in (
        click.option(
            "--node",
            "instances",
            callback=chosen,
            metavar="NODE",
            shell_complete=candidates.node_names,
            help="One node of a lab.",
        ),
        click.option(
            "--lab",
            "--name",
            "lab",
            is_eager=True,
            metavar="NAME",
            shell_complete=candidates.labs,
            help="The nodes of this lab.",
        ),
        click.option("--run", is_eager=True, type=path, metavar="DIR", help="Where the agent's socket is."),
        click.option("--pins", is_eager=True, type=path, metavar="DIR", help="Where the maps are pinned."),
    ):
        command = option(command)
    return command


def each(instances: list[Instance]) -> Iterator[tuple[Instance, dict[str, Any]]]:
    """Yield each instance with its open tables, closed afterwards."""
    for instance in instances:
        with pins.opened(instance.pins) as tables:
            yield instance, tables
