"""``ebpfnet agent``."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ebpfnet import abi
from ebpfnet.maps import pins as pinned
from ebpfnet.places import RUN

if TYPE_CHECKING:
    from ebpfnet.hosting import HostSettings
    from ebpfnet.operate.proxyconfig import ProxyConfig
    from ebpfnet.telemetry import Settings

ENTRIES, FLOWS = click.IntRange(16, 2**31), click.IntRange(1024, 2**31)
FILE = click.Path(path_type=Path)


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


def split(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Take an option's values apart at commas, and the environment's at spaces too."""
    return tuple(part for text in given for part in text.replace(",", " ").split())


def networks(
    _: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return blocks, as ``split`` takes them apart."""
    from ebpfnet.operate import nodeports

    try:
        return tuple(nodeports.network(text) for text in split(_, parameter, given))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def nodeport_addresses(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> Any:
    """Return where NodePorts are served."""
    from ebpfnet.operate import nodeports

    try:
        return nodeports.expand(split(ctx, parameter, given) or [nodeports.PRIMARY])
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def ports(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Return first and last port of a range."""
    first, dash, last = value.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) <= 65535):
        raise click.BadParameter(f"{value!r} is not FIRST-LAST", param=parameter)
    return int(first), int(last)


def cgroup(_: click.Context, __: click.Parameter, value: str) -> str:
    """Return a cgroup's path, "root", or "" for none; the environment may say it as it says other flags."""
    said = {"": "", "0": "", "false": "", "no": "", "off": "", "1": "root", "true": "root", "yes": "root", "on": "root"}
    return said.get(value.lower(), value)


# Every flag may be given as EBPFNET_FLAG in the environment, too.
@click.command(context_settings={"auto_envvar_prefix": "EBPFNET"})
@click.option("--config", type=FILE, metavar="FILE",
              help="A KubeProxyConfiguration; flags win over it, and what does not apply is named.")  # fmt: skip
@click.option("--node-name", envvar="NODE_NAME", metavar="NODE",
              help="The Node object of this machine.  [default: its host name]")  # fmt: skip
@click.option("--kubeconfig", type=FILE, metavar="FILE",
              help="How to reach the API server.  [default: $KUBECONFIG, else the pod's service account]")  # fmt: skip
@click.option("--api-server-urls", callback=urls, metavar="URL,...",
              help="API servers that are tried in turn, in place of the kubeconfig's.")  # fmt: skip
@click.option("--manifests", type=FILE, metavar="DIR",
              help="Follow a folder of YAML or JSON in place of an API server.")  # fmt: skip
@click.option("--service-proxy-name", default="", metavar="NAME",
              help="Serve the services that are labelled with this proxy's name, not those without one.")  # fmt: skip
@click.option("--uplink", multiple=True, metavar="IFNAME",
              help="Interface to the other nodes.  [default: those of the default routes]")  # fmt: skip
@click.option("--pod-interfaces", multiple=True, callback=split, metavar="PATTERN,...",
              help="Beside another CNI plugin: the host's sides of its pods' interfaces, as shell patterns such as "
              "'veth*' or 'cali*'. Services only: all else, policies too, stays the plugin's.")  # fmt: skip
@click.option("--socket-shortcut", is_flag=False, flag_value="root", default="", callback=cgroup, metavar="[CGROUP]",
              help="Connect TCP sockets of pods and of the node straight to a service's backend, so that no packet is "
              "translated: those in a cgroup (version 2).  [CGROUP: the machine's root]")  # fmt: skip
@click.option("--metrics-bind-address", default="127.0.0.1:10249", show_default=True, metavar="IP:PORT",
              help="Where /metrics is; empty: nowhere.")  # fmt: skip
@click.option("--metrics-services", type=click.IntRange(0), default=100, show_default=True, metavar="N",
              help="Services with figures of their own in /metrics: those with the most bytes.")  # fmt: skip
@click.option("--metrics-policies", type=click.IntRange(0), default=100, show_default=True, metavar="N",
              help="Policies with figures of their own in /metrics: those that decide most.")  # fmt: skip
@click.option("--healthz-bind-address", default="0.0.0.0:10256", show_default=True, metavar="IP:PORT",
              help="Where /healthz and /livez are; empty: nowhere.")  # fmt: skip
@click.option("--nodeport-addresses", multiple=True, callback=nodeport_addresses, metavar="CIDR,...",
              help="Which of the node's addresses serve NodePorts and health checks of services: blocks, 'primary' "
              "(the Node's first InternalIP of each family) or 'all'; never loopback.  [default: primary]")  # fmt: skip
@click.option("--service-node-port-range", callback=ports, default="30000-32767", show_default=True,
              metavar="FIRST-LAST", help="Ports that the API server gives to services, as it was told.")  # fmt: skip
@click.option("--cluster-cidr", multiple=True, callback=networks, metavar="CIDR,...",
              help="Pods' addresses, beside the podCIDRs of Nodes: whose clients are in the cluster.")  # fmt: skip
@click.option("--service-cidr", multiple=True, callback=networks, metavar="CIDR,...",
              help="Cluster IPs' addresses: one that no service has is dropped.")  # fmt: skip
