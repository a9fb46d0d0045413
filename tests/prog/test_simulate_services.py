"""ebpfnet simulate with every kind of service and client: who is chosen, who is hidden, what is refused."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ebpfnet.datapath import build
from ebpfnet.operate import nodeports
from ebpfnet.simulate.interactive import Session
from ebpfnet.simulate.network import private_network
from ebpfnet.simulate.world import Flags, World
from tests.clusters import Manifest

FLAGS = Flags(
    service_cidrs=tuple(map(ipaddress.ip_network, ("10.96.0.0/16", "fd96::/112"))),
    external_ip_cidrs=(ipaddress.ip_network("198.51.100.0/28"),),
)
NODES = {"a": ["192.168.0.1", "fd00::1"], "b": ["192.168.0.2", "fd00::2"]}
PODS = {"near": ["10.1.0.5", "fd01:a::5"], "far": ["10.1.1.5", "fd01:b::5"], "client": ["10.1.0.9", "fd01:a::9"]}
HOMES = {"near": "a", "client": "a", "far": "b"}
V4, V6 = 0, 1


def node(name: str, index: int) -> Manifest:
    addresses = [{"type": "InternalIP", "address": each} for each in NODES[name]]
    spec = {"podCIDRs": [f"10.1.{index}.0/24", f"fd01:{name}::/64"]}
    return {"kind": "Node", "metadata": {"name": name}, "spec": spec, "status": {"addresses": addresses}}


def pod(name: str) -> Manifest:
    status = {"podIPs": [{"ip": each} for each in PODS[name]]}
    return {"kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": HOMES[name]}, "status": status}


def service(name: str, number: int, backends: list[str], lb: tuple[str, ...] = (), **spec: Any) -> list[Manifest]:
    """Return a service with node port 30000 + number and its endpoints."""
    ports = [{"name": "http", "port": 80, "protocol": spec.pop("protocol", "TCP"), "nodePort": 30000 + number}]
    ips = [f"10.96.0.{number}", f"fd96::{number}"]
    whole = {"type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ports": ports, **spec}
    status = {"loadBalancer": {"ingress": [{"ip": each} for each in lb]}}
    found: list[Manifest] = [{"kind": "Service", "metadata": {"name": name}, "spec": whole, "status": status}]
    for family in (V4, V6):
        endpoints = [{"addresses": [PODS[each][family]], "nodeName": HOMES[each]} for each in backends]
        found.append(
            {
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-{family}", "labels": {"kubernetes.io/service-name": name}},
                "addressType": ("IPv4", "IPv6")[family],
                "ports": [{"name": "http", "port": 8080, "protocol": ports[0]["protocol"]}],
                "endpoints": endpoints,
            }
        )
    return found


def direct(documents: list[Manifest], value: str) -> list[Manifest]:
    """Return a service with the annotation of direct server return."""
    documents[0]["metadata"]["annotations"] = {"ebpfnet.io/direct-server-return": value}
    return documents


LOCAL = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
CLUSTER = [
    node("a", 0),
    node("b", 1),
    *map(pod, PODS),
    *service("near", 1, ["near"], ("203.0.113.1", "2001:db8:1::1")),
    *service("far", 2, ["far"], ("203.0.113.2", "2001:db8:1::2"), externalIPs=["198.51.100.2", "198.51.100.99"]),
    *service("local", 3, ["far"], ("203.0.113.3", "2001:db8:1::3"), **LOCAL),
    *service("ranges", 4, ["near"], ("203.0.113.4",), loadBalancerSourceRanges=["192.0.2.0/24"]),
    *service("nobody", 5, [], ("203.0.113.5", "2001:db8:1::5")),
    *service("sctp", 6, ["far"], ("203.0.113.6", "2001:db8:1::6"), protocol="SCTP"),
    *service("udp", 7, ["far"], ("203.0.113.7", "2001:db8:1::7"), protocol="UDP"),
    *service("stay", 8, ["near", "far"], sessionAffinity="ClientIP"),
    *service("inner", 9, ["far"], internalTrafficPolicy="Local"),
    *direct(service("direct", 10, ["far"], ("203.0.113.10", "2001:db8:1::10")), "true"),
    *direct(service("taken", 11, ["far"], ("203.0.113.11", "2001:db8:1::11")), "false"),
]


@pytest.fixture(scope="module")
def session(compiled: build.Object) -> Iterator[Session]:
    with private_network(), World(compiled, FLAGS) as world:
        session = Session(world, [], interactive=True)
        for manifest in CLUSTER:
            assert ask(session, {"apply": manifest})["ok"]
        yield session


def ask(session: Session, question: Any) -> dict[str, Any]:
    (answer,) = session.answers([json.dumps(question)])
    return answer


def end(name: str, family: int) -> str:
    address = PODS[name][family]
    return f"[{address}]:8080" if family else f"{address}:8080"


def flow(session: Session, source: str, to: str, port: int = 80, **more: Any) -> dict[str, Any]:
    return ask(session, {"from": source, "to": to, "port": port, **more})


CLIENTS = ["default/client", "node a", "node b", "outside", "203.0.113.200"]
FRONTENDS = {
    "cluster ip": lambda number, family: ((f"10.96.0.{number}", f"fd96::{number}")[family], 80),
    "load balancer": lambda number, family: ((f"203.0.113.{number}", f"2001:db8:1::{number}")[family], 80),
    "node port of a": lambda number, family: (NODES["a"][family], 30000 + number),
    "node port of b": lambda number, family: (NODES["b"][family], 30000 + number),
}


def entered(client: str, kind: str) -> str:
    """Return the node whose programs translate."""
    if kind.startswith("node port"):
        return kind[-1]
    return client[-1] if client.startswith("node ") else "a"


def is_hidden(client: str, kind: str, backend: str) -> bool:
    """Whether the node stands in for the client: it comes from the network, and the backend is elsewhere."""
    here = entered(client, kind)
    home = {"default/client": "a", "node a": "a", "node b": "b"}.get(client)
    return home != here and HOMES[backend] != here


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("name", "number", "protocol"), [("near", 1, "TCP"), ("far", 2, "TCP"), ("udp", 7, "UDP"), ("sctp", 6, "SCTP")]
)
@pytest.mark.parametrize("kind", FRONTENDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_everybody_reaches_every_kind(
    session: Session, client: str, kind: str, name: str, number: int, protocol: str, family: int
) -> None:
    if client == "203.0.113.200" and family == V6:
        client = "2001:db8:1::200"
    address, port = FRONTENDS[kind](number, family)
    answer = flow(session, client, address, port, protocol=protocol)
    backend = "near" if name == "near" else "far"
    assert (answer["verdict"], answer["reason"], answer["service"]) == ("allow", None, f"default/{name}:http"), answer
    hidden = NODES[entered(client, kind)][family] if is_hidden(client, kind, backend) else None
    assert answer["backends"] == {end(backend, family): {"hits": 1, "snat": hidden}}, answer
    assert answer["policy"] == "Cluster"


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", FRONTENDS)
@pytest.mark.parametrize("client", ["default/client", "outside", "node b"])
def test_direct_server_return(session: Session, client: str, kind: str, family: int) -> None:
    """A backend elsewhere sees a client outside, and answers it from its own node; a cluster IP is none of it."""
    address, port = FRONTENDS[kind](10, family)
    answer = flow(session, client, address, port)
    assert (answer["verdict"], answer["service"]) == ("allow", "default/direct:http"), answer
    away = is_hidden(client, kind, "far")
    hidden = NODES["a"][family] if away and client != "outside" else None  # a pod, a node: nobody from outside
    if kind == "cluster ip" and away:
        hidden = NODES["a"][family]
    assert answer["backends"] == {end("far", family): {"hits": 1, "snat": hidden}}, answer
    wrapped = [step["node"] for step in answer["steps"] if step["packet"].endswith("the packet as it came")]
    assert wrapped == (["a", "a"] if away and not hidden else []), answer
    leaves = [step["node"] for step in answer["steps"] if step["direction"] == "reply"]
    assert set(leaves) == {"b"} or not wrapped


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
def test_direct_server_return_that_is_switched_off(session: Session, family: int) -> None:
    answer = flow(session, "outside", *FRONTENDS["node port of a"](11, family))
    assert answer["backends"] == {end("far", family): {"hits": 1, "snat": NODES["a"][family]}}, answer


@pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", ["load balancer", "node port of a", "node port of b"])
def test_policy_local_is_for_clients_outside(session: Session, kind: str, family: int) -> None:
    address, port = FRONTENDS[kind](3, family)
    for client in ("default/client", "node a" if kind != "node port of b" else "node b"):
        answer = flow(session, client, address, port)
        assert (answer["verdict"], answer["policy"]) == ("allow", "Cluster"), answer
    answer = flow(session, "outside", address, port)
    if kind == "node port of b":
        assert (answer["verdict"], answer["policy"]) == ("allow", "Local"), answer
        assert answer["backends"] == {end("far", family): {"hits": 1, "snat": None}}  # it sees the client itself
    else:
        assert (answer["verdict"], answer["reason"], answer["policy"]) == ("drop", "NO_LOCAL_ENDPOINTS", "Local"), (
            answer
        )
    answer = flow(session, "outside", FRONTENDS["load balancer"](3, family)[0], 80, node="b")
    assert answer["verdict"] == "allow", answer


@pytest.mark.parametrize(
    ("client", "node", "to", "port", "verdict", "reason"),
    [
        ("outside", None, "203.0.113.4", 80, "allow", None),
        ("8.8.8.8", None, "203.0.113.4", 80, "drop", "SOURCE_RANGE"),
        ("default/client", None, "203.0.113.4", 80, "drop", "SOURCE_RANGE"),
        ("8.8.8.8", None, "192.168.0.1", 30004, "allow", None),  # ranges are for load balancers' addresses
        ("outside", None, "203.0.113.5", 80, "reject", "NO_ENDPOINTS"),
        ("outside", None, "2001:db8:1::5", 80, "reject", "NO_ENDPOINTS"),
        ("outside", None, "192.168.0.1", 30005, "reject", "NO_ENDPOINTS"),
        ("node a", None, "10.96.0.5", 80, "reject", "NO_ENDPOINTS"),
        ("node a", None, "192.168.0.1", 30005, "reject", "NO_ENDPOINTS"),
        ("default/client", None, "10.96.0.1", 81, "reject", "UNDEFINED_PORT"),
        ("node a", None, "fd96::1", 81, "reject", "UNDEFINED_PORT"),
        ("default/client", None, "10.96.9.9", 80, "drop", "UNALLOCATED_ADDRESS"),
        ("node a", None, "10.96.9.9", 80, "drop", "UNALLOCATED_ADDRESS"),
        ("outside", None, "198.51.100.2", 80, "allow", None),
        ("outside", None, "198.51.100.99", 80, "drop", None),  # in no --external-ip-cidr
        ("default/client", None, "10.96.0.9", 80, "drop", "NO_LOCAL_ENDPOINTS"),
        ("node b", None, "10.96.0.9", 80, "allow", None),
    ],
)
def test_refusals(
    session: Session, client: str, node: str | None, to: str, port: int, verdict: str, reason: str | None
) -> None:
    answer = flow(session, client, to, port, **({"node": node} if node else {}))
    assert (answer["verdict"], answer["reason"]) == (verdict, reason), answer


@pytest.mark.parametrize("to", ["default/near", "203.0.113.1", "node a"])
def test_a_pod_reaches_itself(session: Session, to: str) -> None:
    answer = flow(session, "default/near", to, 30001 if to == "node a" else 80)
    assert answer["verdict"] == "allow", answer
    assert answer["backends"][end("near", V4)]["hits"] == 1


@pytest.mark.parametrize("client", ["default/client", "outside"])
def test_a_client_stays_with_its_backend_and_the_next_flow_knows_nothing(session: Session, client: str) -> None:
    chosen = set()
    for _ in range(30):
        answer = flow(session, client, "192.168.0.1", 30008, samples=20)
        assert (answer["verdict"], answer["affinity_seconds"]) == ("allow", 10800), answer
        assert sorted(entry["hits"] for entry in answer["backends"].values()) == [0, 20]
        chosen |= {backend for backend, entry in answer["backends"].items() if entry["hits"]}
    assert len(chosen) == 2


@pytest.mark.parametrize(
    ("source", "to", "more", "text"),
    [
        ("node z", "default/near", {}, "node z"),
        ("outside", "node z", {}, "node z"),
        ("node a", "default/near", {"node": "b"}, "node"),
        ("outside", "default/near", {"node": "z"}, "z"),
    ],
)
def test_places_that_are_not_there(session: Session, source: str, to: str, more: dict[str, Any], text: str) -> None:
    assert text in flow(session, source, to, **more)["error"]


def test_addresses_of_node_ports(compiled: build.Object) -> None:
    first = {"type": "InternalIP", "address": "192.168.0.1"}
    second = {"type": "InternalIP", "address": "192.168.9.1"}
    two = {"kind": "Node", "metadata": {"name": "a"}, "status": {"addresses": [first, second]}}
    for text, served in (("primary", "192.168.0.1"), ("192.168.9.0/24", "192.168.9.1")):
        flags = Flags(nodeport_addresses=nodeports.expand([text]).choose)
        with private_network(), World(compiled, flags) as world:
            session = Session(world, [], interactive=True)
            for manifest in (two, pod("near"), *service("near", 1, ["near"])):
                assert ask(session, {"apply": manifest})["ok"]
            for address in ("192.168.0.1", "192.168.9.1"):
                named = "default/near:http" if address == served else None
                assert flow(session, "outside", address, 30001)["service"] == named
