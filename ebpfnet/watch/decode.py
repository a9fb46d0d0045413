"""One Kubernetes object to a fact of the model: defaults applied, everything that can't be used named by field.

``decode`` never raises on what an object says. An object is refused whole when it makes no sense as one (wrong types,
no name, an address that is none); an endpoint that can't serve is left out alone.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ebpfnet import abi
from ebpfnet.model.endpoints import Condition
from ebpfnet.model.facts import (
    EndpointSlice,
    Fact,
    IPAddress,
    Kind,
    Namespace,
    Node,
    Peer,
    Pod,
    PodPort,
    Problem,
    Ref,
    Service,
    ServicePort,
    SlicePort,
)
from ebpfnet.model.labels import Labels
from ebpfnet.watch import schema, spelling
from ebpfnet.watch.fields import BadField, parse_address, parse_port, parse_protocol
from ebpfnet.watch.policies import convert_policy
from ebpfnet.watch.spelling import misspelt
from ebpfnet.watch.words import explain

CLUSTER_KINDS = {Kind.NODE, Kind.NAMESPACE}
NAME_MAX = 253  # RFC 1123 subdomain, the longest name of any kind
# The others are of the core group, "".
GROUPS: dict[str, str] = {Kind.ENDPOINT_SLICE: "discovery.k8s.io", Kind.NETWORK_POLICY: "networking.k8s.io"}
BROADCAST = ipaddress.IPv4Address("255.255.255.255")
OVER = frozenset({"Succeeded", "Failed"})
SERVICE_NAME = "kubernetes.io/service-name"
LEAVING = "ToBeDeletedByClusterAutoscaler"


class Decoded(NamedTuple):
    """What became of an object: a fact or None, and what was wrong with it. Neither: a kind that is not followed.

    ``since`` is when its change was caused (seconds since the epoch), 0 where the object does not say.
    """

    ref: Ref | None
    fact: Fact | None
    problems: tuple[Problem, ...] = ()
    since: float = 0.0


def decode(item: Mapping[str, Any]) -> Decoded:
    """Decode one object given as a mapping (YAML or JSON, already parsed)."""
    kind = item.get("kind")
    if not isinstance(kind, str) or not kind:
        ref = _loose_ref(item, Kind.FILE)
        return Decoded(ref, None, (Problem(ref, "kind", "missing"),))
    if kind not in _DECODERS:
        return _other_kind(item, kind)
    if _group(item) not in {None, GROUPS.get(kind, "")}:  # Knative has a Service, too
        return Decoded(None, None)
    return _convert(Kind(kind), item)


def _convert(kind: Kind, item: Mapping[str, Any]) -> Decoded:
    ref = _loose_ref(item, kind)
    struct, convert = _PEER if kind == Kind.PEER else _DECODERS[kind]
    try:
        found = convert(_named(ref), msgspec.convert(item, struct))
        odd = [Problem(ref, path, f"no such field; did you mean {name}?") for path, name in misspelt(item, struct)]
        return found._replace(problems=(*found.problems, *odd)) if odd else found
    except msgspec.ValidationError as error:
        field, reason = explain(str(error))
        return Decoded(ref, None, (Problem(ref, field, reason),))
    except BadField as error:
        return Decoded(ref, None, (Problem(ref, error.field, error.reason),))


def decode_bytes(kind: Kind, text: bytes | msgspec.Raw) -> Decoded:
    """Decode one object of a known kind from its JSON, reading only the fields that are used; the hot path.

    Raises ``msgspec.DecodeError`` for what is no JSON.
    """
    read, convert = _READERS[kind]
    try:
        item = read(text)
        meta = item.metadata
        return convert(_named(ref_of(kind, meta.namespace, meta.name)), item)
    except (msgspec.ValidationError, BadField):  # once more, slowly, to say what is wrong with which object
        loose = msgspec.json.decode(text)
        return _convert(kind, loose if isinstance(loose, dict) else {})


def decode_read(kind: Kind, item: Any) -> Decoded:
    """Decode one object of a kind in ``BRIEF`` that was read already."""
    meta = item.metadata
    ref = Ref(kind, meta.namespace, meta.name)
    try:
        found: Decoded = _READERS[kind][1](ref, item)
    except BadField as error:
        return Decoded(ref, None, (Problem(ref, error.field, error.reason),))
    return found


def _other_kind(item: Mapping[str, Any], kind: str) -> Decoded:
    """Pass over a kind that is none of our business, but not one that is nearly ours."""
    known = None
    if _group(item) in spelling.GROUPS and kind not in spelling.KINDS:
        known = spelling.meant(kind, tuple(_DECODERS))
    if known is None:
        return Decoded(None, None)
    ref = _loose_ref(item, Kind.FILE)
    return Decoded(ref, None, (Problem(ref, "kind", f"{kind} {ref.name} is not known; did you mean {known}?"),))


def _group(item: Mapping[str, Any]) -> str | None:
    """Return the API group of an object, None when it says no version."""
    version = item.get("apiVersion")
    return version.rpartition("/")[0] if isinstance(version, str) else None


def _loose_ref(item: Mapping[str, Any], kind: Kind) -> Ref:
    """Name an object that may be broken."""
    meta = item.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    name, namespace = meta.get("name"), meta.get("namespace")
    return ref_of(kind, str(namespace or ""), str(name or "(no name)"))


def ref_of(kind: Kind, namespace: str | None, name: str | None) -> Ref:
    """Return the name of an object: what has no namespace is in ``default``, unless its kind has none."""
    whole = kind in CLUSTER_KINDS or kind == Kind.FILE
    return Ref(kind, "" if whole else namespace or "default", name or "")


def _named(ref: Ref) -> Ref:
    for field, text in (("metadata.name", ref.name), ("metadata.namespace", ref.namespace)):
        if (text or field == "metadata.name") and not _is_name(text):
            raise BadField(field, f"{text!r} is not a name (RFC 1123: lower-case letters, digits, '-' and '.')")
    return ref


def _is_name(text: str) -> bool:
    plain = text.replace("-", "").replace(".", "")
    whole = 0 < len(text) <= NAME_MAX and plain.isascii() and plain.isalnum() and plain == plain.lower()
    return whole and text[0] not in "-." and text[-1] not in "-."


def _labels(meta: schema.Meta | schema.PeerMeta) -> Labels:
    return tuple(sorted((meta.labels or {}).items()))


def _node(ref: Ref, item: schema.NodeObject) -> Decoded:
    spec, status = item.spec or schema.NodeSpec(), item.status or schema.NodeStatus()
    addresses = tuple(
        parse_address(address.address, f"status.addresses[{index}].address")
        for index, address in enumerate(status.addresses or ())
        if address.type == "InternalIP"
    )
    cidrs = []
    for index, text in enumerate(spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])):
        try:
            cidrs.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise BadField(f"spec.podCIDRs[{index}]", str(error)) from error
    # Who is leaving gets no new connections from load balancers (KEP-3836).
    leaving = bool(item.metadata.deletion_timestamp) or any(taint.key == LEAVING for taint in spec.taints or ())
    return Decoded(ref, Node(ref, addresses, tuple(cidrs), leaving))


def _namespace(ref: Ref, item: schema.NamespaceObject) -> Decoded:
    return Decoded(ref, Namespace(ref, _labels(item.metadata)))


def _addresses(status: schema.PodStatus) -> list[str | None]:
    """Return a pod's addresses, none of one that is over: they may already be another pod's."""
    if status.phase in OVER:
        return []
    return [entry.ip for entry in status.pod_ips or ()] or ([status.pod_ip] if status.pod_ip else [])


def _peer(ref: Ref, item: schema.PeerObject) -> Decoded:
    """Decode a pod of another node; there are 150,000."""
    host = item.spec is not None and item.spec.host_network
    texts = _addresses(item.status) if item.status and not host else ()
    packed = [_packed(text or "", f"status.podIPs[{index}].ip") for index, text in enumerate(texts)]
    return Decoded(ref, Peer(ref, _labels(item.metadata), b"".join(packed)))


def _packed(text: str, field: str) -> bytes:
    """Return an address as 16 bytes, parsed by the C library; what that does not like is looked at again slowly."""
    v4 = ":" not in text
    try:
        raw = socket.inet_pton(socket.AF_INET if v4 else socket.AF_INET6, text)
    except (OSError, ValueError):
        raw = b""
    if not raw or raw.startswith(abi.V4_PREFIX):
        return abi.pack_address(parse_address(text, field))
    return abi.V4_PREFIX + raw if v4 else raw


def _pod(ref: Ref, item: schema.PodObject) -> Decoded:
    spec, status = item.spec or schema.PodSpec(), item.status or schema.PodStatus()
    over = status.phase in OVER
    addresses = tuple(
        parse_address(text, f"status.podIPs[{index}].ip") for index, text in enumerate(_addresses(status))
    )
    ports = []
    for number, container in enumerate(spec.containers or ()):
        for index, port in enumerate(container.ports or ()):
            field = f"spec.containers[{number}].ports[{index}]"
            protocol = parse_protocol(port.protocol, f"{field}.protocol")
            ports.append(PodPort(port.name or "", protocol, parse_port(port.container_port, f"{field}.containerPort")))
    problems = []
    host = bool(spec.host_network)
    for index, address in enumerate(() if over or host else addresses):
        if reason := _unusable(address):
            raise BadField(f"status.podIPs[{index}].ip", f"{address} is {reason}")
    if not addresses and not over and not host and spec.node_name:
        problems.append(Problem(ref, "status.podIPs", "the pod has no address (yet): it is not connected"))
    fact = Pod(ref, spec.node_name or "", addresses, _labels(item.metadata), tuple(ports), host, over)
    return Decoded(ref, fact, tuple(problems))


def _cluster_ips(spec: schema.ServiceSpec) -> tuple[IPAddress, ...]:
    """``clusterIPs``, or ``clusterIP``; none for headless services ("None"), ExternalName, and not yet allocated."""
    if spec.type == "ExternalName":
        return ()
    texts = spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else [])
    if not texts or texts[0] in {"None", ""}:
        return ()
    name = "spec.clusterIPs" if spec.cluster_ips else "spec.clusterIP"
    addresses: list[IPAddress] = []
    for index, text in enumerate(texts):
        field = f"{name}[{index}]" if spec.cluster_ips else name
        address = parse_address(text, field)
        if any(address.version == other.version for other in addresses):
            raise BadField(field, f"a second IPv{address.version} address (one of each family at most)")
        if reason := _unusable(address):
            raise BadField(field, f"{address} is {reason}")
        addresses.append(address)
    return tuple(addresses)


def _unusable(address: IPAddress) -> str | None:
    """Say why traffic can't be sent to an address, or None (the API forbids the same for endpoints)."""
    for reason in ("loopback", "link_local", "multicast", "unspecified"):
        if getattr(address, f"is_{reason}"):
            return f"{reason.replace('_', '-')}"
    return "broadcast" if address == BROADCAST else None


