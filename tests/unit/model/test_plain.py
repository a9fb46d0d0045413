"""Facts through JSON and back."""

from __future__ import annotations

import ipaddress
import json

import pytest

from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Fact,
    IPBlock,
    Kind,
    NetworkPolicy,
    NodePeer,
    Pod,
    PodPeer,
    PodPort,
    PolicyPort,
    PolicyRule,
    Ref,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from ebpfnet.model.plain import from_plain, to_plain

NOT_B = Selector((Requirement("a", frozenset({"b", "c"}), negated=True),))
BLOCK = IPBlock(ipaddress.ip_network("10.0.0.0/8"), (ipaddress.ip_network("10.1.0.0/16"),))
FACTS: list[Fact] = [
    Pod(
        Ref(Kind.POD, "default", "a"),
        "node-a",
        (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("fd00::1")),
        (("app", "web"),),
        (PodPort("http", 6, 80),),
        host_network=False,
    ),
    NetworkPolicy(
        Ref(Kind.NETWORK_POLICY, "default", "web"),
        NOT_B,
        (PolicyRule((PodPeer(EVERYTHING, NOT_B), BLOCK), (PolicyPort(6, 80, 90),)),),
        graceful=True,
    ),
    ClusterNetworkPolicy(
        Ref(Kind.CLUSTER_NETWORK_POLICY, "", "x"),
        Tier.BASELINE,
        3,
        EVERYTHING,
        EVERYTHING,
        egress=(ClusterRule("no", Action.DENY, (NodePeer(NOT_B),), (PolicyPort(0, name="dns"),)),),
        refused=True,
    ),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: str(fact.ref))
def test_there_and_back(fact: Fact):
    assert from_plain(json.loads(json.dumps(to_plain(fact)))) == fact


@pytest.mark.parametrize("value", [["Popen", "true"], [], [["Ref"]], ["Ref", "Pod"], ["address", "x"]])
def test_nothing_else_is_made(value: object):
    with pytest.raises(ValueError, match=r".+"):
        from_plain(value)
