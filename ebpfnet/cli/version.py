"""``ebpfnet version``."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from ebpfnet import __version__, abi
from ebpfnet.cli import output as form


@click.command()
@form.options
def version(output: str, *, headers: bool) -> None:
    """Print the versions of ebpfnet, its tables' layout, the kernel and BCC."""
    del headers
    libraries = sorted(Path("/usr/lib").glob("*/libbcc.so.0.*"))
    bcc = libraries[-1].name.removeprefix("libbcc.so.") if libraries else None
    row = {"ebpfnet": __version__, "layout": abi.LAYOUT_VERSION, "kernel": platform.release(), "bcc": bcc}
    row["python"] = platform.python_version()
    if output in {"json", "yaml"}:
        form.document(row, output)
        return
    for name, value in row.items():
        click.echo(f"{name:<8}{value if value is not None else 'not installed'}")
