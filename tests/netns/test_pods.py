"""Pod to pod: the kernel routes, nothing is translated."""

from __future__ import annotations

import pytest

from ebpfnet.lab import client
from ebpfnet.lab.cluster import Inside, Lab
from tests.netns import objects


@pytest.fixture
def web(lab: Lab, distance: str) -> Inside:
    return lab.pod({"near": objects.NEAR_WEB, "far": objects.FAR_WEB}[distance])


@pytest.fixture
def dns(lab: Lab, distance: str) -> Inside:
    return lab.pod({"near": objects.NEAR_DNS, "far": objects.FAR_DNS}[distance])


def test_tcp_reaches_the_pod_and_shows_the_clients_address(caller: Inside, web: Inside, family: int):
    answer = client.tcp(caller, web.of(family), 8080)
    assert (answer.pod, host(answer.client)) == (web.name, caller.of(family))


def test_http(caller: Inside, web: Inside, family: int):
    assert client.http(caller, web.of(family), 8080).pod == web.name


def test_udp_reaches_the_pod_and_shows_the_clients_address(caller: Inside, dns: Inside, family: int):
    answer = client.udp(caller, dns.of(family), 5353)
    assert (answer.pod, host(answer.client)) == (dns.name, caller.of(family))


def test_ping(caller: Inside, web: Inside, family: int):
    done = caller.exec("ping", "-c", "3", "-i", "0.2", "-W", "2", web.of(family))
    assert ", 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_ping_of_1400_bytes_and_of_3000_in_fragments(caller: Inside, web: Inside, family: int):
    for size in ("1400", "3000"):
        done = caller.exec("ping", "-c", "1", "-W", "2", "-s", size, web.of(family))
        assert ", 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_the_pods_own_node_is_reachable(lab: Lab, caller: Inside, family: int):
    done = caller.exec("ping", "-c", "1", "-W", "2", lab.node("node-a").of(family))
    assert ", 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_a_node_reaches_its_pod(lab: Lab, caller: Inside, family: int):
    assert client.tcp(lab.node("node-a"), caller.of(family), 8080).pod == caller.name


def test_an_address_that_no_pod_has_is_refused_by_the_kernel(caller: Inside, family: int):
    nobody = "fd00:10:244:1::99" if ":" in caller.of(family) else "10.244.1.99"
    with pytest.raises(OSError, match=r"unreachable|No route"):
        client.tcp(caller, nobody, 80)


def host(shown: str) -> str:
    """Return the address of IP:PORT or [IP]:PORT."""
    return shown.rpartition(":")[0].strip("[]")
