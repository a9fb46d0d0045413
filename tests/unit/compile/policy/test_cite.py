"""Which entry of a rule a verdict comes down to: by hand, and for random clusters against the oracle."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.compile.policy.cite import Asked, Citation, cite
from ebpfnet.compile.policy.entries import rule_entries
from ebpfnet.compile.policy.regime import Regime
from tests.policy_clusters import Cluster
from tests.policy_oracle import PEERS, Flow, Manifest, Oracle
from tests.policy_verdicts import PROTOCOLS, Verdicts, look_up

WEB, CLIENT, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
LABELS = {"matchLabels": {"app": "client"}}


def pod(name: str, app: str, address: str) -> Manifest:
    meta = {"name": name, "namespace": "default", "labels": {"app": app}}
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": "n"}, "status": {"podIPs": [{"ip": address}]}}


HERE: list[Manifest] = [
    {
        "kind": "Node",
        "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.9.0.1"}]},
    },
    {"kind": "Namespace", "metadata": {"name": "default", "labels": {"team": "a"}}},
    pod("web", "web", WEB),
    pod("client", "client", CLIENT),
    pod("other", "other", OTHER),
]


def policy(name: str, *ingress: Manifest, **annotations: str) -> Manifest:
    meta = {"name": name, "namespace": "default", "annotations": annotations}
    spec = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [*ingress]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def wide(**spec: Any) -> Manifest:
    version = "policy.networking.k8s.io/v1alpha2"
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, **spec}
    return {"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": {"name": "c"}, "spec": spec}


def ask(policies: list[Manifest], source: str, to: str = WEB, port: int = 80, way: str = "ingress") -> Citation | None:
    verdicts = Verdicts([*HERE, *policies])
    direction = abi.Direction[way.upper()]
    mine, other = (to, source) if way == "ingress" else (source, to)
    under = verdicts.regime(verdicts.pods[ipaddress.ip_address(mine)], direction)
    assert under is not None
    return asked(verdicts, under, other, Flow(source, to, "TCP", port))


def asked(verdicts: Verdicts, under: Regime, peer: str, flow: Flow) -> Citation | None:
    answers = verdicts.cell(under, ipaddress.ip_address(peer))
    value, entries = rule_entries(under.outcome(answers))
    rule = look_up(abi.Rule.unpack(value), entries, PROTOCOLS[flow.protocol], flow.port)
    return cite(under, rule.id, Asked(answers, PROTOCOLS[flow.protocol], flow.port))


FROM_CLIENT, FROM_TEAM = (
    {"podSelector": LABELS},
    {"podSelector": LABELS, "namespaceSelector": {"matchLabels": {"team": "a"}}},
)
OFFICE = {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}
DENIED: list[Manifest] = [
    {"name": "no", "action": "Deny", "to": [{"nodes": {}}, {"networks": ["::/0", "10.0.0.0/30"]}]}
]


@pytest.mark.parametrize(
    ("policies", "source", "path", "text"),
    [
        ([policy("a", {"from": [OFFICE, FROM_CLIENT]})], CLIENT, "ingress[0].from[1]", "podSelector app=client"),
        (
            [policy("a", {}, {"from": [FROM_TEAM]})],
            CLIENT,
            "ingress[0]",
            "everybody",
        ),
        (
            [policy("a", {"from": [{"podSelector": {}}], "ports": [{"port": 1}]}, {"from": [FROM_TEAM]})],
            CLIENT,
            "ingress[1].from[0]",
            "podSelector app=client, namespaceSelector team=a",
        ),
        (
            [policy("a", {"from": [OFFICE]})],
            "192.0.2.1",
            "ingress[0].from[0]",
            "ipBlock 192.0.2.0/24 except 192.0.2.128/25",
        ),
        (
            [policy("a", {"from": [{"namespaceSelector": {"matchExpressions": [
                {"key": "team", "operator": "In", "values": ["b", "a"]}, {"key": "old", "operator": "DoesNotExist"},
            ]}}]})],
            OTHER,
            "ingress[0].from[0]",
            "namespaceSelector !old,team in (a,b)",
        ),
    ],
)  # fmt: skip
def test_the_first_entry_as_it_is_written(policies: list[Manifest], source: str, path: str, text: str):
    found = ask(policies, source)
    assert found is not None
    assert found.decides is not None
    assert found.decides[:4] == ("NetworkPolicy default/a", path.partition(".")[0], path, text)


def test_others_that_come_to_the_same_are_named():
    several = [policy("b", {"ports": [{"port": 80}]}), policy("a", {"from": [FROM_CLIENT, FROM_TEAM]})]
    found = ask(several, CLIENT)
    assert found is not None
    assert found.decides is not None
    assert found.decides.path == "ingress[0].from[0]"
    assert [(each.policy, each.path) for each in found.also] == [
        ("NetworkPolicy default/a", "ingress[0].from[1]"),
        ("NetworkPolicy default/b", "ingress[0]"),
    ]


def test_of_a_default_deny_what_is_nearest():
    found = ask(
        [policy("a", {"from": [FROM_CLIENT], "ports": [{"port": 8080, "endPort": 8090}, {"port": "dns"}]})], CLIENT
    )
    assert found is not None
    assert found.decides is None
    assert [(each.path, each.ports) for each in found.nearest] == [("ingress[0].from[0]", ("TCP 8080-8090", "TCP dns"))]
    found = ask([policy("a", {"from": [FROM_CLIENT]})], OTHER)
    assert found == Citation(None)


def test_an_audited_policy_does_not_allow():
    audited = policy("a", {"from": [FROM_CLIENT]}, **{"ebpfnet.io/policy-mode": "audit"})
    found = ask([audited, policy("b", {"from": [FROM_CLIENT]})], CLIENT)
    assert found is not None
    assert found.decides is not None
    assert (found.decides.policy, found.also) == ("NetworkPolicy default/b", ())


def test_networks_of_a_cluster_policy_are_found_where_they_are():
    found = ask([wide(egress=DENIED)], CLIENT, way="egress")
    assert found is not None
    assert found.decides is not None
    assert found.decides[2:] == ("egress[0].to[1].networks[1]", "networks 10.0.0.0/30", ("any",))


def test_a_rule_with_a_peer_that_is_not_known():
    found = ask([wide(egress=[{"action": "Deny", "to": [{"domainNames": ["a.b"]}]}])], CLIENT, way="egress")
    assert found is not None
    assert found.decides is not None
    assert found.decides[2:4] == ("egress[0]", "everybody: it can't be obeyed")


def test_what_no_policy_says_is_none():
    assert ask([policy("a", {})], CLIENT, way="ingress", port=80) is not None
    verdicts = Verdicts([*HERE, policy("a", {})])
    under = verdicts.regime(verdicts.pods[ipaddress.ip_address(WEB)], abi.Direction.INGRESS)
    assert under is not None
    assert cite(under, 1, Asked(frozenset(), 6, 80)) is None


@pytest.mark.parametrize("part", range(4))
def test_what_is_cited_is_what_the_oracle_finds(part: int):
    seen = 0
    for seed in range(part, 400, 4):
        manifests = Cluster(seed).manifests()
        oracle, verdicts = Oracle(manifests), Verdicts(manifests)
        for flow in Cluster(seed).flows(40):
            for direction in abi.Direction:
                way = direction.name.lower()
                mine, other = (flow.source, flow.destination) if way == "egress" else (flow.destination, flow.source)
                pod_here = verdicts.pods.get(ipaddress.ip_address(mine))
                under = verdicts.regime(pod_here, direction) if pod_here else None
                want = getattr(oracle, way)(flow)
                if under is None or not want.by:
                    continue
                found = asked(verdicts, under, other, flow)
                assert found is not None
                seen += is_right(oracle, found, want.by, other)
    assert seen > 50


def is_right(oracle: Oracle, found: Citation, by: frozenset[str], peer: str) -> bool:
    """Hold a citation against the oracle's own look at the manifests; False: there was nothing to look up."""
    texts = {f"{each.policy}, {each.rule}" for each in (found.decides, *found.also) if each}
    if found.decides is None:
        assert all(text.startswith("isolated") for text in by)
        return False
    wide = found.decides.policy.startswith("ClusterNetworkPolicy")
    assert wide or texts == by
    (item,) = (each for each in (*oracle.policies, *oracle.cluster_policies) if name_of(each) == found.decides.policy)
    way, _, rest = found.decides.rule.partition("[")
    end = "from" if way == "ingress" else "to"
    peers = item["spec"][way][int(rest[:-1])].get(end) or []
    if not peers or (wide and any(not each or each.keys() - PEERS[end] for each in peers)):
        assert found.decides.path == found.decides.rule
        return False
    first = next(at for at, each in enumerate(peers) if means(oracle, item, each, peer))
    path, _, network = found.decides.path.partition(".networks")
    assert path == f"{found.decides.rule}.{end}[{first}]"
    if network:
        (text,) = (each for at, each in enumerate(peers[first]["networks"]) if f"[{at}]" == network)
        assert ipaddress.ip_address(peer) in ipaddress.ip_network(text)
    return True


def means(oracle: Oracle, policy: Manifest, entry: Manifest, peer: str) -> bool:
    if policy["kind"] == "NetworkPolicy":
        return oracle._is_network_peer(policy, entry, peer)
    return oracle._is_peer(entry, peer)


def name_of(item: Manifest) -> str:
    meta = item["metadata"]
    return f"{item['kind']} {meta['namespace'] + '/' if 'namespace' in meta else ''}{meta['name']}"
