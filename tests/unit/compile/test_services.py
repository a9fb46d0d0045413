"""What services ask for: a case for each kind of address, each traffic policy and each refusal."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.abi import Mark
from ebpfnet.compile.services import Compiled, compile_service
from ebpfnet.maps.dump import frontend_name
from ebpfnet.model.host import Host
from tests.cluster import SCTP, TCP, UDP, host, service

ALL, LOCAL = (abi.identify(f"default/web:http/6{tail}") for tail in ("", "#local"))
ALL6, LOCAL6 = (abi.identify(f"default/web:http/6#6{tail}") for tail in ("", "#local"))
PORTS = (("http", TCP, 80, 30080),)
EVERYWHERE = host(external_ip_cidrs=["0.0.0.0/0", "::/0"])


def compiled(on: Host = EVERYWHERE, *addresses: str, **fields) -> Compiled:
    return compile_service(service("web", *(addresses or ("10.96.0.1",)), **({"ports": PORTS} | fields)), on)


def led(found: Compiled) -> dict[str, tuple[int, int]]:
    values = {key: abi.Service.unpack(asked.value) for key, asked in found.frontends.items()}
    return {frontend_name(key): (value.inside, value.outside) for key, value in values.items()}


def problems(found: Compiled) -> list[tuple[str, str]]:
    return [(each.field, each.reason) for each in found.problems]


EXTERNAL: dict[str, Any] = {"load_balancer_ips": ["192.0.2.1"], "external_ips": ["192.0.2.2"]}
POLICIES = {
    "Cluster and Cluster": ({}, (ALL, ALL), (ALL, ALL)),
    "Local inside": ({"internal_local": True}, (LOCAL, LOCAL), (ALL, ALL)),
    "Local outside": ({"external_local": True}, (ALL, ALL), (ALL, LOCAL)),
    "Local and Local": ({"internal_local": True, "external_local": True}, (LOCAL, LOCAL), (ALL, LOCAL)),
}


@pytest.mark.parametrize(("fields", "inner", "outer"), POLICIES.values(), ids=POLICIES)
def test_traffic_policies(fields, inner, outer):
    assert led(compiled(**EXTERNAL, **fields)) == {
        "10.96.0.1:80/TCP": inner,
        "192.0.2.1:80/TCP": outer,
        "192.0.2.2:80/TCP": outer,
        "30080/TCP": outer,
    }


def test_only_the_sets_that_are_led_to_are_wanted():
    plain = (("http", TCP, 80),)
    assert set(compiled(ports=plain, external_local=True).sets) == {ALL}
    assert set(compiled(ports=plain, internal_local=True).sets) == {LOCAL}
    assert set(compiled(external_local=True).sets) == {ALL, LOCAL}
    assert {want.group for want in compiled(external_local=True).sets.values()} == {ALL}


def test_each_family_that_the_service_has_has_node_ports():
    dual = compiled(EVERYWHERE, "10.96.0.1", "fd00::1")
    keys = {abi.Frontend.unpack(key).address: key for key in dual.frontends}
    assert abi.V4_PREFIX + bytes(4) in keys
    assert bytes(16) in keys
    assert set(dual.sets) == {ALL, ALL6}
    assert not any(key.startswith(bytes(16)) for key in compiled().frontends)


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP])
def test_protocols(protocol: int):
    name = abi.Protocol(protocol).name
    found = compiled(ports=(("x", protocol, 53, 30053),))
    assert set(led(found)) == {f"10.96.0.1:53/{name}", f"30053/{name}"}
    assert found.problems == []


def test_without_a_cluster_ip_nothing_is_asked_for():
    headless = service("web", ports=PORTS, load_balancer_ips=["192.0.2.1"])
    assert compile_service(headless, EVERYWHERE) == Compiled()


def test_affinity_is_every_frontends():
    found = compiled(affinity_s=100, **EXTERNAL)
    assert {abi.Service.unpack(asked.value).affinity_s for asked in found.frontends.values()} == {100}
    assert all(want.members for want in found.sets.values())


def test_a_consistent_choice_is_seeded_with_the_sets_name():
    found = compiled(consistent=True, external_local=True)
    assert {want.consistent for want in found.sets.values()} == {"default/web:http/6", "default/web:http/6#local"}


def test_load_balancers_are_told_from_external_ips():
    found = compiled(**EXTERNAL)
    marks = {frontend_name(key): abi.Service.unpack(each.value).marks for key, each in found.frontends.items()}
    assert {name for name, each in marks.items() if each == Mark.BALANCER} == {"192.0.2.1:80/TCP"}


@pytest.mark.parametrize(
    ("direct", "expected"), [(None, Mark(0)), (False, Mark.TAKEN), (True, Mark.TAKEN | Mark.DIRECT)]
)
def test_direct_server_return_is_for_addresses_that_clients_outside_call(direct: bool | None, expected: Mark):
    found = compiled(direct=direct, external_local=True, **EXTERNAL)
    marks = {frontend_name(key): abi.Service.unpack(each.value).marks for key, each in found.frontends.items()}
    outer = {"192.0.2.1:80/TCP": Mark.BALANCER | expected, "192.0.2.2:80/TCP": expected, "30080/TCP": expected}
    assert marks == {"10.96.0.1:80/TCP": 0, **outer}
    assert {key: want.members for key, want in found.sets.items()} == {ALL: False, LOCAL: direct is not None}
    assert compiled(direct=direct, **EXTERNAL).sets[ALL].members is (direct is not None)
    assert found.direct is (direct is not None)
    assert not compiled(direct=direct, ports=(("http", TCP, 80),)).direct, "nobody outside calls it"


def test_an_address_that_a_service_has_twice_is_what_it_is_first():
    found = compiled(load_balancer_ips=["192.0.2.1"], external_ips=["192.0.2.1"], source_ranges=["10.0.0.0/8"])
    [value] = [abi.Service.unpack(a.value) for key, a in found.frontends.items() if b"\xc0\x00\x02\x01" in key]
    assert value.ranges == abi.identify("default/web")


def ranges(found: Compiled) -> list[tuple[int, str]]:
    unpacked = (abi.Range.unpack(key) for key in found.ranges)
    assert all(each.service == abi.identify("default/web") for each in unpacked)
    unpacked = (abi.Range.unpack(key) for key in found.ranges)
    return [(each.prefix_length, str(abi.unpack_address(each.address))) for each in unpacked]


def guarded(found: Compiled) -> set[str]:
    return {frontend_name(key) for key, each in found.frontends.items() if abi.Service.unpack(each.value).ranges}


def test_source_ranges_are_for_load_balancers():
    found = compiled(**EXTERNAL, source_ranges=["10.0.0.0/8", "192.0.2.9/32"])
    assert guarded(found) == {"192.0.2.1:80/TCP"}
    assert ranges(found) == [(64 + 96 + 8, "10.0.0.0"), (64 + 96 + 32, "192.0.2.9")]


def test_source_ranges_without_a_load_balancer_say_nothing():
    assert compiled(source_ranges=["10.0.0.0/8"]).ranges == []


def test_source_ranges_of_the_other_family_say_nothing():
    both: dict[str, Any] = {"load_balancer_ips": ["192.0.2.1", "2001:db8::1"], "source_ranges": ["2001:db8::/32"]}
    found = compiled(EVERYWHERE, "10.96.0.1", "fd00::1", **both)
    assert guarded(found) == {"[2001:db8::1]:80/TCP"}
    assert ranges(found) == [(64 + 32, "2001:db8::")]


def test_source_ranges_that_are_none_let_nobody_in():
    found = compiled(load_balancer_ips=["192.0.2.1"], source_ranges=())
    assert guarded(found) == {"192.0.2.1:80/TCP"}
    assert ranges(found) == []


def test_an_external_ip_may_be_the_nodes():
    own = host(addresses=["192.0.2.2"], external_ip_cidrs=["192.0.2.0/24"])
    found = compiled(own, external_ips=["192.0.2.2"])
    assert "192.0.2.2:80/TCP" in led(found)
    assert found.problems == []


def test_what_a_node_in_the_ranges_sends_from_the_load_balancers_address_is_let_in():
    own = host(addresses=["10.1.1.1"])
    given: dict[str, Any] = {"load_balancer_ips": ["192.0.2.1"], "source_ranges": ["10.0.0.0/8"]}
    assert (64 + 128, "192.0.2.1") in ranges(compiled(own, **given))
    assert (64 + 128, "192.0.2.1") not in ranges(compiled(host(addresses=["172.16.0.1"]), **given))


REFUSED = {
    "no external IP by default": (
        host(),
        {"external_ips": ["192.0.2.2"]},
        "spec.externalIPs",
        (
            "192.0.2.2 is in no --external-ip-cidr: who may write Services could take anybody's traffic "
            "(CVE-2020-8554, KEP-5707)"
        ),
    ),
    "an external IP outside of what is allowed": (
        host(external_ip_cidrs=["198.51.100.0/24"]),
        {"external_ips": ["198.51.100.1", "192.0.2.2"]},
        "spec.externalIPs",
        (
            "192.0.2.2 is in no --external-ip-cidr: who may write Services could take anybody's traffic "
            "(CVE-2020-8554, KEP-5707)"
        ),
    ),
    "a load balancer's address that is the node's": (
        host(addresses=["192.0.2.1"]),
        {"load_balancer_ips": ["192.0.2.1"]},
        "status.loadBalancer.ingress",
        "192.0.2.1 is an address of this node",
    ),
    "a load balancer's address of a pod": (
        host(pod_cidrs=["192.0.2.0/24"]),
        {"load_balancer_ips": ["192.0.2.1"]},
        "status.loadBalancer.ingress",
        "192.0.2.1 is in the pod range 192.0.2.0/24",
    ),
    "an address of a family without a cluster IP": (
        EVERYWHERE,
        {"external_ips": ["2001:db8::1"]},
        "spec.externalIPs",
        "2001:db8::1 is IPv6, and the service has no such cluster IP",
    ),
}


@pytest.mark.parametrize(("on", "fields", "field", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(on: Host, fields, field: str, reason: str):
    found = compiled(on, **fields)
    assert problems(found) == [(field, reason)]
    refused = ipaddress.ip_address(reason.split(maxsplit=1)[0])
    assert not any(key.startswith(abi.pack_address(refused)) for key in found.frontends)
    assert "10.96.0.1:80/TCP" in led(found)


def test_a_node_port_that_a_socket_has_is_named_and_served():
    found = compiled(host(busy=frozenset({(TCP, 30080), (UDP, 30081)})))
    assert problems(found) == [
        ("spec.ports[0].nodePort", "30080/TCP is also a local socket's, which is not reached"),
    ]
    assert "30080/TCP" in led(found)
