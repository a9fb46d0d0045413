"""A lab under policies: its pods and services, policies written in short, and who gets through to whom."""

from __future__ import annotations

import ipaddress
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ebpfnet import abi
from ebpfnet.lab import agents, client, folder
from ebpfnet.lab.cluster import Inside, Lab
from ebpfnet.maps import pins
from ebpfnet.maps.percpu import totals
from tests.netns.conftest import PATIENCE, Wait

Manifest = dict[str, Any]

SILENCE_S = 0.4  # as long as what is dropped is waited for; what is there answers in less than a millisecond
NODES = ("node-a", "node-b")
TCP = (8080, 8081, 9000, 9001, 9010)
UDP = (5353,)
HOST_PORT = 18080
FILE = "world.yaml"


class PodOf(NamedTuple):
    """Where a pod is, and its labels."""

    node: int
    last: int
    labels: dict[str, str]
    namespace: str = "default"
    named: tuple[tuple[str, int], ...] = ()
    host: bool = False


PODS = {
    "asker": PodOf(1, 10, {"role": "friend"}),
    "stranger": PodOf(1, 11, {"role": "stranger"}),
    "near": PodOf(1, 12, {"app": "server"}, named=(("web", 8080),)),
    "far": PodOf(2, 12, {"app": "server"}, named=(("web", 8081),)),
    "remote": PodOf(2, 10, {"role": "friend"}),
    "blue": PodOf(1, 20, {"role": "friend"}, "team-blue"),
    "blue-stranger": PodOf(2, 20, {"role": "stranger"}, "team-blue"),
    "hostly": PodOf(1, 0, {"app": "server"}, host=True),
}
SERVICES = {"near": (1, "Local"), "far": (2, "Cluster")}
"""The service of each server: its number, and whether clients outside keep their addresses."""


def addresses(pod: PodOf) -> list[str]:
    """Return a pod's addresses."""
    if pod.host:
        return [f"10.0.0.1{pod.node}", f"fd00:10::1{pod.node}"]
    return [f"10.244.{pod.node}.{pod.last}", f"fd00:10:244:{pod.node}::{pod.last}"]


def pod(name: str, what: PodOf) -> Manifest:
    """Return a pod that answers at every port."""
    names = {number: called for called, number in what.named}
    ports: list[Manifest] = [{"containerPort": HOST_PORT}] if what.host else []
    for protocol, numbers in (("TCP", TCP), ("UDP", UDP)):
        for number in () if what.host else numbers:
            called = {"name": names[number]} if number in names else {}
            ports.append({"containerPort": number, "protocol": protocol, **called})
    found = addresses(what)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": what.namespace, "labels": what.labels},
        "spec": {
            "nodeName": NODES[what.node - 1],
            "hostNetwork": what.host,
            "containers": [{"name": "main", "ports": ports}],
        },
        "status": {"podIP": found[0], "podIPs": [{"ip": each} for each in found]},
    }


def namespace(name: str, labels: dict[str, str]) -> Manifest:
    """Return a namespace, labelled with its name as the API server does."""
    labels = {"kubernetes.io/metadata.name": name, **labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def service(name: str) -> Iterator[Manifest]:
    """Yield a server's service and slices: TCP 80 and UDP 53, and a node port for each."""
    number, outside = SERVICES[name]
    ips = [f"10.96.2.{number}", f"fd00:10:96::2:{number}"]
    targets = [("tcp", "TCP", 80, TCP[0]), ("udp", "UDP", 53, UDP[0])]
    ports = [
        {"name": each[0], "protocol": each[1], "port": each[2], "targetPort": each[3], "nodePort": node_port(name, at)}
        for at, each in enumerate(targets)
    ]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
                 "ports": ports, "externalTrafficPolicy": outside},
    }  # fmt: skip
    for at, family in enumerate(("IPv4", "IPv6")):
        labels = {"kubernetes.io/service-name": name}
        server = PODS[name]
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{name}-{family.lower()}", "namespace": "default", "labels": labels},
            "addressType": family,
            "ports": [{"name": each[0], "protocol": each[1], "port": each[3]} for each in targets],
            "endpoints": [{"addresses": [addresses(server)[at]], "conditions": {"ready": True},
                           "nodeName": NODES[server.node - 1]}],
        }  # fmt: skip


