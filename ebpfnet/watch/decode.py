"""One Kubernetes object to a fact of the model: defaults applied, everything that can't be used named by field.

``decode`` never raises on what an object says. An object is refused whole when it makes no sense as one (wrong types,
no name, an address that is none); an endpoint that can't serve is left out alone. A policy that is refused still is a
fact, one that isolates (``refused.py``): only one that can't be told from others is none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from sys import intern
from typing import Any

import msgspec

from ebpfnet.model.facts import (
    ClusterNetworkPolicy,
    Fact,
    IPAddress,
    IPNetwork,
    Kind,
    Namespace,
    NetworkPolicy,
    Node,
    Problem,
    Ref,
    Service,
    ServiceCIDR,
)
from ebpfnet.watch import policy_schema, refused, schema, spelling
from ebpfnet.watch.cluster_policies import convert_cluster_policy
from ebpfnet.watch.fields import BadField, Decoded, labels_of, parse_address, parse_network
from ebpfnet.watch.pods import convert_peer, convert_pod
from ebpfnet.watch.policies import convert_policy
from ebpfnet.watch.services import convert_service
from ebpfnet.watch.slices import convert_slice
from ebpfnet.watch.spelling import misspelt
from ebpfnet.watch.words import explain

CLUSTER_KINDS = {Kind.NODE, Kind.NAMESPACE, Kind.SERVICE_CIDR, Kind.CLUSTER_NETWORK_POLICY}
NAME_MAX = 253  # RFC 1123 subdomain, the longest name of any kind
# The others are of the core group, "".
GROUPS: dict[str, str] = {
    Kind.ENDPOINT_SLICE: "discovery.k8s.io",
    Kind.NETWORK_POLICY: "networking.k8s.io",
    Kind.SERVICE_CIDR: "networking.k8s.io",
    Kind.CLUSTER_NETWORK_POLICY: "policy.networking.k8s.io",
}
LEAVING = "ToBeDeletedByClusterAutoscaler"
NODE_IPS = {"InternalIP", "ExternalIP"}  # the other addresses of a node are names
ZONE = "topology.kubernetes.io/zone"
PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"


def decode(item: Mapping[str, Any], proxy_name: str = "") -> Decoded:
    """Decode one object given as a mapping (YAML or JSON, already parsed).

    Of services of another proxy than ``proxy_name`` no more is followed than their cluster IPs, of its slices nothing.
    """
    kind = item.get("kind")
    if not isinstance(kind, str) or not kind:
        ref = _loose_ref(item, Kind.FILE)
        return Decoded(ref, None, (Problem(ref, "kind", "missing"),))
    if kind not in _DECODERS:
        return _other_kind(item, kind)
    if _group(item) not in {None, GROUPS.get(kind, "")}:  # Knative has a Service, too
        return Decoded(None, None)
    if kind in {Kind.SERVICE, Kind.ENDPOINT_SLICE} and not _is_ours(_labels(item), proxy_name):
        return _foreign(_convert(Kind(kind), item)) if kind == Kind.SERVICE else Decoded(None, None)
    return _convert(Kind(kind), item)


def _foreign(found: Decoded) -> Decoded:
    """Return what counts of another proxy's service, whatever else it says: that its cluster IPs are somebody's.

    kube-proxy, which does not follow it, drops what comes to them as unallocated (chain cluster-ips-check of
    pkg/proxy/nftables/proxier.go) only after the other proxy could translate it; we come before.
    """
    fact = found.fact
    if not isinstance(fact, Service) or not fact.cluster_ips:
        return Decoded(None, None)
    return Decoded(fact.ref, Service(fact.ref, fact.cluster_ips, (), fact.created, foreign=True))


def _labels(item: Mapping[str, Any]) -> object:
    meta = item.get("metadata")
    return meta.get("labels") if isinstance(meta, Mapping) else None


def _is_ours(labels: object, proxy_name: str) -> bool:
    """Do with labels what kube-proxy's selector does (Run in cmd/kube-proxy/app/server.go, KEP-2447)."""
    if not isinstance(labels, Mapping):
        return not proxy_name
    # One that is there and empty names a proxy, too: the selector is for a label that is not there.
    other = labels.get(PROXY_NAME) != proxy_name if proxy_name else PROXY_NAME in labels
    return not other and HEADLESS not in labels