def _service(ref: Ref, item: schema.ServiceObject) -> Decoded:
    spec = item.spec or schema.ServiceSpec()
    ports: list[ServicePort] = []
    for index, port in enumerate(spec.ports or ()):
        field = f"spec.ports[{index}]"
        protocol = parse_protocol(port.protocol, f"{field}.protocol")
        entry = ServicePort(port.name or "", protocol, parse_port(port.port, f"{field}.port"))
        if any(entry.name == other.name for other in ports):
            raise BadField(
                f"{field}.name", f"{entry.name!r} stands twice" if entry.name else "missing, with several ports"
            )
        if any((entry.port, protocol) == (other.port, other.protocol) for other in ports):
            raise BadField(f"{field}.port", f"{entry.port} stands twice for one protocol")
        ports.append(entry)
    created = item.metadata.creation_timestamp
    created = created if isinstance(created, str) else created.isoformat() if hasattr(created, "isoformat") else ""
    fact = Service(ref, _cluster_ips(spec), tuple(ports), created.replace("+00:00", "Z"))
    return Decoded(ref, fact, tuple(_unserved(ref, spec)))


def _unserved(ref: Ref, spec: schema.ServiceSpec) -> Iterator[Problem]:
    """Name what a service asks for and does not get: silence would be a lie."""
    if spec.cluster_ip and spec.cluster_ips and spec.cluster_ip != spec.cluster_ips[0] and spec.type != "ExternalName":
        yield Problem(ref, "spec.clusterIP", f"{spec.cluster_ip} is not clusterIPs[0]; clusterIPs are served")
    if spec.type in {"NodePort", "LoadBalancer"}:
        yield Problem(ref, "spec.type", f"{spec.type} is not served yet; the ClusterIP is")
    if spec.external_ips:
        yield Problem(ref, "spec.externalIPs", "not served yet; the ClusterIP is")
    if spec.session_affinity not in {None, "", "None"}:
        yield Problem(ref, "spec.sessionAffinity", f"{spec.session_affinity} is not kept yet: every connection chooses")
    if spec.internal_traffic_policy == "Local":
        yield Problem(ref, "spec.internalTrafficPolicy", "Local is not obeyed yet: endpoints of all nodes serve")
    if spec.traffic_distribution:
        yield Problem(ref, "spec.trafficDistribution", f"{spec.traffic_distribution} is not obeyed yet")


