"""``ebpfnet simulate``: what the datapath does to connections, without a cluster."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from ebpfnet.cli.agent import networks
from ebpfnet.cli.agent import nodeport_addresses as nodeport_addresses_of
from ebpfnet.exits import BadInput

if TYPE_CHECKING:
    from ebpfnet.model.facts import IPNetwork
    from ebpfnet.operate.nodeports import NodePortAddresses


@click.command()
@click.option("-f", "--filename", "paths", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
              help="Manifests: a file, a folder, or - for standard input. May be given several times.")  # fmt: skip
@click.option("--flows", "flows_file", default="-", show_default=True, metavar="FILE",
              help="The flows, one JSON object a line.")  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["table", "json"]),
              help="How to print; --interactive always JSON.  [default: table on a terminal, else JSON]")  # fmt: skip
@click.option(
    "--service-cidr", multiple=True, callback=networks, metavar="CIDR,...", help="What ClusterIPs are taken from."
)
@click.option(
    "--cluster-cidr", multiple=True, callback=networks, metavar="CIDR,...", help="What pods' addresses are taken from."
)
@click.option("--nodeport-addresses", multiple=True, callback=nodeport_addresses_of, metavar="CIDR,...",
              help="At which of a node's addresses node ports are served: blocks, 'primary' or 'all'.  "
              "[default: primary]")  # fmt: skip
@click.option("--external-ip-cidr", multiple=True, callback=networks, metavar="CIDR,...",
              help="The only external IPs that are served.")  # fmt: skip
@click.option("--service-proxy-name", default="", metavar="NAME",
              help="Serve the services that are labelled with this proxy's name, not those without one.")  # fmt: skip
@click.option("--interactive", is_flag=True,
              help='Lines may also be {"apply": MANIFEST}, {"delete": {...}} and {"reset": true}.')  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where compiled programs are kept.")
def simulate(
    paths: tuple[Path, ...],
    flows_file: str,
    output: str | None,
    service_cidr: tuple[IPNetwork, ...],
    cluster_cidr: tuple[IPNetwork, ...],
    nodeport_addresses: NodePortAddresses,
    external_ip_cidr: tuple[IPNetwork, ...],
    service_proxy_name: str,
    interactive: bool,
    cache: Path | None,
) -> None:
    """Say what the datapath does to connections in a cluster of manifests: nothing is attached, no cluster is needed.

    A flow is a line such as {"from": "default/client", "to": "default/web", "port": 80, "protocol": "TCP"}; `from` and
    `to` may be IP addresses or `node NAME`, and `from` also `outside`, for a client outside of the cluster. Its first
    packet goes through the real programs of every node on its way, and the answer back. The exit code is 9 when a flow
    or a manifest could not be used; it does not depend on verdicts.
    """
    from ebpfnet.datapath import build
    from ebpfnet.simulate.interactive import Session
    from ebpfnet.simulate.network import private_network
    from ebpfnet.simulate.world import Flags, World

    if not paths and not interactive:
        raise click.UsageError("-f PATH is missing (only --interactive can do without)")
    if flows_file == "-" and Path("-") in paths:
        raise click.UsageError("manifests and flows can't both come from standard input")
    flags = Flags(service_cidr, cluster_cidr, external_ip_cidr, nodeport_addresses.choose)
    changes, complaints, refused = _read(paths, service_proxy_name)
    as_json = interactive or output == "json" or (output is None and not sys.stdout.isatty())
    with _lines(flows_file) as lines, private_network():
        compiled = build.compiled(cache or build.DEFAULT_CACHE)
        with World(compiled, flags) as world:
            session = Session(world, changes, service_proxy_name, interactive=interactive)
            _complain(complaints | dict.fromkeys(map(str, world.problems)))
            gc.freeze()  # a large cluster's facts are not looked through again and again
            answers = session.answers(lines)
            _print_json(answers, flush=interactive) if as_json else _print_table(answers)
    if not interactive and (session.failed or refused):
        raise BadInput("not every flow and manifest could be used: see above")


def _read(paths: tuple[Path, ...], proxy_name: str) -> tuple[list[Any], dict[str, None], bool]:
    """Return the changes of all manifests, what is wrong with them, and whether any object is missing for it."""
    from ebpfnet.model.facts import Refused
    from ebpfnet.watch import manifests

    changes = manifests.read(paths, proxy_name)
    refused = [change for change in changes if isinstance(change, Refused)]
    return changes, dict.fromkeys(str(change.problem) for change in refused), not all(c.partial for c in refused)


def _complain(problems: dict[str, None]) -> None:
    for problem in problems:
        click.echo(f"ebpfnet: {problem}", err=True)


def _lines(name: str) -> IO[bytes]:
    if name == "-":
        return sys.stdin.buffer
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror}") from error


def _print_json(answers: Iterator[dict[str, Any]], *, flush: bool) -> None:
    import msgspec

    encode = msgspec.json.Encoder().encode
    out = sys.stdout.buffer
    for answer in answers:
        out.write(encode(answer) + b"\n")
        if flush:
            out.flush()
    out.flush()


def _print_table(answers: Iterable[dict[str, Any]]) -> None:
    from tabulate import tabulate

    rows = [_row(answer) for answer in answers]
    headers = ["FROM", "TO", "PORT", "PROTOCOL", "VERDICT", "REASON", "SERVICE", "BACKENDS", "DECIDED BY"]
    if not any(row[-1] for row in rows):  # no policy has a say
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    click.echo(tabulate(rows, headers, tablefmt="plain"))


def _row(answer: dict[str, Any]) -> list[str]:
    flow = answer.get("flow")
    flow = flow if isinstance(flow, dict) else {}
    ends = [flow.get("from", "-"), flow.get("to", "-"), flow.get("port", "-"), flow.get("protocol", "TCP")]
    if "verdict" not in answer:
        failure = "ok" if answer.get("ok") else f"error: {answer.get('error')}"
        return [*map(str, ends), failure, "", "", "", ""]
    backends = "\n".join(f"{backend} {found['hits']}" for backend, found in answer["backends"].items())
    stopped = "-" if answer["verdict"] == "allow" else answer["steps"][-1]["verdict"]
    what = [answer["verdict"], answer["reason"] or stopped, answer["service"] or "-", backends or "-"]
    return [*map(str, ends), *what, "\n".join(map(_decided, answer["policies"]))]


def _decided(told: dict[str, Any]) -> str:
    """Return what policies said at one end: the entry of the rule that means the other, or the rule."""
    matched = told["matched"]
    if matched:
        return f"{told['verdict']} by {matched['policy']}, {matched['entry'] or matched['rule']}"
    return f"{told['verdict']}: {told['rule'] or 'its rules are missing'}"
