"""``ebpfnet backend``."""

from __future__ import annotations

from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup, full_name, refuse_unknown, without_port
from ebpfnet.maps.dump import host_port

COLUMNS = ("node", "service", "backend", "pod")


@click.group()
def backend() -> None:
    """Backends behind services."""


def rows_of(instance: nodes.Instance, tables: dict[str, Any], only: str | None) -> list[dict[str, Any]]:
    """Return a row for each slot that a service leads to."""
    lookup = Lookup(tables)
    live = {}
    for value in (value for _, value in tables["services"].items()):
        entry = abi.Service.unpack(value)
        name = lookup.name(entry.id)
        if only is None or full_name(only) in {name, without_port(name)}:
            live[entry.id, entry.generation] = (name, entry.count)
    rows = []
    for key, value in tables["slots"].items() if live else ():
        slot = abi.Slot.unpack(key)
        name, count = live.get((slot.service, slot.generation), ("", 0))
        if slot.index < count:
            raw = abi.Backend.unpack(value)
            where = {"backend": host_port(raw.address, raw.port), "pod": lookup.pods.get(raw.address, "")}
            rows.append({"node": instance.node, "service": name, **where, "slot": slot.index})
    return sorted(rows, key=lambda row: (row["service"], row["backend"]))


@backend.command(name="list")
@click.option(
    "--service", "only", metavar="[NAMESPACE/]NAME[:PORT]", shell_complete=candidates.services, help="Of one service."
)
@nodes.options
@form.options
def list_backends(only: str | None, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the backends of services.

    POD names those on the same node.
    """
    rows, known = [], set()
    for instance, tables in nodes.each(instances):
        rows += rows_of(instance, tables, only)
        known |= Lookup(tables).services if only else set()
    if only:
        refuse_unknown("service", only, known)
    form.show(rows, COLUMNS, output, headers=headers)
