"""``ebpfnet lab``: a cluster in network namespaces on this machine."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ebpfnet.cli import candidates
from ebpfnet.exits import BadInput, NotRoot

if TYPE_CHECKING:
    from ebpfnet.lab.cluster import Inside, Lab

_name = click.option("--name", "--lab", default="lab", show_default=True, metavar="NAME",
                     shell_complete=candidates.labs, help="Which lab.")  # fmt: skip
_timeout = click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="Give up after so long.")


def _as_root(function: Callable[..., None]) -> Callable[..., None]:
    """Refuse to begin what can't succeed; `--help` is for everybody."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        if os.geteuid() != 0:
            raise NotRoot("a lab needs root: network namespaces, mounts, programs in the kernel")
        function(*arguments, **options)

    return wrapped


@click.group()
def lab() -> None:
    """Run a cluster in network namespaces on this machine: try a change to your manifests with real traffic.

    Each node is a namespace with an agent of its own, each pod a namespace with an echo server (TCP, UDP and HTTP on
    the pod's containerPorts) that answers its name and the client it saw.
    """


@lab.command()
@_name
@click.option("-f", "--filename", type=click.Path(exists=True, path_type=Path), metavar="DIR",
              help="Manifests, a file or a folder; without it the lab's own, for a new one a demo.")  # fmt: skip
@click.option("--uplink-mtu", type=click.IntRange(1280, 65535), metavar="BYTES",
              help="MTU between the nodes.  [default: 1500]")  # fmt: skip
@click.option("--agents/--no-agents", default=None, help="Without agents pods have plain kernel routing, no services.")
@_timeout
@_as_root
def up(name: str, filename: Path | None, uplink_mtu: int | None, agents: bool | None, timeout: float) -> None:
    """Bring a lab up, or up to date.

    It is done when the agents are ready. The manifests are copied into the lab. Edit the copies in the folder that is
    printed: agents follow them at once; pods that come or go get or lose their wires with `ebpfnet lab sync`. A new
    lab that fails, or is interrupted, is taken down again.

    A lab that is there follows its own manifests, or with -f those given; the ones before are kept beside them. What
    is half made is made again, and dead agents are started.
    """
    from ebpfnet.lab.cluster import Lab

    _stop_like_ctrl_c()
    found = Lab.up(name, filename, agents=agents, uplink_mtu=uplink_mtu, timeout=timeout, say=_say)
    click.echo(f"lab {name} is up: {len(found.plan.nodes)} nodes, {len(found.plan.pods)} pods")
    click.echo(f"manifests, edit them live: {found.manifests}")
    _name_left_out(found)


@lab.command()
@_name
@_timeout
@_as_root
def sync(name: str, timeout: float) -> None:
    """Follow nodes and pods of the edited manifests.

    Services and endpoints need no sync: the agents see those by themselves. Agents that are dead are started again.
    Pods that can't be wired stop no other; they are named at the end, and the exit code is 9.
    """
    from ebpfnet.lab.cluster import Lab

    found = Lab(name)
    found.sync(timeout, say=_say)
    _name_left_out(found)
    click.echo(f"lab {name} is as its manifests say")


@lab.command()
@_name
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True,
              help="How to print.")  # fmt: skip
@_as_root
def status(name: str, output: str) -> None:
    """Show a lab's nodes, pods and processes."""
    from ebpfnet.lab.cluster import Lab
    from ebpfnet.lab.report import report

    document = report(Lab(name))
    if output == "json":
        click.echo(json.dumps(document, indent=2))
    else:
        _print_status(document)


@lab.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_name
@click.option("--on", "--node", "node", metavar="NODE", shell_complete=candidates.nodes_of_lab,
              help="Run it on a node instead of in a pod.")  # fmt: skip
@click.option("--outside", is_flag=True, help="Run it outside of the cluster, on the nodes' network.")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[POD] -- COMMAND...",
                shell_complete=candidates.pods_of_lab)  # fmt: skip
