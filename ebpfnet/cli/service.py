"""``ebpfnet service``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli import candidates, complaints
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import anywhere, full_name, refuse_unknown, without_port
from ebpfnet.cli.sets import Frontend, Sets, backend_rows, row_of
from ebpfnet.cli.top import top

COLUMNS = ("node", "service", "type", "address", "port", "protocol", "endpoints", "policy", "affinity", "problems")


@click.group()
def service() -> None:
    """Services as the datapath serves them."""


service.add_command(top)


def _order(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["service"], row["type"] or "", row["address"] or "", row["port"] or 0


def rows_of(instance: nodes.Instance, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each frontend, sorted by name, and one for each service that problems left without any."""
    sets = Sets(tables)
    sets.read_all()
    refused = complaints.of_services(instance)
    rows: list[dict[str, Any]] = []
    for frontend in sets.frontends():
        row = {"node": instance.node, **row_of(sets, frontend)}
        rows.append({**row, "problems": refused.get(without_port(row["service"]), [])})
    served = {without_port(row["service"]) for row in rows}
    rows += [_without_frontend(instance, name, problems) for name, problems in refused.items() if name not in served]
    return sorted(rows, key=_order)


def _without_frontend(instance: nodes.Instance, name: str, problems: list[str]) -> dict[str, Any]:
    nothing = dict.fromkeys(("type", "address", "port", "protocol", "policy", "affinity_seconds"))
    return {
        "node": instance.node,
        "service": name,
        **nothing,
        "backends": 0,
        "backends_outside": 0,
        "problems": problems,
    }


def _for_people(row: form.Row) -> form.Row:
    """Return a row as a table has it."""
    affinity = row["affinity_seconds"]
    return {**complaints.counted(row), "endpoints": _counts(row), "affinity": affinity and f"{affinity}s"}


def _counts(row: form.Row) -> str | None:
    """Return how many endpoints there are, and how many for clients outside where those are only this node's."""
    if row["type"] is None:
        return None
    if row["id"] != row["id_outside"]:
        return f"{row['backends']}, {row['backends_outside']} local"
    return f"{row['backends']} local" if row["policy"] == "Local" else str(row["backends"])


