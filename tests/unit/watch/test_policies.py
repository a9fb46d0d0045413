"""Network policies to facts: what the API's documentation says they mean, and every refusal with its field."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from ebpfnet.model.facts import IPBlock, Kind, NetworkPolicy, PodPeer, PolicyPort, PolicyRule, Ref
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.watch.decode import decode, decode_bytes

WEB = {"matchLabels": {"app": "web"}}
WEB_ONLY = Selector((Requirement("app", frozenset({"web"})),))
ANYBODY = PolicyRule()


def manifest(**spec: Any) -> dict[str, Any]:
    meta = {"name": "p", "namespace": "default"}
    return {"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": meta, "spec": spec}


def policy(**spec: Any) -> NetworkPolicy:
    found = decode(manifest(**spec)).fact
    assert isinstance(found, NetworkPolicy)
    return found


def peers(*given: Any) -> tuple[PodPeer | IPBlock, ...]:
    [rule] = policy(ingress=[{"from": list(given)}]).ingress or ()
    return rule.peers


def ports(*given: Any) -> tuple[PolicyPort, ...]:
    [rule] = policy(ingress=[{"ports": list(given)}]).ingress or ()
    return rule.ports


def refusal(**spec: Any) -> str:
    found = decode(manifest(**spec))
    assert isinstance(found.fact, NetworkPolicy)
    assert found.fact.refused
    [problem] = found.problems
    assert problem.reason.endswith("; the pods that it selects are isolated")
    return f"{problem.field}: {problem.reason}"


@pytest.mark.parametrize("spec", [{}, {"podSelector": None}, {"podSelector": {}}, {"podSelector": {"matchLabels": {}}}])
def test_an_empty_selector_selects_every_pod_of_the_namespace(spec: dict[str, Any]):
    assert policy(**spec).pods == EVERYTHING


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ({}, (), None),
        ({"policyTypes": []}, (), None),
        ({"ingress": None}, (), None),
        ({"ingress": [], "egress": []}, (), None),
        ({"egress": [{}]}, (), (ANYBODY,)),
        ({"ingress": [{}], "policyTypes": ["Ingress"]}, (ANYBODY,), None),
        ({"policyTypes": ["Egress"]}, None, ()),
        ({"policyTypes": ["Ingress", "Egress"], "ingress": [{}]}, (ANYBODY,), ()),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, (), None),
    ],
    ids=str,
)
def test_directions_and_their_defaults(spec: dict[str, Any], ingress: object, egress: object):
    """No rules deny everything; a direction that is not named, nor has rules by default, is not spoken of."""
    assert (policy(**spec).ingress, policy(**spec).egress) == (ingress, egress)


@pytest.mark.parametrize("rule", [{}, {"from": []}, {"from": None}, {"ports": []}])
def test_a_rule_that_leaves_something_out_allows_all_of_it(rule: dict[str, Any]):
    assert policy(ingress=[rule]).ingress == (ANYBODY,)


def test_peers():
    assert peers({"podSelector": WEB}) == (PodPeer(WEB_ONLY),)
    assert peers({"podSelector": {}}) == (PodPeer(EVERYTHING),)
    assert peers({"namespaceSelector": {}}) == (PodPeer(EVERYTHING, EVERYTHING),)
    assert peers({"podSelector": WEB, "namespaceSelector": {}}) == (PodPeer(WEB_ONLY, EVERYTHING),)
    assert peers({"podSelector": WEB}, {"namespaceSelector": WEB}) == (PodPeer(WEB_ONLY), PodPeer(EVERYTHING, WEB_ONLY))
    assert policy(egress=[{"to": [{"podSelector": WEB}]}]).egress == (PolicyRule((PodPeer(WEB_ONLY),)),)


def test_blocks():
    block = {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}
    network = ipaddress.ip_network
    assert peers({"ipBlock": block}) == (IPBlock(network("10.0.0.0/8"), (network("10.1.0.0/16"),)),)
    assert peers({"ipBlock": {"cidr": "fd00::/8"}}) == (IPBlock(network("fd00::/8")),)
    assert peers({"ipBlock": {"cidr": "10.1.2.3/8"}}) == (IPBlock(network("10.0.0.0/8")),)


def test_ports():
    assert ports({}) == (PolicyPort(6, 0, 65535),)
    assert ports({"protocol": "UDP", "port": 53}) == (PolicyPort(17, 53, 53),)
    assert ports({"port": 8000, "endPort": 8010, "protocol": "SCTP"}) == (PolicyPort(132, 8000, 8010),)
    assert ports({"port": 80, "endPort": 80}) == (PolicyPort(6, 80, 80),)
    assert ports({"port": "http"}) == (PolicyPort(6, 0, 0, "http"),)


def test_selectors_that_mean_the_same_are_equal():
    one = {"matchLabels": {"b": "2", "a": "1"}}
    other = {"matchExpressions": [{"key": k, "operator": "In", "values": [v]} for k, v in (("a", "1"), ("b", "2"))]}
    assert policy(podSelector=one).pods == policy(podSelector=other).pods
    assert hash(policy(podSelector=one)) == hash(policy(podSelector=other))


@pytest.mark.parametrize(
    ("operator", "values", "want"),
    [
        ("In", ["x", "y"], Requirement("k", frozenset("xy"))),
        ("NotIn", ["x"], Requirement("k", frozenset("x"), negated=True)),
        ("Exists", [], Requirement("k", None)),
        ("DoesNotExist", None, Requirement("k", None, negated=True)),
    ],
)
def test_expressions(operator: str, values: object, want: Requirement):
    expression = {"key": "k", "operator": operator, "values": values}
    assert policy(podSelector={"matchExpressions": [expression]}).pods == Selector((want,))


def expression(**more: Any) -> dict[str, Any]:
    return {"podSelector": {"matchExpressions": [{"key": "k", "operator": "In", "values": ["x"], **more}]}}


def port(**given: Any) -> dict[str, Any]:
    return {"egress": [{"ports": [given]}]}


def block(cidr: str, *excepts: str) -> dict[str, Any]:
    return {"ingress": [{}, {"from": [{"ipBlock": {"cidr": cidr, "except": list(excepts)}}]}]}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"policyTypes": ["Ingress", "Both"]}, "spec.policyTypes[1]: 'Both' is not Ingress or Egress"),
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]: none of"),
        ({"egress": [{"to": [{"podSelector": {}, "ipBlock": {"cidr": "::/0"}}]}]}, "spec.egress[0].to[0]: ipBlock"),
        (block("10.0.0.0/33"), "spec.ingress[1].from[0].ipBlock.cidr: '10.0.0.0/33' is not a block"),
        (block("10.0.0.0"), "spec.ingress[1].from[0].ipBlock.cidr: '10.0.0.0' is not a block"),
        (block("10.0.0.0/255.0.0.0"), "spec.ingress[1].from[0].ipBlock.cidr"),
        (block("010.0.0.0/8"), "spec.ingress[1].from[0].ipBlock.cidr: '010.0.0.0' is not an IP address"),
        (block("::ffff:10.0.0.0/104"), "spec.ingress[1].from[0].ipBlock.cidr"),
        (block("10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/16"), "ipBlock.except[1]: 11.0.0.0/16 is not a part of"),
        (block("10.0.0.0/8", "10.0.0.0/8"), "ipBlock.except[0]: 10.0.0.0/8 is not a part of"),
        (block("10.0.0.0/8", "fd00::/16"), "ipBlock.except[0]: fd00::/16 is not a part of"),
        (block("10.0.0.0/8", "x"), "ipBlock.except[0]: 'x' is not a block"),
        (port(port=0), "spec.egress[0].ports[0].port: 0 is not a port"),
        (port(port=80, endPort=79), "spec.egress[0].ports[0].endPort: 79 is less than port 80"),
        (port(port=80, endPort=65536), "spec.egress[0].ports[0].endPort: 65536 is not a port"),
        (port(endPort=80), "spec.egress[0].ports[0].endPort: needs a port"),
        (port(port="http", endPort=80), "spec.egress[0].ports[0].endPort: needs a port"),
        (port(port="80"), "spec.egress[0].ports[0].port: '80' is not a port's name"),
        (port(port="a--b"), "spec.egress[0].ports[0].port: 'a--b' is not a port's name"),
        (port(port="x" * 16), "spec.egress[0].ports[0].port"),
        (port(port=80, protocol="ICMP"), "spec.egress[0].ports[0].protocol: 'ICMP'"),
        (port(port=1.5), "spec.egress[0].ports[0].port: a number or a text"),
        (expression(operator="in"), "spec.podSelector.matchExpressions[0].operator: 'in' is not In, NotIn"),
        (expression(values=[]), "spec.podSelector.matchExpressions[0].values: missing"),
        (expression(operator="Exists"), "spec.podSelector.matchExpressions[0].values: not allowed"),
        (expression(values=["a b"]), "spec.podSelector.matchExpressions[0].values[0]: 'a b'"),
        (expression(key="-k"), "spec.podSelector.matchExpressions[0].key: '-k'"),
        ({"podSelector": {"matchLabels": {"Up.per/k": "v"}}}, "spec.podSelector.matchLabels: 'Up.per/k'"),
        ({"podSelector": {"matchLabels": {"a.b/k": "x" * 64}}}, "spec.podSelector.matchLabels[a.b/k]: 'xxx"),
        ({"ingress": [{"from": [{"podSelector": {"matchLabels": {"k": 1}}}]}]}, "spec.ingress[0].from[0].podSelector"),
        ({"ingress": [{"from": [{"podSelector": {"matchLabels": {"k/": ""}}}]}]}, "from[0].podSelector.matchLabels:"),
        ({"ingress": [{"from": [{"serviceSelector": {}}]}]}, "from[0].serviceSelector: there is no such field"),
        ({"ingress": [{"from": [{"podSelectors": {}}]}]}, "podSelectors: no such field; did you mean podSelector?"),
        ({"egress": [{"domains": []}]}, "spec.egress[0].domains: there is no such field"),
        ({"egress": [{"from": []}]}, "spec.egress[0].from: there is no such field"),
        (port(port=80, name="x"), "spec.egress[0].ports[0].name: there is no such field"),
        ({"podSelector": {"matchFields": {}}}, "spec.podSelector.matchFields: there is no such field"),
        ({"applyTo": {}}, "spec.applyTo: there is no such field"),
    ],
)
def test_refusals_name_the_field(spec: dict[str, Any], text: str):
    assert text in refusal(**spec)


def test_a_policy_that_makes_sense_is_nothing_to_name():
    found = decode(manifest())
    assert isinstance(found.fact, NetworkPolicy)
    assert (found.fact.ingress, found.fact.refused, found.problems) == ((), False, ())


def test_a_policy_without_a_spec_denies_what_comes_to_every_pod():
    found = decode({"kind": "NetworkPolicy", "metadata": {"name": "p"}}).fact
    assert isinstance(found, NetworkPolicy)
    assert (found.pods, found.ingress, found.egress) == (EVERYTHING, (), None)


def test_a_policy_of_another_group_is_nobody_s_here():
    assert decode({**manifest(), "apiVersion": "crd.projectcalico.org/v1"}).ref is None


def test_bytes_and_mapping_say_the_same():
    item = manifest(podSelector=WEB, ingress=[{"from": [{"podSelector": WEB}], "ports": [{"port": "http"}]}])
    assert decode_bytes(Kind.NETWORK_POLICY, json.dumps(item).encode()) == decode(item)


IN = {"key": "app", "operator": "In", "values": ["web"]}
BAD: dict[str, Any] = {"ingress": [{"from": [{}]}]}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (BAD, (EVERYTHING, (), None)),
        (BAD | {"podSelector": WEB}, (WEB_ONLY, (), None)),
        (BAD | {"egress": [{}]}, (EVERYTHING, (), ())),
        (BAD | {"egress": []}, (EVERYTHING, (), None)),
        (BAD | {"egress": 7}, (EVERYTHING, (), ())),
        (BAD | {"policyTypes": ["Egress"]}, (EVERYTHING, None, ())),
        (BAD | {"policyTypes": ["Ingress"], "egress": [{}]}, (EVERYTHING, (), None)),
        (BAD | {"policyTypes": []}, (EVERYTHING, (), None)),
        (BAD | {"policyTypes": ["Egress", "Outgress"]}, (EVERYTHING, (), ())),
        (BAD | {"policyTypes": "Egress"}, (EVERYTHING, (), ())),
        (BAD | {"policyTypes": [["Egress"]]}, (EVERYTHING, (), ())),
        (BAD | {"policyType": ["Egress"], "podSelector": WEB}, (WEB_ONLY, (), ())),
        ({"podSelector": 7}, (EVERYTHING, (), None)),
        ({"podSelector": {"matchExpressions": [{**IN, "operator": "Inn"}]}}, (EVERYTHING, (), None)),
        ({"podSelector": {"matchExpressions": [IN, {"key": "x"}]}}, (WEB_ONLY, (), None)),
        ({"podSelector": {"matchExpressions": 7, **WEB}}, (WEB_ONLY, (), None)),
        ({"podSelector": {"matchLabels": {"app": "web", "x": 7}}}, (WEB_ONLY, (), None)),
    ],
    ids=str,
)
def test_a_refused_policy_isolates_what_it_may_have_meant(spec: dict[str, Any], want: tuple[object, ...]):
    found = decode(manifest(**spec))
    assert isinstance(found.fact, NetworkPolicy)
    assert len(found.problems) == 1
    assert (found.fact.pods, found.fact.ingress, found.fact.egress) == want
    assert found.fact.refused
    assert decode_bytes(Kind.NETWORK_POLICY, json.dumps(manifest(**spec)).encode()) == found


@pytest.mark.parametrize("spec", [7, [], "x", {7: 8}])
def test_a_policy_that_can_not_be_read_at_all_isolates_its_namespace(spec: object):
    found = decode({**manifest(), "spec": spec}).fact
    assert found == NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "p"), EVERYTHING, (), (), refused=True)


@pytest.mark.parametrize(
    "meta", [None, 7, {}, {"name": 7}, {"name": "P_"}, {"name": "p", "namespace": 7}, {"name": "p", "namespace": "-"}]
)
def test_a_policy_that_has_no_name_can_only_be_named(meta: object):
    found = decode({**manifest(**BAD), "metadata": meta})
    assert found.fact is None
    assert found.problems[0].field.startswith("metadata")


def test_a_policy_whose_labels_make_no_sense_is_a_policy():
    found = decode({**manifest(podSelector=WEB), "metadata": {"name": "p", "labels": 7}})
    assert [problem.field for problem in found.problems] == ["metadata.labels"]
    assert isinstance(found.fact, NetworkPolicy)
    assert (found.fact.pods, found.fact.ingress, found.fact.egress) == (WEB_ONLY, (), None)


@pytest.mark.parametrize(
    ("annotations", "audited", "graceful", "problems"),
    [
        ({}, False, None, []),
        ({"ebpfnet.io/policy-mode": "audit"}, True, None, []),
        ({"ebpfnet.io/policy-mode": "enforce", "ebpfnet.io/established": "strict"}, False, False, []),
        ({"ebpfnet.io/established": "graceful", "other.io/established": "x"}, False, True, []),
        ({"ebpfnet.io/policy-mode": "Audit"}, False, None, ["'Audit' is not enforce or audit"]),
        ({"ebpfnet.io/policy-mode": ["audit"]}, False, None, ["['audit'] is not enforce or audit"]),
        ({"ebpfnet.io/established": "lax"}, False, False, ["'lax' is not strict or graceful"]),
        ({"ebpfnet.io/mode": "audit"}, False, None, ["did you mean ebpfnet.io/policy-mode or ebpfnet.io/established?"]),
    ],
)
@pytest.mark.parametrize("spec", [{"podSelector": WEB}, BAD])
def test_annotations(
    annotations: dict[str, Any], audited: bool, graceful: bool | None, problems: list[str], spec: dict[str, Any]
):
    """Also those of a refused policy count: what is audited was never to drop anything."""
    item = manifest(**spec)
    item["metadata"]["annotations"] = annotations
    found = decode(item)
    assert isinstance(found.fact, NetworkPolicy)
    assert (found.fact.audited, found.fact.graceful) == (audited, graceful)
    if not found.fact.refused:
        assert len(found.problems) == len(problems)
        for problem, text in zip(found.problems, problems, strict=True):
            assert problem.field == f"metadata.annotations[{next(iter(annotations))}]"
            assert text in problem.reason


def test_only_pods_and_namespaces_must_be_known():
    pods: dict[str, Any] = {"podSelector": {}}
    block = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert not policy(ingress=[{}, {"from": [block]}]).has_pod_peers
    assert policy(ingress=[{}, {"from": [block, pods]}]).has_pod_peers
    assert policy(egress=[{"to": [{"namespaceSelector": WEB}]}]).has_pod_peers
    assert not policy(policyTypes=["Ingress"], egress=[{"to": [pods]}]).has_pod_peers
    assert policy(egress=[{"ports": [{"port": "http"}]}]).has_pod_peers
    assert policy(egress=[{"to": [block], "ports": [{"port": "http"}]}]).has_pod_peers
    assert not policy(ingress=[{"ports": [{"port": "http"}]}], egress=[{"ports": [{"port": 80}]}]).has_pod_peers


@pytest.mark.parametrize(("given", "want"), [(7, 7), ("7", 0), (None, 0), (True, 0)])
def test_the_version_that_is_meant_is_known(given: object, want: int):
    for spec in ({}, {"policyTypes": ["Sideways"]}):
        item = manifest(**spec)
        item["metadata"]["generation"] = given
        for fact in (decode(item).fact, decode_bytes(Kind.NETWORK_POLICY, json.dumps(item).encode()).fact):
            assert isinstance(fact, NetworkPolicy)
            assert (fact.generation, fact.refused) == (want, bool(spec))
