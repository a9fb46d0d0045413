"""What a shell may offer for a word: names of labs and their nodes, and what the live tables hold.

A completion never says why it has nothing to offer: without root, or without tables, there is nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli.lookup import Lookup, without_port
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps.table import TableError
from ebpfnet.places import LABS

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _offer(find: Callable[[click.Context], Iterable[str]]) -> Complete:
    """Return a function for ``shell_complete``; a bare name is offered for what is in ``default``."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        try:
            found = set(find(ctx))
        except (EbpfnetError, TableError, OSError, ValueError, KeyError):
            return []
        if incomplete and "/" not in incomplete:
            found |= {name.removeprefix("default/") for name in found}
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


def _from_tables(read: Callable[[Lookup], Iterable[str]]) -> Callable[[click.Context], Iterable[str]]:
    def find(ctx: click.Context) -> Iterable[str]:
        from ebpfnet.cli import instances as nodes  # it offers these for its own options

        instances = ctx.params.get("instances") or []
        return {name for _, tables in nodes.each(instances) for name in read(Lookup(tables))}

    return find


def _nodes(ctx: click.Context) -> Iterable[str]:
    from ebpfnet.cli import instances as nodes

    instances = ctx.params.get("instances") or []
    if not instances:  # several labs are up, and none was named
        instances = [each for lab in nodes.labs() for each in nodes.of_lab(lab)]
    return [each.node for each in instances if each.node]


def _plan(ctx: click.Context) -> dict[str, Any]:
    name = ctx.params.get("name") or "lab"
    plan: dict[str, Any] = json.loads((LABS / name / "lab.json").read_bytes())["plan"]
    return plan


def _pods_of_lab(ctx: click.Context) -> Iterable[str]:
    if any(ctx.params.get(each) for each in ("words", "node", "outside")):  # the command's own words are not ours
        return []
    return [f"{pod['namespace']}/{pod['name']}" for pod in _plan(ctx)["pods"]]


def _labs(_: click.Context) -> Iterable[str]:
    with contextlib.suppress(FileNotFoundError):
        return [path.name for path in LABS.iterdir()]
    return []


labs = _offer(_labs)
nodes_of_lab = _offer(lambda ctx: [node["name"] for node in _plan(ctx)["nodes"]])
pods_of_lab = _offer(_pods_of_lab)
node_names = _offer(_nodes)
services = _offer(_from_tables(lambda lookup: map(without_port, lookup.services)))  # a colon ends a word of bash


def _policies(ctx: click.Context) -> Iterable[str]:
    from ebpfnet.maps.hits import policies_of

    found = _from_tables(lambda lookup: (each for name in lookup.names.values() for each in policies_of(name)))(ctx)
    return {each.partition(" ")[2] for each in found}


policies = _offer(_policies)
pods = _offer(_from_tables(lambda lookup: lookup.pods.values()))
pods_and_services = _offer(
    _from_tables(
        lambda lookup: [*lookup.pods.values(), *(f"svc/{each}" for each in map(without_port, lookup.services))]
    )
)
tables = _offer(lambda _: abi.TABLES)