def node_port(name: str, at: int) -> int:
    """Return the node port of a server's service."""
    return 30200 + 10 * SERVICES[name][0] + at


def policy(name: str, select: Manifest | None = None, place: str = "default", **spec: Any) -> Manifest:
    """Return a NetworkPolicy: by default of the servers. Keywords are fields of its ``spec``, and annotations."""
    annotations = spec.pop("annotations", {})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": place, "annotations": annotations},
        "spec": {"podSelector": labelled(app="server") if select is None else select, **spec},
    }


def cluster_policy(name: str, tier: str, priority: int, **spec: Any) -> Manifest:
    """Return a ClusterNetworkPolicy of the servers."""
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "tier": tier,
            "priority": priority,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": labelled(app="server")}},
            **spec,
        },
    }


def labelled(**labels: str) -> Manifest:
    """Return a label selector."""
    return {"matchLabels": labels}


class Ask(NamedTuple):
    """Who asks whom for what: ``asker>near``, ``asker>near:9000``, ``asker>far:udp``, ``outside>port-near:icmp``."""

    text: str
    ipv6: bool

    @property
    def client(self) -> str:
        """Who asks."""
        return self.text.partition(">")[0]

    @property
    def target(self) -> str:
        """Whom: a pod, ``service-`` and ``port-`` of one (its cluster IP, and its node port at its own node)."""
        return self.text.partition(">")[2].partition(":")[0]

    @property
    def what(self) -> str:
        """For what: a TCP port, ``udp`` or ``icmp``."""
        return self.text.partition(":")[2]


