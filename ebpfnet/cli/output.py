"""Tables for people, JSON and YAML for machines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

Row = Mapping[str, Any]


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-o`` and ``--no-headers``; the command gets ``output`` and ``headers``."""
    command = click.option("--headers/--no-headers", default=True, help="The line of column names.")(command)
    choice = click.Choice(["table", "wide", "json", "yaml"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="Form.")(command)


def show(
    rows: Sequence[Row],
    columns: Sequence[str],
    output: str,
    *,
    headers: bool = True,
    for_people: Callable[[Row], Row] | None = None,
) -> None:
    """Print rows: ``columns`` of them as a table, everything with ``wide``, ``json`` and ``yaml``.

    A column that is empty in every row (the node, outside a lab) is left out of a table. ``for_people`` makes rows of a
    table of those for machines.
    """
    if output in {"json", "yaml"}:
        document(list(rows), output)
        return
    rows = list(map(for_people, rows)) if for_people else rows
    names = list(rows[0]) if output == "wide" and rows else list(columns)
    names = [name for name in names if not rows or any(row.get(name) not in (None, "") for row in rows)]
    cells = [[text(row.get(name)) for name in names] for row in rows]
    titles = [name.upper().replace("_", " ") for name in names]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [titles, *cells] if headers else cells
    bold = headers and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    out = []
    for number, line in enumerate(lines):
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        out.append(click.style(padded, bold=True) if bold and number == 0 else padded)
    if out:
        click.echo("\n".join(out))


class Stream:
    """Rows that come one after another: titles once and columns of a fixed width, or a JSON object a line."""

    def __init__(self, widths: Mapping[str, int], output: str, *, headers: bool = True) -> None:
        self._widths = {name: max(width, len(name)) for name, width in widths.items() if width}
        self._output = output
        if headers and output not in {"json", "yaml"}:
            self._line({name: name.upper().replace("_", " ") for name in self._widths})

    def show(self, row: Row) -> None:
        """Print one row at once, whoever reads."""
        if self._output == "json":
            click.echo(json.dumps(row))
        elif self._output == "yaml":
            click.echo("---")
            document(row, "yaml")
        else:
            self._line(row)

    def _line(self, row: Row) -> None:
        click.echo("  ".join(text(row.get(name)).ljust(width) for name, width in self._widths.items()).rstrip())


def document(value: object, output: str) -> None:
    """Print a value as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
        return
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=False).rstrip())


def text(value: object) -> str:
    """Return a cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value)


def age(seconds: float) -> str:
    """Return a duration as people say it: 5s, 3m, 2h, 4d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
