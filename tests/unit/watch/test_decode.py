"""Objects to facts: defaults, and every refusal with its field."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.model.endpoints import Condition, unpack
from ebpfnet.model.facts import EndpointSlice, Kind, Node, Peer, Pod, Ref, Service, ServiceCIDR
from ebpfnet.watch.decode import decode, decode_bytes
from ebpfnet.watch.fields import Decoded


def service(**spec):
    return {"kind": "Service", "metadata": {"name": "web"}, "spec": spec}


def pieces(*endpoints, family="IPv4", **more):
    labels = {"kubernetes.io/service-name": "web"}
    head = {"kind": "EndpointSlice", "metadata": {"name": "web-a", "labels": labels}, "addressType": family}
    return {**head, "ports": [{"name": "http", "port": 80}], "endpoints": list(endpoints), **more}


def refusal(item) -> str:
    found = decode(item)
    assert found.fact is None
    [problem] = found.problems
    return f"{problem.field}: {problem.reason}"


def test_namespace_defaults():
    ref = decode(service(clusterIP="10.0.0.1")).ref
    assert ref is not None
    assert ref.namespace == "default"


def test_protocol_defaults_to_tcp():
    fact = decode(service(clusterIP="10.96.0.1", ports=[{"port": 80}])).fact
    assert isinstance(fact, Service)
    assert fact.ports[0].protocol == 6


@pytest.mark.parametrize(
    "spec", [{"clusterIP": "None"}, {"clusterIP": ""}, {}, {"type": "ExternalName", "clusterIP": "10.0.0.1"}]
)
def test_services_without_a_cluster_ip(spec):
    fact = decode(service(**spec)).fact
    assert isinstance(fact, Service)
    assert fact.cluster_ips == ()


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (service(ports=[{"port": "80"}]), "spec.ports[0].port: a number is expected, not a text"),
        (service(ports=[{"port": 0}]), "spec.ports[0].port: 0 is not a port"),
        (service(ports=[{"port": 65536}]), "spec.ports[0].port: 65536 is not a port"),
        (service(ports=[{"port": 80, "protocol": "QUIC"}]), "spec.ports[0].protocol: 'QUIC' is not TCP, UDP or SCTP"),
        (service(ports=[{"port": 80}, {"port": 81}]), "spec.ports[1].name: missing, with several ports"),
        (service(clusterIP="010.96.0.1"), "spec.clusterIP: '010.96.0.1' is not an IP address"),
        (service(clusterIP="::ffff:10.0.0.1"), "spec.clusterIP: '::ffff:10.0.0.1' is an IPv4-mapped"),
        (service(clusterIPs=["10.0.0.1", "10.0.0.2"]), "spec.clusterIPs[1]: a second IPv4 address"),
        (service(clusterIP="127.0.0.1"), "spec.clusterIP: 127.0.0.1 is loopback"),
        (service(clusterIPs="10.0.0.1"), "spec.clusterIPs: a list is expected, not a text"),
        ({"kind": "Service", "metadata": {"name": "Web"}}, "metadata.name: 'Web' is not a name"),
        ({"kind": "Service", "metadata": {}}, "metadata.name: '(no name)' is not a name"),
        ({"kind": "Service", "spec": {}}, "metadata.name"),
        ({"metadata": {"name": "x"}}, "kind: missing"),
        (pieces(family="IPv5"), "addressType: 'IPv5' is not IPv4, IPv6 or FQDN"),
        (pieces(ports=[{"port": -1}]), "ports[0].port: -1 is not a port"),
        ({"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.0.1/8"}}, "spec.podCIDRs[0]: 10.0.0"),
        ({"kind": "Pod", "metadata": {"name": "p"}, "status": {"podIPs": [{"ip": "x"}]}}, "status.podIPs[0].ip: 'x'"),
    ],
)
def test_refusals_name_the_field(item, text: str):
    assert refusal(item).startswith(text)


@pytest.mark.parametrize("kind", ["Deployment", "ConfigMap"])
def test_other_kinds_are_none_of_our_business(kind: str):
    assert decode({"kind": kind, "metadata": {"name": "x"}}) == Decoded(None, None)


@pytest.mark.parametrize("group", ["serving.knative.dev/v1", "discovery.k8s.io/v1", "v1beta1.example.com/v1"])
def test_a_kind_of_another_group_is_none_of_our_business(group: str):
    assert decode({**service(ports="none of ours"), "apiVersion": group}) == Decoded(None, None)
    assert decode({**service(ports="ours"), "apiVersion": "v1"}).problems


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, Condition.READY | Condition.SERVING),
        ({}, Condition.READY | Condition.SERVING),
        ({"ready": False}, Condition.SERVING),
        ({"ready": False, "serving": False}, Condition(0)),
        ({"ready": False, "serving": True, "terminating": True}, Condition.SERVING | Condition.TERMINATING),
        ({"ready": None, "serving": None, "terminating": None}, Condition.READY | Condition.SERVING),
    ],
)
def test_endpoint_conditions(conditions, expected: Condition):
    fact = decode(pieces({"addresses": ["10.0.0.1"], "conditions": conditions})).fact
    assert isinstance(fact, EndpointSlice)
    assert [found for _, found in unpack(fact.endpoints)] == [expected]


BAD = ["127.0.0.1", "169.254.0.1", "224.0.0.1", "239.1.1.1", "0.0.0.0", "010.0.0.1", "10.0.0", "fd00::1", ""]
BAD += ["255.255.255.255"]


@pytest.mark.parametrize("text", BAD)
def test_addresses_that_no_endpoint_can_have(text: str):
    found = decode(pieces({"addresses": ["10.0.0.1"]}, {"addresses": [text]}))
    assert isinstance(found.fact, EndpointSlice)
    assert len(list(unpack(found.fact.endpoints))) == 1
    assert [problem.field for problem in found.problems] == ["endpoints[1].addresses[0]"]


@pytest.mark.parametrize("text", ["::1", "::", "fe80::1", "ff02::1", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1"])
def test_addresses_that_no_ipv6_endpoint_can_have(text: str):
    found = decode(pieces({"addresses": ["fd00::1"]}, {"addresses": [text]}, family="IPv6"))
    assert len(found.problems) == 1


@given(st.ip_addresses(v=4))
def test_the_quick_look_at_an_address_agrees_with_the_slow_one(address: ipaddress.IPv4Address):
    found = decode(pieces({"addresses": [str(address)]}))
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    bad = broadcast or address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    assert bool(found.problems) == bad


def test_null_lists_are_empty():
    fact = decode(pieces(endpoints=None, ports=None)).fact
    assert isinstance(fact, EndpointSlice)
    assert (fact.ports, fact.endpoints) == ((), b"")


def test_a_pod_without_an_address_is_a_fact_and_a_problem():
    found = decode({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {}})
    assert isinstance(found.fact, Pod)
    assert [problem.field for problem in found.problems] == ["status.podIPs"]


def test_a_finished_pod_has_no_address():
    status = {"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.1"}]}
    fact = decode({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}).fact
    assert isinstance(fact, Pod)
    assert fact.addresses == ()


def test_a_nodes_addresses_are_the_internal_ones():
    addresses = [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}]
    fact = decode({"kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": addresses}}).fact
    assert isinstance(fact, Node)
    assert [str(address) for address in fact.addresses] == ["192.0.2.1"]


FIELDS = ["metadata", "name", "namespace", "labels", "spec", "status", "ports", "port", "endpoints", "addresses"]
FIELDS += ["clusterIP", "clusterIPs", "podIPs", "ip", "addressType", "conditions", "kubernetes.io/service-name"]
FIELDS += ["type", "externalIPs", "nodePort", "loadBalancer", "ingress", "ipMode", "sessionAffinity", "annotations"]
FIELDS += ["sessionAffinityConfig", "clientIP", "timeoutSeconds", "loadBalancerSourceRanges", "healthCheckNodePort"]
FIELDS += ["nodeName", "hints", "forZones", "forNodes", "ebpfnet.io/weight", "ebpfnet.io/load-balancing", "cidrs"]
TOP = ["metadata", "spec", "status", "ports", "endpoints", "addressType"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(list(Kind)), st.dictionaries(st.sampled_from(TOP), values))
def test_nothing_an_object_says_raises(kind: Kind, item):
    found = decode({"kind": str(kind), **item})
    assert found.fact is not None or found.problems or found.ref is None


def test_bytes_and_mapping_say_the_same():
    item = {
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.1.0.10"]}, {"addresses": ["127.0.0.1"]}],
    }
    assert decode_bytes(Kind.ENDPOINT_SLICE, json.dumps(item).encode()) == decode({**item, "kind": "EndpointSlice"})


@pytest.mark.parametrize("item", [{"metadata": {"name": "x"}, "addressType": 4}, {}, [], {"metadata": {"name": "X Y"}}])
def test_bytes_of_a_broken_object_are_refused_by_name(item: object):
    found = decode_bytes(Kind.ENDPOINT_SLICE, json.dumps(item).encode())
    assert found.fact is None
    assert found.problems


def test_the_time_of_a_change_is_read():
    meta = {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}}
    meta["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T08:00:00.5Z", "other": "x"}
    item = {"metadata": meta, "addressType": "IPv4"}
    assert decode_bytes(Kind.ENDPOINT_SLICE, json.dumps(item).encode()).since == 1795248000.5


def other_pod(status: object = None, **spec: object) -> Decoded:
    meta = {"name": "x", "namespace": "default", "labels": {"b": "2", "a": "1"}, "resourceVersion": "7"}
    return decode_bytes(Kind.PEER, json.dumps({"metadata": meta, "spec": spec, "status": status}).encode())


@pytest.mark.parametrize(
    ("status", "want"),
    [
        (None, []),
        ({}, []),
        ({"podIP": "10.1.0.9"}, ["10.1.0.9"]),
        ({"podIP": "10.1.0.9", "podIPs": [{"ip": "10.1.0.9"}, {"ip": "fd00::9"}]}, ["10.1.0.9", "fd00::9"]),
        ({"podIP": "10.1.0.9", "phase": "Running"}, ["10.1.0.9"]),
        ({"podIP": "10.1.0.9", "phase": "Succeeded"}, []),
        ({"podIP": "10.1.0.9", "phase": "Failed"}, []),
    ],
)
def test_another_node_s_pod_is_its_labels_and_addresses(status: object, want: list[str]):
    packed = b"".join(abi.pack_address(ipaddress.ip_address(text)) for text in want)
    assert other_pod(status) == Decoded(REF_X, Peer(REF_X, (("a", "1"), ("b", "2")), packed))


REF_X = Ref(Kind.PEER, "default", "x")


def test_another_node_s_pod_in_the_host_s_network_has_no_address_of_its_own():
    assert other_pod({"podIP": "192.0.2.1"}, hostNetwork=True).fact == Peer(REF_X, (("a", "1"), ("b", "2")), b"")


@pytest.mark.parametrize("text", ["x", "", None, "10.0.0.256", "010.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "1:2"])
def test_an_address_of_another_node_s_pod_that_is_none_is_named(text: object):
    found = other_pod({"podIPs": [{"ip": "10.1.0.9"}, {"ip": text}]})
    assert found.fact is None
    assert [(problem.ref, problem.field) for problem in found.problems] == [(REF_X, "status.podIPs[1].ip")]


def test_a_manifest_can_t_say_peer():
    assert decode({"kind": "Peer", "metadata": {"name": "x"}}) == Decoded(None, None)


@pytest.mark.parametrize(
    ("deleted", "taints", "eligible"),
    [
        (None, [], True),
        (None, ["node.kubernetes.io/not-ready"], True),
        ("2023-11-14T22:12:10Z", [], False),
        (None, ["ToBeDeletedByClusterAutoscaler"], False),
    ],
)
def test_who_is_eligible(deleted: str | None, taints: list[str], eligible: bool):
    item = {
        "kind": "Node",
        "metadata": {"name": "a", "deletionTimestamp": deleted},
        "spec": {"taints": [{"key": taint} for taint in taints]},
    }
    fact = decode(item).fact
    assert isinstance(fact, Node)
    assert (not fact.leaving) is eligible


@pytest.mark.parametrize(
    ("labels", "zone"), [(None, ""), ({"zone": "a"}, ""), ({"topology.kubernetes.io/zone": "eu-1a"}, "eu-1a")]
)
def test_a_node_s_zone(labels: dict[str, str] | None, zone: str):
    fact = decode({"kind": "Node", "metadata": {"name": "a", "labels": labels}}).fact
    assert isinstance(fact, Node)
    assert fact.zone == zone


PROXY, HEADLESS = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"


@pytest.mark.parametrize(
    ("labels", "mine", "theirs"),
    [
        ({}, True, False),
        ({"app": "web"}, True, False),
        ({PROXY: "cilium"}, False, True),
        ({PROXY: "other"}, False, False),
        ({PROXY: ""}, False, False),  # kube-proxy's selector is for a label that is not there
        ({HEADLESS: ""}, False, False),
        ({HEADLESS: "false"}, False, False),
        ({PROXY: "cilium", HEADLESS: ""}, False, False),
    ],
)
@pytest.mark.parametrize("kind", ["Service", "EndpointSlice"])
def test_services_and_slices_of_another_proxy_are_none_of_our_business(
    kind: str, labels: dict[str, str], mine: bool, theirs: bool
):
    item = service(clusterIP="10.0.0.1") if kind == "Service" else pieces({"addresses": ["10.0.0.1"]})
    item["metadata"] = {"name": "web", "labels": {"kubernetes.io/service-name": "web", **labels}}
    for name, ours in (("", mine), ("cilium", theirs)):
        fact = decode(item, name).fact
        if kind == "Service" and not ours:
            assert isinstance(fact, Service)
            assert fact == Service(fact.ref, fact.cluster_ips, (), fact.created, foreign=True)
            assert [str(each) for each in fact.cluster_ips] == ["10.0.0.1"]
            assert decode_bytes(Kind.SERVICE, json.dumps(item).encode(), name).fact == fact
        else:
            assert (fact is not None) is ours


def test_no_more_than_the_addresses_of_another_proxy_s_service_counts():
    item = service(clusterIP="10.0.0.1", ports=[{"port": 80, "nodePort": "x"}], sessionAffinity="Sometimes")
    item["metadata"] = {"name": "web", "labels": {PROXY: "other"}}
    assert decode(item) == Decoded(None, None)  # nothing that could be named is ours
    headless = service(clusterIP="None") | {"metadata": item["metadata"]}
    assert decode(headless) == decode_bytes(Kind.SERVICE, json.dumps(headless).encode()) == Decoded(None, None)


@pytest.mark.parametrize("meta", [{"name": "web"}, {"name": "web", "labels": None}, {"name": "web", "labels": {}}])
def test_a_service_without_labels_is_the_one_proxy_s_that_has_no_name(meta: dict[str, object]):
    item = service(clusterIP="10.0.0.1") | {"metadata": meta}
    assert decode(item).fact is not None
    other = decode(item, "cilium").fact
    assert isinstance(other, Service)
    assert other.foreign


@pytest.mark.parametrize("kind", ["Pod", "Node", "Namespace", "NetworkPolicy"])
def test_other_kinds_have_no_proxy(kind: str):
    meta = {"name": "x", "labels": {PROXY: "other", HEADLESS: ""}}
    assert decode({"kind": kind, "metadata": meta}).fact is not None


def blocks(*cidrs: str, **meta: object) -> dict[str, object]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", **meta},
        "spec": {"cidrs": list(cidrs)},
    }


@pytest.mark.parametrize("cidrs", [["10.96.0.0/16"], ["fd00::/112", "10.96.0.0/16"]])
def test_where_cluster_ips_come_from(cidrs: list[str]):
    item = blocks(*cidrs, deletionTimestamp="2026-11-21T08:00:00Z", namespace="ignored")
    ref = Ref(Kind.SERVICE_CIDR, "", "kubernetes")
    fact = ServiceCIDR(ref, tuple(map(ipaddress.ip_network, cidrs)))
    assert decode(item) == Decoded(ref, fact) == decode_bytes(Kind.SERVICE_CIDR, json.dumps(item).encode())


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (blocks(), "spec.cidrs: missing"),
        ({**blocks(), "spec": None}, "spec.cidrs: missing"),
        (blocks("10.96.0.0"), "spec.cidrs[0]: '10.96.0.0' is not a block of addresses"),
        (blocks("fd00::/112", "10.96.0.0/33"), "spec.cidrs[1]: '10.96.0.0/33' is not a block of addresses"),
        (blocks("10.96.0.0/16", "10.97.0.0/16"), "spec.cidrs[1]: a second IPv4 block (one of each family at most)"),
        ({**blocks(), "spec": {"cidrs": "10.96.0.0/16"}}, "spec.cidrs: a list is expected, not a text"),
        ({**blocks(), "spec": {"cidrs": [10]}}, "spec.cidrs[0]: a text is expected, not a number"),
    ],
)
def test_blocks_of_cluster_ips_that_are_none(item: dict[str, object], text: str):
    assert refusal(item).startswith(text)


def test_misspelt_blocks_are_named_besides_what_is_missing_for_it():
    missing, misspelt = decode({**blocks(), "spec": {"cidr": ["10.96.0.0/16"]}}).problems
    assert (missing.field, missing.reason) == ("spec.cidrs", "missing")
    assert (misspelt.field, misspelt.reason) == ("spec.cidr", "no such field; did you mean cidrs?")
