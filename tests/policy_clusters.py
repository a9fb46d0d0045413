"""Random clusters with policies of both kinds, as manifests, and connections worth asking about.

The same seed, the same cluster. Labels, names of ports and blocks are few, so that policies overlap and dispute.
"""

from __future__ import annotations

import ipaddress
import random
from typing import Any

from tests.policy_oracle import ESTABLISHED, MODE, Flow, Manifest

KEYS = {"app": ["web", "db", "cache", ""], "tier": ["front", "back"], "env": ["prod", "dev"]}
NAMES = ["http", "dns", "metrics"]
NUMBERS = [53, 80, 8080, 8081, 9090]
PROTOCOLS = ["TCP", "UDP", "SCTP"]
OUTSIDE = ["203.0.113.7", "198.51.100.9", "2001:db8:9::7", "2001:db8:a::9"]
WIDE = [
    "0.0.0.0/0",
    "::/0",
    "10.1.0.0/16",
    "fd01::/32",
    "192.168.0.0/24",
    "fd00::/64",
    "203.0.113.0/24",
    "2001:db8::/32",
]


class Cluster:
    """A cluster being made up."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.graceful = self.dice.random() < 0.5
        self.nodes = [self._node(index) for index in range(self.dice.randint(1, 3))]
        self.namespaces = [self._namespace(index) for index in range(self.dice.choice([1, 1, 2, 3]))]
        self.pods = [self._pod(index) for index in range(self.dice.randint(3, 10))]
        most = self.dice.choice([3, 8, 14])
        self.policies = [self._policy(index) for index in range(self.dice.randint(0, most))]
        self.cluster_policies = [self._cluster_policy(index) for index in range(self.dice.choice([0, 2, most, most]))]

    def manifests(self) -> list[Manifest]:
        """Return all objects."""
        return [*self.nodes, *self.namespaces, *self.pods, *self.policies, *self.cluster_policies]

    def flows(self, count: int) -> list[Flow]:
        """Return connections, of pods mostly, in both families, to ports that something speaks of."""
        ports = [*NUMBERS, 1, 79, 81, 8079, 8082, 9089, 9091, 65535]
        found: list[Flow] = []
        while len(found) < count:
            family = self.dice.randrange(2)
            source, destination = (str(ipaddress.ip_address(self._address(family))) for _ in range(2))
            protocol = self.dice.choice([*PROTOCOLS, *PROTOCOLS, "ICMP"])
            port = self.dice.choice(ports) if self.dice.random() < 0.8 else self.dice.randint(1, 65535)
            found.append(Flow(source, destination, protocol, 0 if protocol == "ICMP" else port))
        return found

    def _address(self, family: int) -> str:
        if self.dice.random() < 0.8:
            return str(self.dice.choice(self.pods)["status"]["podIPs"][family]["ip"])
        others = [each["address"] for node in self.nodes for each in node["status"]["addresses"]]
        others += OUTSIDE
        if self.dice.random() < 0.3:  # the first, last or any address of some block
            block = ipaddress.ip_network(self._block())
            others += [
                str(block[self.dice.choice([0, -1, self.dice.randrange(min(block.num_addresses, 1 << 30))])])
            ] * 9
        fitting = [each for each in others if (":" in each) == bool(family)]
        return str(self.dice.choice(fitting))

    # Objects

    def _labels(self) -> dict[str, str]:
        return {key: self.dice.choice(values) for key, values in KEYS.items() if self.dice.random() < 0.6}

    def _node(self, index: int) -> Manifest:
        addresses = [("InternalIP", f"192.168.0.{index + 1}"), ("InternalIP", f"fd00::{index + 1:x}")]
        if self.dice.random() < 0.3:
            addresses.append(("ExternalIP", f"203.0.113.{index + 100}"))
        return {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": f"n{index}", "labels": self._labels()},
            "spec": {"podCIDRs": [f"10.1.{index}.0/24", f"fd01:0:0:{index}::/64"]},
            "status": {"addresses": [{"type": kind, "address": address} for kind, address in addresses]},
        }

    def _namespace(self, index: int) -> Manifest:
        name = f"ns{index}"
        labels = {**self._labels(), "kubernetes.io/metadata.name": name}
        return {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}}

    def _pod(self, index: int) -> Manifest:
        node = self.dice.randrange(len(self.nodes))
        hosted = self.dice.random() < 0.08
        addresses = [f"10.1.{node}.{index + 10}", f"fd01:0:0:{node}::{index + 16:x}"]
        if hosted:
            addresses = [f"192.168.0.{node + 1}", f"fd00::{node + 1:x}"]
        ports = [self._container_port() for _ in range(self.dice.randint(0, 4))]
        middle = self.dice.randint(0, len(ports))
        spec: Manifest = {"nodeName": f"n{node}", "containers": [{"ports": ports[:middle]}, {"ports": ports[middle:]}]}
        if hosted:
            spec["hostNetwork"] = True
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": f"p{index}", "namespace": self._in(), "labels": self._labels()},
            "spec": spec,
            "status": {
                "phase": "Succeeded" if self.dice.random() < 0.05 else "Running",
                "podIPs": [{"ip": each} for each in addresses],
            },
        }

    def _container_port(self) -> Manifest:
        port: Manifest = {"containerPort": self.dice.choice(NUMBERS)}
        if self.dice.random() < 0.8:
            port["name"] = self.dice.choice(NAMES)
        if self.dice.random() < 0.6:
            port["protocol"] = self.dice.choice(PROTOCOLS)
        return port

    def _in(self) -> str:
        return str(self.dice.choice(self.namespaces)["metadata"]["name"])

    def _meta(self, name: str) -> Manifest:
        annotations = {}
        if self.dice.random() < 0.3:
            annotations[MODE] = self.dice.choice(["audit", "audit", "enforce"])
        if self.dice.random() < 0.4:
            annotations[ESTABLISHED] = self.dice.choice(["strict", "graceful"])
        return {"name": name, "annotations": annotations} if annotations else {"name": name}

    # Selectors and blocks

    def _selector(self) -> Manifest:
        selector: Manifest = {}
        roll = self.dice.random()
        if roll < 0.35:
            return selector
        if roll < 0.75:
            key = self.dice.choice([*KEYS])
            selector["matchLabels"] = {key: self.dice.choice(KEYS[key])}
        if roll > 0.65:
            selector["matchExpressions"] = [self._expression() for _ in range(self.dice.randint(1, 2))]
        return selector

    def _expression(self) -> Manifest:
        key = self.dice.choice([*KEYS])
        operator = self.dice.choice(["In", "NotIn", "Exists", "DoesNotExist"])
        if operator in {"In", "NotIn"}:
            values = self.dice.sample(KEYS[key], self.dice.randint(1, len(KEYS[key])))
            return {"key": key, "operator": operator, "values": values}
        return {"key": key, "operator": operator}

    def _namespaces(self) -> Manifest:
        if self.dice.random() < 0.3:
            return {"matchLabels": {"kubernetes.io/metadata.name": self._in()}}
        return self._selector()

    def _both(self) -> Manifest:
        return {"namespaceSelector": self._namespaces(), "podSelector": self._selector()}

    def _block(self, inside: str = "") -> str:
        """Return a block, around something that is there; ``inside`` another, a part of that."""
        if not inside:
            if self.dice.random() < 0.5:
                return self.dice.choice(WIDE)
            base = self._some_address(self.dice.randrange(2))
            bits = (
                self.dice.choice([16, 24, 28, 30, 31, 32]) if "." in base else self.dice.choice([32, 64, 124, 127, 128])
            )
            return str(ipaddress.ip_network((base, bits), strict=False))
        outer = ipaddress.ip_network(inside)
        for _ in range(20):
            inner = ipaddress.ip_network(self._block())
            if inner.version == outer.version and inner.prefixlen > outer.prefixlen and inner.network_address in outer:
                return str(inner)
        return str(next(outer.subnets(1)))

    def _some_address(self, family: int) -> str:
        found = [pod["status"]["podIPs"][family]["ip"] for pod in self.pods]
        found += [each for each in OUTSIDE if (":" in each) == bool(family)]
        return str(self.dice.choice(found))

    # NetworkPolicy

    def _policy(self, index: int) -> Manifest:
        spec: Manifest = {"podSelector": self._selector()}
        for field, end in (("ingress", "from"), ("egress", "to")):
            if self.dice.random() < 0.6:
                spec[field] = [self._rule(end) for _ in range(self.dice.randint(0, 3))]
        if self.dice.random() < 0.6:
            spec["policyTypes"] = self.dice.choice([["Ingress"], ["Egress"], ["Ingress", "Egress"], []])
        meta = {**self._meta(f"p{index}"), "namespace": self._in()}
        return {"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": meta, "spec": spec}

    def _rule(self, end: str) -> Manifest:
        rule: Manifest = {}
        if self.dice.random() < 0.8:
            rule[end] = [self._peer() for _ in range(self.dice.choice([0, 1, 1, 1, 2, 3]))]
        if self.dice.random() < 0.6:
            rule["ports"] = [self._port() for _ in range(self.dice.choice([0, 1, 1, 2, 3]))]
        return rule

    def _peer(self) -> Manifest:
        kind = self.dice.randrange(4)
        if kind == 0:
            return {"podSelector": self._selector()}
        if kind == 1:
            return {"namespaceSelector": self._namespaces()}
        if kind == 2:
            return self._both()
        block: Manifest = {"cidr": self._block()}
        wide = not block["cidr"].endswith(("/32", "/128")) or block["cidr"] in WIDE
        if wide and self.dice.random() < 0.6 and ipaddress.ip_network(block["cidr"]).num_addresses > 1:
            block["except"] = [self._block(block["cidr"]) for _ in range(self.dice.randint(0, 3))]
        return {"ipBlock": block}

    def _port(self) -> Manifest:
        port: Manifest = {}
        if self.dice.random() < 0.6:
            port["protocol"] = self.dice.choice(PROTOCOLS)
        roll = self.dice.random()
        if roll < 0.3:
            port["port"] = self.dice.choice(NAMES)
        elif roll < 0.6:
            port["port"] = self.dice.choice(NUMBERS)
        elif roll < 0.85:
            port["port"] = self.dice.choice([1, 53, 79, 80, 1000, 8080])
            port["endPort"] = self.dice.choice(
                [each for each in (53, 80, 81, 8080, 9090, 65535) if each >= port["port"]]
            )
        return port

    # ClusterNetworkPolicy

    def _cluster_policy(self, index: int) -> Manifest:
        spec: Manifest = {
            "tier": self.dice.choice(["Admin", "Baseline"]),
            "priority": self.dice.choice([0, 1, 5, 1000]),  # equal ones: their names decide here
            "subject": self._pods_of_cluster(),
        }
        for field, end in (("ingress", "from"), ("egress", "to")):
            if self.dice.random() < 0.7:
                spec[field] = [self._cluster_rule(end) for _ in range(self.dice.randint(0, 4))]
        kind = {"kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2"}
        return {**kind, "metadata": self._meta(f"c{index}"), "spec": spec}

    def _pods_of_cluster(self) -> Manifest:
        return {"namespaces": self._namespaces()} if self.dice.random() < 0.5 else {"pods": self._both()}

    def _cluster_rule(self, end: str) -> Manifest:
        rule: Manifest = {"action": self.dice.choice(["Accept", "Deny", "Pass"])}
        if self.dice.random() < 0.5:
            rule["name"] = self.dice.choice(["first", "no outside", "ü"])
        rule[end] = [self._cluster_peer(end) for _ in range(self.dice.choice([1, 1, 2]))]
        if self.dice.random() < 0.6:
            named = not any("networks" in peer or "nodes" in peer for peer in rule[end])
            rule["protocols"] = [self._protocol(named) for _ in range(self.dice.choice([1, 1, 2, 3]))]
        return rule

    def _cluster_peer(self, end: str) -> Manifest:
        roll = self.dice.random()
        if roll < 0.04:  # of a newer API
            return self.dice.choice([{}, {"domainNames": ["example.com"]}, {"planets": {}}])
        if end == "to" and roll < 0.3:
            return {"networks": sorted({self._block() for _ in range(self.dice.randint(1, 3))})}
        if end == "to" and roll < 0.45:
            return {"nodes": self._selector()}
        return self._pods_of_cluster()

    def _protocol(self, named: Any) -> Manifest:
        if named and self.dice.random() < 0.4:
            return {"destinationNamedPort": self.dice.choice(NAMES)}
        port: Manifest = {"number": self.dice.choice(NUMBERS)}
        if self.dice.random() < 0.4:
            start = self.dice.choice([1, 53, 79, 8080])
            port = {"range": {"start": start, "end": self.dice.choice([80, 8081, 65535]) if start < 80 else 9090}}
        return {self.dice.choice(PROTOCOLS).lower(): {"destinationPort": port}}
