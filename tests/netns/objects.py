"""Cluster objects that the tests add to the demo's: services whose one backend is known, and one nobody listens on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ebpfnet.lab import folder

CLOSED_PORT = 9999

NEAR_WEB, FAR_WEB = "web-a", "web-b"
NEAR_DNS, FAR_DNS = "dns-a", "dns-b"


def write(place: Path) -> Path:
    """Write a folder of manifests: the demo's and ours. The client of the tests is ``default/client`` on node-a."""
    folder.copy(folder.DEMO, place)
    documents = [
        *service("near", 201, [("http", "TCP", 80, 8080)], [NEAR_WEB]),
        *service("far", 202, [("http", "TCP", 80, 8080)], [FAR_WEB]),
        *service("near-dns", 203, [("dns", "UDP", 53, 5353)], [NEAR_DNS]),
        *service("far-dns", 204, [("dns", "UDP", 53, 5353)], [FAR_DNS]),
        *service("near-closed", 205, [("udp", "UDP", 9, CLOSED_PORT), ("tcp", "TCP", 9, CLOSED_PORT)], [NEAR_DNS]),
        *service("far-closed", 206, [("udp", "UDP", 9, CLOSED_PORT), ("tcp", "TCP", 9, CLOSED_PORT)], [FAR_DNS]),
        *service("mirror-dns", 207, [("dns", "UDP", 53, 5353)], [NEAR_DNS]),
    ]
    (place / "tests.yaml").write_text(yaml.safe_dump_all(documents))
    return place


def service(
    name: str,
    last: int,
    ports: list[tuple[str, str, int, int]],
    pods: list[str],
    *,
    balancers: Sequence[str] = (),
    node_ports: Sequence[int] = (),
    annotations: Mapping[str, str] | None = None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Return a dual-stack service and its endpoint slices; ports are (name, protocol, port, target port).

    ``node_ports`` are those of the ports, in order, ``balancers`` the load balancer's addresses, ``more`` further
    fields of ``spec``. With either of the first two the type is LoadBalancer.
    """
    addresses = [f"10.96.0.{last}", f"fd00:10:96::{last}"]
    listed = [{"name": each[0], "protocol": each[1], "port": each[2], "targetPort": each[3]} for each in ports]
    for port, number in zip(listed, node_ports, strict=False):
        port["nodePort"] = number
    kind = "LoadBalancer" if balancers else "NodePort" if node_ports else "ClusterIP"
    spec: dict[str, Any] = {
        "type": kind,
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": listed,
        **more,
    }
    metadata = meta(name, annotations=dict(annotations)) if annotations else meta(name)
    whole = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    if balancers:
        whole["status"] = {"loadBalancer": {"ingress": [{"ip": each} for each in balancers]}}
    documents: list[dict[str, Any]] = [whole]
    nodes = {pod: node_of(pod) for pod in pods}
    for kind, index in (("IPv4", 0), ("IPv6", 1)):
        documents.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": meta(f"{name}-{kind.lower()}", labels={"kubernetes.io/service-name": name}),
                "addressType": kind,
                "ports": [{"name": each[0], "protocol": each[1], "port": each[3]} for each in ports],
                "endpoints": [
                    {"addresses": [pod_addresses(pod)[index]], "conditions": {"ready": True}, "nodeName": nodes[pod]}
                    for pod in pods
                ],
            }
        )
    return documents


def pod(name: str, node: int, last: int, port: int = 8080) -> dict[str, Any]:
    """Return a dual-stack pod with one TCP port; ``node`` is 1 for node-a, 2 for node-b."""
    addresses = [f"10.244.{node}.{last}", f"fd00:10:244:{node}::{last}"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta(name),
        "spec": {
            "nodeName": f"node-{'ab'[node - 1]}",
            "containers": [{"name": "main", "ports": [{"containerPort": port}]}],
        },
        "status": {"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]},
    }


def meta(name: str, **more: Any) -> dict[str, Any]:
    """Return an object's metadata in ``default``."""
    return {"name": name, "namespace": "default", "creationTimestamp": "2026-01-15T09:00:00Z", **more}


def pod_addresses(name: str) -> list[str]:
    """Return the addresses of one of the demo's pods."""
    return [each["ip"] for each in _demo_pods()[name]["status"]["podIPs"]]


def node_of(name: str) -> str:
    """Return the node of one of the demo's pods."""
    return str(_demo_pods()[name]["spec"]["nodeName"])


@functools.cache
def _demo_pods() -> dict[str, Any]:
    documents = yaml.safe_load_all((folder.DEMO / "pods.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents}
