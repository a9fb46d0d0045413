"""kube-proxy's configuration file, read so that its successor can be started with it.

Every field is checked. What applies is returned typed; what is set and does not apply is named, and so is what
nobody knows (``proxyfields`` is the table). Defaults are kube-proxy's: pkg/proxy/apis/config/v1alpha1/defaults.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ebpfnet.exits import BadInput
from ebpfnet.operate.nodeports import PRIMARY, IPAddress, IPNetwork, NodePortAddresses, expand, network
from ebpfnet.operate.proxyfields import FIELDS, LOCAL, LOCAL_MODES, SECTIONS, Duration, Mode
from ebpfnet.operate.serve import HEALTHZ_PORT, METRICS_PORT, BindAddress, parse_address

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"
DEFAULT_SYNC_PERIOD_S = 30.0
DEFAULT_MAX_PER_CORE = 32768
DEFAULT_MIN = 131072
DEBUG_VERBOSITY = 4
INT32_MAX = 2**31 - 1

_UNIT_S = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(h|ms|m|s|us|µs|μs|ns)")


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What a KubeProxyConfiguration says that applies here. ``warnings`` name file, field and reason, a line each."""

    bind_address: IPAddress | None
    """The node's primary address; decides the family of the default addresses. Nothing is bound to it."""
    healthz_bind_address: str
    metrics_bind_address: str
    """``IP:PORT`` or what else ``serve.parse_address`` reads; never empty: kube-proxy's default stands in."""
    bind_address_hard_fail: bool
    """Whether an address that can't be listened on ends the agent; otherwise it is logged."""
    kubeconfig: str
    """Path, or empty: the cluster's service account."""
    hostname_override: str
    """The Node's name, or empty."""
    cluster_cidrs: tuple[IPNetwork, ...]
    node_port_addresses: NodePortAddresses
    sync_period_s: float
    """``syncPeriod`` of the section of ``mode``; twice that is the timeout of ``Health``."""
    oom_score_adj: int | None
    """For /proc/self/oom_score_adj; None: leave it."""
    max_per_core: int | None
    min_connections: int | None
    log_format: str
    """"text", "json" or empty."""
    log_level: str
    """"debug" from verbosity 4 on, "info" below, empty when it is not set."""
    warnings: tuple[str, ...]

    def max_connections(self, cpus: int) -> int | None:
        """Return how many connections to have room for on so many CPUs; None: not set, or to be left as it is.

        kube-proxy's rule (getConntrackMax in cmd/kube-proxy/app/conntrack.go): maxPerCore for each CPU, at least min.
        """
        if self.max_per_core is None and self.min_connections is None:
            return None
        per_core = DEFAULT_MAX_PER_CORE if self.max_per_core is None else self.max_per_core
        floor = DEFAULT_MIN if self.min_connections is None else self.min_connections
        return max(per_core * cpus, floor) if per_core else None


class _Bad(Exception):
    """A field that can't be used: its path, and why."""


def read(path: Path) -> ProxyConfig:
    """Read the file, YAML or JSON; raises ``BadInput`` naming file and field for what kube-proxy would refuse too."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    return parse(str(path), text)


def parse(name: str, text: bytes) -> ProxyConfig:
    """Read what a file called ``name`` says; raises ``BadInput``."""
    try:
        document = _document(text)
        values, warnings = _check(document)
        return _config(name, values, warnings)
    except _Bad as error:
        raise BadInput(f"{name}: {error}") from error


def _document(text: bytes) -> Mapping[str, Any]:
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise _Bad(f"{where}{getattr(error, 'problem', None) or str(error).partition(chr(10))[0]}") from error
    documents = [document for document in documents if document is not None]
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        raise _Bad(f"not one {KIND} alone")
    for field, want in (("apiVersion", API_VERSION), ("kind", KIND)):
        if documents[0].get(field) != want:
            raise _Bad(f"{field}: {documents[0].get(field)!r} is not {want}")
    return documents[0]


def _check(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of what is set, by path, and what to warn of."""
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for path, value in _leaves("", document):
        field = FIELDS.get(path)
        if field is None:
            warnings.append(f"{path}: unknown field, ignored")
        elif value is not None:
            values[path] = _converted(path, value, field.type)
            if field.why_not:
                # A gate that is switched off was named on purpose too.
                names = [f"{path}.{key}" for key in value] if path == "featureGates" else [path] * _is_set(value)
                warnings += [_ignored(each, field.why_not) for each in names]
    return values, warnings


def _ignored(field: str, why: str) -> str:
    return f"{field}: does not apply, ignored: {why}"