@click.option("--external-ip-cidr", multiple=True, callback=networks, metavar="CIDR,...",
              help="The only externalIPs that are served.  [default: none]")  # fmt: skip
@click.option("--adopt", is_flag=True,
              help="Once, after the first sync, take over the connections that kube-proxy's rules translated: they "
              "outlive the rules then.")  # fmt: skip
@click.option("--policy-established", type=click.Choice(["strict", "graceful"]), default="strict", show_default=True,
              help="What becomes of open connections that a policy allows no more, where the policy does not say: "
              "dropped at their next packet, or left until they end.")  # fmt: skip
@click.option("--pins", type=FILE, default=pinned.DEFAULT, show_default=True, metavar="DIR",
              help="Where maps and programs are pinned, on a BPF filesystem.")  # fmt: skip
@click.option("--run", type=FILE, default=RUN, show_default=True, metavar="DIR",
              help="Where the socket is.")  # fmt: skip
@click.option("--cache", type=FILE, default=Path("/var/cache/ebpfnet"), show_default=True, metavar="DIR",
              help="Where compiled programs are kept.")  # fmt: skip
@click.option("--max-flows", type=FLOWS, default=size("flows"), show_default=True, metavar="N",
              help="Entries for connections, two each.")  # fmt: skip
@click.option("--max-services", type=ENTRIES, default=size("services"), show_default=True, metavar="N",
              help="Service ports, each family.")  # fmt: skip
@click.option("--max-endpoints", type=ENTRIES, default=size("slots"), show_default=True, metavar="N",
              help="Backends of all services.")  # fmt: skip
@click.option("--sweep-interval", type=click.FloatRange(0.1), default=30.0, show_default=True, metavar="SECONDS",
              help="How often expired connections are removed.")  # fmt: skip
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text on a terminal, else JSON]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@click.pass_context
def agent(ctx: click.Context, /, config: Path | None, **options: Any) -> None:
    """Run the node agent: keep this node's maps equal to the cluster.

    Stopping it (SIGTERM, SIGINT, SIGKILL) stops no packet: programs and maps stay, and the next agent takes them over.
    """
    from ebpfnet.agent import run
    from ebpfnet.config import AgentConfig
    from ebpfnet.hosting import HostSettings
    from ebpfnet.operate import logs
    from ebpfnet.telemetry import Settings

    settings = Settings(
        options.pop("metrics_bind_address"),
        options.pop("healthz_bind_address"),
        metrics_services=options.pop("metrics_services"),
        metrics_policies=options.pop("metrics_policies"),
    )
    host = HostSettings(
        nodeport_addresses=options.pop("nodeport_addresses"),
        nodeport_range=options.pop("service_node_port_range"),
        cluster_cidrs=options.pop("cluster_cidr"),
        service_cidrs=options.pop("service_cidr"),
        external_ip_cidrs=options.pop("external_ip_cidr"),
    )
    warnings: tuple[str, ...] = ()
    if config is not None:
        from ebpfnet.operate import proxyconfig

        given = {name for name in ctx.params if ctx.get_parameter_source(name) not in {ParameterSource.DEFAULT, None}}
        found = proxyconfig.read(config)
        settings, warnings = apply_config(found, options, settings, given), found.warnings
        host = apply_to_host(found, host, given)
    options["graceful"] = options.pop("policy_established") == "graceful"
    options["node_name"] = options["node_name"] or socket.gethostname().lower()
    logs.set_up(options.pop("log_format"), options.pop("log_level"), options["node_name"])
    log_warnings(warnings)
    run(AgentConfig(telemetry=settings, host=host, **options))


def apply_config(found: ProxyConfig, options: dict[str, Any], settings: Settings, given: set[str]) -> Settings:
    """Put what a KubeProxyConfiguration says in place of flags that were not ``given``."""
    flows = found.max_connections(os.cpu_count() or 1)
    said = {
        "node_name": found.hostname_override,
        "kubeconfig": Path(found.kubeconfig) if found.kubeconfig else None,
        "log_format": found.log_format,
        "log_level": found.log_level,
        "max_flows": max(int(FLOWS.min or 0), 2 * flows) if flows else None,
    }
    options.update({name: value for name, value in said.items() if value and name not in given})
    fresh: dict[str, Any] = {"hard_fail": found.bind_address_hard_fail, "sync_period_s": found.sync_period_s}
    for name in ("metrics_bind_address", "healthz_bind_address"):
        if name not in given:
            fresh[name] = getattr(found, name)
    if found.oom_score_adj is not None:
        Path("/proc/self/oom_score_adj").write_text(str(found.oom_score_adj))
    return settings._replace(**fresh)


def apply_to_host(found: ProxyConfig, host: HostSettings, given: set[str]) -> HostSettings:
    """Do the same with what the file says of the node."""
    return replace(
        host,
        nodeport_addresses=host.nodeport_addresses if "nodeport_addresses" in given else found.node_port_addresses,
        cluster_cidrs=host.cluster_cidrs if "cluster_cidr" in given else found.cluster_cidrs,
        bind_address=found.bind_address,
    )


def log_warnings(warnings: tuple[str, ...]) -> None:
    """Name what a configuration says and we do not do."""
    import logging

    for text in warnings:
        logging.getLogger(__name__).warning("%s", text)