def _convert(kind: Kind, item: Mapping[str, Any]) -> Decoded:
    ref = _loose_ref(item, kind)
    struct, convert = _PEER if kind == Kind.PEER else _DECODERS[kind]
    try:
        found = convert(_named(ref), msgspec.convert(item, struct))
    except msgspec.ValidationError as error:
        found = _refusal(ref, item, *explain(str(error)))
    except BadField as error:
        found = _refusal(ref, item, error.field, error.reason)
    odd = {
        path: Problem(ref, path, f"no such field; did you mean {name}?{_effect(found.fact)}")
        for path, name in misspelt(item, struct)
    }
    plain = [problem for problem in found.problems if problem.field not in odd]
    return found._replace(problems=(*plain, *odd.values())) if odd else found


def _refusal(ref: Ref, item: Mapping[str, Any], field: str, reason: str) -> Decoded:
    """Return the problem, and of a policy that has a name what it still does."""
    close = _CLOSED.get(ref.kind)
    fact = close(ref, item) if close and _has_name(item) else None
    return Decoded(ref, fact, (Problem(ref, field, reason + _effect(fact)),))


def _effect(fact: Fact | None) -> str:
    """Say what a refused policy does; one that is audited does nothing."""
    if not isinstance(fact, NetworkPolicy | ClusterNetworkPolicy) or not fact.refused or fact.audited:
        return ""
    return "; the pods that it selects are isolated" if isinstance(fact, NetworkPolicy) else "; it denies everything"


def _has_name(item: Mapping[str, Any]) -> bool:
    meta = item.get("metadata")
    if not isinstance(meta, Mapping):
        return False
    name, namespace = meta.get("name"), meta.get("namespace")
    if not (isinstance(name, str) and isinstance(namespace, str | None)):
        return False
    return _is_name(name) and (not namespace or _is_name(namespace))


def decode_bytes(kind: Kind, text: bytes | msgspec.Raw, proxy_name: str = "") -> Decoded:
    """Decode one object of a known kind from its JSON, reading only the fields that are used; the hot path.

    Slices of other proxies are not asked for, their services are (``decode``). Raises ``msgspec.DecodeError`` for what
    is no JSON.
    """
    read, convert = _READERS[kind]
    try:
        item = read(text)
        meta = item.metadata
        found, labels = convert(_named(ref_of(kind, meta.namespace, meta.name)), item), meta.labels
    except (msgspec.ValidationError, BadField):  # once more, slowly, to say what is wrong with which object
        loose = msgspec.json.decode(text)
        loose = loose if isinstance(loose, dict) else {}
        found, labels = _convert(kind, loose), _labels(loose)
    return found if kind != Kind.SERVICE or _is_ours(labels, proxy_name) else _foreign(found)


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
    known, group = None, _group(item)
    if group == GROUPS[Kind.CLUSTER_NETWORK_POLICY]:  # AdminNetworkPolicy and its like of v1alpha1 are not followed
        known = str(Kind.CLUSTER_NETWORK_POLICY)
    elif group in spelling.GROUPS and kind not in spelling.KINDS:
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
    """Return the name of an object: what has no namespace is in ``default``, unless its kind has none.

    The few words that thousands of objects share are one string each, here and for ports.
    """
    whole = kind in CLUSTER_KINDS or kind == Kind.FILE
    return Ref(kind, "" if whole else intern(namespace or "default"), name or "")


def _named(ref: Ref) -> Ref:
    for field, text in (("metadata.name", ref.name), ("metadata.namespace", ref.namespace)):
        if (text or field == "metadata.name") and not _is_name(text):
            raise BadField(field, f"{text!r} is not a name (RFC 1123: lower-case letters, digits, '-' and '.')")
    return ref