@_as_root
def exec_(name: str, node: str | None, outside: bool, words: tuple[str, ...]) -> None:
    """Run a command in a pod, on a node, or outside.

    Outside is a client beyond the cluster's nodes. A pod is NAMESPACE/NAME, or NAME in `default`. Only the network is
    the pod's: files and processes are this machine's. For example: `ebpfnet lab exec client -- curl -s
    http://10.96.0.10/`, or a node port from outside: `ebpfnet lab exec --outside -- curl -s http://10.0.0.11:30080/`
    """
    from ebpfnet.lab.cluster import Lab

    if outside and node is not None:
        raise click.UsageError("a node or outside, not both")
    found = Lab(name)
    place, command = _place_and_command(found, node, outside, words)
    line = place.command(command)
    os.execvp(line[0], line)  # noqa: S606  # the command takes our place: terminal, signals and exit code are its own


@lab.command()
@_name
@_as_root
def down(name: str) -> None:
    """Take a lab down, whatever state it is in.

    One that is not there is no error.
    """
    from ebpfnet.lab.cluster import down as take_down

    click.echo(f"lab {name} is down" if take_down(name) else f"lab {name} was not up")


@lab.command()
@click.option("--name", "--lab", default="demo", show_default=True, metavar="NAME", help="Name of the demo's own lab.")
@_as_root
def demo(name: str) -> None:
    """Show what ebpfnet does, with real traffic.

    It has a lab of its own, which is taken down at the end.
    """
    from ebpfnet.lab.demo import run

    _stop_like_ctrl_c()
    run(name)


def _place_and_command(found: Lab, node: str | None, outside: bool, words: tuple[str, ...]) -> tuple[Inside, list[str]]:
    rest = list(words)
    if (node is not None or outside) and rest[1:2] == ["--"] and found.plan.pod(rest[0]) is not None:
        where = "outside or in a pod, not both: --outside" if outside else f"a node or a pod, not both: --on {node}"
        raise click.UsageError(f"{where}, and {rest[0]}")
    if outside:
        place = found.outside()
    elif node is not None:
        place = found.node(node)
    else:
        place = found.pod(rest.pop(0))
    if rest and rest[0] == "--":
        rest.pop(0)
    if not rest:
        raise click.UsageError("no command given: `ebpfnet lab exec POD -- COMMAND...`")
    return place, rest


def _print_status(document: dict[str, Any]) -> None:
    from tabulate import tabulate

    nodes = [(node["name"], "\n".join(node["addresses"]), *_agent(node["agent"])) for node in document["nodes"]]
    pods = [
        (
            f"{pod['namespace']}/{pod['name']}",
            pod["node"],
            "\n".join(pod["addresses"]),
            pod["host_interface"] or "(node's network)",
            pod["echo"] or "not running",
        )
        for pod in document["pods"]
    ]
    click.echo(f"lab {document['name']}, uplink MTU {document['uplink_mtu']}, manifests {document['manifests']}")
    if not document["settled"]:
        click.echo("left half changed: `ebpfnet lab up` or `lab sync` makes it whole")
    click.echo(f"logs: {document['logs']}, agents' {' '.join(node['log'] for node in document['nodes'])}")
    if document["outside"]:
        click.echo(f"outside: {', '.join(document['outside']['addresses'])}; {_served(document['served'])}")
    click.echo()
    click.echo(tabulate(nodes, ["NODE", "ADDRESSES", "AGENT", "STATE", "PROBLEMS"], tablefmt="plain"))
    click.echo()
    click.echo(tabulate(pods, ["POD", "NODE", "ADDRESSES", "INTERFACE", "ECHO"], tablefmt="plain"))


def _served(addresses: list[str]) -> str:
    """Return what the outside has a way to, beside the nodes."""
    return f"has routes to nodes and to {', '.join(addresses)}" if addresses else "has routes to nodes"


def _agent(agent: dict[str, Any]) -> tuple[str, str, str]:
    """Return an agent's pid, state and number of problems, in words."""
    if agent["pid"] is None:
        return "-", "not running", "-"
    if not agent["answers"]:
        return str(agent["pid"]), "does not answer", "-"
    pending = f"{agent['pending']} pending" if agent["pending"] else "synced"
    return str(agent["pid"]), pending if agent["synced"] else "starting", str(agent["problems"])


def _name_left_out(found: Lab) -> None:
    if found.left_out:
        raise BadInput(
            "\n".join(["these pods have no wire, or not the one that they should:", *map(str, found.left_out)])
        )


def _say(text: str) -> None:
    click.echo(f"  {text}", err=True)


def _stop_like_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does: clean up, then end."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
