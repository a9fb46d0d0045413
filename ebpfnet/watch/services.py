"""A Service to its fact: which of its addresses and ports are served here, and how.

What is read, and when it counts, is kube-proxy's: ``newBaseServiceInfo`` (pkg/proxy/serviceport.go) and
pkg/api/v1/service/util.go. Defaults and bounds are the API's (``v1 ServiceSpec``). What the API server would have
refused and a file of manifests can still say is named, and the rest works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from sys import intern

from ebpfnet.model.facts import IPAddress, IPNetwork, Problem, Ref, Service, ServicePort
from ebpfnet.watch import schema
from ebpfnet.watch.fields import (
    OURS,
    BadField,
    Decoded,
    annotation,
    parse_address,
    parse_network,
    parse_port,
    parse_protocol,
    unknown_annotations,
    unusable,
)

TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
EXTERNAL_TYPES = ("NodePort", "LoadBalancer")
AFFINITY_S, AFFINITY_MAX_S = 10800, 86400  # v1 ClientIPConfig: 0 < timeoutSeconds <= 86400
LOAD_BALANCING, DIRECT = f"{OURS}load-balancing", f"{OURS}direct-server-return"
OLD_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
Name = Callable[[str, str], None]
"""Takes a field and what is wrong with it, where the rest of the service works."""


def convert_service(ref: Ref, item: schema.ServiceObject) -> Decoded:
    """Return a service as a fact; raises ``BadField``."""
    spec, problems = item.spec or schema.ServiceSpec(), list[Problem]()

    def name(field: str, reason: str) -> None:
        problems.append(Problem(ref, field, reason))

    kind = spec.type or "ClusterIP"
    if kind not in TYPES:
        raise BadField("spec.type", f"{kind!r} is not {', '.join(TYPES[:-1])} or {TYPES[-1]}")
    cluster_ips, ports = _cluster_ips(spec, name), _ports(spec, name)
    if not cluster_ips:  # kube-proxy: ShouldSkipService, whatever else it says
        if kind != "ExternalName" and (kind in EXTERNAL_TYPES or spec.external_ips):
            name("spec.clusterIP", "none: nothing of the service is served")
        ports = tuple(replace(port, node_port=0) for port in ports)
        return Decoded(ref, Service(ref, (), ports, _created(item.metadata)), tuple(problems))
    external_local = _is_local(spec.external_traffic_policy, "spec.externalTrafficPolicy", name)
    # ExternalPolicyLocal of pkg/api/v1/service: only of what is reachable from outside.
    external_local &= kind in EXTERNAL_TYPES or bool(spec.external_ips)
    given = item.metadata.annotations or {}
    fact = Service(
        ref,
        cluster_ips,
        ports,
        _created(item.metadata),
        external_ips=_externals(_external_ips(spec), cluster_ips, name),
        load_balancer_ips=_externals(_ingress(item.status, name), cluster_ips, name),
        internal_local=_is_local(spec.internal_traffic_policy, "spec.internalTrafficPolicy", name),
        external_local=external_local,
        affinity_s=_affinity(spec, name),
        source_ranges=_source_ranges(spec, name),
        health_check_port=_health_check_port(spec, name) if kind == "LoadBalancer" and external_local else 0,
        consistent=_consistent(given, spec, name),
        direct=_direct(given, name),
    )
    problems += unknown_annotations(ref, given, LOAD_BALANCING, DIRECT)
    return Decoded(ref, fact, tuple(problems))


def _created(meta: schema.Meta) -> str:
    created = meta.creation_timestamp
    created = created if isinstance(created, str) else created.isoformat() if hasattr(created, "isoformat") else ""
    return created.replace("+00:00", "Z")


def _cluster_ips(spec: schema.ServiceSpec, name: Name) -> tuple[IPAddress, ...]:
    """``clusterIPs``, or ``clusterIP``; none for headless services ("None"), ExternalName, and not yet allocated."""
    if spec.type == "ExternalName":
        return ()
    if spec.cluster_ip and spec.cluster_ips and spec.cluster_ip != spec.cluster_ips[0]:
        name("spec.clusterIP", f"{spec.cluster_ip} is not clusterIPs[0]; clusterIPs are served")
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if not texts or texts[0] in {"None", ""}:
        return ()
    whole = "spec.clusterIPs" if spec.cluster_ips else "spec.clusterIP"
    addresses: list[IPAddress] = []
    for index, text in enumerate(texts):
        field = f"{whole}[{index}]" if spec.cluster_ips else whole
        address = parse_address(text, field)
        if any(address.version == other.version for other in addresses):
            raise BadField(field, f"a second IPv{address.version} address (one of each family at most)")
        if reason := unusable(address):
            raise BadField(field, f"{address} is {reason}")
        addresses.append(address)
    return tuple(addresses)


def _ports(spec: schema.ServiceSpec, name: Name) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for index, port in enumerate(spec.ports or ()):
        field = f"spec.ports[{index}]"
        protocol = parse_protocol(port.protocol, f"{field}.protocol")
        number = parse_port(port.port, f"{field}.port")
        entry = ServicePort(
            intern(port.name or ""), protocol, number, _node_port(spec, port, f"{field}.nodePort", name)
        )
        for other in ports:
            if entry.name == other.name:
                text = f"{entry.name!r} stands twice" if entry.name else "missing, with several ports"
                raise BadField(f"{field}.name", text)
            if protocol == other.protocol and number == other.port:
                raise BadField(f"{field}.port", f"{number} stands twice for one protocol")
            if protocol == other.protocol and entry.node_port and entry.node_port == other.node_port:
                raise BadField(f"{field}.nodePort", f"{entry.node_port} stands twice for one protocol")
        ports.append(entry)
    return tuple(ports)


def _node_port(spec: schema.ServiceSpec, port: schema.ServicePortObject, field: str, name: Name) -> int:
    """Return a port's node port, 0 for none: of a LoadBalancer with ``allocateLoadBalancerNodePorts: false``."""
    number = parse_port(port.node_port, field) if port.node_port else 0
    if number and spec.type not in EXTERNAL_TYPES:
        name(field, f"{number} is not served: a service of type {spec.type or 'ClusterIP'} has no node ports")
        return 0
    if not number and spec.type == "NodePort":
        name(field, "missing: no port of the nodes leads to it")
    return number