def _is_name(text: str) -> bool:
    plain = text.replace("-", "").replace(".", "")
    whole = 0 < len(text) <= NAME_MAX and plain.isascii() and plain.isalnum() and plain == plain.lower()
    return whole and text[0] not in "-." and text[-1] not in "-."


def _node(ref: Ref, item: schema.NodeObject) -> Decoded:
    spec, status = item.spec or schema.NodeSpec(), item.status or schema.NodeStatus()
    addresses: list[IPAddress] = []
    outer: list[IPAddress] = []
    problems: list[Problem] = []
    for index, address in enumerate(status.addresses or ()):
        try:
            if address.type in NODE_IPS:
                parsed = parse_address(address.address, f"status.addresses[{index}].address")
                (addresses if address.type == "InternalIP" else outer).append(parsed)
        except BadField as error:
            if address.type == "InternalIP":
                raise
            problems.append(Problem(ref, error.field, error.reason))
    cidrs = []
    for index, text in enumerate(spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else [])):
        try:
            cidrs.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise BadField(f"spec.podCIDRs[{index}]", str(error)) from error
    # Who is leaving gets no new connections from load balancers (KEP-3836).
    leaving = bool(item.metadata.deletion_timestamp) or any(taint.key == LEAVING for taint in spec.taints or ())
    zone = (item.metadata.labels or {}).get(ZONE, "")
    labels = labels_of(item.metadata)
    fact = Node(ref, tuple(addresses), tuple(cidrs), leaving, zone, labels, tuple(outer))
    return Decoded(ref, fact, tuple(problems))


def _namespace(ref: Ref, item: schema.NamespaceObject) -> Decoded:
    return Decoded(ref, Namespace(ref, labels_of(item.metadata)))


def _service_cidr(ref: Ref, item: schema.ServiceCIDRObject) -> Decoded:
    """Decode a block of cluster IPs; one that is being deleted counts until it is gone, as for kube-proxy."""
    blocks: list[IPNetwork] = []
    for index, text in enumerate((item.spec.cidrs if item.spec else None) or ()):
        field = f"spec.cidrs[{index}]"
        block = parse_network(text, field)
        if any(block.version == other.version for other in blocks):
            raise BadField(field, f"a second IPv{block.version} block (one of each family at most)")
        blocks.append(block)
    if not blocks:
        raise BadField("spec.cidrs", "missing")
    return Decoded(ref, ServiceCIDR(ref, tuple(blocks)))


_DECODERS: dict[str, tuple[type, Callable[[Ref, Any], Decoded]]] = {
    Kind.NODE: (schema.NodeObject, _node),
    Kind.NAMESPACE: (schema.NamespaceObject, _namespace),
    Kind.POD: (schema.PodObject, convert_pod),
    Kind.SERVICE: (schema.ServiceObject, convert_service),
    Kind.ENDPOINT_SLICE: (schema.EndpointSliceObject, convert_slice),
    Kind.NETWORK_POLICY: (policy_schema.NetworkPolicyObject, convert_policy),
    Kind.CLUSTER_NETWORK_POLICY: (policy_schema.ClusterNetworkPolicyObject, convert_cluster_policy),
    Kind.SERVICE_CIDR: (schema.ServiceCIDRObject, _service_cidr),
}
_CLOSED: dict[str, Callable[[Ref, Mapping[str, Any]], Fact]] = {
    Kind.NETWORK_POLICY: refused.isolating,
    Kind.CLUSTER_NETWORK_POLICY: refused.denying,
}
BRIEF: dict[str, type] = {Kind.PEER: schema.PeerObject}
"""Kinds of which so little is read that it is best read with the event around it; their metadata names a version."""
_PEER = (schema.PeerObject, convert_peer)  # asked for, never named: to the API it is a Pod
_READERS: dict[str, tuple[Callable[[bytes | msgspec.Raw], Any], Callable[[Ref, Any], Decoded]]] = {
    kind: (msgspec.json.Decoder(struct).decode, convert)
    for kind, (struct, convert) in {**_DECODERS, Kind.PEER: _PEER}.items()
}