def _leaves(prefix: str, section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path not in SECTIONS:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _leaves(f"{path}.", value)
        elif value is not None:
            raise _Bad(f"{path}: Expected `object`, got `{type(value).__name__}`")


def _is_set(value: Any) -> bool:
    """Return whether a value is more than Go's zero, which files written by kubeadm are full of."""
    if isinstance(value, Mapping):
        return any(_is_set(each) for each in value.values())
    return bool(value) and value not in {"0", "0s"} if isinstance(value, str) else bool(value)


def _converted(path: str, value: Any, kind: Any) -> Any:
    if kind is Duration:
        return _seconds(path, value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise _Bad(f"{path}{where.rstrip('`')}: {reason}") from error


def _seconds(path: str, value: Any) -> float:
    """Return Go's duration in seconds."""
    text = value if isinstance(value, str) else ""
    parts = _DURATION_PART.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise _Bad(f"{path}: {value!r} is not a duration like 1h2m3.5s")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _config(name: str, values: dict[str, Any], warnings: list[str]) -> ProxyConfig:
    mode = _mode(values)
    bind = values.get("bindAddress", "")
    verbosity = values.get("logging.verbosity", 0)
    local = _choice("detectLocalMode", values, ("", *LOCAL_MODES))
    if local not in {"", "ClusterCIDR"}:
        warnings = [*warnings, _ignored("detectLocalMode", LOCAL)]
    for other in [each for each in Mode if each != mode]:
        if values.get(f"{other}.syncPeriod"):
            warnings = [*warnings, _ignored(f"{other}.syncPeriod", f"mode is {mode}")]
    return ProxyConfig(
        bind_address=_address("bindAddress", bind) if bind else None,
        healthz_bind_address=_listen("healthzBindAddress", values, HEALTHZ_PORT, ("0.0.0.0", "::")),  # noqa: S104
        metrics_bind_address=_listen("metricsBindAddress", values, METRICS_PORT, ("127.0.0.1", "::1")),
        bind_address_hard_fail=values.get("bindAddressHardFail", False),
        kubeconfig=values.get("clientConnection.kubeconfig", ""),
        hostname_override=values.get("hostnameOverride", "").strip().lower(),
        cluster_cidrs=_cluster_cidrs(values.get("clusterCIDR", "")),
        node_port_addresses=_node_ports(values.get("nodePortAddresses") or [], mode),
        sync_period_s=values.get(f"{mode}.syncPeriod") or DEFAULT_SYNC_PERIOD_S,
        oom_score_adj=_number("oomScoreAdj", values, -1000, 1000),
        max_per_core=_number("conntrack.maxPerCore", values, 0),
        min_connections=_number("conntrack.min", values, 0),
        log_format=_choice("logging.format", values, ("", "text", "json")),
        log_level="debug" if verbosity >= DEBUG_VERBOSITY else "info" if verbosity else "",
        warnings=tuple(f"{name}: {warning}" for warning in warnings),
    )


def _mode(values: Mapping[str, Any]) -> Mode:
    return Mode(_choice("mode", values, ("", *Mode)) or Mode.IPTABLES)


def _choice(field: str, values: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    value = str(values.get(field, ""))
    if value not in choices:
        raise _Bad(f"{field}: {value!r} is not one of {', '.join(filter(None, choices))}")
    return value


def _number(field: str, values: Mapping[str, Any], least: int, most: int = INT32_MAX) -> int | None:
    value: int | None = values.get(field)
    if value is not None and not least <= value <= most:
        raise _Bad(f"{field}: {value} is not within {least} and {most}")
    return value


def _address(field: str, text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise _Bad(f"{field}: {error}") from error


def _network(field: str, text: str) -> IPNetwork:
    try:
        return network(text)
    except ValueError as error:
        raise _Bad(f"{field}: {error}") from error


def _listen(field: str, values: Mapping[str, Any], port: int, hosts: tuple[str, str]) -> str:
    """Return the address of a server; unset, it has the family of ``bindAddress`` (0: IPv4, 1: IPv6 of ``hosts``)."""
    text = values.get(field, "")
    if not text:
        return str(BindAddress(hosts[":" in values.get("bindAddress", "")], port))
    try:
        return str(parse_address(text, port, field))
    except BadInput as error:
        raise _Bad(str(error)) from error


def _cluster_cidrs(text: str) -> tuple[IPNetwork, ...]:
    """Read one block, or two of different families."""
    found = tuple(_network("clusterCIDR", part) for part in text.split(",")) if text else ()
    if len(found) != len({each.version for each in found}):
        raise _Bad("clusterCIDR: more than one of a family")
    return found


def _node_ports(listed: list[str], mode: Mode) -> NodePortAddresses:
    """Expand keywords; unset, kube-proxy takes the primary addresses in nftables mode and all in others."""
    if not listed:
        listed = [PRIMARY] if mode == Mode.NFTABLES else ["all"]
    for index, text in enumerate(listed):
        try:
            expand([text])
        except ValueError as error:
            raise _Bad(f"nodePortAddresses[{index}]: {error}") from error
    return expand(listed)
