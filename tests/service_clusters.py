"""Random clusters with every kind of service, steps that change them, and connections worth asking about.

The same seed, the same cluster. Addresses are few, so that services share and dispute them; what one endpoint says of
itself is the same in every slice, because kube-proxy takes whichever comes first.
"""

from __future__ import annotations

import copy
import random
from typing import Any, NamedTuple

from tests.service_oracle import ANY, DIRECT, Client, Flags, Manifest, Oracle, Who, cluster_ips, is_v6, owner_of

ZONES = ["a", "b", "c"]
TIMES = [f"2026-01-0{day}T00:00:00Z" for day in range(1, 5)]
CONDITIONS: list[Any] = [
    *[{"ready": True, "serving": True, "terminating": False}] * 6,
    *[{"ready": False, "serving": True, "terminating": True}] * 3,
    {"ready": False, "serving": False, "terminating": True},
    {"ready": False, "serving": False, "terminating": False},
    {"ready": True, "serving": True, "terminating": True},
    {"ready": False, "terminating": True},
    {"ready": False},
    {"ready": None, "serving": None, "terminating": None},
    {},
    None,
]
PORTS: list[list[Manifest]] = [
    [{"port": 80}],
    [{"name": "", "port": 80, "protocol": "TCP"}],
    [{"name": "http", "port": 80}, {"name": "https", "port": 443, "protocol": "TCP"}],
    [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}],
    [
        {"name": "s", "port": 80, "protocol": "SCTP"},
        {"name": "t", "port": 80, "protocol": "TCP"},
        {"name": "u", "port": 80, "protocol": "UDP"},
    ],
]
POOLS = {
    "lb": ["198.51.100.1", "198.51.100.2", "2001:db8:1::1", "2001:db8:1::2"],
    "external": ["198.51.100.2", "198.51.101.1", "192.0.2.1", "2001:db8:2::1", "2001:db8:1::2", "2001:db8:3::1"],
    "outside": ["203.0.113.7", "198.18.0.9", "2001:db8:9::7", "2001:db8:a::9"],
}
ODD = {
    "lb": ["192.168.0.1", "fd00::1", "10.1.0.200", "fd01::200"],
    "external": ["192.168.0.1", "fd0f::1", "172.16.0.1"],
}
RANGES = [
    "203.0.113.0/24",
    "10.1.0.0/16",
    "0.0.0.0/0",
    "192.168.0.0/24",
    "2001:db8:9::/48",
    "fd01::/32",
    "10.1.1.0/24 ",
]
NO_RANGES: list[Any] = [None, None, None, [], ["anywhere"], ["anywhere", "2001:db8:9::/48"]]
FLAGS = [
    Flags(nodeport, external, service, pods)
    for nodeport in (("primary",), (), ("172.16.0.0/12",), ("192.168.0.0/24", "fd00::/64"), ("fd00::/64",))
    for external in ((), ("198.51.100.0/23", "2001:db8:2::/47"), ("0.0.0.0/0", "::/0"))
    for service in ((), ("10.96.0.0/24", "fd96::/112"))
    for pods in ((), ("10.1.0.0/16", "fd01::/32"))
]


class Step(NamedTuple):
    """A change of one object: what it now is, or None when it is gone."""

    item: Manifest
    gone: bool = False


def identity(item: Manifest) -> tuple[str, str, str]:
    """Return what tells objects apart."""
    return item["kind"], *owner_of(item)


