"""Services to facts: what of them is served here and how, and what is named because it can't be."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from ebpfnet.model.facts import Kind, Service, ServicePort
from ebpfnet.watch.decode import decode, decode_bytes
from ebpfnet.watch.fields import Decoded

HTTP = [{"name": "http", "port": 80}]
AFFINITY = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
RANGES = "spec.loadBalancerSourceRanges"


def read(
    status: object = None, annotations: dict[str, Any] | None = None, ip: str | list[str] = "10.96.0.1", **spec: object
) -> Decoded:
    """Decode a service both ways."""
    ips = {"clusterIPs": ip} if isinstance(ip, list) else {"clusterIP": ip}
    meta = {"name": "web", "namespace": "default", "annotations": annotations}
    item = {"metadata": meta, "spec": {"ports": HTTP, **ips, **spec}, "status": status}
    found = decode({**item, "kind": "Service"})
    assert decode_bytes(Kind.SERVICE, json.dumps(item).encode()) == found
    return found


def fact(status: object = None, annotations: dict[str, Any] | None = None, **spec: Any) -> Service:
    """Return what a service becomes that there is nothing wrong with."""
    found = read(status, annotations, **spec)
    assert found.problems == ()
    assert isinstance(found.fact, Service)
    return found.fact


def named(status: object = None, annotations: dict[str, Any] | None = None, **spec: Any) -> tuple[Service, str, str]:
    """Return what a service becomes that there is one thing wrong with, and that."""
    found = read(status, annotations, **spec)
    assert isinstance(found.fact, Service)
    [problem] = found.problems
    return found.fact, problem.field, problem.reason


def texts(addresses: tuple[object, ...]) -> list[str]:
    return [str(address) for address in addresses]


def balanced(*ingress: object) -> dict[str, object]:
    return {"loadBalancer": {"ingress": list(ingress)}}


def test_a_plain_service_has_nothing_but_its_cluster_ip():
    plain = fact()
    assert plain == Service(plain.ref, (ipaddress.ip_address("10.96.0.1"),), (ServicePort("http", 6, 80),), "")


# Node ports


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_node_ports_are_a_port_s_own(kind: str):
    ports = [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30081}]
    assert [port.node_port for port in fact(type=kind, ports=ports).ports] == [30080, 30081]


def test_tcp_and_udp_may_share_a_node_port():
    dns: dict[str, Any] = {"port": 53, "nodePort": 30053}
    ports = [{"name": "tcp", **dns}, {"name": "udp", "protocol": "UDP", **dns}]
    assert [port.node_port for port in fact(type="NodePort", ports=ports).ports] == [30053, 30053]


@pytest.mark.parametrize("number", [0, None])
def test_a_load_balancer_may_have_no_node_ports(number: int | None):
    ports = [{"port": 80, "nodePort": number}]
    assert fact(type="LoadBalancer", allocateLoadBalancerNodePorts=False, ports=ports).ports[0].node_port == 0


def test_a_node_port_that_nobody_allocated_is_named():
    found, field, reason = named(type="NodePort")
    assert (field, found.ports[0].node_port) == ("spec.ports[0].nodePort", 0)
    assert reason == "missing: no port of the nodes leads to it"


def test_a_cluster_ip_service_has_no_node_ports():
    found, field, reason = named(ports=[{"port": 80, "nodePort": 30080}])
    assert (field, found.ports[0].node_port) == ("spec.ports[0].nodePort", 0)
    assert reason == "30080 is not served: a service of type ClusterIP has no node ports"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"type": "NodePorts"}, "spec.type: 'NodePorts' is not ClusterIP, NodePort, LoadBalancer or ExternalName"),
        ({"ports": [{"port": 80, "nodePort": 65536}]}, "spec.ports[0].nodePort: 65536 is not a port"),
        ({"ports": [{"port": 80, "nodePort": -1}]}, "spec.ports[0].nodePort: -1 is not a port"),
        ({"ports": [{"port": 80, "nodePort": "http"}]}, "spec.ports[0].nodePort: a number is expected, not a text"),
        (
            {"ports": [{"name": "a", "port": 1, "nodePort": 30000}, {"name": "b", "port": 2, "nodePort": 30000}]},
            "spec.ports[1].nodePort: 30000 stands twice for one protocol",
        ),
        ({"externalIPs": "192.0.2.1"}, "spec.externalIPs: a list is expected, not a text"),
        ({"externalIPs": [1]}, "spec.externalIPs[0]: a text is expected, not a number"),
        ({RANGES[5:]: [None]}, "spec.loadBalancerSourceRanges[0]: a text is expected, not null"),
        ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": "60"}}}, f"{AFFINITY}: a number is expected"),
        ({"healthCheckNodePort": True}, "spec.healthCheckNodePort: a number is expected, not true or false"),
        ({"externalTrafficPolicy": 1}, "spec.externalTrafficPolicy: a text is expected, not a number"),
        ({"status": {"loadBalancer": []}}, "status.loadBalancer: an object is expected, not a list"),
        ({"annotations": ["x"]}, "metadata.annotations: an object is expected, not a list"),
    ],
)
def test_what_makes_no_sense_is_refused_whole(spec: dict[str, Any], text: str):
    found = read(**{"type": "NodePort", **spec})
    assert found.fact is None
    assert f"{found.problems[0].field}: {found.problems[0].reason}".startswith(text)


# External addresses


def test_what_a_load_balancer_leads_here_is_served_and_what_it_proxies_is_not():
    """KEP-1860: VIP is the default, and with Proxy the client must go through the load balancer."""
    ingress = [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]
    found = fact(balanced(*ingress, {"hostname": "lb.test"}), type="LoadBalancer")
    assert texts(found.load_balancer_ips) == ["192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize("status", [None, {}, {"loadBalancer": {}}, {"loadBalancer": {"ingress": None}}])
def test_a_load_balancer_that_is_not_there_yet(status: object):
    assert fact(status, type="LoadBalancer").load_balancer_ips == ()


def test_a_mode_that_nobody_knows_is_not_served():
    found, field, reason = named(balanced({"ip": "192.0.2.1", "ipMode": "DSR"}), type="LoadBalancer")
    assert (field, found.load_balancer_ips) == ("status.loadBalancer.ingress[0].ipMode", ())
    assert reason == "'DSR' is not VIP or Proxy: the address is not served"


def test_external_ips_of_both_families():
    ips = ["192.0.2.1", "2001:db8::1", "192.0.2.1"]
    found = fact(ip=["10.96.0.1", "fd00::1"], externalIPs=ips)
    assert texts(found.external_ips) == ips[:2]


BAD = ["127.0.0.1", "169.254.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "010.0.0.1", "10.0.0", "x", ""]
BAD += ["::1", "::", "fe80::1", "ff02::1", "::ffff:10.0.0.1", "fe80::1%eth0"]


@pytest.mark.parametrize("text", BAD)
def test_an_external_address_that_can_t_be_served_is_named_and_the_rest_works(text: str):
    found, field, _ = named(ip=["10.96.0.1", "fd00::1"], externalIPs=["192.0.2.1", text, "192.0.2.2"])
    assert (field, texts(found.external_ips)) == ("spec.externalIPs[1]", ["192.0.2.1", "192.0.2.2"])


@pytest.mark.parametrize("text", [text for text in BAD if text])
def test_a_load_balancer_s_address_that_can_t_be_served_is_named_and_the_rest_works(text: str):
    status = balanced({"ip": text}, {"ip": "192.0.2.1"})
    found, field, _ = named(status, type="LoadBalancer", ip=["10.96.0.1", "fd00::1"])
    assert (field, texts(found.load_balancer_ips)) == ("status.loadBalancer.ingress[0].ip", ["192.0.2.1"])


def test_a_service_is_served_in_the_families_of_its_cluster_ips():
    found, field, reason = named(externalIPs=["2001:db8::1", "192.0.2.1"])
    assert (field, texts(found.external_ips)) == ("spec.externalIPs[0]", ["192.0.2.1"])
    assert reason == "2001:db8::1 is not served: the service has no IPv6 cluster IP"


# Without a cluster IP there is nothing (kube-proxy: ShouldSkipService)


@pytest.mark.parametrize(
    "spec", [{"ip": "None"}, {"ip": ["None"]}, {"ip": ""}, {"ip": "10.0.0.1", "type": "ExternalName"}]
)
def test_headless_services_have_no_address(spec: dict[str, Any]):
    found = fact(sessionAffinity="ClientIP", internalTrafficPolicy="Local", **spec)
    assert found == Service(found.ref, (), (ServicePort("http", 6, 80),), "")


@pytest.mark.parametrize("ip", ["None", ""])
@pytest.mark.parametrize("spec", [{"type": "NodePort"}, {"type": "LoadBalancer"}, {"externalIPs": ["192.0.2.1"]}])
def test_a_service_with_other_addresses_but_no_cluster_ip_is_named(ip: str, spec: dict[str, Any]):
    ports = [{"port": 80, "nodePort": 30080 if "type" in spec else 0}]
    found, field, reason = named(balanced({"ip": "192.0.2.1"}), ip=ip, ports=ports, **spec)
    assert (field, found.external_ips, found.load_balancer_ips) == ("spec.clusterIP", (), ())
    assert reason == "none: nothing of the service is served"
    assert found.ports[0].node_port == 0


def test_an_external_name_leads_nowhere_whatever_it_says():
    ports = [{"port": 80}]
    found = fact(balanced({"ip": "192.0.2.1"}), type="ExternalName", externalIPs=["192.0.2.1"], ports=ports)
    assert (found.external_ips, found.load_balancer_ips) == ((), ())


# Traffic policies


@pytest.mark.parametrize(("policy", "local"), [(None, False), ("", False), ("Cluster", False), ("Local", True)])
def test_the_internal_traffic_policy(policy: str | None, local: bool):
    assert fact(internalTrafficPolicy=policy).internal_local is local


@pytest.mark.parametrize(
    ("spec", "local"),
    [
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}, True),
        ({"type": "LoadBalancer", "healthCheckNodePort": 30000}, True),
        ({"externalIPs": ["192.0.2.1"]}, True),
        ({}, False),
    ],
)
def test_the_external_traffic_policy_is_of_what_is_reachable_from_outside(spec: dict[str, Any], local: bool):
    assert fact(externalTrafficPolicy="Local", **spec).external_local is local
    assert fact(externalTrafficPolicy="Cluster", **spec).external_local is False


@pytest.mark.parametrize("field", ["internalTrafficPolicy", "externalTrafficPolicy"])
def test_a_policy_that_nobody_knows_is_cluster(field: str):
    spec: dict[str, Any] = {"externalIPs": ["192.0.2.1"], field: "local"}
    found, where, reason = named(**spec)
    assert (where, found.internal_local, found.external_local) == (f"spec.{field}", False, False)
    assert reason == "'local' is not Cluster or Local; Cluster is used"


# Session affinity


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        (None, 10800),
        ({}, 10800),
        ({"clientIP": None}, 10800),
        ({"clientIP": {"timeoutSeconds": None}}, 10800),
        ({"clientIP": {"timeoutSeconds": 1}}, 1),
        ({"clientIP": {"timeoutSeconds": 86400}}, 86400),
    ],
)
def test_affinity_lasts_as_long_as_it_says(config: object, seconds: int):
    assert fact(sessionAffinity="ClientIP", sessionAffinityConfig=config).affinity_s == seconds


@pytest.mark.parametrize("seconds", [0, -1, 86401, 1 << 40])
def test_a_timeout_out_of_bounds_is_named_and_the_default_is_used(seconds: int):
    config = {"clientIP": {"timeoutSeconds": seconds}}
    found, field, reason = named(sessionAffinity="ClientIP", sessionAffinityConfig=config)
    assert (field, found.affinity_s) == (AFFINITY, 10800)
    assert reason == f"{seconds} is not 1 to 86400 seconds; 10800 are used"


@pytest.mark.parametrize("affinity", [None, "", "None"])
def test_no_affinity(affinity: str | None):
    assert fact(sessionAffinity=affinity, sessionAffinityConfig={"clientIP": {"timeoutSeconds": 0}}).affinity_s == 0


def test_an_affinity_that_nobody_knows_is_none():
    found, field, _ = named(sessionAffinity="Cookie")
    assert (field, found.affinity_s) == ("spec.sessionAffinity", 0)


# Source ranges


@pytest.mark.parametrize("ranges", [None, []])
def test_no_source_ranges_let_everybody_in(ranges: list[str] | None):
    assert fact(type="LoadBalancer", loadBalancerSourceRanges=ranges).source_ranges is None


def test_source_ranges_of_both_families_with_white_space_around():
    found = fact(type="LoadBalancer", loadBalancerSourceRanges=[" 192.0.2.0/24", "2001:db8::/32\t", "192.0.2.9/24"])
    assert texts(found.source_ranges or ()) == ["192.0.2.0/24", "2001:db8::/32"]


@pytest.mark.parametrize("text", ["192.0.2.1", "192.0.2.0/33", "192.0.2.0/255.255.255.0", "x", "", "010.0.0.0/8", "/0"])
def test_a_source_range_that_is_no_block_is_named_and_the_rest_counts(text: str):
    found, field, reason = named(type="LoadBalancer", loadBalancerSourceRanges=[text, "198.51.100.0/24"])
    assert (field, texts(found.source_ranges or ())) == (f"{RANGES}[0]", ["198.51.100.0/24"])
    assert reason.endswith("it lets nobody in")


def test_when_no_source_range_is_left_nobody_is_served():
    found = read(type="LoadBalancer", loadBalancerSourceRanges=["x", "y"])
    assert isinstance(found.fact, Service)
    assert found.fact.source_ranges == ()
    assert [problem.field for problem in found.problems] == [f"{RANGES}[0]", f"{RANGES}[1]", RANGES]
    assert found.problems[2].reason == "no block is left: load balancer addresses serve nobody"


OLD = "service.beta.kubernetes.io/load-balancer-source-ranges"


def test_source_ranges_of_the_old_annotation_are_a_cloud_provider_s():
    """As for kube-proxy, which reads the field alone."""
    found, field, _ = named(annotations={OLD: "192.0.2.0/24"}, type="LoadBalancer")
    assert (field, found.source_ranges) == (f"metadata.annotations[{OLD}]", None)


@pytest.mark.parametrize("spec", [{}, {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}])
def test_the_old_annotation_is_nothing_to_name_where_it_says_nothing(spec: dict[str, Any]):
    fact(annotations={OLD: "192.0.2.0/24"}, **spec)


# Health checks


def test_health_is_told_for_load_balancers_with_the_local_policy_only():
    spec: dict[str, Any] = {"healthCheckNodePort": 32000, "externalIPs": ["192.0.2.1"]}
    assert fact(type="LoadBalancer", externalTrafficPolicy="Local", **spec).health_check_port == 32000
    assert fact(type="LoadBalancer", externalTrafficPolicy="Cluster", **spec).health_check_port == 0
    assert fact(type="ClusterIP", externalTrafficPolicy="Local", **spec).health_check_port == 0


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_a_health_check_that_nobody_can_ask_is_named(port: int | None):
    found, field, _ = named(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=port)
    assert (field, found.health_check_port) == ("spec.healthCheckNodePort", 0)


# Annotations, and what is somebody else's business

BALANCING = "ebpfnet.io/load-balancing"


@pytest.mark.parametrize(("annotations", "consistent"), [(None, False), ({}, False), ({BALANCING: "maglev"}, True)])
def test_consistent_hashing_is_asked_for(annotations: dict[str, str] | None, consistent: bool):
    assert fact(annotations=annotations).consistent is consistent


@pytest.mark.parametrize("value", ["", "Maglev", "random", 1, {}, None])
def test_a_way_to_choose_backends_that_is_none_is_named(value: object):
    if value is None:  # as if it were not there
        assert fact(annotations={BALANCING: None}).consistent is False
        return
    found, field, _ = named(annotations={BALANCING: value})
    assert (field, found.consistent) == (f"metadata.annotations[{BALANCING}]", False)


DIRECT = "ebpfnet.io/direct-server-return"


@pytest.mark.parametrize(
    ("annotations", "direct"), [(None, None), ({DIRECT: "true"}, True), ({DIRECT: "false"}, False)]
)
def test_direct_server_return_is_asked_for(annotations: dict[str, str] | None, direct: bool | None):
    assert fact(annotations=annotations).direct is direct


@pytest.mark.parametrize("value", ["", "True", "yes", 1, True, {}])
def test_a_direct_server_return_that_is_neither_is_named(value: object):
    found, field, reason = named(annotations={DIRECT: value})
    assert (field, found.direct) == (f"metadata.annotations[{DIRECT}]", None)
    assert "is not true or false" in reason


def test_an_annotation_of_ours_that_we_do_not_know_is_named():
    _, field, reason = named(annotations={"ebpfnet.io/loadbalancing": "maglev", "example.com/ebpfnet.io/x": 1})
    assert field == "metadata.annotations[ebpfnet.io/loadbalancing]"
    assert (
        reason
        == "there is no such annotation; did you mean ebpfnet.io/load-balancing or ebpfnet.io/direct-server-return?"
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"publishNotReadyAddresses": True},  # the endpoints are ready then
        {"trafficDistribution": "PreferSameZone"},  # the endpoints have hints then
        {"allocateLoadBalancerNodePorts": False, "loadBalancerClass": "x", "loadBalancerIP": "192.0.2.1"},
    ],
)
def test_what_controllers_obey_changes_no_fact(spec: dict[str, Any]):
    assert fact(**spec) == fact()
