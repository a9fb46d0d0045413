"""A cluster at the scale of the `sync` benchmark, as model facts and as manifests: 10,000 services, 250,000 endpoints.

Most services are small, some are not: one of 2,500 endpoints, 9 of 1,000, 90 of 100, and 9,900 of 1 to 46. Slices hold
up to 100 endpoints, as Kubernetes' own controller makes them. Nothing is random, so runs can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from ebpfnet import abi
from ebpfnet.model import endpoints
from ebpfnet.model.endpoints import Condition
from ebpfnet.model.facts import (
    EndpointSlice,
    Fact,
    Kind,
    Namespace,
    Node,
    Pod,
    PodPort,
    Ref,
    Service,
    ServicePort,
    SlicePort,
)

SERVICES, ENDPOINTS, LARGEST = 10_000, 250_000, 2_500
NODES, PODS, NAMESPACES = 100, 110, 100
PER_SLICE = 100
HERE = "node-0"
FIRST_VIP = IPv4Address("172.16.0.1")
FIRST_ENDPOINT = int(IPv4Address("10.0.0.1"))
HEALTHY = Condition.READY | Condition.SERVING
CREATED = "2026-01-01T00:00:00Z"


def sizes() -> list[int]:
    """Return how many endpoints each service has, the largest first."""
    large = [LARGEST, *[1_000] * 9, *[100] * 90]
    small = [number % 45 + 1 for number in range(SERVICES - len(large))]
    for number in range(ENDPOINTS - sum(large) - sum(small)):
        small[number] += 1
    return [*large, *small]


def address(number: int) -> bytes:
    """Return the packed address of an endpoint."""
    return abi.V4_PREFIX + (FIRST_ENDPOINT + number).to_bytes(4, "big")


def _nodes_and_pods() -> Iterator[Fact]:
    for number in range(NODES):
        addresses = (IPv4Address("192.168.0.1") + number,)
        yield Node(Ref(Kind.NODE, "", f"node-{number}"), addresses, (IPv4Network((0x0A000000 + (number << 16), 16)),))
    for number in range(NAMESPACES):
        yield Namespace(Ref(Kind.NAMESPACE, "", f"team-{number:02}"), (("team", f"{number}"),))
    for number in range(PODS):
        ref = Ref(Kind.POD, f"team-{number % NAMESPACES:02}", f"pod-{number}")
        ports = (PodPort("http", abi.Protocol.TCP, 8080),)
        yield Pod(
            ref, HERE, (IPv4Address(FIRST_ENDPOINT + number),), (("app", f"{number}"),), ports, host_network=False
        )


def facts() -> list[Fact]:
    """Return the whole cluster: nodes, namespaces, this node's pods, services, slices."""
    found = list(_nodes_and_pods())
    slices: list[Fact] = []
    first = 0
    for number, size in enumerate(sizes()):
        namespace, name = f"team-{number % NAMESPACES:02}", f"service-{number:05}"
        ports = (ServicePort("http", abi.Protocol.TCP, 80),)
        found.append(Service(Ref(Kind.SERVICE, namespace, name), (FIRST_VIP + number,), ports, CREATED))
        for begin in range(0, size, PER_SLICE):
            run = b"".join(
                endpoints.pack(address(first + index), HEALTHY) for index in range(begin, min(begin + PER_SLICE, size))
            )
            ref = Ref(Kind.ENDPOINT_SLICE, namespace, f"{name}-{begin // PER_SLICE:02}")
            slice_ports = (SlicePort("http", abi.Protocol.TCP, 8080),)
            slices.append(EndpointSlice(ref, name, ipv6=False, ports=slice_ports, endpoints=run))
        first += size
    return [*found, *slices]


def _manifest(fact: Fact) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": fact.ref.name, "namespace": fact.ref.namespace or None}
    out: dict[str, Any] = {"apiVersion": "v1", "kind": fact.ref.kind.value, "metadata": meta}
    match fact:
        case Node():
            out["spec"] = {"podCIDRs": [str(block) for block in fact.pod_cidrs]}
            out["status"] = {"addresses": [{"type": "InternalIP", "address": str(a)} for a in fact.addresses]}
        case Namespace():
            meta["labels"] = dict(fact.labels)
        case Pod():
            ports = [{"name": port.name, "containerPort": port.port} for port in fact.ports]
            out["spec"] = {"nodeName": fact.node, "containers": [{"name": "main", "ports": ports}]}
            out["status"] = {"phase": "Running", "podIPs": [{"ip": str(a)} for a in fact.addresses]}
        case Service():
            ports = [{"name": p.name, "port": p.port, "protocol": "TCP"} for p in fact.ports]
            addresses = [str(a) for a in fact.cluster_ips]
            meta["creationTimestamp"] = fact.created
            out["spec"] = {"type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses, "ports": ports}
        case EndpointSlice():
            meta["labels"] = {"kubernetes.io/service-name": fact.service}
            out["apiVersion"] = "discovery.k8s.io/v1"
            out["addressType"] = "IPv4"
            out["ports"] = [{"name": p.name, "port": p.port, "protocol": "TCP"} for p in fact.ports]
            ready = {"ready": True, "serving": True, "terminating": False}
            each = (str(abi.unpack_address(raw)) for raw, _ in endpoints.unpack(fact.endpoints))
            out["endpoints"] = [{"addresses": [text], "conditions": ready, "nodeName": HERE} for text in each]
    return out


def write(cluster: Iterable[Fact], folder: Path) -> int:
    """Write a cluster as JSON, a file for each namespace; returns how many bytes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for fact in cluster:
        groups.setdefault(fact.ref.namespace or "cluster", []).append(_manifest(fact))
    total = 0
    for name, items in groups.items():
        total += (folder / f"{name}.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return total
