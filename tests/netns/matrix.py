"""A lab's objects for every kind of client at every kind of address, and what the oracle says of each pair."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects
from tests.service_oracle import DIRECT, Answer, Client, Flags, Manifest, Oracle, Who

CLUSTER = ("10.244.0.0/16", "fd00:10:244::/48")
EXTERNAL = ("100.64.2.0/24", "fd00:100:2::/64")
FLAGS = Flags(external_ip_cidrs=EXTERNAL, service_cidrs=("10.96.0.0/16", "fd00:10:96::/108"), cluster_cidrs=CLUSTER)
AGENT = [f"--external-ip-cidr={','.join(EXTERNAL)}", f"--service-cidr={','.join(FLAGS.service_cidrs)}",
         f"--cluster-cidr={','.join(CLUSTER)}"]  # fmt: skip
TCP_PORT, UDP_PORT, HOST_OFFSET = 8080, 5353, 10_000
PORTS = {"TCP": 80, "UDP": 53}
KINDS = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalIP")
NODES = {"m-near": "node-a", "m-far": "node-b", "m-asker": "node-a", "m-remote": "node-b", "m-host": "node-a",
         "m-host-far": "node-b"}  # fmt: skip
POLICIES: dict[str, tuple[list[str], dict[str, str]]] = {
    "cluster": (["m-near", "m-far"], {}),
    "local": (["m-near", "m-far"], {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
    "away": (["m-far"], {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}),
    "hosts": (["m-host", "m-host-far"], {}),
    "direct": (["m-near", "m-far"], {}),
    "direct-hosts": (["m-host", "m-host-far"], {}),
}
"""Which pods a service has, and how it is to be reached; with direct server return where the name says so."""


class Ask(NamedTuple):
    """One cell: who asks which service, at which of its addresses."""

    policy: str
    client: str
    kind: str
    protocol: str
    ipv6: bool

    def __str__(self) -> str:
        return "-".join(
            [self.policy, self.client.replace(" ", "_"), self.kind, self.protocol, "v6" if self.ipv6 else "v4"]
        )


CLIENTS: dict[str, tuple[str, Who]] = {
    "pod": ("m-asker", Who.POD),
    "backend": ("m-near", Who.POD),
    "remote pod": ("m-remote", Who.REMOTE_POD),
    "host": ("node-a", Who.HOST),
    "host-network pod": ("m-host", Who.HOST),
    "outside": ("outside", Who.OUTSIDE),
}
ASKS = [Ask(*each) for each in itertools.product(POLICIES, CLIENTS, KINDS, PORTS, (False, True))]


def pod(name: str, last: int) -> Manifest:
    """Return a pod that answers TCP and UDP; those of the host's network at other ports than the rest."""
    node, host = NODES[name], name.startswith("m-host")
    number = 1 if node == "node-a" else 2
    addresses = [f"10.244.{number}.{last}", f"fd00:10:244:{number}::{last}"]
    if host:
        addresses = [f"10.0.0.1{number}", f"fd00:10::1{number}"]
    ports = [("TCP", TCP_PORT), ("UDP", UDP_PORT)]
    listed = [{"containerPort": each + HOST_OFFSET * host, "protocol": protocol} for protocol, each in ports]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": objects.meta(name),
        "spec": {"nodeName": node, "hostNetwork": host, "containers": [{"name": "main", "ports": listed}]},
        "status": {"podIP": addresses[0], "podIPs": [{"ip": each} for each in addresses]},
    }


PODS = {name: pod(name, 80 + index) for index, name in enumerate(NODES)}


def addresses(policy: str, kind: str, ipv6: bool) -> str:
    """Return the address at which node-a's clients reach a service."""
    index = list(POLICIES).index(policy) + 1
    v4 = {"ClusterIP": f"10.96.1.{index}", "NodePort": "10.0.0.11", "LoadBalancer": f"100.64.1.{index}",
          "ExternalIP": f"100.64.2.{index}"}  # fmt: skip
    v6 = {"ClusterIP": f"fd00:10:96::1:{index}", "NodePort": "fd00:10::11", "LoadBalancer": f"fd00:100:1::{index}",
          "ExternalIP": f"fd00:100:2::{index}"}  # fmt: skip
    return (v6 if ipv6 else v4)[kind]