def _external_ips(spec: schema.ServiceSpec) -> list[tuple[str, str]]:
    return [(f"spec.externalIPs[{index}]", text) for index, text in enumerate(spec.external_ips or ())]


def _ingress(status: schema.ServiceStatus | None, name: Name) -> list[tuple[str, str]]:
    """Return (field, address) of what is served here: ``ipMode`` VIP or none (KEP-1860). A host name has no address."""
    balancer = status.load_balancer if status else None
    found = []
    for index, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        field = f"status.loadBalancer.ingress[{index}]"
        if ingress.ip_mode not in {None, "VIP", "Proxy"}:
            name(f"{field}.ipMode", f"{ingress.ip_mode!r} is not VIP or Proxy: the address is not served")
        elif ingress.ip and ingress.ip_mode != "Proxy":
            found.append((f"{field}.ip", ingress.ip))
    return found


def _externals(texts: list[tuple[str, str]], cluster_ips: tuple[IPAddress, ...], name: Name) -> tuple[IPAddress, ...]:
    """Parse addresses that are reachable from outside; one that can't be served is named and left out."""
    addresses: dict[IPAddress, None] = {}
    for field, text in texts:
        try:
            address = parse_address(text, field)
        except BadField as error:
            name(field, error.reason)
            continue
        if reason := unusable(address):
            name(field, f"{address} is {reason}; it is not served")
        elif all(address.version != each.version for each in cluster_ips):
            # kube-proxy, too, serves a service in the families of its cluster IPs only (GetClusterIPByFamily).
            name(field, f"{address} is not served: the service has no IPv{address.version} cluster IP")
        else:
            addresses[address] = None
    return tuple(addresses)


def _is_local(policy: str | None, field: str, name: Name) -> bool:
    if policy not in {None, "", "Cluster", "Local"}:
        name(field, f"{policy!r} is not Cluster or Local; Cluster is used")
    return policy == "Local"


def _affinity(spec: schema.ServiceSpec, name: Name) -> int:
    """Return for how many seconds a client stays with its backend, 0 for no affinity."""
    if spec.session_affinity != "ClientIP":
        if spec.session_affinity not in {None, "", "None"}:
            name("spec.sessionAffinity", f"{spec.session_affinity!r} is not ClientIP or None; None is used")
        return 0
    config = spec.session_affinity_config and spec.session_affinity_config.client_ip
    seconds = config.timeout_seconds if config else None
    if seconds is None:
        return AFFINITY_S
    if not 0 < seconds <= AFFINITY_MAX_S:
        text = f"{seconds} is not 1 to {AFFINITY_MAX_S} seconds; {AFFINITY_S} are used"
        name("spec.sessionAffinityConfig.clientIP.timeoutSeconds", text)
        return AFFINITY_S
    return seconds


def _source_ranges(spec: schema.ServiceSpec, name: Name) -> tuple[IPNetwork, ...] | None:
    """Return the clients of load balancer addresses, None for all.

    White space around an entry is allowed (kube-proxy: the API's validation allows it by mistake). Other than there, an
    entry that is no block never lets more clients in: when none is left, nobody is served.
    """
    if not spec.load_balancer_source_ranges:
        return None
    ranges: dict[IPNetwork, None] = {}
    for index, text in enumerate(spec.load_balancer_source_ranges):
        field = f"spec.loadBalancerSourceRanges[{index}]"
        try:
            ranges[parse_network(text.strip(), field)] = None
        except BadField as error:
            name(field, f"{error.reason}; it lets nobody in")
    if not ranges:
        name("spec.loadBalancerSourceRanges", "no block is left: load balancer addresses serve nobody")
    return tuple(ranges)


def _health_check_port(spec: schema.ServiceSpec, name: Name) -> int:
    """Return where health is told to a load balancer (NeedsHealthCheck of pkg/api/v1/service), 0 for nowhere."""
    field = "spec.healthCheckNodePort"
    if not spec.health_check_node_port:
        name(field, "missing: no load balancer is told that endpoints are here")
        return 0
    try:
        return parse_port(spec.health_check_node_port, field)
    except BadField as error:
        name(field, error.reason)
        return 0


def _consistent(given: dict[str, object], spec: schema.ServiceSpec, name: Name) -> bool:
    """Return whether the service wants consistent hashing."""
    if spec.type == "LoadBalancer" and OLD_RANGES in given and not spec.load_balancer_source_ranges:
        # Read by cloud providers alone; kube-proxy obeys spec.loadBalancerSourceRanges and nothing else.
        name(annotation(OLD_RANGES), "not obeyed on nodes; say it in spec.loadBalancerSourceRanges")
    value = given.get(LOAD_BALANCING)
    if value is not None and value != "maglev":
        name(annotation(LOAD_BALANCING), f"{value!r} is not maglev; backends are chosen at random")
    return value == "maglev"


def _direct(given: dict[str, object], name: Name) -> bool | None:
    """Return whether backends elsewhere answer clients outside themselves; None: nothing is said about it."""
    value = given.get(DIRECT)
    if value in ("true", "false"):
        return value == "true"
    if value is not None:
        name(annotation(DIRECT), f"{value!r} is not true or false; it is as if it were not there")
    return None
