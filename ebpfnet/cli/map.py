"""``ebpfnet map``."""

from __future__ import annotations

from typing import Any

import click

from ebpfnet import abi
from ebpfnet.cli import candidates
from ebpfnet.cli import instances as nodes
from ebpfnet.cli import output as form
from ebpfnet.exits import EbpfnetError
from ebpfnet.maps import dump as dumps

COLUMNS = ("node", "map", "type", "entries", "capacity", "use", "key_bytes", "value_bytes")


@click.group(name="map")
def map() -> None:  # noqa: A001  # the noun is the verb's name
    """The tables in the kernel."""


@map.command(name="list")
@nodes.options
@form.options
def list_maps(instances: list[nodes.Instance], output: str, *, headers: bool) -> None:
    """List the tables with how full they are."""
    rows = []
    for instance, tables in nodes.each(instances):
        for name, table in tables.items():
            spec = table.spec
            array = spec.type in {abi.MapType.ARRAY, abi.MapType.PERCPU_ARRAY}
            entries = spec.max_entries if array else sum(len(keys) // spec.key_size for keys, _ in table.chunks())
            size = {"entries": entries, "capacity": spec.max_entries, "use": f"{100 * entries / spec.max_entries:.1f}%"}
            widths = {"key_bytes": spec.key_size, "value_bytes": spec.value_size}
            kind = abi.MapType(spec.type).name.lower()
            rows.append({"node": instance.node, "map": name, "type": kind, **size, **widths})
    form.show(rows, COLUMNS, output, headers=headers)


@map.command()
@click.argument("name", required=False, metavar="[MAP]", shell_complete=candidates.tables)
@click.option("--raw", is_flag=True, help="Bytes in hexadecimal.")
@nodes.options
@form.options
def dump(name: str | None, instances: list[nodes.Instance], output: str, *, raw: bool, headers: bool) -> None:
    """Print a table, keys and values named.

    Without MAP everything that the cluster decides.
    """
    del headers
    if name is not None and name not in abi.TABLES:
        raise EbpfnetError(f"no map {name!r}; there are {', '.join(abi.TABLES)}")
    answer: dict[str, Any] = {}
    for instance, tables in nodes.each(instances):
        if name is None:
            content: Any = dumps.summary(tables)
        elif raw:
            content = [f"{key.hex()} {value.hex()}" for key, value in tables[name].items()]
        else:
            content = list(dumps.rows(tables, name))
        answer[instance.node] = content
        if output not in {"json", "yaml"}:
            if instance.node:
                click.echo(f"# {instance.node}")
            click.echo("\n".join(content))
    if output in {"json", "yaml"}:
        form.document(answer[""] if list(answer) == [""] else answer, output)
