"""Other nodes' pods, or these nodes, are needed while a policy that means some selects a pod of ours."""

from __future__ import annotations

import ipaddress
import random

import pytest

from ebpfnet.model.cluster import Cluster
from ebpfnet.model.demand import needs
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    IPBlock,
    Kind,
    Namespace,
    NetworkPolicy,
    NodePeer,
    Pod,
    PodPeer,
    Policy,
    PolicyPort,
    PolicyRule,
    Ref,
    Service,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, NOTHING, Labels, Requirement, Selector

WEB = Selector((Requirement("app", frozenset({"web"})),))
PODS = PolicyRule((PodPeer(EVERYTHING),))
NAMESPACES = PolicyRule((PodPeer(EVERYTHING, EVERYTHING),))
BLOCK = PolicyRule((IPBlock(ipaddress.ip_network("10.0.0.0/8")),))
NAMED = (PolicyPort(6, 0, 0, "http"),)
PEERS, NODES = frozenset({Kind.PEER}), frozenset({Kind.NODE})


APP: Labels = (("app", "web"),)


def pod(name: str = "x", labels: Labels = APP, *, on: str = "node-a", host: bool = False, over: bool = False) -> Pod:
    return Pod(Ref(Kind.POD, "default", name), on, (), labels, (), host, over)


def policy(name: str = "p", *rules: PolicyRule, pods: Selector = WEB, namespace: str = "default") -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, namespace, name), pods, rules, None)


def cluster_policy(
    *peers: PodPeer | IPBlock | NodePeer,
    name: str = "c",
    pods: Selector = WEB,
    namespaces: Selector = EVERYTHING,
    ports: tuple[PolicyPort, ...] = (),
) -> ClusterNetworkPolicy:
    rules = (ClusterRule("", Action.DENY, peers, ports),)
    ref = Ref(Kind.CLUSTER_NETWORK_POLICY, "", name)
    return ClusterNetworkPolicy(ref, Tier.ADMIN, 0, namespaces, pods, (), rules)


def labelled(labels: Labels) -> Namespace:
    return Namespace(Ref(Kind.NAMESPACE, "", "default"), labels)


@pytest.mark.parametrize(
    ("policies", "pods", "want"),
    [
        ([], [pod()], False),
        ([policy("p", PODS)], [], False),
        ([policy("p", PODS)], [pod()], True),
        ([policy("p", NAMESPACES)], [pod()], True),
        ([policy("p", BLOCK)], [pod()], False),
        ([policy("p")], [pod()], False),
        ([policy("p", PolicyRule())], [pod()], False),
        ([policy("p", BLOCK, PODS)], [pod()], True),
        ([policy("p", PODS)], [pod(labels=())], False),
        ([policy("p", PODS, pods=EVERYTHING)], [pod(labels=())], True),
        ([policy("p", PODS)], [pod(host=True)], False),
        ([policy("p", PODS)], [pod(over=True)], False),
    ],
)
def test_what_needs_other_pods(policies: list[NetworkPolicy], pods: list[Pod], want: bool):
    kinds = PEERS if want else frozenset()
    assert needs(policies, pods) == kinds
    cluster = Cluster("node-a")
    for each in policies:
        cluster.note(each)
    for every in pods:
        cluster.set_pod(every)
    assert cluster.needed == kinds


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (cluster_policy(), frozenset()),
        (cluster_policy(PodPeer(EVERYTHING, EVERYTHING)), PEERS),
        (cluster_policy(PodPeer(NOTHING, EVERYTHING)), frozenset()),
        (cluster_policy(NodePeer(EVERYTHING)), NODES),
        (cluster_policy(*BLOCK.peers, NodePeer(WEB), PodPeer(EVERYTHING, EVERYTHING)), PEERS | NODES),
        (cluster_policy(*BLOCK.peers), frozenset()),
        (cluster_policy(ports=NAMED), PEERS),
        (cluster_policy(NodePeer(EVERYTHING), pods=NOTHING), frozenset()),
        (cluster_policy(NodePeer(EVERYTHING), namespaces=WEB), frozenset()),
        (NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "p"), WEB, None, (PolicyRule((), NAMED),)), PEERS),
        (NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "p"), WEB, (PolicyRule((), NAMED),)), frozenset()),
    ],
)
def test_what_a_policy_means_of_other_nodes(given: Policy, want: frozenset[Kind]):
    cluster = Cluster("node-a")
    cluster.set_pod(pod())
    assert not cluster.needed
    cluster.note(given)
    assert cluster.needed == needs([given], [pod()]) == want
    cluster.forget(given.ref)
    assert not cluster.needed