def _policy(ref: Ref, item: schema.NetworkPolicyObject) -> Decoded:
    text = "network policies are not enforced yet: what it forbids is allowed"
    return Decoded(ref, convert_policy(ref, item.spec or schema.NetworkPolicySpec()), (Problem(ref, "spec", text),))


def _slice(ref: Ref, item: schema.EndpointSliceObject) -> Decoded:
    if item.address_type == "FQDN":
        return Decoded(None, None)
    if item.address_type not in {"IPv4", "IPv6"}:
        raise BadField("addressType", f"{item.address_type!r} is not IPv4, IPv6 or FQDN")
    service = (item.metadata.labels or {}).get(SERVICE_NAME, "")
    if not service:
        return Decoded(None, None)  # a slice of nobody's: the API allows it, for other users
    ports = []
    for index, port in enumerate(item.ports or ()):
        if port.port is None:  # "all ports", which no service can mean
            continue
        protocol = parse_protocol(port.protocol, f"ports[{index}].protocol")
        ports.append(SlicePort(port.name or "", protocol, parse_port(port.port, f"ports[{index}].port")))
    run, problems = _endpoints(ref, item.endpoints or [], ipv6=item.address_type == "IPv6")
    fact = EndpointSlice(ref, service, item.address_type == "IPv6", tuple(ports), run)
    return Decoded(ref, fact, tuple(problems), _seconds(item.metadata.annotations))


