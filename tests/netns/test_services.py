"""ClusterIP services, from a pod's point of view."""

from __future__ import annotations

import collections
import socket

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects
from tests.netns.test_pods import host

CONNECTIONS = 300


def test_tcp(lab: Lab, caller: Inside, distance: str, family: int):
    backend = {"near": objects.NEAR_WEB, "far": objects.FAR_WEB}[distance]
    answer = client.tcp(caller, lab.service(distance).of(family), 80)
    assert (answer.pod, host(answer.client)) == (f"default/{backend}", caller.of(family))


def test_http(lab: Lab, caller: Inside, distance: str, family: int):
    assert client.http(caller, lab.service(distance).of(family), 80).protocol == "HTTP"


def test_udp(lab: Lab, caller: Inside, distance: str, family: int):
    backend = {"near": objects.NEAR_DNS, "far": objects.FAR_DNS}[distance]
    answer = client.udp(caller, lab.service(f"{distance}-dns").of(family), 53)
    assert (answer.pod, host(answer.client)) == (f"default/{backend}", caller.of(family))


def test_udp_reply_comes_from_the_services_address(lab: Lab, caller: Inside, distance: str, family: int):
    address = lab.service(f"{distance}-dns").of(family)
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.sendto(b"x", (address, 53))
        assert sock.recvfrom(2048)[1][:2] == (address, 53)


def test_one_port_number_two_protocols(lab: Lab, caller: Inside, family: int):
    address = lab.service("dns").of(family)
    assert (client.tcp(caller, address, 53).protocol, client.udp(caller, address, 53).protocol) == ("TCP", "UDP")


def test_many_requests_on_one_connection_stay_with_one_backend(lab: Lab, caller: Inside, family: int):
    with caller.socket(family, socket.SOCK_STREAM) as sock, sock.makefile("rb") as stream:
        sock.settimeout(3)
        sock.connect((lab.service("web").of(family), 80))
        pods = set()
        for _ in range(200):
            sock.sendall(b"hello\n")
            pods.add(client.parse(stream.readline()).pod)
    assert len(pods) == 1


def test_large_answer_and_large_request(lab: Lab, caller: Inside, distance: str, family: int):
    answer = client.tcp(caller, lab.service(distance).of(family), 80, b"pad=3000000 " + b"y" * 900_000 + b"\n", 10)
    assert (len(answer.pad), answer.bytes) == (3_000_000, 900_013)


def test_load_spreads_over_all_backends(lab: Lab, caller: Inside, family: int):
    address = lab.service("web").of(family)
    counts = collections.Counter(client.tcp(caller, address, 80).pod for _ in range(CONNECTIONS))
    assert sorted(counts) == ["default/web-a", "default/web-b", "default/web-c"]
    # A share of a third, give or take five standard deviations (8.2): a fair choice fails once in 600,000 runs.
    assert all(abs(count - CONNECTIONS / 3) < 41 for count in counts.values()), counts


def test_udp_clients_spread_over_all_backends(lab: Lab, caller: Inside, family: int):
    address = lab.service("dns").of(family)
    counts = collections.Counter(client.udp(caller, address, 53).pod for _ in range(100))
    assert sorted(counts) == ["default/dns-a", "default/dns-b"]
    assert min(counts.values()) > 20, counts


def test_a_pod_reaches_itself_through_its_own_service(lab: Lab, family: int):
    mirror = lab.pod("mirror")
    assert client.tcp(mirror, lab.service("mirror").of(family), 80).pod == mirror.name
    assert client.http(mirror, lab.service("mirror").of(family), 80).pod == mirror.name


def test_a_pod_reaches_itself_by_udp(lab: Lab, family: int):
    dns = lab.pod(objects.NEAR_DNS)
    assert client.udp(dns, lab.service("mirror-dns").of(family), 53).pod == dns.name


def test_no_endpoints_refuses_tcp_at_once(lab: Lab, caller: Inside, family: int):
    with pytest.raises(ConnectionRefusedError):  # a silent drop would be a TimeoutError
        client.tcp(caller, lab.service("idle").of(family), 80)


def test_no_endpoints_refuses_udp_at_once(lab: Lab, caller: Inside, family: int):
    with pytest.raises(ConnectionRefusedError):  # a silent drop would be a TimeoutError
        client.udp(caller, lab.service("idle").of(family), 53)


def test_a_backend_on_the_other_node_calls_back(lab: Lab, family: int):
    answer = client.tcp(lab.pod(objects.FAR_WEB), lab.service("near").of(family), 80)
    assert answer.pod == f"default/{objects.NEAR_WEB}"


def test_pod_and_service_from_one_source_port(lab: Lab, caller: Inside, distance: str, family: int):
    """The same source port to the backend directly and through the service: two connections, neither confused."""
    backend = lab.pod({"near": objects.NEAR_DNS, "far": objects.FAR_DNS}[distance])
    service = lab.service(f"{distance}-dns").of(family)
    with caller.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        seen = []
        for target in ((backend.of(family), 5353), (service, 53), (backend.of(family), 5353)):
            sock.sendto(b"x", target)
            seen.append(sock.recvfrom(2048)[1][:2])
    assert seen == [(backend.of(family), 5353), (service, 53), (backend.of(family), 5353)]
