"""The facts as they now are, with the indexes that tell which units an event touches. No I/O, no tables.

Endpoint slices are not kept: compiled, they are a few bytes each, and the reconciler holds those.
"""

from __future__ import annotations

from ebpfnet.model.facts import IPAddress, Namespace, Node, Pod, Ref, Service


class Cluster:
    """Services, the pods of one node, nodes and namespaces."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.services: dict[Ref, Service] = {}
        self.pods: dict[Ref, Pod] = {}
        self.nodes: dict[Ref, Node] = {}
        self.namespaces: dict[Ref, Namespace] = {}
        self.claims: dict[IPAddress, dict[Ref, Service]] = {}

    def set_service(self, service: Service) -> set[Ref]:
        """Take a service in; returns the services that must be compiled again (those it shares an address with)."""
        touched = self.drop_service(service.ref) | {service.ref}
        self.services[service.ref] = service
        for address in service.cluster_ips:
            holders = self.claims.setdefault(address, {})
            holders[service.ref] = service
            touched.update(holders)
        return touched

    def drop_service(self, ref: Ref) -> set[Ref]:
        """Take a service out; returns the services that must be compiled again, itself included if it was there."""
        service = self.services.pop(ref, None)
        if service is None:
            return set()
        touched = {ref}
        for address in service.cluster_ips:
            holders = self.claims[address]
            del holders[ref]
            touched.update(holders)
            if not holders:
                del self.claims[address]
        return touched

    def set_pod(self, pod: Pod) -> bool:
        """Take a pod in; returns whether this node is touched."""
        if pod.node == self.node:
            self.pods[pod.ref] = pod
            return True
        return self.drop_pod(pod.ref)

    def drop_pod(self, ref: Ref) -> bool:
        """Take a pod out; returns whether this node is touched."""
        return self.pods.pop(ref, None) is not None
