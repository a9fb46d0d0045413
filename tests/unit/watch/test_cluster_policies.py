"""Cluster network policies to facts: what the API's types say, what its CRD would refuse, and unknown peers."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    IPBlock,
    Kind,
    NodePeer,
    PodPeer,
    PolicyPort,
    Ref,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.watch.cluster_policies import NOBODY
from ebpfnet.watch.decode import decode, decode_bytes

ALL: dict[str, Any] = {"namespaces": {}}
WEB = {"matchLabels": {"app": "web"}}
WEB_ONLY = Selector((Requirement("app", frozenset({"web"})),))
BAD = {"matchExpressions": [{"key": "app", "operator": "Is"}]}
REF = Ref(Kind.CLUSTER_NETWORK_POLICY, "", "p")
EVERYBODY = PodPeer(EVERYTHING, EVERYTHING)
DENIES = (ClusterRule("", Action.DENY),)


def manifest(**spec: Any) -> dict[str, Any]:
    spec = {"tier": "Admin", "priority": 10, "subject": ALL} | spec
    version = "policy.networking.k8s.io/v1alpha2"
    return {"kind": "ClusterNetworkPolicy", "apiVersion": version, "metadata": {"name": "p"}, "spec": spec}


def fact(**spec: Any) -> ClusterNetworkPolicy:
    found = decode(manifest(**spec))
    assert isinstance(found.fact, ClusterNetworkPolicy)
    assert (found.problems, found.fact.refused) == ((), False)
    return found.fact


def rule(end: str = "to", action: str = "Accept", **more: Any) -> dict[str, Any]:
    return {"action": action, end: [{"namespaces": {}}], **more}


def peers(*given: Any, end: str = "to") -> tuple[object, ...]:
    field = "egress" if end == "to" else "ingress"
    more: dict[str, Any] = {end: list(given)}
    [made] = getattr(fact(**{field: [rule(end, **more)]}), field)
    return tuple(made.peers)


def ports(*protocols: Any) -> tuple[PolicyPort, ...]:
    [made] = fact(egress=[rule(protocols=list(protocols))]).egress
    return made.ports


def egress(**more: Any) -> dict[str, Any]:
    return {"egress": [rule(), rule(**more)]}


def port(**given: Any) -> dict[str, Any]:
    return egress(protocols=[{"tcp": {"destinationPort": given}}])


def test_the_whole():
    found = fact(
        tier="Baseline",
        priority=1000,
        subject={"pods": {"namespaceSelector": WEB, "podSelector": {}}},
        ingress=[{"name": "one", **rule("from", "Deny")}, rule("from", "Pass")],
        egress=[rule()],
    )
    ingress = (ClusterRule("one", Action.DENY, (EVERYBODY,)), ClusterRule("", Action.PASS, (EVERYBODY,)))
    accept = (ClusterRule("", Action.ACCEPT, (EVERYBODY,)),)
    assert found == ClusterNetworkPolicy(REF, Tier.BASELINE, 1000, WEB_ONLY, EVERYTHING, ingress, accept)


@pytest.mark.parametrize(
    ("subject", "want"),
    [
        ({"namespaces": WEB}, (WEB_ONLY, EVERYTHING)),
        ({"namespaces": {}, "pods": None}, (EVERYTHING, EVERYTHING)),
        ({"pods": {"podSelector": WEB}}, (EVERYTHING, WEB_ONLY)),
        ({"pods": {"podSelector": WEB, "namespaceSelector": WEB}}, (WEB_ONLY, WEB_ONLY)),
    ],
    ids=str,
)
def test_subjects(subject: dict[str, Any], want: tuple[Selector, Selector]):
    found = fact(subject=subject)
    assert (found.namespaces, found.pods) == want


@pytest.mark.parametrize("lists", [{}, {"ingress": None, "egress": []}])
def test_a_policy_without_rules_says_nothing(lists: dict[str, Any]):
    assert (fact(**lists).ingress, fact(**lists).egress) == ((), ())


@pytest.mark.parametrize("end", ["from", "to"])
def test_pods_as_peers(end: str):
    assert peers({"namespaces": WEB}, end=end) == (PodPeer(EVERYTHING, WEB_ONLY),)
    assert peers({"pods": {"podSelector": WEB}}, end=end) == (PodPeer(WEB_ONLY, EVERYTHING),)
    both = {"podSelector": {}, "namespaceSelector": WEB}
    assert peers({"pods": both}, {"namespaces": {}}, end=end) == (PodPeer(EVERYTHING, WEB_ONLY), EVERYBODY)


def test_networks_and_nodes_as_peers():
    v4, v6 = ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")
    assert peers({"networks": ["10.0.0.0/8", "fd00::1/8"]}) == (IPBlock(v4), IPBlock(v6))
    [made] = fact(egress=[rule(to=[{"nodes": {}}, {"networks": ["10.0.0.0/8", "fd00::/8"]}])]).egress
    assert made.places == ("[0]", "[1].networks[0]", "[1].networks[1]")
    assert peers({"nodes": {}}, {"nodes": WEB}) == (NodePeer(EVERYTHING), NodePeer(WEB_ONLY))
    assert peers({"nodes": {}, "networks": None}) == (NodePeer(EVERYTHING),)


def test_protocols():
    number, span = {"destinationPort": {"number": 80}}, {"destinationPort": {"range": {"start": 1, "end": 65535}}}
    assert ports({"tcp": number}, {"udp": span}) == (PolicyPort(6, 80, 80), PolicyPort(17, 1, 65535))
    assert ports({"sctp": number, "tcp": None}) == (PolicyPort(132, 80, 80),)
    assert ports({"destinationNamedPort": "http"}) == (PolicyPort(0, 0, 0, "http"),)
    assert fact(egress=[rule(protocols=None)]).egress[0].ports == ()


@pytest.mark.parametrize(
    ("end", "peer", "reason"),
    [
        ("to", {"domainNames": ["example.com"]}, "names of domains are experimental and not supported"),
        ("to", {"services": {}}, "there is no peer 'services' here"),
        ("to", {}, "none of namespaces, pods, nodes, networks"),
        ("to", {"nodes": None}, "none of namespaces, pods, nodes, networks"),
        ("from", {"networks": ["10.0.0.0/8"]}, "there is no peer 'networks' here"),
        ("from", {"nodes": {}}, "there is no peer 'nodes' here"),
        ("from", {}, "none of namespaces, pods"),
        ("from", {"namespaces": {}, "more": {}}, "there is no peer 'more' here"),
    ],
)
@pytest.mark.parametrize("action", ["Accept", "Deny", "Pass"])
def test_a_peer_of_an_unknown_kind_closes_its_rule(end: str, peer: dict[str, Any], reason: str, action: str):
    """The others of the rule are closed with it, its neighbours are not; the API's types say how."""
    field = "egress" if end == "to" else "ingress"
    tcp = [{"tcp": {"destinationPort": {"number": 80}}}]
    rules = [rule(end), {"name": "odd", "action": action, end: [ALL, peer], "protocols": tcp}, rule(end)]
    found = decode(manifest(**{field: rules}))
    assert isinstance(found.fact, ClusterNetworkPolicy)
    assert not found.fact.refused
    before, closed, after = getattr(found.fact, field)
    assert before == after == ClusterRule("", Action.ACCEPT, (EVERYBODY,))
    if action == "Accept":
        assert closed == ClusterRule("odd", Action.ACCEPT, (NOBODY,), (PolicyPort(6, 80, 80),))
        assert not NOBODY.pods.matches(())
        assert not NOBODY.pods.matches((("", ""), ("app", "web")))
    else:
        assert closed == ClusterRule("odd", Action.DENY)
    effect = "its rule accepts nothing" if action == "Accept" else "its rule denies everything"
    assert [str(each) for each in found.problems] == [f"{REF}: spec.{field}[1].{end}[1]: {reason}: {effect}"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"tier": "admin"}, "spec.tier: 'admin' is not Admin or Baseline"),
        ({"tier": None}, "spec.tier: a text is expected, not null"),
        ({"priority": -1}, "spec.priority: -1 is not a priority (0 to 1000)"),
        ({"priority": 1001}, "spec.priority: 1001 is not a priority"),
        ({"priority": "1"}, "spec.priority: a number is expected, not a text"),
        ({"priority": True}, "spec.priority: a number is expected"),
        ({"subject": {}}, "spec.subject: none of namespaces, pods"),
        ({"subject": {"namespaces": {}, "pods": {"podSelector": {}}}}, "spec.subject: namespaces and pods exclude"),
        ({"subject": {"nodes": {}}}, "spec.subject.nodes: there is no such field"),
        ({"subject": {"namespaces": BAD}}, "spec.subject.namespaces.matchExpressions[0].operator: 'Is'"),
        ({"subject": {"pods": {"podSelector": BAD}}}, "spec.subject.pods.podSelector.matchExpressions[0].operator"),
        ({"subject": {"pods": {}}}, "spec.subject.pods.podSelector: missing"),
        (
            {"subject": {"pods": {"podSelector": {}, "namespaceSelector": BAD}}},
            "spec.subject.pods.namespaceSelector.matchExpressions[0].operator",
        ),
        ({"more": 1}, "spec.more: there is no such field"),
        ({"ingres": []}, "spec.ingres: no such field; did you mean ingress?"),
        ({"ingress": [rule("from")] * 26}, "spec.ingress: 26 rules, of 25 at most"),
        ({"egress": [rule()] * 26}, "spec.egress: 26 rules, of 25 at most"),
        ({"egress": [rule("from")]}, "spec.egress[0]"),
        (egress(name="x" * 101), "spec.egress[1].name: 101 characters long, of 100 at most"),
        (egress(action="Allow"), "spec.egress[1].action: 'Allow' is not Accept, Deny or Pass"),
        ({"egress": [{"to": [ALL]}]}, "spec.egress[0].action: missing"),
        ({"egress": [{"action": "Deny"}]}, "spec.egress[0].to: missing"),
        ({"ingress": [{"action": "Deny"}]}, "spec.ingress[0].from: missing"),
        (egress(when="now"), "spec.egress[1].when: there is no such field"),
        (egress(to=[]), "spec.egress[1].to: empty; at least one is needed"),
        (egress(to=[ALL] * 26), "spec.egress[1].to: 26 items, of 1 to 25"),
        (egress(to=[7]), "spec.egress[1].to[0]: an object is expected"),
        (egress(to=[ALL, {"namespaces": 7}]), "spec.egress[1].to[1].namespaces: an object is expected"),
        (egress(to=[{"namespaces": BAD}]), "spec.egress[1].to[0].namespaces.matchExpressions[0].operator"),
        (egress(to=[{"nodes": BAD}]), "spec.egress[1].to[0].nodes.matchExpressions[0].operator"),
        (egress(to=[{"nodes": {"names": []}}]), "spec.egress[1].to[0].nodes.names: there is no such field"),
        (egress(to=[{"pods": {"podSelector": BAD}}]), "spec.egress[1].to[0].pods.podSelector.matchExpressions[0]"),
        (egress(to=[{"pods": {"podSelector": {}, "namespaceSelector": BAD}}]), "to[0].pods.namespaceSelector"),
        (egress(to=[{"nodes": {}, "networks": ["::/0"]}]), "spec.egress[1].to[0]: nodes and networks exclude"),
        (egress(to=[{"networks": []}]), "spec.egress[1].to[0].networks: empty"),
        (egress(to=[{"networks": [f"10.0.0.{n}/32" for n in range(26)]}]), "to[0].networks: 26 items, of 1 to 25"),
        (egress(to=[{"networks": ["::/0", "::/0"]}]), "to[0].networks[1]: '::/0' stands there twice"),
        (egress(to=[{"networks": ["10.0.0.0"]}]), "to[0].networks[0]: '10.0.0.0' is not a block"),
        (egress(to=[{"networks": ["10.0.0.0/33"]}]), "to[0].networks[0]: '10.0.0.0/33' is not a block"),
        (egress(to=[{"networks": ["::/0", "::ffff:10.0.0.0/104"]}]), "to[0].networks[1]"),
        (egress(to=[{"networks": ["0" * 44]}]), "to[0].networks[0]: 44 characters long, of 43 at most"),
        (egress(protocols=[]), "spec.egress[1].protocols: empty"),
        (egress(protocols=[{"destinationNamedPort": "a"}] * 26), "spec.egress[1].protocols: 26 items"),
        (egress(protocols=[{}]), "spec.egress[1].protocols[0]: none of tcp, udp, sctp, destinationNamedPort"),
        (egress(protocols=[{"icmp": {}}]), "spec.egress[1].protocols[0].icmp: there is no such field"),
        (
            egress(protocols=[{"tcp": {"destinationPort": {"number": 1}}, "destinationNamedPort": "x"}]),
            "spec.egress[1].protocols[0]: tcp and destinationNamedPort exclude",
        ),
        (egress(protocols=[{"tcp": {}}]), "spec.egress[1].protocols[0].tcp.destinationPort: missing"),
        (egress(protocols=[{"udp": {"sourcePort": {}}}]), "protocols[0].udp.sourcePort: there is no such field"),
        (egress(protocols=[{"destinationNamedPort": "80"}]), "destinationNamedPort: '80' is not a port's name"),
        (egress(protocols=[{"destinationNamedPort": ""}]), "destinationNamedPort: '' is not a port's name"),
        (
            egress(to=[{"nodes": {}}], protocols=[{"destinationNamedPort": "http"}]),
            "spec.egress[1].protocols[0].destinationNamedPort: networks and nodes have no named ports",
        ),
        (
            egress(to=[ALL, {"networks": ["::/0"]}], protocols=[{"destinationNamedPort": "http"}]),
            "spec.egress[1].protocols[0].destinationNamedPort: networks and nodes have no named ports",
        ),
        (port(), "protocols[0].tcp.destinationPort: none of number, range"),
        (port(number=0), "protocols[0].tcp.destinationPort.number: 0 is not a port"),
        (port(number=65536), "protocols[0].tcp.destinationPort.number: 65536 is not a port"),
        (port(number="http"), "protocols[0].tcp.destinationPort.number: a number is expected, not a text"),
        (port(number=1, range={"start": 1, "end": 2}), "tcp.destinationPort: number and range exclude"),
        (port(range={"start": 0, "end": 2}), "tcp.destinationPort.range.start: 0 is not a port"),
        (port(range={"start": 1, "end": 65536}), "tcp.destinationPort.range.end: 65536 is not a port"),
        (port(range={"start": 2, "end": 2}), "tcp.destinationPort.range.end: 2 is not more than start 2"),
        (port(range={"start": 2}), "tcp.destinationPort.range.end: missing"),
    ],
)
def test_refusals_name_the_field_and_deny(spec: dict[str, Any], text: str):
    found = decode(manifest(**spec))
    [problem] = found.problems
    assert text in f"{problem.field}: {problem.reason}"
    assert problem.reason.endswith("; it denies everything")
    assert isinstance(found.fact, ClusterNetworkPolicy)
    assert found.fact.refused
    whole = any(key in spec for key in ("more", "ingres"))
    assert found.fact.ingress == (DENIES if "ingress" in spec or whole else ())
    assert found.fact.egress == (DENIES if "egress" in spec or whole else ())
    assert decode_bytes(Kind.CLUSTER_NETWORK_POLICY, json.dumps(manifest(**spec)).encode()) == found


