"""What this node is to services: flags, interfaces, sockets and the Node object joined."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from ebpfnet.datapath.addresses import Own
from ebpfnet.datapath.netlink import SOCK_DIAG, Reader
from ebpfnet.datapath.sockets import Listening, listening
from ebpfnet.hosting import Hosting, HostSettings, Observed, describe, source_ports
from ebpfnet.model.facts import Delete, Kind, Node, Ref, Service, ServicePort, Upsert
from ebpfnet.model.host import Host
from ebpfnet.operate.nodeports import expand
from tests.unit.model.test_local import READY, piece

UPLINK, POD = 2, 7
SEEN = Observed(
    addresses=(
        Own(ip_address("192.0.2.1"), UPLINK),
        Own(ip_address("198.51.100.1"), UPLINK),
        Own(ip_address("10.0.0.254"), POD),
        Own(ip_address("fd00::9"), UPLINK, lasting=False),
        Own(ip_address("fd00::1"), UPLINK),
        Own(ip_address("fe80::1"), UPLINK),
        Own(ip_address("fe80::2"), POD),
    ),
    uplinks=(UPLINK,),
)


def node(*addresses: str, name: str = "node-a", cidrs: tuple[str, ...] = ()) -> Node:
    ref = Ref(Kind.NODE, "", name)
    return Node(ref, tuple(map(ip_address, addresses)), tuple(map(ip_network, cidrs)))


def texts(addresses: tuple[object, ...]) -> list[str]:
    return [str(each) for each in addresses]


def test_the_nodes_first_internal_ip_of_each_family_serves_node_ports():
    host = describe(HostSettings(), SEEN, node("192.0.2.1", "198.51.100.1", "fd00::1"), [])
    assert texts(host.nodeport_addresses) == ["192.0.2.1", "fd00::1"]
    assert texts(host.sources) == ["192.0.2.1", "fd00::1"]
    assert texts(host.addresses) == ["10.0.0.254", "192.0.2.1", "198.51.100.1", "fd00::1", "fd00::9"]


def test_link_local_addresses_are_of_no_interest_but_where_node_ports_are():
    host = describe(HostSettings(expand(["all"])), SEEN, None, [])
    assert "fe80::2" in texts(host.addresses)
    assert "fe80::2" in texts(host.nodeport_addresses)


def test_an_internal_ip_on_no_interface_serves_nothing_and_stands_for_nobody():
    host = describe(HostSettings(), SEEN, node("203.0.113.5"), [])
    assert host.nodeport_addresses == ()
    # The uplink's first global address that lasts; fd00::9 is a temporary one.
    assert texts(host.sources) == ["192.0.2.1", "fd00::1"]


def test_kube_proxys_bind_address_is_the_primary_one():
    settings = HostSettings(bind_address=ip_address("198.51.100.1"))
    host = describe(settings, SEEN, node("192.0.2.1", "fd00::1"), [])
    assert texts(host.nodeport_addresses) == ["198.51.100.1", "fd00::1"]
    unspecified = HostSettings(bind_address=ip_address("0.0.0.0"))
    assert texts(describe(unspecified, SEEN, node("192.0.2.1"), []).nodeport_addresses) == ["192.0.2.1"]


def test_pods_are_where_flag_and_nodes_say():
    nodes = [node(cidrs=("10.0.1.0/24", "fd01::/64")), node(name="node-b", cidrs=("10.0.2.0/24",))]
    settings = HostSettings(cluster_cidrs=(ip_network("10.0.2.0/24"), ip_network("10.1.0.0/16")))
    host = describe(settings, SEEN, nodes[0], nodes)
    assert texts(host.pod_cidrs) == ["10.0.1.0/24", "10.0.2.0/24", "10.1.0.0/16", "fd01::/64"]


def test_sockets_that_a_node_port_would_hide_are_busy():
    seen = SEEN._replace(
        listening=(
            Listening(6, None, 30001),
            Listening(17, ip_address("192.0.2.1"), 30002),
            Listening(6, ip_address("127.0.0.1"), 30003),
            Listening(6, ip_address("198.51.100.1"), 30004),
        )
    )
    assert describe(HostSettings(), seen, node("192.0.2.1"), []).busy == {(6, 30001), (17, 30002)}


@pytest.mark.parametrize(
    ("nodeports", "local", "reserved", "want"),
    [
        ((30000, 32767), (32768, 60999), [], (1024, 29999)),
        ((30000, 32767), (1024, 29000), [], (32768, 65535)),
        ((1024, 20000), (20001, 61000), [], (61001, 65535)),
        ((30000, 32767), (32768, 60999), [(2000, 2000), (8080, 8081)], (8082, 29999)),
        ((30000, 32767), (1024, 65535), [], (32768, 65535)),  # none is free of local ports: shared
        ((30000, 32767), (1100, 65500), [], (32768, 65535)),  # nor worth having
    ],
)
def test_source_ports(
    nodeports: tuple[int, int], local: tuple[int, int], reserved: list[tuple[int, int]], want: tuple[int, int]
):
    assert source_ports(nodeports, local, reserved) == want


def test_what_listens_is_found():
    with socket.socket() as tcp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp, socket.socket() as idle:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("::", 0))
        idle.bind(("127.0.0.1", 0))
        with Reader(SOCK_DIAG) as diag:
            found = set(listening(diag))
        assert Listening(6, ip_address("127.0.0.1"), tcp.getsockname()[1]) in found
        assert Listening(17, None, udp.getsockname()[1]) in found
        assert idle.getsockname()[1] not in {each.port for each in found if each.protocol == 6}


@pytest.fixture
def hosting() -> Iterator[Hosting]:
    """Return what follows a node without interfaces of interest."""
    found = Hosting(HostSettings(), "node-a", lambda: (), threading.Lock(), lambda: None)
    found.begin(HOSTS.append)
    yield found
    found.close()
    HOSTS.clear()


HOSTS: list[Host] = []


def balanced(name: str, port: int, created: str = "") -> Service:
    ref = Ref(Kind.SERVICE, "default", name)
    ports = (ServicePort("", 6, 80, 30080),)
    return Service(ref, (ip_address("10.96.0.1"),), ports, created, external_local=True, health_check_port=port)


def test_nodes_that_come_change_and_go_change_the_host(hosting: Hosting):
    hosting.learn([Upsert(node(cidrs=("10.0.1.0/24",)))])
    assert texts(HOSTS[-1].pod_cidrs) == ["10.0.1.0/24"]
    count = len(HOSTS)
    hosting.learn([Upsert(node("192.0.2.77", cidrs=("10.0.1.0/24",)))])  # not an address of this machine
    assert len(HOSTS) == count
    hosting.learn([Delete(Ref(Kind.NODE, "", "node-a"))])
    assert HOSTS[-1].pod_cidrs == ()


def test_a_health_check_port_belongs_to_the_first_service(hosting: Hosting):
    hosting.serve_health(lambda: True)
    first, second = balanced("b", 32000, "2026-01-01T00:00:00Z"), balanced("a", 32000, "2026-01-02T00:00:00Z")
    told = hosting.told
    hosting.learn([Upsert(second), Upsert(first)])
    assert hosting.told != told
    said = [str(each) for each in hosting.problems if each.ref == second.ref]
    assert said == ["Service default/a: spec.healthCheckNodePort: 32000 is the port of Service default/b already"]
    hosting.learn([Delete(first.ref)])
    assert not [each for each in hosting.problems if "already" in each.reason]


def test_only_ready_endpoints_here_are_told_to_load_balancers(hosting: Hosting, monkeypatch: pytest.MonkeyPatch):
    told: list[object] = []
    hosting.serve_health(lambda: True)
    assert hosting._health is not None
    monkeypatch.setattr(hosting._health, "update", lambda checks, hosts: told.append((checks, hosts)))
    hosting.learn([Upsert(piece("web-1", ("10.0.0.1", READY, "node-a"), ("10.0.0.2", READY, "node-b")))])
    hosting.learn([Upsert(balanced("web", 32001))])
    assert told[-1] == ({32001: ("default", "web", {4: 1})}, [])
    hosting.learn([Delete(Ref(Kind.ENDPOINT_SLICE, "default", "web-1"))])
    assert told[-1] == ({32001: ("default", "web", {4: 0})}, [])
    hosting.learn([Delete(Ref(Kind.SERVICE, "default", "web"))])
    assert told[-1] == ({}, [])
