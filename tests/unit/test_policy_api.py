"""Each rule of the two APIs, by hand: what the oracle says, and what is compiled, must both be what stands here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy_oracle import Answer, Flow, Manifest, Oracle
from tests.policy_verdicts import Verdicts

WEB, WEB6, DB, DB6 = "10.1.0.10", "fd01::10", "10.1.0.11", "fd01::11"
FAR, FAR6, NODE, OTHER_NODE, OUTSIDE = "10.1.1.10", "fd01:1::10", "192.168.0.1", "192.168.0.2", "203.0.113.7"
Case = tuple[str, str, str, int]


def node(name: str, *addresses: str, **labels: str) -> Manifest:
    listed = [{"type": "InternalIP", "address": each} for each in addresses]
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"addresses": listed}}


def pod(name: str, where: str, namespace: str, addresses: list[str], ports: list[Manifest], **spec: Any) -> Manifest:
    meta = {"name": name, "namespace": namespace, "labels": {"app": name}}
    whole = {"nodeName": where, "containers": [{"ports": ports}], **spec}
    return {"kind": "Pod", "metadata": meta, "spec": whole, "status": {"podIPs": [{"ip": each} for each in addresses]}}


def namespace(name: str, **labels: str) -> Manifest:
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


CLUSTER = [
    node("n0", NODE, "fd00::1", role="plain"),
    node("n1", OTHER_NODE, "fd00::2", role="edge"),
    namespace("default", team="a"),
    namespace("other", team="b"),
    pod("web", "n0", "default", [WEB, WEB6], [{"name": "http", "containerPort": 80}]),
    pod("db", "n0", "default", [DB, DB6], [{"name": "http", "containerPort": 8080}]),
    pod("far", "n1", "other", [FAR, FAR6], [{"name": "http", "containerPort": 53, "protocol": "UDP"}]),
    pod("host", "n1", "other", [OTHER_NODE, "fd00::2"], [{"name": "http", "containerPort": 80}], hostNetwork=True),
]


def policy(app: str = "", name: str = "p", annotations: Any = None, **spec: Any) -> Manifest:
    chosen = {"matchLabels": {"app": app}} if app else {}
    meta: Manifest = {"name": name, "namespace": "default", "annotations": annotations}
    return {"kind": "NetworkPolicy", "metadata": meta, "spec": {"podSelector": chosen, **spec}}


def wide(tier: str = "Admin", priority: int = 1, name: str = "c", annotations: Any = None, **spec: Any) -> Manifest:
    whole = {"tier": tier, "priority": priority, "subject": {"namespaces": {}}, **spec}
    kind = {"kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2"}
    return {**kind, "metadata": {"name": name, "annotations": annotations}, "spec": whole}


def ask(flow: Case, *policies: Manifest, graceful: bool = False) -> Answer:
    """Return what the cluster does with a flow: its egress if that does not allow it, else its ingress."""
    sides = Oracle([*CLUSTER, *policies], graceful=graceful), Verdicts([*CLUSTER, *policies], graceful=graceful)
    answers = []
    for side in sides:
        egress, ingress = side.egress(Flow(*flow)), side.ingress(Flow(*flow))
        answers.append(ingress if egress.verdict == "allow" else egress)
    assert answers[0] == answers[1]
    return answers[0]


def tcp(source: str, destination: str, port: int = 80) -> Case:
    return source, destination, "TCP", port


def labelled(**labels: str) -> Manifest:
    return {"podSelector": {"matchLabels": labels}}


def said(key: str, operator: str, *values: str) -> Manifest:
    return {"podSelector": {"matchExpressions": [{"key": key, "operator": operator, "values": [*values]}]}}


BLOCK = {"cidr": "10.1.0.0/16", "except": ["10.1.0.11/32"]}
NETWORK_POLICY: dict[str, tuple[str, Case, list[Manifest]]] = {
    "nothing selects": ("allow", tcp(DB, WEB), [policy("far")]),
    "of another namespace": ("allow", tcp(WEB, FAR), [policy(policyTypes=["Ingress"])]),
    "default deny": ("deny", tcp(DB, WEB), [policy()]),
    "default deny, IPv6": ("deny", tcp(DB6, WEB6), [policy()]),
    "default deny is of ingress": ("allow", tcp(WEB, FAR), [policy()]),
    "egress rules isolate": ("deny", tcp(WEB, FAR), [policy(egress=[{"to": [labelled(app="db")]}])]),
    "so ingress, too": ("deny", tcp(FAR, WEB), [policy(egress=[{}])]),
    "empty types are none": ("deny", tcp(FAR, WEB), [policy(policyTypes=[])]),
    "only egress": ("allow", tcp(FAR, WEB), [policy(policyTypes=["Egress"])]),
    "egress without rules": ("deny", tcp(WEB, FAR), [policy(policyTypes=["Egress"])]),
    "empty egress rules do not isolate": ("allow", tcp(WEB, FAR), [policy(egress=[], ingress=[{}])]),
    "an empty rule": ("allow", tcp(OUTSIDE, WEB), [policy(ingress=[{}])]),
    "empty lists": ("allow", tcp(OUTSIDE, WEB), [policy(ingress=[{"from": [], "ports": []}])]),
    "null lists": ("allow", tcp(OUTSIDE, WEB), [policy(ingress=[{"from": None, "ports": None}])]),
    "no rules": ("deny", tcp(DB, WEB), [policy(ingress=[])]),
    "pods of its namespace": ("allow", tcp(DB, WEB), [policy("web", ingress=[{"from": [labelled(app="db")]}])]),
    "not of others": ("deny", tcp(FAR, WEB), [policy("web", ingress=[{"from": [labelled(app="far")]}])]),
    "every pod of its namespace": ("deny", tcp(FAR, WEB), [policy(ingress=[{"from": [{"podSelector": {}}]}])]),
    "every pod": ("allow", tcp(FAR, WEB), [policy(ingress=[{"from": [{"namespaceSelector": {}}]}])]),
    "but no host": ("deny", tcp(OTHER_NODE, WEB), [policy(ingress=[{"from": [{"namespaceSelector": {}}]}])]),
    "nor anybody outside": ("deny", tcp(OUTSIDE, WEB), [policy(ingress=[{"from": [{"namespaceSelector": {}}]}])]),
    "both selectors": (
        "allow",
        tcp(FAR, WEB),
        [policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}, **labelled(app="far")}]}])],
    ),
    "both selectors, not one": (
        "deny",
        tcp(FAR, WEB),
        [policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}, **labelled(app="far")}]}])],
    ),
    "two peers are either": (
        "allow",
        tcp(FAR, WEB),
        [policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}, labelled(app="x")]}])],
    ),
    "In": ("allow", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("app", "In", "x", "db")]}])]),
    "In wants the key": ("deny", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("x", "In", "")]}])]),
    "NotIn": ("deny", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("app", "NotIn", "db")]}])]),
    "NotIn without the key": ("allow", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("x", "NotIn", "db")]}])]),
    "Exists": ("allow", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("app", "Exists")]}])]),
    "DoesNotExist": ("deny", tcp(DB, WEB), [policy("web", ingress=[{"from": [said("app", "DoesNotExist")]}])]),
    "a block covers pods": ("allow", tcp(FAR, WEB), [policy("web", ingress=[{"from": [{"ipBlock": BLOCK}]}])]),
    "its exception": ("deny", tcp(DB, WEB), [policy("web", ingress=[{"from": [{"ipBlock": BLOCK}]}])]),
    "an exception is of its rule": (
        "allow",
        tcp(DB, WEB),
        [policy("web", ingress=[{"from": [{"ipBlock": BLOCK}, {"ipBlock": {"cidr": "10.1.0.8/29"}}]}])],
    ),
    "a block is of one family": (
        "deny",
        tcp(FAR6, WEB6),
        [policy("web", ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])],
    ),
    "a block covers nodes": (
        "allow",
        tcp(OTHER_NODE, WEB),
        [policy("web", ingress=[{"from": [{"ipBlock": {"cidr": "192.168.0.0/24"}}]}])],
    ),
    "its own node": ("allow", tcp(NODE, WEB), [policy()]),
    "another node": ("deny", tcp(OTHER_NODE, WEB), [policy()]),
    "itself": ("allow", tcp(WEB, WEB), [policy(policyTypes=["Ingress", "Egress"])]),
    "a port": ("allow", tcp(DB, WEB, 80), [policy(ingress=[{"ports": [{"port": 80}]}])]),
    "another port": ("deny", tcp(DB, WEB, 81), [policy(ingress=[{"ports": [{"port": 80}]}])]),
    "TCP unless it says": ("deny", (DB, WEB, "UDP", 80), [policy(ingress=[{"ports": [{"port": 80}]}])]),
    "UDP": ("allow", (DB, WEB, "UDP", 80), [policy(ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])]),
    "SCTP": ("allow", (DB, WEB, "SCTP", 80), [policy(ingress=[{"ports": [{"port": 80, "protocol": "SCTP"}]}])]),
    "every port of one": ("allow", (DB, WEB, "SCTP", 9), [policy(ingress=[{"ports": [{"protocol": "SCTP"}]}])]),
    "an empty port is TCP": ("deny", (DB, WEB, "UDP", 9), [policy(ingress=[{"ports": [{}]}])]),
    "ICMP, by a rule without ports": ("allow", (DB, WEB, "ICMP", 0), [policy(ingress=[{}])]),
    "ICMP, by no other": ("deny", (DB, WEB, "ICMP", 0), [policy(ingress=[{"ports": [{}, {"protocol": "UDP"}]}])]),
    "first of a range": ("allow", tcp(DB, WEB, 80), [policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])]),
    "last of a range": ("allow", tcp(DB, WEB, 90), [policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])]),
    "after a range": ("deny", tcp(DB, WEB, 91), [policy(ingress=[{"ports": [{"port": 80, "endPort": 90}]}])]),
    "named, web": ("allow", tcp(OUTSIDE, WEB, 80), [policy(ingress=[{"ports": [{"port": "http"}]}])]),
    "named, not db's": ("deny", tcp(OUTSIDE, WEB, 8080), [policy(ingress=[{"ports": [{"port": "http"}]}])]),
    "named, db": ("allow", tcp(OUTSIDE, DB, 8080), [policy(ingress=[{"ports": [{"port": "http"}]}])]),
    "named, sent": ("allow", tcp(WEB, DB, 8080), [policy("web", egress=[{"ports": [{"port": "http"}]}])]),
    "named, sent elsewhere": ("deny", tcp(WEB, FAR, 8080), [policy("web", egress=[{"ports": [{"port": "http"}]}])]),
    "named, of its protocol": ("deny", (WEB, FAR, "UDP", 53), [policy("web", egress=[{"ports": [{"port": "http"}]}])]),
    "named, by a host": ("deny", tcp(WEB, OTHER_NODE, 80), [policy("web", egress=[{"ports": [{"port": "http"}]}])]),
    "union": (
        "allow",
        tcp(DB, WEB, 443),
        [policy(ingress=[{"ports": [{"port": 80}]}]), policy(name="q", ingress=[{"ports": [{"port": 443}]}])],
    ),
    "both ends": ("deny", tcp(WEB, DB), [policy("web", egress=[{}]), policy("db", name="q")]),
}


@pytest.mark.parametrize("name", NETWORK_POLICY)
def test_network_policy(name: str):
    want, flow, policies = NETWORK_POLICY[name]
    assert ask(flow, *policies).verdict == want


def rule(action: str, **more: Any) -> Manifest:
    return {"action": action, **more}


EVERYBODY: list[Manifest] = [{"namespaces": {}}]
DENY, ACCEPT, PASS = (rule(action, **{"from": EVERYBODY}) for action in ("Deny", "Accept", "Pass"))
TO = {"to": EVERYBODY}
NET = {"to": [{"networks": ["203.0.113.0/24", "2001:db8::/32"]}]}
EDGE = {"to": [{"nodes": {"matchLabels": {"role": "edge"}}}]}
OPEN, SHUT = policy(ingress=[{}]), policy()
NAMED = {"to": EVERYBODY, "protocols": [{"destinationNamedPort": "http"}]}
CLUSTER_POLICY: dict[str, tuple[str, Case, list[Manifest]]] = {
    "Admin denies before NetworkPolicy": ("deny", tcp(DB, WEB), [wide(ingress=[DENY]), OPEN]),
    "Admin accepts before NetworkPolicy": ("allow", tcp(DB, WEB), [wide(ingress=[ACCEPT]), SHUT]),
    "Baseline after NetworkPolicy": ("deny", tcp(DB, WEB), [wide("Baseline", ingress=[ACCEPT]), SHUT]),
    "Baseline after an allow": ("allow", tcp(DB, WEB), [wide("Baseline", ingress=[DENY]), OPEN]),
    "Baseline where none isolates": ("deny", tcp(DB, WEB), [wide("Baseline", ingress=[DENY])]),
    "isolated for egress, not ingress": (
        "deny",
        tcp(DB, WEB),
        [wide("Baseline", ingress=[DENY]), policy("web", policyTypes=["Egress"])],
    ),
    "nobody decides": ("allow", tcp(OUTSIDE, WEB), [wide(ingress=[DENY])]),
    "the first rule": ("allow", tcp(DB, WEB), [wide(ingress=[ACCEPT, DENY])]),
    "the lower priority": ("deny", tcp(DB, WEB), [wide(priority=2, ingress=[ACCEPT]), wide(name="z", ingress=[DENY])]),
    "Pass skips its tier": (
        "allow",
        tcp(DB, WEB),
        [wide(ingress=[PASS, DENY]), wide(priority=2, name="d", ingress=[DENY])],
    ),
    "Pass to NetworkPolicy": ("deny", tcp(DB, WEB), [wide(ingress=[PASS, ACCEPT]), SHUT]),
    "Pass to Baseline": ("deny", tcp(DB, WEB), [wide(ingress=[PASS]), wide("Baseline", name="b", ingress=[DENY])]),
    "Pass in Baseline": ("allow", tcp(DB, WEB), [wide("Baseline", ingress=[PASS, DENY])]),
    "a rule with ports": (
        "deny",
        tcp(DB, WEB, 81),
        [wide(ingress=[{**ACCEPT, "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}, DENY])],
    ),
    "Pass of a range": (
        "deny",
        tcp(DB, WEB, 81),
        [
            wide(
                ingress=[
                    {**PASS, "protocols": [{"tcp": {"destinationPort": {"range": {"start": 80, "end": 81}}}}]},
                    ACCEPT,
                ]
            ),
            SHUT,
        ],
    ),
    "ICMP is no port": (
        "allow",
        (DB, WEB, "ICMP", 0),
        [wide(ingress=[{**DENY, "protocols": [{"tcp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}}]}])],
    ),
    "networks": ("deny", tcp(WEB, OUTSIDE), [wide(egress=[rule("Deny", **NET)])]),
    "other networks": ("allow", tcp(WEB, FAR), [wide(egress=[rule("Deny", **NET)])]),
    "nodes": ("deny", tcp(WEB, OTHER_NODE), [wide(egress=[rule("Deny", **EDGE)])]),
    "other nodes": ("allow", tcp(WEB, NODE), [wide(egress=[rule("Deny", **EDGE)])]),
    "namespaces mean no hosts": ("allow", tcp(WEB, OTHER_NODE), [wide(egress=[rule("Deny", **TO)])]),
    "named port": ("deny", tcp(WEB, DB, 8080), [wide(egress=[rule("Deny", **NAMED)])]),
    "named port of any protocol": ("deny", (WEB, FAR, "UDP", 53), [wide(egress=[rule("Deny", **NAMED)])]),
    "named port of another": ("allow", tcp(WEB, DB, 80), [wide(egress=[rule("Deny", **NAMED)])]),
    "an unknown peer accepts nothing": (
        "deny",
        tcp(WEB, FAR),
        [wide(egress=[rule("Accept", to=[*EVERYBODY, {"domainNames": ["example.com"]}]), rule("Deny", **TO)])],
    ),
    "an unknown peer denies everything": (
        "deny",
        tcp(WEB, OUTSIDE),
        [wide(egress=[rule("Pass", to=[{"domainNames": ["example.com"]}], protocols=NAMED["protocols"])])],
    ),
    "subjects by pods": (
        "allow",
        tcp(WEB, DB),
        [wide(subject={"pods": {"namespaceSelector": {}, **labelled(app="web")}}, ingress=[DENY])],
    ),
    "its own node passes": ("allow", tcp(NODE, WEB), [wide("Admin", ingress=[DENY]), SHUT]),
    "host pods are no subjects": ("allow", tcp(WEB, OTHER_NODE), [wide(ingress=[DENY])]),
}


@pytest.mark.parametrize("name", CLUSTER_POLICY)
def test_cluster_network_policy(name: str):
    want, flow, policies = CLUSTER_POLICY[name]
    assert ask(flow, *policies).verdict == want


AUDIT, GRACEFUL, STRICT = (
    {"ebpfnet.io/policy-mode": "audit"},
    {"ebpfnet.io/established": "graceful"},
    {"ebpfnet.io/established": "strict"},
)
MODES: dict[str, tuple[str, list[Manifest]]] = {
    "audited alone": ("audit", [policy(annotations=AUDIT)]),
    "with one that allows": ("allow", [policy(annotations=AUDIT), policy(name="q", ingress=[{}])]),
    "with one that denies": ("deny", [policy(annotations=AUDIT), policy(name="q")]),
    "its own allow does not count": ("deny", [policy(annotations=AUDIT, ingress=[{}]), policy(name="q")]),
    "an audited tier": ("audit", [wide(annotations=AUDIT, ingress=[DENY]), policy(ingress=[{}])]),
    "an audited accept": ("deny", [wide(annotations=AUDIT, ingress=[ACCEPT]), SHUT]),
    "an audited pass": ("allow", [wide(annotations=AUDIT, ingress=[PASS]), wide(name="d", ingress=[ACCEPT])]),
    "audited isolation hides Baseline": (
        "deny",
        [policy(annotations=AUDIT, ingress=[{}]), wide("Baseline", ingress=[DENY])],
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_audit(name: str):
    want, policies = MODES[name]
    assert ask(tcp(DB, WEB), *policies).verdict == want


def test_audit_names_what_would_deny():
    answer = ask(tcp(DB, WEB), policy(annotations=AUDIT), policy(name="q", ingress=[{"ports": [{"port": 80}]}]))
    assert answer == Answer("allow", frozenset(["NetworkPolicy default/q, ingress[0]"]))
    answer = ask(tcp(DB, WEB), policy(annotations=AUDIT))
    assert answer.by == {"isolated for ingress by NetworkPolicy default/p"}


@pytest.mark.parametrize(
    ("given", "default", "want"),
    [
        ([None], False, False),
        ([None], True, True),
        ([STRICT], True, False),
        ([GRACEFUL], False, True),
        ([GRACEFUL, None], False, False),
        ([GRACEFUL, None], True, True),
        ([GRACEFUL, STRICT], True, False),
    ],
)
def test_a_default_deny_is_graceful_when_all_that_isolate_are(given: list[Any], default: bool, want: bool):
    policies = [policy(name=f"p{index}", annotations=each) for index, each in enumerate(given)]
    answer = ask(tcp(DB, WEB), *policies, graceful=default)
    assert answer[::2] == ("deny", want)


@pytest.mark.parametrize(("given", "want"), [(None, False), (GRACEFUL, True)])
def test_a_rule_is_graceful_when_its_policy_is(given: Any, want: bool):
    assert ask(tcp(DB, WEB), wide(annotations=given, ingress=[DENY])).graceful == want


def test_texts():
    shut = [policy(name="b"), policy(name="a")]
    assert ask(tcp(DB, WEB), *shut).by == {"isolated for ingress by NetworkPolicy default/a, default/b"}
    nobody = [{"pods": {"namespaceSelector": {}, **labelled(app="x")}}]
    named = wide("Baseline", egress=[rule("Deny", to=nobody), rule("Deny", name="no way", to=EVERYBODY)])
    assert ask(tcp(WEB, FAR), named).by == {"ClusterNetworkPolicy c (Baseline), egress[1] (no way)"}
