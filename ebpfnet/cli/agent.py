"""``ebpfnet agent``."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click

from ebpfnet import abi
from ebpfnet.maps import pins as pinned

ENTRIES, FLOWS = click.IntRange(16, 2**31), click.IntRange(1024, 2**31)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(form: str | None, level: str) -> None:
    """Log to stderr: text on a terminal, JSON otherwise, or as told."""
    handler = logging.StreamHandler()
    if (form or ("text" if sys.stderr.isatty() else "json")) == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every file that moved


def size(name: str) -> int:
    """Return a table's default size."""
    return abi.TABLES[name].max_entries


def urls(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return a comma-separated list of URLs."""
    found = tuple(each.strip() for each in (value or "").split(",") if each.strip())
    for each in found:
        if not each.startswith(("https://", "http://")):
            raise click.BadParameter(f"{each!r} is no URL (https://HOST:PORT)", param=parameter)
    return found


@click.command()
@click.option("--node-name", required=True, envvar="NODE_NAME", metavar="NODE", help="The Node object of this machine.")
@click.option("--manifests", type=click.Path(path_type=Path), metavar="DIR", envvar="EBPFNET_MANIFESTS",
              help="Follow a folder of YAML or JSON in place of an API server.")  # fmt: skip
@click.option("--kubeconfig", type=click.Path(path_type=Path), metavar="FILE",
              help="How to reach the API server. Default: $KUBECONFIG, else the pod's service account.")  # fmt: skip
@click.option("--api-server-urls", callback=urls, metavar="URL,...", envvar="EBPFNET_API_SERVER_URLS",
              help="API servers that are tried in turn, in place of the one of the kubeconfig.")  # fmt: skip
@click.option("--service-proxy-name", default="", metavar="NAME", envvar="EBPFNET_SERVICE_PROXY_NAME",
              help="Serve the services that carry this proxy's name. Default: those without one.")  # fmt: skip
@click.option("--uplink", multiple=True, required=True, metavar="IFNAME", help="Interface to the other nodes.")
@click.option("--pins", type=click.Path(path_type=Path), default=pinned.DEFAULT, show_default=True, metavar="DIR",
              help="Where maps and programs are pinned, on a BPF filesystem.")  # fmt: skip
@click.option("--run", type=click.Path(path_type=Path), default=Path("/run/ebpfnet"), show_default=True, metavar="DIR",
              help="Where the socket is.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), default=Path("/var/cache/ebpfnet"), show_default=True,
              metavar="DIR", help="Where compiled programs are kept.")  # fmt: skip
@click.option("--max-flows", type=FLOWS, default=size("flows"), show_default=True, metavar="N",
              help="Entries for connections, two each.")  # fmt: skip
@click.option("--max-services", type=ENTRIES, default=size("services"), show_default=True, metavar="N",
              help="Service ports, each family.")  # fmt: skip
@click.option("--max-endpoints", type=ENTRIES, default=size("slots"), show_default=True, metavar="N",
              help="Backends of all services.")  # fmt: skip
@click.option("--sweep-interval", type=click.FloatRange(0.1), default=30.0, show_default=True, metavar="SECONDS",
              help="How often expired connections are removed.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Default: text on a terminal, else JSON.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def agent(log_format: str | None, log_level: str, **options: object) -> None:
    """Run the node agent: keep this node's maps equal to the cluster.

    Stopping it (SIGTERM, SIGINT, SIGKILL) stops no packet: programs and maps stay, and the next agent takes them over.
    """
    from ebpfnet.agent import AgentConfig, run

    set_up_logging(log_format, log_level)
    run(AgentConfig(**options))  # type: ignore[arg-type]  # click checked the types
