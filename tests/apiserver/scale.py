"""A large cluster for a `Store`: 10,000 services with 250,000 endpoints, 150,000 pods, and policies on request.

The sizes of services are those of the benchmarks (``tests/bench/objects.py``). Pods are made when they are listed: a
gigabyte of JSON that nobody holds. Nothing is random, so runs can be compared.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from tests.apiserver.objects import ENDPOINT, NAMESPACE, NODE, SERVICE, SLICE
from tests.apiserver.pod import HASH, POD
from tests.apiserver.resources import POLICIES
from tests.apiserver.store import Item, Parts, Store, item
from tests.apiserver.template import WHEN
from tests.bench.objects import FIRST_ENDPOINT, FIRST_VIP, NAMESPACES, PER_SLICE, sizes

PODS = 150_000
FIRST_NODE = 0xC0A80001  # 192.168.0.1
TRIGGER_PART, ENDPOINT_PART = 2, 4  # of a slice's parts: the trigger time, and the first of its endpoints
TIERS = ("front", "back", "data")
ZONES = ("eu-central-1a", "eu-central-1b", "eu-central-1c")


def _text(number: int) -> bytes:
    return socket.inet_ntoa(number.to_bytes(4, "big")).encode()


def _uid(kind: int, number: int) -> bytes:
    return b"%08x-0000-4000-8000-%012x" % (kind, number)


def _block(nodes: int) -> int:
    """Return how many addresses each node has: a power of two, enough for all pods."""
    size = 256
    while size * nodes < PODS + 2 * nodes + 256:
        size *= 2
    return size


@dataclass(frozen=True)
class Scale:
    """How large; fewer services are the largest ones of all. Endpoints name pods that ``pods`` may leave out."""

    services: int = 10_000
    pods: int = PODS
    nodes: int = 1_500
    policies: int = 0
    cluster_policies: int = 0
    sizes: list[int] = field(default_factory=sizes, init=False, repr=False)

    @cached_property
    def starts(self) -> list[int]:
        """The number of each service's first endpoint."""
        return [0, *accumulate(self.sizes)]

    @cached_property
    def block(self) -> int:
        """How many addresses a node has."""
        return _block(self.nodes)

    def load(self, store: Store) -> Store:
        """Put the cluster into an empty store; returns the store."""
        store.load("Namespace", self._namespaces())
        store.load("Node", map(self._node, range(self.nodes)))
        store.load("Service", map(self._service, range(self.services)))
        store.load("EndpointSlice", (each for number in range(self.services) for each in self._slices(number)))
        store.load("NetworkPolicy", map(self._policy, range(self.policies)))
        if self.cluster_policies:
            store.install(POLICIES)
            store.load("ClusterNetworkPolicy", map(self._cluster_policy, range(self.cluster_policies)))
        store.load("Pod", self._pods())
        return store

    def namespace(self, service: int) -> str:
        """Return the namespace of a service and its pods."""
        return f"team-{service % NAMESPACES:02}"

    def pod_of(self, service: int, index: int) -> int:
        """Return the number of the pod behind an endpoint: when there are no more, its namespace's are used again."""
        number = self.starts[service] + index
        if number < PODS:
            return number
        first = service % NAMESPACES
        return self.starts[first] + (service + index) % self.sizes[first]

    def pod_values(self, number: int, service: int) -> dict[bytes, bytes]:
        """Return the fields of a pod of a service."""
        node, index = number % self.nodes, number // self.nodes
        name = b"service-%05d" % service
        return {
            b"name": b"%b-%b-%05x" % (name, HASH.encode(), number),
            b"namespace": self.namespace(service).encode(),
            b"uid": _uid(0xB0D, number),
            b"service": name,
            b"owner": _uid(0x5E7, service),
            b"team": b"%d" % (service % NAMESPACES),
            b"tier": TIERS[service % 3].encode(),
            b"node": b"node-%d" % node,
            b"zone": ZONES[node % 3].encode(),
            b"host": _text(FIRST_NODE + node),
            b"ip": _text(FIRST_ENDPOINT + node * self.block + index + 1),
        }

    def endpoint(self, service: int, index: int, generation: int = 0) -> bytes:
        """Return an endpoint of a service as JSON, with the comma before it; another generation is another pod."""
        values = self.pod_values(self.pod_of(service, index), service)
        if generation:
            number = PODS * (1 + generation % 2) + self.pod_of(service, index)
            values[b"name"] = b"%b-%b-%05x" % (values[b"service"], HASH.encode(), number)
            values[b"uid"] = _uid(0xB0D, number)
            values[b"ip"] = _text(FIRST_ENDPOINT + (0x400000 << generation % 2) + self.pod_of(service, index))
        return (b",{" if index % PER_SLICE else b"{") + ENDPOINT.fill(values)[0]

    def _namespaces(self) -> Iterator[Item]:
        for number in range(NAMESPACES):
            name, team = self.namespace(number), f"{number}"
            values = {b"name": name.encode(), b"team": team.encode(), b"uid": _uid(0xA, number)}
            yield Item(name, "", name, 0, NAMESPACE.fill(values), {"kubernetes.io/metadata.name": name, "team": team})

    def _node(self, number: int) -> Item:
        name, zone = f"node-{number}", ZONES[number % 3]
        first, length = FIRST_ENDPOINT - 1 + number * self.block, 33 - self.block.bit_length()
        values = {
            b"name": name.encode(),
            b"uid": _uid(0xD, number),
            b"zone": zone.encode(),
            b"cidr": b"%b/%d" % (_text(first), length),
            b"ip": _text(FIRST_NODE + number),
        }
        labels = {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone}
        return Item(name, "", name, 0, NODE.fill(values), labels)

    def _service(self, number: int) -> Item:
        namespace, name = self.namespace(number), f"service-{number:05}"
        values = {
            b"name": name.encode(),
            b"namespace": namespace.encode(),
            b"uid": _uid(0x5, number),
            b"ip": _text(int(FIRST_VIP) + number),
        }
        return Item(f"{namespace}/{name}", namespace, name, 0, SERVICE.fill(values), {"app": name})

    def _slices(self, number: int) -> Iterator[Item]:
        namespace, service = self.namespace(number), f"service-{number:05}"
        labels = {"app": service, "kubernetes.io/service-name": service}
        for begin in range(0, self.sizes[number], PER_SLICE):
            name = f"{service}-{begin // PER_SLICE:02}"
            values = {
                b"name": name.encode(),
                b"namespace": namespace.encode(),
                b"uid": _uid(0xE, self.starts[number] + begin),
                b"service": service.encode(),
                b"owner": _uid(0x5, number),
            }
            *head, tail = SLICE.fill(values)
            indices = range(begin, min(begin + PER_SLICE, self.sizes[number]))
            endpoints = (self.endpoint(number, index) for index in indices)
            parts = (*head[:TRIGGER_PART], WHEN.encode(), *head[TRIGGER_PART:], *endpoints, tail)
            yield Item(f"{namespace}/{name}", namespace, name, 0, parts, labels)

    def _pods(self) -> Iterator[Item]:
        for service in range(bisect_right(self.starts, self.pods - 1)):
            namespace, name = self.namespace(service), f"service-{service:05}"
            team, tier = str(service % NAMESPACES), TIERS[service % 3]
            labels = {"app": name, "pod-template-hash": HASH, "team": team, "tier": tier}
            for number in range(self.starts[service], min(self.starts[service + 1], self.pods)):
                full = f"{name}-{HASH}-{number:05x}"
                lazy = _LazyPod(self, number, service)
                yield Item(f"{namespace}/{full}", namespace, full, 0, lazy, labels, f"node-{number % self.nodes}")

    def _policy(self, number: int) -> Item:
        service = (number // NAMESPACES % max(1, self.services // NAMESPACES)) * NAMESPACES + number % NAMESPACES
        peer = {"podSelector": {"matchLabels": {"app": f"service-{service:05}"}}}
        team = {"namespaceSelector": {"matchLabels": {"team": str((number + 1) % NAMESPACES)}}}
        block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.128.0.0/9"]}}
        tiers = {"podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}]}}
        web: dict[str, Any] = {"protocol": "TCP", "port": 8080}
        rules = ([peer], [team], [block, peer], [team | tiers], [peer, team])
        spec = {
            "podSelector": {"matchLabels": {"app": f"service-{service:05}"}},
            "ingress": [{"from": rules[number % 5], "ports": [web | ({"endPort": 8090} if number % 5 == 4 else {})]}],
            "policyTypes": ["Ingress"],
        }
        if number % 5 == 2:
            spec["egress"] = [{"ports": [{"protocol": "UDP", "port": 53}]}, {"to": [tiers]}]
            spec["policyTypes"] = ["Ingress", "Egress"]
        meta = {"name": f"policy-{number:05}", "namespace": self.namespace(service), "uid": _uid(0xF, number).decode()}
        return item({"metadata": meta | {"creationTimestamp": WHEN}, "spec": spec}, 0)

    def _cluster_policy(self, number: int) -> Item:
        team, other = ({"matchLabels": {"team": str((number + more) % NAMESPACES)}} for more in (0, 1))
        tiers = {"podSelector": {"matchLabels": {"tier": TIERS[number % 3]}}, "namespaceSelector": other}
        zone = {"matchLabels": {"topology.kubernetes.io/zone": ZONES[number % 3]}}
        web = {"tcp": {"destinationPort": {"range": {"start": 8080, "end": 8090}}}}
        peers = (
            {"namespaces": other},
            {"pods": tiers},
            {"networks": ["192.0.2.0/24", "2001:db8::/32"]},
            {"nodes": zone},
        )
        spec = {
            "tier": ("Admin", "Baseline")[number % 2],
            "priority": number % 1001,
            "subject": {"namespaces": team},
            "ingress": [{"name": "others", "action": ("Deny", "Pass")[number % 2], "from": [{"pods": tiers}]}],
            "egress": [{"action": "Accept", "to": [peers[number % 4]], "protocols": [web]}],
        }
        meta = {"name": f"cluster-policy-{number:05}", "uid": _uid(0xC, number).decode(), "creationTimestamp": WHEN}
        return item({"metadata": meta, "spec": spec}, 0)


class _LazyPod:
    """The parts of a pod, made each time they are wanted."""

    __slots__ = ("number", "scale", "service")

    def __init__(self, scale: Scale, number: int, service: int) -> None:
        self.scale, self.number, self.service = scale, number, service

    def __call__(self) -> Parts:
        return POD.fill(self.scale.pod_values(self.number, self.service))