def _seconds(annotations: schema.SliceAnnotations | None) -> float:
    """Return when the change behind a slice was caused: RFC 3339, written by the EndpointSlice controller."""
    if annotations is None or not annotations.trigger_time:
        return 0.0
    try:
        return dt.datetime.fromisoformat(annotations.trigger_time).timestamp()
    except ValueError:
        return 0.0


def _endpoints(ref: Ref, items: list[schema.Endpoint], *, ipv6: bool) -> tuple[bytes, list[Problem]]:
    """Pack the endpoints; the hot path, so addresses are parsed by the C library and checked by their first bytes."""
    out, problems = [], []
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    prefix = b"" if ipv6 else abi.V4_PREFIX
    parse = socket.inet_pton
    for index, item in enumerate(items):
        text = item.addresses[0] if item.addresses else ""  # consumers must ignore all but the first (API reference)
        try:
            raw = parse(family, text)
        except (OSError, ValueError):
            raw = b""
        if not raw or raw[0] in _SUSPECT[ipv6] or (ipv6 and raw[:2] == b"\0\0"):
            reason = _refuse_endpoint(text, ipv6=ipv6)
            if reason:
                problems.append(Problem(ref, f"endpoints[{index}].addresses[0]", reason))
                continue
        out.append(prefix + raw + _CONDITIONS[_conditions(item.conditions)])
    return b"".join(out), problems


_SUSPECT = {False: frozenset((0, 127, 169, *range(224, 256))), True: frozenset((0, 0xFE, 0xFF))}
_CONDITIONS = [bytes((value,)) for value in range(8)]


def _refuse_endpoint(text: str, *, ipv6: bool) -> str | None:
    """Say why an endpoint's address can't be used, or None; the slow look at what the quick one found suspicious."""
    try:
        address = parse_address(text, "")
    except BadField as error:
        return error.reason
    if (address.version == 6) != ipv6:
        return f"{text} is not of the slice's addressType"
    reason = _unusable(address)
    return f"{text} is {reason}" if reason else None


def _conditions(given: schema.EndpointConditions | None) -> int:
    """Apply the defaults: ready unless said otherwise, serving like ready, terminating not."""
    if given is None:
        return Condition.READY | Condition.SERVING
    ready = given.ready is not False
    serving = ready if given.serving is None else given.serving
    return ready * 1 + serving * 2 + bool(given.terminating) * 4


_DECODERS: dict[str, tuple[type, Callable[[Ref, Any], Decoded]]] = {
    Kind.NODE: (schema.NodeObject, _node),
    Kind.NAMESPACE: (schema.NamespaceObject, _namespace),
    Kind.POD: (schema.PodObject, _pod),
    Kind.SERVICE: (schema.ServiceObject, _service),
    Kind.ENDPOINT_SLICE: (schema.EndpointSliceObject, _slice),
    Kind.NETWORK_POLICY: (schema.NetworkPolicyObject, _policy),
}
BRIEF: dict[str, type] = {Kind.PEER: schema.PeerObject}
"""Kinds of which so little is read that it is best read with the event around it; their metadata names a version."""
_PEER = (schema.PeerObject, _peer)  # asked for, never named: to the API it is a Pod
_READERS: dict[str, tuple[Callable[[bytes | msgspec.Raw], Any], Callable[[Ref, Any], Decoded]]] = {
    kind: (msgspec.json.Decoder(struct).decode, convert)
    for kind, (struct, convert) in {**_DECODERS, Kind.PEER: _PEER}.items()
}