def service(policy: str) -> list[Manifest]:
    """Return a policy's service, reachable in every way, and its slices."""
    backends, fields = POLICIES[policy]
    host, families = policy.endswith("hosts"), (False, True)
    annotations = {DIRECT: "true"} if policy.startswith("direct") else {}
    ports: list[Manifest] = [
        {"name": protocol.lower(), "protocol": protocol, "port": number, "nodePort": node_port(policy, protocol)}
        for protocol, number in PORTS.items()
    ]
    cluster_ips = [addresses(policy, "ClusterIP", ipv6) for ipv6 in families]
    spec: Manifest = {
        "type": "LoadBalancer",
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ipFamilies": ["IPv4", "IPv6"],
        "ports": ports,
        "externalIPs": [addresses(policy, "ExternalIP", ipv6) for ipv6 in families],
        **fields,
    }
    if "externalTrafficPolicy" in fields:
        spec["healthCheckNodePort"] = 32000 + node_port(policy, "TCP") % 100
    ingress = [{"ip": addresses(policy, "LoadBalancer", ipv6), "ipMode": "VIP"} for ipv6 in families]
    kind = {"apiVersion": "v1", "kind": "Service", "metadata": objects.meta(f"m-{policy}", annotations=annotations)}
    targets = [("tcp", "TCP", TCP_PORT + HOST_OFFSET * host), ("udp", "UDP", UDP_PORT + HOST_OFFSET * host)]
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": objects.meta(
                f"m-{policy}-v{'46'[index]}", labels={"kubernetes.io/service-name": f"m-{policy}"}
            ),
            "addressType": ("IPv4", "IPv6")[index],
            "ports": [{"name": each[0], "protocol": each[1], "port": each[2]} for each in targets],
            "endpoints": [endpoint(name, index) for name in backends],
        }
        for index in families
    ]
    return [{**kind, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}, *slices]


def endpoint(name: str, index: int) -> Manifest:
    """Return a pod as a ready endpoint; ``index`` 1 is IPv6."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    address = PODS[name]["status"]["podIPs"][index]["ip"]
    return {"addresses": [address], "conditions": conditions, "nodeName": NODES[name]}


def node_port(policy: str, protocol: str) -> int:
    """Return a service's NodePort."""
    return 30100 + 10 * list(POLICIES).index(policy) + list(PORTS).index(protocol)


def write(place: Path) -> Path:
    """Write the matrix' objects into a folder that has nodes."""
    documents = [*PODS.values(), *(each for policy in POLICIES for each in service(policy))]
    (place / "matrix.yaml").write_text(yaml.safe_dump_all(documents))
    return place


def documents(place: Path) -> Iterator[Manifest]:
    """Read all objects of a folder."""
    for path in sorted(place.glob("*.yaml")):
        yield from (each for each in yaml.safe_load_all(path.read_text()) if each)


def asker(lab: Lab, ask: Ask) -> Inside:
    """Return where a client is."""
    name, who = CLIENTS[ask.client]
    if who == Who.OUTSIDE:
        return lab.outside()
    return lab.node(name) if name.startswith("node-") else lab.pod(name)


class Expected(NamedTuple):
    """What must come of it: which pods answer, and the sources that each may see."""

    answer: Answer
    pods: dict[str, frozenset[str]]


class Oracles:
    """What each node must do, as the folder's objects say."""

    def __init__(self, place: Path) -> None:
        items = list(documents(place))
        self._of = {name: Oracle(items, name, FLAGS) for name in ("node-a", "node-b")}
        self._names: dict[tuple[str, bool], str] = {}
        for item in PODS.values():
            for entry in item["status"]["podIPs"]:
                self._names[entry["ip"], item["spec"]["hostNetwork"]] = f"default/{item['metadata']['name']}"

    def expected(self, ask: Ask, address: str) -> Expected:
        """Ask the node at which the packet is met: a client's own, but for NodePorts the one that is called."""
        who = CLIENTS[ask.client][1]
        node = "node-a"
        if who == Who.REMOTE_POD and ask.kind != "NodePort":
            node, who = "node-b", Who.POD
        port = node_port(ask.policy, ask.protocol) if ask.kind == "NodePort" else PORTS[ask.protocol]
        target = addresses(ask.policy, ask.kind, ask.ipv6)
        found = self._of[node].answer(Client(who, str(ipaddress.ip_address(address))), target, port, ask.protocol)
        host = ask.policy.endswith("hosts")
        return Expected(found, {self._names[end[0], host]: sources for end, sources in found.backends.items()})


def target(ask: Ask) -> tuple[str, int]:
    """Return where a client connects to."""
    port = node_port(ask.policy, ask.protocol) if ask.kind == "NodePort" else PORTS[ask.protocol]
    return addresses(ask.policy, ask.kind, ask.ipv6), port


def routes(lab: Lab) -> list[list[str]]:
    """Return commands that give the outside a way to cluster IPs, as a router of a site may have."""
    node, (v4, v6) = lab.node("node-a"), FLAGS.service_cidrs
    return [["ip", "route", "replace", v4, "via", node.v4], ["ip", "-6", "route", "replace", v6, "via", node.v6]]
