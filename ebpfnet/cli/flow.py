"""``ebpfnet flow``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ebpfnet import abi, clock
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup, full_name, refuse_unknown, without_port
from ebpfnet.maps.dump import host_port, protocol_name

COLUMNS = (
    *("node", "protocol", "source", "destination", "backend", "snat", "service", "state", "flags", "idle"),
    *("egress_rule", "ingress_rule"),
)
_SHOWN = (abi.FlowFlag.HOST, abi.FlowFlag.GONE, abi.FlowFlag.BESIDE, abi.FlowFlag.DIRECT)


@click.group()
def flow() -> None:
    """Connections that the datapath remembers."""


@flow.command(name="list")
@click.option(
    "--service", metavar="[NAMESPACE/]NAME[:PORT]", shell_complete=candidates.services, help="Through this service."
)
@click.option(
    "--pod", metavar="[NAMESPACE/]NAME", shell_complete=candidates.pods, help="From or to this pod of the node."
)
@click.option("--protocol", type=click.Choice(["TCP", "UDP", "SCTP", "ICMP"], case_sensitive=False))
@click.option("--state", type=click.Choice([state.name for state in abi.FlowState], case_sensitive=False))
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many of each node.")
@click.option("--replies/--no-replies", default=False, help="Also the entries that match the answers.")
@nodes.options
@form.options
def list_flows(
    instances: list[nodes.Instance], output: str, *, headers: bool, replies: bool, limit: int | None, **wanted: Any
) -> None:
    """List connections, one line each.

    The client, what it called, the backend it got, how long it is idle, and the policies' rules that let it pass. SNAT
    is the source that the backend sees where that is not the client's own. FLAGS: HOST was asked by this node itself,
    GONE has lost its backend and ends with its next packet, BESIDE is translated on another CNI plugin's wire, DIRECT
    is sent on to the backend's node, which answers the client itself.
    """
    rows = []
    services, pods = set(), set()
    service, pod = wanted["service"], wanted["pod"]
    for instance, tables in nodes.each(instances):
        mine = []
        services |= Lookup(tables).services if service else set()
        pods |= set(Lookup(tables).pods.values()) if pod else set()
        for row in rows_of(instance, tables, replies=replies):
            if matches(row, **wanted):
                mine.append(row)
                if limit and len(mine) >= limit:
                    break
        rows += mine
    if service:
        refuse_unknown("service", service, services)
    if pod:
        refuse_unknown("pod", pod, pods)
    rows.sort(key=lambda row: (row["node"], row["idle_seconds"]))
    form.show(rows, COLUMNS, output, headers=headers)


def rows_of(instance: nodes.Instance, tables: dict[str, Any], *, replies: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each connection."""
    lookup = Lookup(tables)
    now = clock.kernel_ns()
    for key, value in tables["flows"].items():
        entry = abi.Flow.unpack(value)
        if entry.flags & abi.FlowFlag.REPLY and not replies:
            continue
        this = abi.Tuple.unpack(key)
        nat = bool(entry.flags & abi.FlowFlag.NAT)
        idle = max(0.0, (now - entry.seen_ns) / 1e9)
        service = lookup.service(entry.service) if entry.service else ""
        reply = bool(entry.flags & abi.FlowFlag.REPLY)
        seen = host_port(entry.to.source, entry.to.source_port) if nat else ""
        hidden = not reply and (this.source, this.source_port) != (entry.to.source, entry.to.source_port)
        source, target = lookup.pods.get(this.source, ""), lookup.pods.get(entry.to.destination, "")
        yield {
            "node": instance.node,
            "protocol": protocol_name(this.protocol),
            "source": _end(this.source, this.source_port, source),
            "destination": _end(this.destination, this.destination_port, "" if nat else target),
            "backend": _end(entry.to.destination, entry.to.destination_port, target) if nat else "",
            "service": service,
            "state": entry.state.name,
            "idle": form.age(idle),
            "idle_seconds": round(idle, 3),
            "reply": reply,
            "source_pod": source,
            "destination_pod": target,
            "seen_as": seen,
            "snat": seen if hidden else "",
            "flags": " ".join(flag.name or "" for flag in _SHOWN if flag in entry.flags),
            "egress_rule": lookup.name(entry.egress_rule) if entry.egress_rule else "",
            "ingress_rule": lookup.name(entry.ingress_rule) if entry.ingress_rule else "",
            "packets": entry.packets,
            "bytes": entry.bytes,
        }


def _end(address: bytes, port: int, pod: str) -> str:
    plain = host_port(address, port)
    return f"{plain} ({pod})" if pod else plain


def matches(row: dict[str, Any], service: str | None, pod: str | None, protocol: str | None, state: str | None) -> bool:
    """Return whether a row passes the filters."""
    if service and full_name(service) not in {row["service"], without_port(row["service"])}:
        return False
    if pod and full_name(pod) not in {row["source_pod"], row["destination_pod"]}:
        return False
    if protocol and row["protocol"] != protocol.upper():
        return False
    return not state or row["state"] == state.upper()
