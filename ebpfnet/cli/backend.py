"""``ebpfnet backend``."""

from __future__ import annotations

from typing import Any

import click

from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import full_name, refuse_unknown, without_policy, without_port
from ebpfnet.cli.sets import Endpoints, Sets, backend_rows

COLUMNS = ("node", "service", "policy", "backend", "pod", "share")


@click.group()
def backend() -> None:
    """Backends behind services."""


def rows_of(instance: nodes.Instance, sets: Sets, only: str | None) -> list[dict[str, Any]]:
    """Return a row for each backend of each endpoint set that a frontend leads to."""
    found: dict[int, Endpoints] = {}
    for frontend in sets.frontends():
        if only is None or full_name(only) in {frontend.name, without_port(frontend.name)}:
            found |= {each.id: each for each in (frontend.inside, frontend.outside)}
    rows = []
    for each in found.values():
        head = {"node": instance.node, "service": without_policy(each.name)}
        policy = "Local" if each.local else "Cluster"
        rows += [{**head, "policy": policy, **row, "id": f"{each.id:016x}"} for row in backend_rows(sets, each)]
    return sorted(rows, key=lambda row: (row["service"], row["policy"], row["backend"]))


@backend.command(name="list")
@click.option(
    "--service", "only", metavar="[NAMESPACE/]NAME[:PORT]", shell_complete=candidates.services, help="Of one service."
)
@nodes.options
@form.options
def list_backends(only: str | None, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the backends of services.

    By endpoint set: that of traffic policy Cluster, and that of Local for what comes to this node by it. POD names
    those on the same node, SHARE how many of the connections each gets where that is not all the same.
    """
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    for instance, tables in nodes.each(instances):
        sets = Sets(tables)
        if only is None:
            sets.read_all()
        rows += rows_of(instance, sets, only)
        known |= sets.lookup.services if only else set()
    if only:
        refuse_unknown("service", only, known)
    form.show(rows, COLUMNS, output, headers=headers)