@service.command(name="list")
@nodes.options
@form.options
def list_services(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List service ports: type, address, endpoints, policy.

    A NodePort has the address 0.0.0.0 or ::. ENDPOINTS says how many there are and, with traffic policy Local, how many
    of them are on this node; without any, connections are refused, or with policy Local dropped while there are some on
    other nodes. POLICY is the internal traffic policy of ClusterIPs and the external one of all else, AFFINITY how
    long a client stays with its endpoint, PROBLEMS how many `service get` names.
    """
    rows = [row for instance, tables in nodes.each(instances) for row in rows_of(instance, tables)]
    form.show(rows, COLUMNS, output, headers=headers, for_people=_for_people)


@service.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.services)
@nodes.options
@form.options
def get(name: str, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Show all of one service: addresses, endpoints, problems.

    Also which endpoints are for whom, the source ranges that a load balancer's addresses are limited to, and how many
    connections there are now.
    """
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    wanted = full_name(name)
    for instance, tables in nodes.each(instances):
        rows, names = _details(instance, tables, wanted)
        found += rows
        known |= names
    refuse_unknown("service", name, known)
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    columns = tuple(column for column in COLUMNS if column != "problems")
    if served := [row for row in found if row["type"]]:
        form.show(served, (*columns, "flows"), "table", headers=headers, for_people=_for_people)
    for line in dict.fromkeys(_lines(found)):
        click.echo(line)
    _show_sets(found)


def _details(instance: nodes.Instance, tables: dict[str, Any], wanted: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Return a row for each frontend of a service with its endpoints, and every name that is known."""
    sets = Sets(tables)
    refused = complaints.of_services(instance)
    known = set(refused)
    mine: list[Frontend] = []
    for frontend in sets.frontends():
        labels = {frontend.name, without_port(frontend.name)}
        known |= labels
        if wanted in labels:
            mine.append(frontend)
    counts = _flows(tables, mine)
    rows = []
    for frontend in mine:
        row = {"node": instance.node, **row_of(sets, frontend)}
        row["problems"] = refused.get(without_port(frontend.name), [])
        row["flows"] = counts[frontend.key.pack()]
        row["source_ranges"] = sets.ranges(frontend.entry.ranges) if frontend.entry.ranges else None
        row["nodeport_addresses"] = _addresses(sets, frontend) if frontend.kind == "NodePort" else None
        row["endpoints"] = backend_rows(sets, frontend.inside)
        row["endpoints_outside"] = None
        if frontend.outside.id != frontend.inside.id:
            row["endpoints_outside"] = backend_rows(sets, frontend.outside)
        rows.append(row)
    if not mine and wanted in refused:
        rows.append({**_without_frontend(instance, wanted, refused[wanted]), "endpoints": []})
    return sorted(rows, key=_order), known


def _addresses(sets: Sets, frontend: Frontend) -> list[str]:
    """Return the addresses of the node at which a NodePort is reached."""
    at = (key for key, marks in sets.lookup.marks.items() if marks & abi.Mark.NODEPORTS)
    found = map(abi.unpack_address, at)
    version = abi.unpack_address(frontend.key.address).version
    return sorted(str(address) for address in found if address.version == version)


def _flows(tables: dict[str, Any], frontends: list[Frontend]) -> Counter[bytes]:
    """Return the number of connections of each frontend, by its key. A NodePort's are called by the node's address."""
    ids = {each for frontend in frontends for each in (frontend.inside.id, frontend.outside.id)}
    called = {frontend.key.pack() for frontend in frontends}
    counts: Counter[bytes] = Counter()
    for key, value in tables["flows"].items():
        entry = abi.Flow.unpack(value)
        if entry.service in ids and not entry.flags & abi.FlowFlag.REPLY:
            frontend = key[16:32] + key[34:37] + b"\0"
            counts[frontend if frontend in called else anywhere(key[16:32]) + frontend[16:]] += 1
    return counts


def _lines(found: list[dict[str, Any]]) -> list[str]:
    """Return what there is to say beside the table."""
    lines = []
    at: dict[str, list[str]] = {}
    for row in found:
        on = f" on {row['node']}" if row["node"] else ""
        if row.get("nodeport_addresses") is not None:
            at.setdefault(on, []).extend(each for each in row["nodeport_addresses"] if each not in at.get(on, []))
        if row.get("source_ranges") is not None:
            lines.append(f"{row['address']}{on}: only for clients of {', '.join(row['source_ranges'])}")
        if row.get("direct"):
            lines.append(f"direct server return{on}: backends on other nodes answer clients outside themselves")
        lines += [click.style(f"problem{on}: {problem}", fg="red") for problem in row["problems"]]
    return [f"node ports{on}: at {', '.join(each) or 'no address'}" for on, each in at.items()] + lines


def _show_sets(found: list[dict[str, Any]]) -> None:
    """Print each endpoint set once, and for whom it is."""
    shown: dict[tuple[str, str], tuple[str, list[dict[str, Any]], str]] = {}
    for row in found:
        if row["type"] is None:
            continue
        whole = row["id"] == row["id_outside"]
        local = whole and row["policy"] == "Local"
        family = "IPv6" if ":" in row["address"] else "IPv4"
        title = f"{row['service']}, {family} endpoints{' on this node' if local else ''}"
        key = (row["node"], row["id"])
        shown.setdefault(key, (title, row["endpoints"], row["when_empty"]))
        if not whole:
            title = f"{row['service']}, {family} endpoints on this node, for clients outside"
            shown.setdefault((row["node"], row["id_outside"]), (title, row["endpoints_outside"], row["when_empty"]))
    for (node, _), (title, endpoints, when_empty) in shown.items():
        click.echo(f"\n{title}{', as node ' + node + ' has them' if node else ''}")
        nothing = [{"backend": f"(none: connections are {when_empty})"}]
        form.show(endpoints or nothing, ("backend", "pod", "share"), "table")
