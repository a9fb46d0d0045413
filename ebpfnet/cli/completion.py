"""``ebpfnet completion``."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script, to be sourced.

    bash, zsh: `source <(ebpfnet completion bash)`; fish: `ebpfnet completion fish | source`. Names of labs, nodes,
    services and pods are read from the live tables, which needs root.
    """
    from ebpfnet.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(at_its_place(kind(cli, {}, "ebpfnet", "_EBPFNET_COMPLETE").source(), sys.argv[0]))


def at_its_place(script: str, program: str) -> str:
    """Make a script call this program where it is, which may be on no PATH; bash calls what was typed."""
    place = Path(program).absolute()
    if place.name != "ebpfnet" or "/" not in program:
        return script
    script = script.replace("    (( ! $+commands[ebpfnet] )) && return 1\n", "")
    for shell in ("zsh", "fish"):
        script = re.sub(rf"({shell}_complete\b[^;}}]*?) ebpfnet\b", rf"\1 {shlex.quote(str(place))}", script)
    return script