def test_namespaces_come_and_go_and_change_their_labels():
    cluster = Cluster("node-a")
    cluster.note(cluster_policy(NodePeer(EVERYTHING), namespaces=WEB))
    cluster.set_pod(pod())
    answers = []
    for labels in (APP, (), APP):
        cluster.note(labelled(labels))
        answers.append(cluster.needed)
    cluster.forget(labelled(()).ref)
    assert [*answers, cluster.needed] == [NODES, frozenset(), NODES, frozenset()]


def test_a_policy_is_of_its_namespace_and_a_pod_of_its_node():
    cluster = Cluster("node-a")
    cluster.note(policy("p", PODS, namespace="other"))
    cluster.set_pod(pod())
    assert not cluster.needed
    cluster.note(policy("p", PODS))
    assert cluster.needed == PEERS
    cluster.set_pod(pod(on="node-b"))
    assert not cluster.needed


def test_the_answer_follows_what_comes_and_goes():
    dice = random.Random(20261121)
    cluster = Cluster("node-a")
    policies: dict[Ref, Policy] = {}
    pods: dict[Ref, Pod] = {}
    labels: Labels = ()
    answers = set()
    for _ in range(4000):
        if dice.random() < 0.5:
            rule = dice.choice((PODS, BLOCK, NAMESPACES))
            each: Policy = policy(dice.choice("ab"), rule, pods=dice.choice((WEB, EVERYTHING)))
        else:
            peers = dice.sample((NodePeer(WEB), *BLOCK.peers, PodPeer(WEB, EVERYTHING)), dice.randrange(3))
            pods_of, namespaces = dice.choice((WEB, EVERYTHING)), dice.choice((WEB, EVERYTHING))
            each = cluster_policy(*peers, name=dice.choice("cd"), pods=pods_of, namespaces=namespaces)
        every = pod(dice.choice("xyz"), dice.choice(((), APP)), host=dice.random() < 0.3)
        match dice.randrange(8):
            case 0:
                cluster.note(each)
                policies[each.ref] = each
            case 1:
                cluster.set_pod(every)
                pods[every.ref] = every
            case 2 | 3:
                cluster.forget(each.ref)
                policies.pop(each.ref, None)
            case 4:
                labels = dice.choice(((), APP))
                cluster.note(labelled(labels))
            case 5:
                labels = ()
                cluster.forget(labelled(()).ref)
            case _:
                cluster.drop_pod(every.ref)
                pods.pop(every.ref, None)
        if dice.random() < 0.5:
            answers.add(want := needs(policies.values(), pods.values(), labels))
            assert cluster.needed == want
    assert answers == {frozenset(), PEERS, NODES, PEERS | NODES}


def test_a_service_whose_backends_answer_directly_needs_the_nodes_that_send_on():
    cluster = Cluster("node-a")
    ref = Ref(Kind.SERVICE, "default", "web")
    answers = []
    for direct in (None, True, False, None):
        cluster.set_service(Service(ref, (), (), "", direct=direct))
        answers.append(cluster.needed)
    cluster.set_service(Service(ref, (), (), "", direct=True))
    cluster.drop_service(ref)
    assert [*answers, cluster.needed] == [frozenset(), NODES, NODES, frozenset(), frozenset()]
