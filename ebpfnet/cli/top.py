"""``ebpfnet service top``."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from ebpfnet import abi
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup, full_name, refuse_unknown, without_port
from ebpfnet.maps.dump import host_port
from ebpfnet.maps.usage import used

SORTS = ("connections", "packets", "bytes", "open")
COUNTS = ("open", "connections", "packets", "bytes")
# Of a flow's value, where an entry costs as little as it can: `to`, `service`, `bytes`, `state`, `flags`, `packets`.
_FLOW = struct.Struct("16x16s2x2s4x8xQQ12x12xBBxxI24x")


class Count(NamedTuple):
    """What went through a service, or through it to one backend; ``open`` connections are there now."""

    open: int = 0
    connections: int = 0
    packets: int = 0
    bytes: int = 0

    def __add__(self, other: tuple[int, ...]) -> Count:  # type: ignore[override]  # sums, not a longer tuple
        return Count(*(one + more for one, more in zip(self, other, strict=True)))

    def __sub__(self, other: Count) -> Count:
        return Count(*(one - less for one, less in zip(self, other, strict=True)))


Counts = dict[tuple[str, bytes], Count]  # by NAMESPACE/NAME:PORT, and address and port of the backend


def read(tables: dict[str, Any], lookup: Lookup) -> Counts:
    """Return what ``usage`` has, and what flows have not added to it yet."""
    found: Counts = {}
    for set_id, backend, count in (*_flushed(tables), *_live(tables)):
        key = (lookup.service(set_id), backend)
        found[key] = found.get(key, Count()) + count
    return found


def _flushed(tables: dict[str, Any]) -> Iterator[tuple[int, bytes, Count]]:
    for set_id, backend, *counts in used(tables["usage"]):
        yield set_id, backend, Count(0, *counts)


def _live(tables: dict[str, Any]) -> Iterator[tuple[int, bytes, Count]]:
    reply, closing = int(abi.FlowFlag.REPLY), int(abi.FlowState.CLOSING)
    direct = int(abi.FlowFlag.DIRECT)
    for key, value in tables["flows"].items():
        address, port, service, octets, state, flags, packets = _FLOW.unpack(value)
        if not service or flags & direct:  # the backend's node counts both directions
            continue
        if flags & reply:  # it comes from the backend
            yield service, key[:16] + key[32:34], Count(0, 0, packets, octets)
        else:
            yield service, address + port, Count(int(state != closing), 0, packets, octets)


def rows_of(instance: nodes.Instance, lookup: Lookup, counts: Counts, *, backends: bool) -> list[dict[str, Any]]:
    """Return a row for each service, or for each backend of each."""
    summed: Counts = {}
    for (service, backend), count in counts.items():
        key = (service, backend if backends else b"")
        summed[key] = summed.get(key, Count()) + count
    rows = []
    for (service, backend), count in summed.items():
        row: dict[str, Any] = {"node": instance.node, "service": service}
        if backends:
            row["backend"] = host_port(backend[:16], int.from_bytes(backend[16:], "big"))
            row["pod"] = lookup.pods.get(backend[:16], "")
        rows.append({**row, **count._asdict()})
    return rows


@click.command()
@click.option("--service", "only", metavar="[NAMESPACE/]NAME[:PORT]", shell_complete=candidates.services,
              help="Of one service.")  # fmt: skip
@click.option("--backends", is_flag=True, help="A line for each backend of each service.")
@click.option("--sort", type=click.Choice(SORTS), default="bytes", show_default=True, help="Most of what comes first.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many lines.")
@click.option("--interval", type=click.FloatRange(min=0.1), metavar="SECONDS",
              help="Print again and again, each time what was since the last, until interrupted.")  # fmt: skip
@nodes.options
@form.options
def top(
    instances: list[nodes.Instance],
    output: str,
    *,
    headers: bool,
    only: str | None,
    backends: bool,
    sort: str,
    limit: int | None,
    interval: float | None,
) -> None:
    """List services by connections, packets and bytes.

    Counted since the agent first met a service, both directions together; OPEN are connections that are there now.
    """
    before: dict[str, Counts] = {}
    first = True
    while True:
        rows: list[dict[str, Any]] = []
        known: set[str] = set()
        for instance, tables in nodes.each(instances):
            lookup = Lookup(tables)
            counts = read(tables, lookup)
            known |= {*lookup.services, *(service for service, _ in counts)}
            shown = counts if before.get(instance.node) is None else _since(counts, before[instance.node])
            before[instance.node] = counts
            rows += rows_of(instance, lookup, shown, backends=backends)
        if only:
            refuse_unknown("service", only, known)
            wanted = full_name(only)
            rows = [row for row in rows if wanted in {row["service"], without_port(row["service"])}]
        rows.sort(key=lambda row: (-row[sort], row["service"], row.get("backend", "")))
        if interval is None or not first:
            _print(rows[:limit], output, headers=headers, backends=backends, again=interval is not None)
        if interval is None:
            return
        first = False
        time.sleep(interval)


def _since(now: Counts, before: Counts) -> Counts:
    """Return what came since; what is open is so now. A count that fell was taken away between: it starts anew."""
    found = {}
    for key, count in now.items():
        grown = count - before.get(key, Count())
        found[key] = Count(count.open, *(max(0, each) for each in grown[1:]))
    return found


def _print(rows: list[dict[str, Any]], output: str, *, headers: bool, backends: bool, again: bool) -> None:
    if again and output not in {"json", "yaml"}:
        click.clear()  # nothing where nobody looks
    columns = ("node", "service", *(("backend", "pod") if backends else ()), *COUNTS)
    form.show(rows, columns, output, headers=headers)