SPOILT = {"ingress": [{}], "subject": {"pods": {"podSelector": WEB}}}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (SPOILT, (Tier.ADMIN, 10, EVERYTHING, WEB_ONLY)),
        (SPOILT | {"tier": "Baseline", "priority": 7}, (Tier.BASELINE, 7, EVERYTHING, WEB_ONLY)),
        (SPOILT | {"tier": "Last", "priority": 1001}, (Tier.ADMIN, 0, EVERYTHING, WEB_ONLY)),
        (SPOILT | {"tier": ["Baseline"], "priority": True}, (Tier.ADMIN, 0, EVERYTHING, WEB_ONLY)),
        (SPOILT | {"subject": {"namespaces": WEB}}, (Tier.ADMIN, 10, WEB_ONLY, EVERYTHING)),
        (SPOILT | {"subject": {"namespaces": BAD | WEB}}, (Tier.ADMIN, 10, WEB_ONLY, EVERYTHING)),
        (SPOILT | {"subject": {"namespaces": BAD}}, (Tier.ADMIN, 10, EVERYTHING, EVERYTHING)),
        (SPOILT | {"subject": {"namespaces": WEB, "pods": {}}}, (Tier.ADMIN, 10, EVERYTHING, EVERYTHING)),
        (SPOILT | {"subject": {"pods": 7}}, (Tier.ADMIN, 10, EVERYTHING, EVERYTHING)),
        (SPOILT | {"subject": 7}, (Tier.ADMIN, 10, EVERYTHING, EVERYTHING)),
        (
            SPOILT | {"subject": {"pods": {"podSelector": BAD, "namespaceSelector": WEB}}},
            (Tier.ADMIN, 10, WEB_ONLY, EVERYTHING),
        ),
    ],
    ids=str,
)
def test_a_refused_policy_denies_whom_it_may_have_meant(spec: dict[str, Any], want: tuple[object, ...]):
    found = decode(manifest(**spec)).fact
    assert isinstance(found, ClusterNetworkPolicy)
    assert (found.tier, found.priority, found.namespaces, found.pods) == want
    assert (found.ingress, found.egress, found.refused) == (DENIES, (), True)


