"""What would be passed over in silence is named; what the API has and we do not read is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from kubernetes.client import models

from ebpfnet.model.facts import Kind, Pod, Service
from ebpfnet.watch import schema, spelling
from ebpfnet.watch.decode import decode, decode_bytes
from ebpfnet.watch.manifests import parse
from tests.unit.watch.test_decode import pieces, service

POD = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"}}


@pytest.mark.parametrize(
    ("item", "path", "name"),
    [
        (service(clusterIp="10.96.0.1"), "spec.clusterIp", "clusterIP"),
        (service(clusterIP="10.96.0.1", port=[]), "spec.port", "ports"),
        (service(clusterIP="10.96.0.1", ports=[{"port": 80, "protocl": "UDP"}]), "spec.ports[0].protocl", "protocol"),
        (service(externalIps=["192.0.2.1"]), "spec.externalIps", "externalIPs"),
        (service(ports=[{"port": 80, "nodeport": 30080}]), "spec.ports[0].nodeport", "nodePort"),
        (service(loadbalancerSourceRange=[]), "spec.loadbalancerSourceRange", "loadBalancerSourceRanges"),
        (service(externalTrafficPolicies="Local"), "spec.externalTrafficPolicies", "externalTrafficPolicy"),
        (service(sessionAffinityConf={}), "spec.sessionAffinityConf", "sessionAffinityConfig"),
        (
            service(sessionAffinityConfig={"clientIP": {"timeoutSecond": 1}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSecond",
            "timeoutSeconds",
        ),
        (service(healthcheckNodePort=32000), "spec.healthcheckNodePort", "healthCheckNodePort"),
        (
            {**service(), "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipmode": "VIP"}]}}},
            "status.loadBalancer.ingress[0].ipmode",
            "ipMode",
        ),
        ({**service(), "status": {"loadbalancer": {}}}, "status.loadbalancer", "loadBalancer"),
        (pieces({"addresses": ["10.0.0.1"], "nodename": "a"}), "endpoints[0].nodename", "nodeName"),
        (
            pieces({"addresses": ["10.0.0.1"], "hints": {"forZone": [{"name": "a"}]}}),
            "endpoints[0].hints.forZone",
            "forZones",
        ),
        ({**pieces(endpoint=[]), "endpoints": None}, "endpoint", "endpoints"),
        (pieces({"addresses": ["10.0.0.1"], "condition": {}}), "endpoints[0].condition", "conditions"),
        ({**POD, "status": {"podIps": [{"ip": "10.0.0.1"}]}}, "status.podIps", "podIPs"),
        ({**POD, "metadata": {"name": "p", "nameSpace": "x"}}, "metadata.nameSpace", "namespace"),
    ],
)
def test_a_misspelt_field_is_named(item: dict[str, Any], path: str, name: str):
    if path == "endpoint":
        del item["endpoints"]
    found = [problem for problem in decode(item).problems if problem.field == path]
    assert [problem.reason for problem in found] == [f"no such field; did you mean {name}?"]


@pytest.mark.parametrize(
    ("version", "kind", "known"),
    [
        ("v1", "Servce", "Service"),
        ("v1", "service", "Service"),
        ("discovery.k8s.io/v1", "EndpointSlices", "EndpointSlice"),
        ("networking.k8s.io/v1", "NetworkPolcy", "NetworkPolicy"),
        ("v1", "Pods", "Pod"),
    ],
)
def test_a_misspelt_kind_names_the_file_and_the_object(version: str, kind: str, known: str):
    text = json.dumps({"apiVersion": version, "kind": kind, "metadata": {"name": "web"}})
    [problem] = parse("a.json", text.encode()).problems
    assert str(problem) == f"File a.json: kind: {kind} web is not known; did you mean {known}?"


@pytest.mark.parametrize("version", ["apps/v1", "example.com/v1"])
def test_kinds_of_other_groups_may_be_called_as_they_like(version: str):
    assert decode({"apiVersion": version, "kind": "Servce", "metadata": {"name": "web"}}).problems == ()


def test_no_kind_of_the_api_is_taken_for_another():
    kinds = {name.removeprefix("V1") for name in dir(models) if name.startswith("V1")}
    kinds = {name for name in kinds if "api_version" in getattr(models, f"V1{name}").openapi_types}
    assert len(kinds) > 50
    lists = {name for name in kinds if name.endswith("List")}
    for kind in kinds - lists - set(Kind):
        assert decode({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}}).problems == (), kind


PAIRS = [
    (schema.ServiceObject, models.V1Service),
    (schema.EndpointSliceObject, models.V1EndpointSlice),
    (schema.PodObject, models.V1Pod),
    (schema.NodeObject, models.V1Node),
    (schema.NamespaceObject, models.V1Namespace),
    (schema.ServiceCIDRObject, models.V1ServiceCIDR),
]


def taken(struct: type, model: Any) -> Iterator[str]:
    """Yield the API's own fields that would be called misspelt."""
    for name in model.attribute_map.values():
        yield from (f"{model.__name__}.{path}" for path, _ in spelling.misspelt({name: None}, struct))
    types = {model.attribute_map[key]: text for key, text in model.openapi_types.items()}
    for name, inner, _ in spelling._shape(struct)[1]:
        yield from taken(inner, getattr(models, types[name].rpartition("[")[2].rstrip("]")))


@pytest.mark.parametrize(("struct", "model"), PAIRS)
def test_no_field_of_the_api_is_taken_for_another(struct: type[msgspec.Struct], model: Any):
    assert list(taken(struct, model)) == []


def test_a_cluster_ip_that_is_not_the_first_of_all_is_named():
    found = decode(service(clusterIP="10.96.0.1", clusterIPs=["10.96.0.2"]))
    assert isinstance(found.fact, Service)
    assert [str(address) for address in found.fact.cluster_ips] == ["10.96.0.2"]
    assert [problem.field for problem in found.problems] == ["spec.clusterIP"]


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "fe80::1"])
def test_an_address_that_no_pod_can_have(ip: str):
    found = decode({**POD, "status": {"podIPs": [{"ip": ip}]}})
    assert found.fact is None
    assert [problem.field for problem in found.problems] == ["status.podIPs[0].ip"]
    over = decode({**POD, "status": {"phase": "Failed", "podIPs": [{"ip": ip}]}})
    assert isinstance(over.fact, Pod)


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.POD, Kind.NODE, Kind.NAMESPACE, Kind.ENDPOINT_SLICE])
@pytest.mark.parametrize("meta", [{"name": "x"}, {"name": "x", "namespace": "y"}, {"name": "X Y"}, {}])
def test_both_ways_to_read_an_object_name_it_alike(kind: Kind, meta: dict[str, str]):
    labels = {"labels": {"kubernetes.io/service-name": "web"}}
    item = {"metadata": {**meta, **labels}, "addressType": "IPv4", "spec": {}, "status": {}}
    assert decode_bytes(kind, json.dumps(item).encode()) == decode({**item, "kind": str(kind)})
