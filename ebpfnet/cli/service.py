"""``ebpfnet service``."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup, full_name, refuse_unknown, without_port
from ebpfnet.maps.dump import host_port, protocol_name

COLUMNS = ("node", "service", "address", "port", "protocol", "backends")


@click.group()
def service() -> None:
    """Services as the datapath serves them."""


def rows_of(instance: nodes.Instance, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each frontend, sorted by name."""
    names = Lookup(tables).names
    rows = []
    for key, value in tables["services"].items():
        frontend, entry = abi.Frontend.unpack(key), abi.Service.unpack(value)
        row = {
            "node": instance.node,
            "service": names.get(entry.id, f"#{entry.id:016x}"),
            "address": str(abi.unpack_address(frontend.address)),
            "port": frontend.port,
            "protocol": protocol_name(frontend.protocol),
            "backends": entry.count,
            "generation": entry.generation,
            "id": f"{entry.id:016x}",
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["service"], row["address"]))


@service.command(name="list")
@nodes.options
@form.options
def list_services(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List service ports, cluster IPs, number of backends.

    No backends means that connections are refused.
    """
    rows = [row for instance, tables in nodes.each(instances) for row in rows_of(instance, tables)]
    form.show(rows, COLUMNS, output, headers=headers)


@service.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.services)
@nodes.options
@form.options
def get(name: str, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Show one service: its addresses, backends and connections."""
    found, known = [], set()
    wanted = full_name(name)
    for instance, tables in nodes.each(instances):
        rows = rows_of(instance, tables)
        known |= {label for row in rows for label in (row["service"], without_port(row["service"]))}
        mine = [row for row in rows if wanted in {row["service"], without_port(row["service"])}]
        counts = _flows(tables, {int(row["id"], 16) for row in mine})
        for row in mine:
            identity = int(row["id"], 16)
            backends = _backends(tables, identity, row["generation"], row["backends"])
            found.append({**row, "flows": counts.get(identity, 0), "endpoints": backends})
    refuse_unknown("service", name, known)
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    form.show(found, (*COLUMNS, "flows", "generation"), "table", headers=headers)
    for row in found:
        where = host_port(abi.pack_address(ipaddress.ip_address(row["address"])), row["port"])
        click.echo(f"\n{row['service']} {where}{' on ' + row['node'] if row['node'] else ''}")
        form.show(row["endpoints"] or [{"backend": "(none: connections are refused)"}], ("backend", "pod"), "table")


def _flows(tables: dict[str, Any], ids: set[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for item in tables["flows"].items():
        entry = abi.Flow.unpack(item[1])
        if entry.service in ids and not entry.flags & abi.FlowFlag.REPLY:
            counts[entry.service] = counts.get(entry.service, 0) + 1
    return counts


def _backends(tables: dict[str, Any], identity: int, generation: int, count: int) -> list[dict[str, Any]]:
    pods = Lookup(tables).pods
    out = []
    for index in range(count):
        raw = tables["slots"].get(abi.Slot(identity, generation, index).pack())
        if raw is not None:
            backend = abi.Backend.unpack(raw)
            out.append({"backend": host_port(backend.address, backend.port), "pod": pods.get(backend.address, "")})
    return sorted(out, key=lambda row: str(row["backend"]))
