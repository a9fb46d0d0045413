"""``ebpfnet pod``."""

from __future__ import annotations

import click

from ebpfnet import abi
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.cli.lookup import Lookup

COLUMNS = ("node", "pod", "address", "ifindex", "mac")


@click.group()
def pod() -> None:
    """Pods that the node serves."""


@pod.command(name="list")
@nodes.options
@form.options
def list_pods(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the node's pods.

    Their addresses, and the host's side of their wire.
    """
    rows = []
    for instance, tables in nodes.each(instances):
        lookup = Lookup(tables)
        for key, value in tables["pods"].items():
            entry = abi.Pod.unpack(value)
            address = str(abi.unpack_address(key))
            wire = {"ifindex": entry.wire.ifindex, "mac": entry.wire.mac.hex(":")}
            rows.append({"node": instance.node, "pod": lookup.name(entry.id), "address": address, **wire})
    form.show(sorted(rows, key=lambda row: (row["node"], row["pod"], row["address"])), COLUMNS, output, headers=headers)