class World:
    """A lab whose pods, namespaces and policies are one file, written whole and waited for."""

    def __init__(self, lab: Lab, wait: Wait) -> None:
        self.lab, self.wait = lab, wait
        self.generation = 0
        self.pods = dict(PODS)
        self.namespaces = {"default": {"team": "none"}, "team-blue": {"team": "blue"}}
        self.policies: list[Manifest] = []

    def documents(self) -> list[Manifest]:
        """Return what the file holds: a policy of no pod among it, to know by which version is enforced."""
        marker = policy("marker", place="marks")
        for each in (*self.policies, marker):
            each["metadata"]["generation"] = self.generation
        spaces = [namespace(name, labels) for name, labels in self.namespaces.items()]
        pods = [pod(name, each) for name, each in self.pods.items()]
        return [*spaces, *pods, *(each for name in SERVICES for each in service(name)), *self.policies, marker]

    def put(self, policies: Iterable[Manifest] | None = None) -> None:
        """Write the file; other policies when they are given."""
        if policies is not None:
            self.policies = list(policies)
        self.generation += 1
        write(self.lab.manifests, self.documents())

    def apply(self, policies: Iterable[Manifest] | None = None) -> None:
        """Write the file, and wait until every node enforces what it says."""
        self.put(policies)
        self.wait(lambda: all(map(self._enforced, NODES)))

    def relabel(self, name: str, **labels: str) -> None:
        """Give a pod other labels, and wait until that counts."""
        self.pods[name] = self.pods[name]._replace(labels=labels)
        self.apply()

    def restore(self) -> None:
        """Return to a world without policies."""
        fresh = World(self.lab, self.wait)
        self.pods, self.namespaces = fresh.pods, fresh.namespaces
        self.apply([])

    def told(self, node: str) -> list[Manifest]:
        """Return what a node's agent says of policies."""
        answer = agents.ask(self.lab.places, node, "policies")
        return answer["policies"] if answer else []

    def _enforced(self, node: str) -> bool:
        have = {each["policy"]: (each["generation"], each["enforced"]) for each in self.told(node)}
        names = [_ref(each) for each in self.policies] + ["NetworkPolicy marks/marker"]
        return have == dict.fromkeys(names, (self.generation, True))

    def place(self, who: str) -> Inside:
        """Return where somebody who asks is."""
        if who.startswith("outside"):
            return self.lab.outside()
        return self.lab.node(who) if who in NODES else self.lab.pod(f"{self.pods[who].namespace}/{who}")

    def address(self, ask: Ask) -> tuple[str, int]:
        """Return the address and the port that an ask is for."""
        kind, _, name = ask.target.rpartition("-")
        udp = ask.what == "udp"
        port = int(ask.what) if ask.what.isdigit() else (UDP if udp else TCP)[0]
        if kind == "service":
            number = SERVICES[name][0]
            return (f"fd00:10:96::2:{number}" if ask.ipv6 else f"10.96.2.{number}"), 53 if udp else 80
        if kind == "port":
            place = self.lab.node("node-a")
            return (place.v6 if ask.ipv6 else place.v4), node_port(name, udp)
        target = self.pods[ask.target]
        return addresses(target)[ask.ipv6], HOST_PORT if target.host else port

    def passes(self, ask: Ask, timeout: float = PATIENCE) -> bool:
        """Ask, and say whether the answer came. Anything but an answer and silence is an error."""
        place, (address, port) = self.place(ask.client), self.address(ask)
        if ask.what == "icmp":
            return place.exec("ping", "-c1", f"-W{timeout}", "-q", address).returncode == 0
        source = place.addresses[2 * ask.ipv6 + (ask.client == "outside-2")] if ask.client.startswith("outside") else ""
        call = client.udp if ask.what == "udp" else client.tcp
        try:
            call(place, address, port, timeout=timeout, source=source)
        except TimeoutError:
            return False
        return True

    def check(self, allowed: str, denied: str = "") -> None:
        """Check who gets through, over both families: silence for everybody else, and a counted drop each."""
        before = self.drops()
        asks = [Ask(text, ipv6) for text in (allowed + " " + denied).split() for ipv6 in (False, True)]
        wanted = {ask: ask.text in allowed.split() for ask in asks}
        with ThreadPoolExecutor(16) as pool:
            found = dict(zip(asks, pool.map(lambda ask: self.passes(ask, PATIENCE if wanted[ask] else SILENCE_S), asks),
                             strict=True))  # fmt: skip
        assert {ask: found[ask] for ask in asks if found[ask] != wanted[ask]} == {}
        after = self.drops()
        missing = list(wanted.values()).count(False)
        assert after["policy"] - before["policy"] >= missing, (before, after)
        assert missing or after["policy"] == before["policy"], (before, after)

    def drops(self) -> Counter[str]:
        """Return how many packets policies dropped, and would have, on all nodes."""
        found: Counter[str] = Counter()
        reasons: dict[int, str] = {abi.DropReason.POLICY_INGRESS: "policy", abi.DropReason.POLICY_EGRESS: "policy",
                   abi.DropReason.AUDITED: "audited", abi.DropReason.NO_RULES: "no rules"}  # fmt: skip
        for node in NODES:
            with pins.opened(self.lab.pins(node)) as tables:
                for key, value in tables["drops"].items():
                    reason = int.from_bytes(key, "little") % abi.DROP_MAX
                    found[reasons.get(reason, "other")] += totals(value, abi.Counter)[0]
        assert not found["no rules"]
        return found


def _ref(manifest: Manifest) -> str:
    meta = manifest["metadata"]
    name = f"{meta['namespace']}/{meta['name']}" if "namespace" in meta else meta["name"]
    return f"{manifest['kind']} {name}"


def write(place: Path, documents: Iterable[Manifest]) -> None:
    """Put the world's file in its place in one step."""
    draft = place / f".{FILE}.{os.getpid()}"
    draft.write_text("\n---\n".join(map(json.dumps, documents)))
    draft.replace(place / FILE)


def folder_of(place: Path) -> Path:
    """Write a folder of manifests: the demo's nodes, and a world without policies."""
    nodes = [each for each in yaml.safe_load_all((folder.DEMO / "nodes.yaml").read_text()) if each["kind"] == "Node"]
    (place / "nodes.yaml").write_text(yaml.safe_dump_all(nodes))
    pods = [pod(name, each) for name, each in PODS.items()]
    write(place, [*pods, *(each for name in SERVICES for each in service(name))])
    return place


@contextmanager
def world(name: str, place: Path, wait: Wait) -> Iterator[World]:
    """Bring a lab up that is under policies."""
    with Lab.up(name, folder_of(place), timeout=PATIENCE) as lab:
        found = World(lab, wait)
        found.apply([])
        yield found


def block(address: str) -> str:
    """Return the block of one address."""
    return str(ipaddress.ip_network(address))
