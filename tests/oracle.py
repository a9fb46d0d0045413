"""What must become of a connection between pods, read from plain manifests: slow, short, and none of our code.

Knows ClusterIP services for TCP and UDP, and pods; the words are the Kubernetes API's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, NamedTuple

Manifest = dict[str, Any]


class Expectation(NamedTuple):
    """What ``ebpfnet simulate`` must answer; ``backends`` maps each to the source address that it sees, if changed."""

    verdict: str
    reason: str | None = None
    service: str | None = None
    backends: dict[str, str | None] = {}  # noqa: RUF012  # never changed


class Oracle:
    """A cluster as a list of manifests."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.pods = {_name(item): item for item in manifests if item["kind"] == "Pod"}
        self.services = {_name(item): item for item in manifests if item["kind"] == "Service"}
        self.slices = [item for item in manifests if item["kind"] == "EndpointSlice"]

    def expected(self, flow: dict[str, Any]) -> Expectation:
        """Return what must become of a flow whose client is a pod."""
        clients = self._addresses(flow["from"])
        target = next(address for address in self._addresses(flow["to"]) if _like(address, clients))
        client = next(address for address in clients if _like(address, [target]))
        for service in self.services.values():
            if target in service["spec"]["clusterIPs"]:
                return self._through(service, target, flow, client)
        there = any(target in _pod_ips(pod) for pod in self.pods.values())
        return Expectation("allow" if there else "drop")

    def _addresses(self, text: str) -> list[str]:
        if "/" not in text:
            return [text]
        if text in self.services:
            return list(self.services[text]["spec"]["clusterIPs"])
        return _pod_ips(self.pods[text])

    def _through(self, service: Manifest, target: str, flow: dict[str, Any], client: str) -> Expectation:
        for port in service["spec"]["ports"]:
            if port.get("protocol", "TCP") == flow["protocol"] and flow["port"] in {port["port"], port.get("name")}:
                shown = f"{_name(service)}:{port.get('name') or port['port']}"
                ipv6 = ":" in target
                found = self._backends(service, port, ipv6, _is_ready) or self._backends(
                    service, port, ipv6, _is_leaving
                )
                if not found:
                    return Expectation("reject", "NO_ENDPOINTS", shown)
                seen = {_end(*end): target if end[0] == client else None for end in found}
                return Expectation("allow", None, shown, seen)
        return Expectation("reject", "UNDEFINED_PORT")

    def _backends(
        self, service: Manifest, port: Manifest, ipv6: bool, usable: Callable[[Manifest], bool]
    ) -> set[tuple[str, int]]:
        found = set()
        for item in self.slices:
            owner = item["metadata"]["labels"].get("kubernetes.io/service-name")
            same_namespace = item["metadata"]["namespace"] == service["metadata"]["namespace"]
            if owner != service["metadata"]["name"] or not same_namespace:
                continue
            if item["addressType"] != ("IPv6" if ipv6 else "IPv4"):
                continue
            for entry in item["ports"]:
                named = (entry.get("name") or "") == (port.get("name") or "")
                if named and entry.get("protocol", "TCP") == port.get("protocol", "TCP"):
                    found |= {(one["addresses"][0], entry["port"]) for one in item["endpoints"] if usable(one)}
        return found


def _name(item: Manifest) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _pod_ips(pod: Manifest) -> list[str]:
    return [entry["ip"] for entry in pod["status"]["podIPs"]]


def _like(address: str, others: list[str]) -> bool:
    version = ipaddress.ip_address(address).version
    return any(ipaddress.ip_address(other).version == version for other in others)


def _is_ready(endpoint: Manifest) -> bool:
    return endpoint.get("conditions", {}).get("ready") is not False


def _is_leaving(endpoint: Manifest) -> bool:
    """Whether it may serve when no endpoint is ready (KEP-1669)."""
    conditions = endpoint.get("conditions", {})
    return conditions.get("serving") is not False and bool(conditions.get("terminating"))


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
