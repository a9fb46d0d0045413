"""Entry point: find the verb, run it, turn expected errors into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys

import click

from ebpfnet.exits import EbpfnetError

VERBS = {
    "agent": "Run the node agent.",
    "backend": "Backends behind services.",
    "cleanup": "Remove everything of ours from a node.",
    "completion": "Print a shell's completion script.",
    "doctor": "What is wrong with this node, and the commands that put it right.",
    "drop": "Dropped packets.",
    "flow": "Connections.",
    "lab": "A cluster in network namespaces on this machine.",
    "map": "The tables in the kernel.",
    "pod": "Pods of this node.",
    "policy": "Policies: who is isolated, what is allowed, and why.",
    "service": "Services.",
    "simulate": "What the datapath does to a connection, without a cluster.",
    "status": "Is the node in sync, and what was refused?",
    "version": "Versions.",
}


class Verbs(click.Group):
    """Each verb is a module of this package, imported when it is called: a list must answer at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"ebpfnet.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """The network of a Kubernetes node in eBPF.

    Lists read the pinned maps themselves and work with the agent dead. `ebpfnet VERB --help` tells more.
    """
    if "NO_COLOR" in os.environ:  # https://no-color.org
        click.get_current_context().color = False


def main() -> None:
    """Run the command line; exit codes are in ``ebpfnet.exits``."""
    try:
        cli.main(standalone_mode=False)
    except EbpfnetError as error:
        click.echo(f"ebpfnet: {error}", err=True)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
