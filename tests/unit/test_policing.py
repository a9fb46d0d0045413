"""What an agent tells of policies, and what somebody else makes of the facts that it tells."""

from __future__ import annotations

import dataclasses
import json
import threading

from ebpfnet import policing
from ebpfnet.model.facts import (
    Delete,
    Fact,
    Kind,
    Namespace,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyRule,
    Ref,
    Synced,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.model.peers import pack
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import memory_tables, pod, wire

REF = Ref(Kind.NETWORK_POLICY, "default", "web")
POLICY = NetworkPolicy(REF, EVERYTHING, (PolicyRule((PodPeer(EVERYTHING),)),), generation=2)
HERE = pod("here", "10.0.0.1")
AWAY = Peer(Ref(Kind.PEER, "default", "away"), (), pack(pod("x", "10.0.1.1").addresses[0]))
FACTS: list[Fact] = [Namespace(Ref(Kind.NAMESPACE, "", "default"), ()), HERE, AWAY, POLICY]


def reconciled(changes: list[Upsert], rules: int = 100) -> Reconciler:
    found = Reconciler(memory_tables(rules=rules), "node-a")
    found.apply(changes)
    found.set_wires({"default/here": wire(5)})
    found.apply([Synced()])
    return found


def test_a_policy_that_is_enforced():
    [told] = policing.policies(policing.look(reconciled([*map(Upsert, FACTS)])), graceful=True)["policies"]
    assert (told["policy"], told["pods"], told["enforced"]) == ("NetworkPolicy default/web", ["default/here"], True)
    assert (told["established"], told["generation"], told["isolates"]) == ("graceful", 2, ["ingress"])
    assert [rule["rule"] for rule in told["rules"]] == ["NetworkPolicy default/web, ingress[0]"]


def test_a_policy_whose_other_version_does_not_fit_is_not_enforced():
    reconciler = reconciled([*map(Upsert, FACTS)], rules=3)
    assert policing.summary(reconciler)["enforced"] == 1
    strict = dataclasses.replace(POLICY, egress=POLICY.ingress, generation=3)
    reconciler.apply([Upsert(strict)])
    [told] = policing.policies(policing.look(reconciler), graceful=False)["policies"]
    assert (told["generation"], told["enforced"], reconciler.policies.behind()) == (3, False, {REF})
    assert "rules (3 entries)" in told["problems"][0]
    assert policing.summary(reconciler)["enforced"] == 0
    reconciler.apply([Upsert(POLICY)])
    assert (policing.summary(reconciler)["enforced"], reconciler.policies.behind()) == (1, set())


def test_a_policy_that_selects_nobody_here_is_known():
    reconciler = reconciled([*map(Upsert, FACTS)])
    reconciler.apply([Delete(HERE.ref)])
    assert policing.summary(reconciler)["known"] == 1
    [told] = policing.policies(policing.look(reconciler), graceful=False)["policies"]
    assert (told["pods"], told["rules"]) == ([], [])


def test_whoever_reads_the_facts_has_the_same_tables():
    first = reconciled([*map(Upsert, FACTS)])
    facts = policing.answers(threading.Lock(), first, False)["facts"]()
    second = reconciled(list(policing.read(json.loads(json.dumps(facts)))))
    assert second.policies.peers.have == first.policies.peers.have
    assert second.policies.rules.have == first.policies.rules.have
    assert dataclasses.replace(POLICY) in second.cluster.policies.values()