class Cluster:
    """A cluster being made up. ``manifests()`` is what it is now; ``step()`` changes it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.flags = self.dice.choice(FLAGS)
        self.nodes = [self._node(index) for index in range(self.dice.randint(2, 6))]
        self.pods = [self._pod(index) for index in range(self.dice.randint(4, 10))]
        self.services: dict[int, Manifest] = {}
        self.slices: dict[int, list[Manifest]] = {}
        self.said: dict[tuple[int, int], Manifest] = {}
        for index in range(self.dice.randint(2, 6)):
            self._renew(index)

    @property
    def here(self) -> str:
        """The node from which it is seen."""
        return str(self.nodes[0]["metadata"]["name"])

    @property
    def own(self) -> list[str]:
        """Every address on this node's interfaces."""
        addresses = [each["address"] for each in self.nodes[0]["status"]["addresses"] if each["type"] == "InternalIP"]
        return [*addresses, "172.16.0.1", "fd0f::1"]

    def manifests(self) -> list[Manifest]:
        """Return all objects as they are."""
        slices = [each for some in self.slices.values() for each in some]
        return [*self.nodes, *self.pods, *self.services.values(), *slices]

    def oracle(self) -> Oracle:
        """Return who knows what must happen in the cluster as it is."""
        return Oracle(self.manifests(), self.here, self.flags, self.own)

    def step(self) -> list[Step]:
        """Change something; return the objects that are different now, in the order in which one would be told."""
        before = {identity(item): copy.deepcopy(item) for item in self.manifests()}
        change = self.dice.choice(
            [self._renew, self._renew_slices, self._retouch, self._retouch, self._vary, self._vary]
        )
        change(self.dice.choice([*self.services, len(self.services)] if change == self._renew else [*self.services]))
        if self.dice.random() < 0.1:
            self._drop(self.dice.choice([*self.services]))
        if self.dice.random() < 0.1:
            self.nodes[0]["metadata"]["labels"] = self._zone()
        if self.dice.random() < 0.1:
            self.flags = self.dice.choice(FLAGS)
        after = {identity(item): item for item in self.manifests()}
        steps = [Step(before[key], gone=True) for key in before.keys() - after.keys()]
        steps += [Step(copy.deepcopy(item)) for key, item in after.items() if before.get(key) != item]
        steps.sort(key=lambda step: identity(step.item))
        self.dice.shuffle(steps)
        return steps

    # Changes

    def _renew(self, index: int) -> None:
        self.services[index] = self._service(index)
        self.said = {key: said for key, said in self.said.items() if key[0] != index}
        self._renew_slices(index)

    def _renew_slices(self, index: int) -> None:
        self.slices[index] = self._slices(index)

    def _drop(self, index: int) -> None:
        """The service goes; its slices follow, or stay behind for a while."""
        if len(self.services) > 1:
            del self.services[index]
            if self.dice.random() < 0.5:
                del self.slices[index]

    def _retouch(self, index: int) -> None:
        """One pod's condition changes, as in a rolling update."""
        number = self.dice.randrange(len(self.pods))
        self.said.pop((index, number), None)
        for piece in self.slices[index]:
            for each in piece["endpoints"]:
                if self.pods[number]["metadata"]["name"] == each["targetRef"]["name"]:
                    each.update(self._say(index, number))

    def _vary(self, index: int) -> None:
        """A field or two of a service's change."""
        other = self._service(index)
        for _ in range(self.dice.randint(1, 2)):
            field = self.dice.choice([key for key in other["spec"] if key not in {"type", "clusterIPs", "clusterIP"}])
            self.services[index]["spec"][field] = other["spec"][field]
        self.services[index]["metadata"]["annotations"] = other["metadata"]["annotations"]
        if self.services[index]["spec"]["type"] == "LoadBalancer":
            self.services[index]["status"] = self._status()
        if self.services[index]["spec"]["type"] not in {"NodePort", "LoadBalancer"}:
            for port in self.services[index]["spec"]["ports"]:
                port.pop("nodePort", None)  # the API server refuses others

    # Objects

    def _node(self, index: int) -> Manifest:
        addresses = [f"192.168.0.{index + 1}", f"fd00::{index + 1:x}"][: self.dice.choice([1, 2, 2, 2])]
        found = [{"type": "InternalIP", "address": each} for each in addresses]
        found += [
            {"type": "Hostname", "address": f"n{index}"},
            {"type": "ExternalIP", "address": f"192.0.2.{index + 200}"},
        ]
        return {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": f"n{index}", "labels": self._zone()},
            "spec": {"podCIDRs": [f"10.1.{index}.0/24", f"fd01:0:{index}::/64"]},
            "status": {"addresses": found},
        }

    def _zone(self) -> dict[str, str]:
        return {"topology.kubernetes.io/zone": self.dice.choice(ZONES)} if self.dice.random() < 0.9 else {}

    def _pod(self, index: int) -> Manifest:
        node = 0 if index < 2 else self.dice.randrange(len(self.nodes))
        host = index == 2 + node  # one a node: two would have one address, and different things to say of it
        host &= self.dice.random() < 0.5
        addresses = [f"10.1.{node}.{index + 10}", f"fd01:0:{node}::{index + 10:x}"]
        if host:
            addresses = [
                each["address"] for each in self.nodes[node]["status"]["addresses"] if each["type"] == "InternalIP"
            ]
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": f"p{index}", "namespace": "default"},
            "spec": {"nodeName": f"n{node}", "containers": [], "hostNetwork": host},
            "status": {"podIPs": [{"ip": each} for each in addresses]},
        }

    def _service(self, index: int) -> Manifest:
        dice = self.dice
        kind = dice.choice(
            ["ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "LoadBalancer", "ExternalName"]
        )
        labels: dict[str, str] = dice.choice(
            [{}] * 12 + [{"service.kubernetes.io/service-proxy-name": "x"}, {"service.kubernetes.io/headless": ""}]
        )
        spec: Manifest = {"type": kind, "ports": copy.deepcopy(dice.choice(PORTS))} | self._ips(index, kind)
        for number, port in enumerate(spec["ports"]):
            if kind in {"NodePort", "LoadBalancer"} and dice.random() < 0.9:
                shared = dice.random() < 0.1  # until the control plane has sorted it out
                port["nodePort"] = 30000 + number + (0 if shared else 8 * (index + 1))
        spec |= {
            "externalIPs": dice.sample(POOLS["external"], dice.choice([0, 0, 1, 2])) + self._odd("external"),
            "internalTrafficPolicy": dice.choice(["Cluster", "Cluster", "Local", None]),
            "externalTrafficPolicy": dice.choice(["Cluster", "Local"]),
            "publishNotReadyAddresses": dice.random() < 0.1,
            "sessionAffinity": dice.choice(["None", "None", "ClientIP"]),
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": dice.choice([1, 10800, 86400])}},
            "loadBalancerSourceRanges": dice.choice([*NO_RANGES, *[dice.sample(RANGES, dice.randint(1, 3))] * 3]),
        }
        if spec["sessionAffinity"] == "None":
            del spec["sessionAffinityConfig"]
        if kind == "ClusterIP" and not spec["externalIPs"]:
            del spec["externalTrafficPolicy"]  # the API takes it for what is reached from outside only
        meta = {
            "name": f"s{index}",
            "namespace": f"ns{index % 2}",
            "creationTimestamp": dice.choice(TIMES),
            "labels": labels,
            "annotations": dice.choice([{}, {DIRECT: "true"}, {DIRECT: "true"}, {DIRECT: "false"}, {DIRECT: "yes"}]),
        }
        status = self._status() if kind == "LoadBalancer" else {}
        return {"kind": "Service", "apiVersion": "v1", "metadata": meta, "spec": spec, "status": status}

    def _ips(self, index: int, kind: str) -> Manifest:
        addresses = [f"10.96.0.{index + 1}", f"fd96::{index + 1:x}"]
        if self.dice.random() < 0.5:
            addresses.reverse()
        if kind == "ClusterIP" and self.dice.random() < 0.1:
            addresses = ["None"]
        addresses = addresses[: self.dice.choice([1, 2, 2])]
        if kind == "ExternalName":
            return {"externalName": "example.org"}
        families = [["IPv4", "IPv6"][is_v6(each)] for each in addresses]
        return {"clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilies": families}

    def _status(self) -> Manifest:
        texts = self.dice.sample(POOLS["lb"], self.dice.choice([0, 1, 2, 3, 4])) + self._odd("lb")
        ingress: list[Manifest] = [{"ip": each} for each in texts]
        for entry in ingress:
            entry.update(self.dice.choice([{}, {}, {"ipMode": "VIP"}, {"ipMode": "Proxy"}]))
        return {"loadBalancer": {"ingress": [*ingress, *self.dice.choice([[], [], [{"hostname": "lb.example"}]])]}}

    def _odd(self, pool: str) -> list[str]:
        """Addresses of this node's own, or a pod's."""
        return self.dice.sample(ODD[pool], 1) if self.dice.random() < 0.3 else []

    def _slices(self, index: int) -> list[Manifest]:
        found = []
        owner, dice = self.services[index], self.dice
        self.hinting = dice.choice([(), (), ("forZones",), ("forZones",), ("forNodes",), ("forZones", "forNodes")])
        for ipv6 in (False, True):
            for number in range(dice.choice([0, 1, 1, 1, 2, 3])):
                ports: list[Manifest] = [
                    {key: value for key, value in port.items() if key in {"name", "protocol"}}
                    for port in owner["spec"]["ports"]
                    if dice.random() < 0.9
                ]
                for port in ports:
                    port["port"] = 9000 + dice.randrange(3)
                chosen = dice.sample(range(len(self.pods)), dice.choice([0, 1, 2, 3, 4]))
                endpoints = [self._endpoint(index, each, ipv6=ipv6) for each in chosen]
                labels: Manifest = dict(owner["metadata"]["labels"])
                labels["kubernetes.io/service-name"] = owner["metadata"]["name"]
                if dice.random() < 0.03:
                    del labels["kubernetes.io/service-name"]
                name, namespace = f"s{index}-{'46'[ipv6]}-{number}", owner["metadata"]["namespace"]
                found.append(
                    {
                        "kind": "EndpointSlice",
                        "apiVersion": "discovery.k8s.io/v1",
                        "metadata": {"name": name, "namespace": namespace, "labels": labels},
                        "addressType": ("IPv4", "IPv6")[ipv6],
                        "ports": ports,
                        "endpoints": [each for each in endpoints if each["addresses"]],
                    }
                )
        return found

    def _endpoint(self, index: int, number: int, *, ipv6: bool) -> Manifest:
        pod = self.pods[number]
        addresses = [each["ip"] for each in pod["status"]["podIPs"] if is_v6(each["ip"]) == ipv6]
        where = {"nodeName": pod["spec"]["nodeName"], "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"]}}
        return {"addresses": addresses, **where, **self._say(index, number)}

    def _say(self, index: int, number: int) -> Manifest:
        """What a pod says of itself as an endpoint of a service."""
        if (index, number) not in self.said:
            conditions = copy.deepcopy(self.dice.choice(CONDITIONS))
            if self.services[index]["spec"]["publishNotReadyAddresses"] and conditions:
                conditions["ready"] = True
            hints: Manifest = {}
            for kind in self.hinting if self.dice.random() < 0.95 else ():
                pool = ZONES if kind == "forZones" else [each["metadata"]["name"] for each in self.nodes]
                hints[kind] = [{"name": each} for each in self.dice.sample(pool, self.dice.choice([1, 1, 2]))]
            self.said[index, number] = {"conditions": conditions, "hints": hints or self.dice.choice([None, {}])}
        return self.said[index, number]


