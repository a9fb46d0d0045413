"""``ebpfnet drop``."""

from __future__ import annotations

import time
from typing import Any

import click

from ebpfnet import abi, clock
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup
from ebpfnet.maps.dump import protocol_name
from ebpfnet.maps.percpu import totals

COLUMNS = ("node", "hook", "reason", "packets", "bytes")
SAMPLE_COLUMNS = ("node", "age", "hook", "reason", "protocol", "packet", "length", "rule")


@click.group()
def drop() -> None:
    """Dropped packets, each with its reason."""


def counters(instance: nodes.Instance, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each hook and reason that dropped anything."""
    rows = []
    for key, value in tables["drops"].items():
        packets, octets = totals(value, abi.Counter)
        hook, reason = divmod(int.from_bytes(key, "little"), abi.DROP_MAX)
        if packets:
            where = {"hook": abi.Hook(hook).name.lower(), "reason": abi.DropReason(reason).name}
            rows.append({"node": instance.node, **where, "packets": packets, "bytes": octets})
    return rows


def samples(instance: nodes.Instance, tables: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the last drops, newest first."""
    lookup = Lookup(tables)
    now = clock.kernel_ns()
    found = [abi.DropSample.unpack(value) for _, value in tables["drop_samples"].items()]
    rows = []
    for sample in sorted((each for each in found if each.sequence), key=lambda each: -each.sequence):
        key = sample.tuple
        row = {
            "node": instance.node,
            "age": form.age((now - sample.seen_ns) / 1e9),
            "hook": sample.hook.name.lower(),
            "reason": sample.reason.name,
            "protocol": protocol_name(key.protocol) if key.protocol else None,
            "packet": lookup.tuple(key) if any(key.source) else None,
            "length": sample.length,
            "rule": lookup.name(sample.rule) if sample.rule else None,
            "ifindex": sample.ifindex,
            "sequence": sample.sequence,
        }
        rows.append(row)
    return rows


@drop.command(name="list")
@click.option("--samples", "recent", is_flag=True, help=f"The last {abi.DROP_SAMPLES} packets, newest first.")
@click.option("--watch", is_flag=True, help="Print new samples as they come, until interrupted.")
@nodes.options
@form.options
def list_drops(instances: list[nodes.Instance], output: str, *, recent: bool, watch: bool, headers: bool) -> None:
    """List drops by hook and reason.

    How many packets were dropped; with --samples, which, and by which policy. What is AUDITED passed: a policy in audit
    mode would have dropped it.
    """
    if watch:
        _watch(instances, output, headers=headers)
        return
    rows = []
    for instance, tables in nodes.each(instances):
        rows += samples(instance, tables) if recent else counters(instance, tables)
    form.show(rows, SAMPLE_COLUMNS if recent else COLUMNS, output, headers=headers)


def _widths(instances: list[nodes.Instance]) -> dict[str, int]:
    """Return how wide the columns are for what is to come; outside a lab there is none for the node."""
    return {
        "node": max(len(instance.node) for instance in instances),
        "hook": max(len(hook.name) for hook in abi.Hook),
        "reason": max(len(reason.name) for reason in abi.DropReason),
        "protocol": 8,
        "length": 6,
        "packet": 6,
        "rule": 4,
    }


def _watch(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Follow the samples; what was there before is not printed."""
    stream = form.Stream(_widths(instances), output, headers=headers)
    last: dict[str, int] = {}
    while True:
        for instance, tables in nodes.each(instances):
            rows = samples(instance, tables)
            newest = rows[0]["sequence"] if rows else 0
            for row in reversed(rows):
                if row["sequence"] > last.get(instance.node, newest):
                    stream.show(row)
            last[instance.node] = newest
        time.sleep(0.5)
