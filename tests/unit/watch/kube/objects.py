"""Objects of a small cluster, and conditions of the server's log."""

from __future__ import annotations

from typing import Any

from ebpfnet.model.facts import Kind, Ref
from tests.apiserver.access import Log
from tests.unit.watch.kube.conftest import NODE


def service(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
    }


def node(name: str = NODE) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"podCIDRs": ["10.1.0.0/24"]}}


def pod(name: str, on: str = NODE, ip: str = "10.1.0.9") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": on, "containers": []},
        "status": {"podIPs": [{"ip": ip}]},
    }


def watching(resource: str, count: int = 1):
    """Return a condition of the server's log: so many watches are open."""

    def holds(log: Log) -> bool:
        return log.watches.get(resource, 0) >= count

    return holds


def ref(name: str, kind: Kind = Kind.SERVICE) -> Ref:
    return Ref(kind, "default", name)