class Question(NamedTuple):
    """A connection."""

    client: Client
    destination: str
    port: int
    protocol: str


def clients(cluster: Cluster) -> list[Client]:
    """Return who may ask: every class, both families."""
    found = [Client(Who.OUTSIDE, each) for each in POOLS["outside"]]
    found += [Client(Who.HOST, each) for each in cluster.own]
    for pod in cluster.pods:
        here, host = pod["spec"]["nodeName"] == cluster.here, pod["spec"]["hostNetwork"]
        who = (Who.HOST if here else Who.OUTSIDE) if host else (Who.POD if here else Who.REMOTE_POD)
        found += [Client(who, entry["ip"]) for entry in pod["status"]["podIPs"]]
    return list(dict.fromkeys(found))


def questions(cluster: Cluster, dice: random.Random, count: int) -> list[Question]:
    """Return connections: mostly to what is, or nearly is, a service."""
    askers = clients(cluster)
    addresses = [*POOLS["lb"], *POOLS["external"], *cluster.own, "127.0.0.1", "192.168.0.2", "fd00::2", "10.96.0.77"]
    addresses += ["fd96::77", "10.1.0.10", "192.0.2.77"]
    served = [claimed for claimed in cluster.oracle().claims if claimed[0] not in ANY.values()]
    ends: list[tuple[str, int, str]] = []
    for item in cluster.services.values():
        spec = item["spec"]
        named = [*cluster_ips(item).values(), *spec["externalIPs"], *POOLS["lb"], *ODD["lb"], *ODD["lb"]]
        for port in spec["ports"]:
            protocol = port.get("protocol", "TCP")
            ends += [(address, port["port"], protocol) for address in named]
            ends += [(address, port["nodePort"], protocol) for address in cluster.own if port.get("nodePort")]
            addresses += named
    nearly = [(address, port, "TCP") for address in addresses for port in (80, 53, 7, 30000)]
    found: list[Question] = []
    while len(found) < count:
        kind = dice.random()
        end = dice.choice(served if kind < 0.4 and served else ends if kind < 0.85 and ends else nearly)
        if kind > 0.97:  # of the service CIDR, where there is one, and nobody's
            end = (dice.choice(["10.96.0.77", "fd96::77"]), 80, "TCP")
        if dice.random() < 0.1:
            end = (end[0], end[1], dice.choice(["TCP", "UDP", "SCTP"]))
        alike = [each for each in askers if is_v6(each.address) == is_v6(end[0])]
        who = dice.choice(list(Who))
        alike = [each for each in alike if each.who == who] or alike
        found.append(Question(dice.choice(alike), *end))
    return found
