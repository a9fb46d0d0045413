"""``ebpfnet doctor``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ebpfnet.cli import output as form
from ebpfnet.cli.agent import ports
from ebpfnet.exits import NotRoot
from ebpfnet.maps import pins as pinned
from ebpfnet.places import RUN

FILE = click.Path(path_type=Path)
COLORS = {"error": "red", "warning": "yellow", "unknown": "blue", "ok": "green"}


@click.command()
@click.option("--pins", type=FILE, default=pinned.DEFAULT, metavar="DIR", help="Where the maps are pinned.")
@click.option("--run", type=FILE, default=RUN, metavar="DIR", help="Where the agent's socket is.")
@click.option("--service-node-port-range", callback=ports, default="30000-32767", show_default=True,
              metavar="FIRST-LAST", help="Ports that the API server gives to services.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@click.option("-q", "--quiet", is_flag=True, help="Only what is not fine.")
def doctor(pins: Path, run: Path, service_node_port_range: tuple[int, int], output: str, *, quiet: bool) -> None:
    """Look for what is wrong with this node: kernel, kube-proxy's leftovers, agent, tables, programs.

    Nothing is changed; each finding has the command that puts it right. The exit code is 0 when all is fine, 1 with
    warnings, 2 with errors.
    """
    from ebpfnet.doctor.finding import exit_code
    from ebpfnet.doctor.look import everything

    if os.geteuid() != 0:
        raise NotRoot("doctor needs root (CAP_BPF and CAP_NET_ADMIN)")
    findings = list(everything(pins, run, service_node_port_range))
    code = exit_code(findings)
    shown = [each for each in findings if not (quiet and each.level == "ok")]
    if output == "text":
        for each in shown:
            level = click.style(f"{each.level:8}", fg=COLORS[each.level])
            click.echo(f"{level} {each.check}: {each.text}")
            if each.command:
                click.echo(f"{'':8}   # {each.command}")
    else:
        rows = [{**each._asdict(), "level": str(each.level)} for each in shown]
        form.document({"exit_code": code, "findings": rows}, output)
    sys.exit(code)