@pytest.mark.parametrize("spec", [None, 7, [], {}, {7: 8}], ids=str)
def test_a_policy_that_can_not_be_read_at_all(spec: object):
    """Without rules nothing is denied; where they may be anywhere, everything is."""
    found = decode({**manifest(), "spec": spec})
    rules = () if spec == {} else DENIES
    assert found.fact == ClusterNetworkPolicy(REF, Tier.ADMIN, 0, EVERYTHING, EVERYTHING, rules, rules, refused=True)
    assert [problem.field.partition(".")[0] for problem in found.problems] == ["spec"]


def test_annotations_and_the_namespace_that_it_has_not():
    item = manifest()
    item["metadata"] |= {
        "namespace": "default",
        "annotations": {"ebpfnet.io/policy-mode": "audit", "ebpfnet.io/established": "lax"},
    }
    found = decode(item)
    assert isinstance(found.fact, ClusterNetworkPolicy)
    assert (found.fact.ref, found.fact.audited, found.fact.graceful) == (REF, True, False)
    assert [problem.field for problem in found.problems] == ["metadata.annotations[ebpfnet.io/established]"]


@pytest.mark.parametrize("kind", ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "ClusterNetworkPolcy"])
def test_its_forerunners_are_named(kind: str):
    [problem] = decode({**manifest(), "apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind}).problems
    assert problem.reason == f"{kind} p is not known; did you mean ClusterNetworkPolicy?"
    assert decode({**manifest(), "apiVersion": "example.com/v1", "kind": kind}).problems == ()


def test_what_must_be_known_to_obey_it():
    assert not fact(egress=[rule(to=[{"networks": ["::/0"]}, {"nodes": {}}])]).has_pod_peers
    assert fact(egress=[rule(to=[{"nodes": {}}])]).has_node_peers
    assert fact(ingress=[rule("from")]).has_pod_peers
    assert not fact(ingress=[rule("from")]).has_node_peers
    closed = decode(manifest(ingress=[{"action": "Accept", "from": [{}]}])).fact
    assert isinstance(closed, ClusterNetworkPolicy)
    assert not closed.has_pod_peers
