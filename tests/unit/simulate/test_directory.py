import ipaddress
from typing import Any

import pytest

from ebpfnet.model.facts import Fact, IPAddress, Kind, Node, Pod, PodPort, Ref, Service, ServicePort
from ebpfnet.simulate import packets
from ebpfnet.simulate.directory import Directory, Place
from ebpfnet.simulate.flows import BadFlow, parse
from tests.packets import raw


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def pod(name: str, node: str, *addresses: str, host: bool = False) -> Pod:
    ports = (PodPort("admin", 6, 9000),)
    return Pod(Ref(Kind.POD, "default", name), node, ips(*addresses), (), ports, host)


FACTS: list[Fact] = [
    Node(Ref(Kind.NODE, "", "a"), ips("192.168.0.1"), (ipaddress.ip_network("10.1.0.0/24"),)),
    Node(Ref(Kind.NODE, "", "b"), ips("192.168.0.2"), (ipaddress.ip_network("10.1.1.0/24"),)),
    pod("client", "a", "10.1.0.5", "fd01::5"),
    pod("web", "b", "10.1.1.6", "fd01:b::6"),
    pod("agent", "b", "192.168.0.2", host=True),
    Service(Ref(Kind.SERVICE, "default", "web"), ips("10.96.0.1"), (ServicePort("http", 6, 80),), ""),
]


@pytest.fixture
def directory() -> Directory:
    found = Directory((ipaddress.ip_network("10.96.0.0/16"),))
    for fact in FACTS:
        found.put(fact)
    return found


def resolve(directory: Directory, **flow: Any) -> tuple[Place, str]:
    flow["from"] = flow.pop("source", "default/client")
    journey = directory.resolve(parse(flow), 4000)
    return journey.client, packets.show(journey.key)


CLIENT = Place("pod", "a", "default/client")


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ({"to": "default/web", "port": 80}, (CLIENT, "10.1.0.5:4000 > 10.96.0.1:80")),
        ({"to": "default/web", "port": "http"}, (CLIENT, "10.1.0.5:4000 > 10.96.0.1:80")),
        ({"to": "default/web", "port": "admin"}, (CLIENT, "10.1.0.5:4000 > 10.1.1.6:9000")),
        ({"to": "default/web", "port": 80, "protocol": "UDP"}, (CLIENT, "10.1.0.5:4000 > 10.1.1.6:80")),
        ({"to": "10.96.0.1", "port": "http"}, (CLIENT, "10.1.0.5:4000 > 10.96.0.1:80")),
        ({"to": "10.1.1.6", "port": "admin"}, (CLIENT, "10.1.0.5:4000 > 10.1.1.6:9000")),
        ({"to": "fd01:b::6", "port": 5}, (CLIENT, "[fd01::5]:4000 > [fd01:b::6]:5")),
        ({"source": "fd01::5", "to": "default/web", "port": 5}, (CLIENT, "[fd01::5]:4000 > [fd01:b::6]:5")),
        ({"source": "192.168.0.1", "to": "10.1.1.6", "port": 5}, (Place("host", "a"), "192.168.0.1:4000 > 10.1.1.6:5")),
        (
            {"source": "192.168.0.1", "to": "10.1.1.6", "port": 5, "node": "b"},
            (Place("outside", "b"), "192.168.0.1:4000 > 10.1.1.6:5"),
        ),
        ({"source": "8.8.8.8", "to": "10.1.1.6", "port": 5}, (Place("outside", "b"), "8.8.8.8:4000 > 10.1.1.6:5")),
        (
            {"source": "default/agent", "to": "10.1.1.6", "port": 5},
            (Place("host", "b"), "192.168.0.2:4000 > 10.1.1.6:5"),
        ),
        ({"to": "default/client", "protocol": "ICMP"}, (CLIENT, "10.1.0.5:4000 > 10.1.0.5:4000")),
    ],
)
def test_what_a_flow_means(directory: Directory, flow: dict[str, Any], expected: tuple[Place, str]) -> None:
    assert resolve(directory, **flow) == expected


@pytest.mark.parametrize("source", ["default/web", "default/nobody", "10.1.0", "::ffff:10.1.0.5", "fe80::1%eth0"])
def test_what_has_no_meaning(directory: Directory, source: str) -> None:
    directory.drop(Ref(Kind.POD, "default", "web"))
    with pytest.raises(BadFlow, match="from"):
        resolve(directory, source=source, to="10.1.0.5", port=1)


def test_who_is_inside(directory: Directory) -> None:
    inside = {text: directory.is_inside(raw(text)) for text in ("10.96.0.1", "10.96.9.9", "10.1.1.99", "8.8.8.8")}
    assert inside == {"10.96.0.1": True, "10.96.9.9": True, "10.1.1.99": True, "8.8.8.8": False}


def test_an_address_goes_with_its_last_holder(directory: Directory) -> None:
    twin = pod("a-twin", "b", "10.1.0.5")
    directory.put(twin)
    assert directory.pod_at(raw("10.1.0.5")) == twin
    directory.drop(twin.ref)
    assert directory.pod_at(raw("10.1.0.5")) == FACTS[2]
    directory.drop(FACTS[2].ref)
    assert directory.pod_at(raw("10.1.0.5")) is None
    assert directory.owner_of(raw("10.1.0.5")) == "a"
