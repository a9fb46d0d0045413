"""``ebpfnet pod``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import full_name, refuse_unknown
from ebpfnet.cli.rules import Rules

COLUMNS = ("node", "pod", "address", "ifindex", "mac", "isolated")


@click.group()
def pod() -> None:
    """Pods that the node serves."""


@pod.command(name="list")
@nodes.options
@form.options
def list_pods(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the node's pods.

    Their addresses, the host's side of their wire, and in which directions a NetworkPolicy isolates them.
    """
    rows = [row for instance, tables in nodes.each(instances) for row in _rows(instance, Rules(tables))]
    form.show(sorted(rows, key=lambda row: (row["node"], row["pod"], row["address"])), COLUMNS, output, headers=headers)


def _rows(instance: nodes.Instance, rules: Rules) -> Iterator[dict[str, Any]]:
    for key, value in rules.tables["pods"].items():
        entry = abi.Pod.unpack(value)
        yield {
            "node": instance.node,
            "pod": rules.lookup.name(entry.id),
            "address": str(abi.unpack_address(key)),
            "ifindex": entry.wire.ifindex,
            "mac": entry.wire.mac.hex(":"),
            "isolated": ", ".join(rules.isolation(entry.group)),
            "group": f"{entry.group:016x}" if entry.group else "",
        }


@pod.command()
@click.argument("name", metavar="[NAMESPACE/]NAME", shell_complete=candidates.pods)
@nodes.options
@form.options
def get(name: str, instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """Show one pod and its policies.

    Its addresses and wire, in which directions it is isolated, and the policies that decide about it.
    """
    found: list[dict[str, Any]] = []
    known: set[str] = set()
    for instance, tables in nodes.each(instances):
        rules = Rules(tables)
        rows = list(_rows(instance, rules))
        known |= {row["pod"] for row in rows}
        found += [
            {**row, "policies": rules.policies_of(int(row["group"] or "0", 16))}
            for row in rows
            if row["pod"] == full_name(name)
        ]
    refuse_unknown("pod", name, known)
    if output in {"json", "yaml"}:
        form.document(found, output)
        return
    form.show(found, (*COLUMNS, "policies"), output, headers=headers)
