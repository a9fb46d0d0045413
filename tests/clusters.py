"""Random clusters as manifests, and the flows that are worth asking about in them. The same seed, the same cluster."""

from __future__ import annotations

import random
from typing import Any

Manifest = dict[str, Any]
CONDITIONS: list[dict[str, bool | None]] = [
    {},
    {"ready": True},
    {"ready": True, "serving": True, "terminating": False},
    {"ready": False},
    {"ready": None},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": False, "terminating": True},
]
SHAPES = [
    [{"port": 80}],
    [{"name": "http", "port": 80}, {"name": "https", "port": 443}],
    [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
    [
        {"name": "a", "port": 8080, "protocol": "TCP"},
        {"name": "b", "port": 8081},
        {"name": "c", "port": 1, "protocol": "UDP"},
    ],
]


def nodes(count: int) -> list[Manifest]:
    """Return nodes ``n0`` and so on, dual stack."""
    return [
        {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": f"n{index}"},
            "spec": {"podCIDRs": [f"10.1.{index}.0/24", f"fd01:a{index}::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.0.{index + 1}"}]},
        }
        for index in range(count)
    ]


def pod(index: int, node: int, namespace: str = "default") -> Manifest:
    """Return pod ``p<index>`` on a node."""
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": f"p{index}", "namespace": namespace},
        "spec": {"nodeName": f"n{node}", "containers": []},
        "status": {"podIPs": [{"ip": f"10.1.{node}.{index + 10}"}, {"ip": f"fd01:a{node}::{index + 0x10:x}"}]},
    }


def service(dice: random.Random, index: int) -> Manifest:
    """Return service ``s<index>`` of one or two families."""
    addresses = [f"10.96.0.{index + 1}", f"fd96::{index + 1:x}"]
    if dice.random() < 0.5:
        addresses.reverse()
    if dice.random() < 0.3:
        del addresses[1]
    spec = {"clusterIP": addresses[0], "clusterIPs": addresses, "ports": dice.choice(SHAPES)}
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": f"s{index}", "namespace": dice.choice(["default", "other"])},
        "spec": spec,
    }


def slices(dice: random.Random, owner: Manifest, pods: list[Manifest]) -> list[Manifest]:
    """Return endpoint slices of a service: none, or up to two a family, which may share endpoints."""
    found = []
    for family in (0, 1):
        for number in range(dice.choice([0, 1, 1, 2])):
            ports = [{"name": port.get("name", ""), "port": 9000 + at, "protocol": port.get("protocol", "TCP")}
                     for at, port in enumerate(owner["spec"]["ports"]) if dice.random() < 0.9]  # fmt: skip
            chosen = dice.sample(pods, dice.randint(0, min(3, len(pods))))
            endpoints = [{"addresses": [one["status"]["podIPs"][family]["ip"]], "conditions": dice.choice(CONDITIONS)}
                         for one in chosen]  # fmt: skip
            name, labels = owner["metadata"]["name"], {"kubernetes.io/service-name": owner["metadata"]["name"]}
            found.append(
                {
                    "kind": "EndpointSlice",
                    "apiVersion": "discovery.k8s.io/v1",
                    "metadata": {
                        "name": f"{name}-{family}-{number}",
                        "namespace": owner["metadata"]["namespace"],
                        "labels": labels,
                    },
                    "addressType": ("IPv4", "IPv6")[family],
                    "ports": ports,
                    "endpoints": endpoints,
                }
            )
    return found


def cluster(dice: random.Random) -> list[Manifest]:
    """Return a whole cluster: two to four nodes."""
    count = dice.randint(2, 4)
    pods = [pod(index, dice.randrange(count)) for index in range(dice.randint(3, 7))]
    services = [service(dice, index) for index in range(dice.randint(1, 4))]
    return [*nodes(count), *pods, *services, *(piece for one in services for piece in slices(dice, one, pods))]


def flows(dice: random.Random, manifests: list[Manifest], count: int) -> list[dict[str, Any]]:
    """Return flows between pods of a cluster, directly and through services, in both families."""
    pods = [item for item in manifests if item["kind"] == "Pod"]
    services = [item for item in manifests if item["kind"] == "Service"]
    found: list[dict[str, Any]] = []
    while len(found) < count:
        client = dice.choice(pods)
        family = dice.randrange(2)
        flow: dict[str, Any] = {"from": client["status"]["podIPs"][family]["ip"], "samples": dice.randint(1, 4)}
        flow["protocol"] = dice.choice(["TCP", "UDP", "TCP", "UDP", "SCTP", "ICMP"])
        if dice.random() < 0.25 or not services:
            target = dice.choice(pods)
            flow |= {"to": target["status"]["podIPs"][family]["ip"], "port": dice.randint(1, 65535)}
        else:
            target = dice.choice(services)
            addresses = [one for one in target["spec"]["clusterIPs"] if (":" in one) == bool(family)]
            if not addresses:
                continue
            port = dice.choice(target["spec"]["ports"])
            flow["protocol"] = port.get("protocol", "TCP") if dice.random() < 0.9 else "TCP"
            name = f"{target['metadata']['namespace']}/{target['metadata']['name']}"
            flow["to"] = dice.choice([addresses[0], name])
            flow["port"] = port["port"] if dice.random() < 0.9 else 7
            if dice.random() < 0.2 and flow["protocol"] == port.get("protocol", "TCP") and "name" in port:
                flow["port"] = port["name"]
        found.append(flow)
    return found
