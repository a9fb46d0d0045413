"""Other nodes' pods are needed while a policy that has pods as peers selects a pod of ours."""

from __future__ import annotations

import ipaddress
import random

import pytest

from ebpfnet.model.cluster import Cluster
from ebpfnet.model.demand import needs_peers
from ebpfnet.model.facts import IPBlock, Kind, NetworkPolicy, Pod, PodPeer, PolicyRule, Ref
from ebpfnet.model.labels import EVERYTHING, Labels, Requirement, Selector

WEB = Selector((Requirement("app", frozenset({"web"})),))
PODS = PolicyRule((PodPeer(EVERYTHING),))
NAMESPACES = PolicyRule((PodPeer(EVERYTHING, EVERYTHING),))
BLOCK = PolicyRule((IPBlock(ipaddress.ip_network("10.0.0.0/8")),))


APP: Labels = (("app", "web"),)


def pod(name: str = "x", labels: Labels = APP, *, on: str = "node-a", host: bool = False, over: bool = False) -> Pod:
    return Pod(Ref(Kind.POD, "default", name), on, (), labels, (), host, over)


def policy(name: str = "p", *rules: PolicyRule, pods: Selector = WEB, namespace: str = "default") -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, namespace, name), pods, rules, None)


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
    assert needs_peers(policies, pods) is want
    cluster = Cluster("node-a")
    for each in policies:
        cluster.note(each)
    for every in pods:
        cluster.set_pod(every)
    assert cluster.needs_peers() is want


def test_a_policy_is_of_its_namespace_and_a_pod_of_its_node():
    cluster = Cluster("node-a")
    cluster.note(policy("p", PODS, namespace="other"))
    cluster.set_pod(pod())
    assert not cluster.needs_peers()
    cluster.note(policy("p", PODS))
    assert cluster.needs_peers()
    cluster.set_pod(pod(on="node-b"))
    assert not cluster.needs_peers()


def test_the_answer_follows_what_comes_and_goes():
    dice = random.Random(20261121)
    cluster = Cluster("node-a")
    policies: dict[Ref, NetworkPolicy] = {}
    pods: dict[Ref, Pod] = {}
    answers = set()
    for _ in range(2000):
        rule = dice.choice((PODS, BLOCK, NAMESPACES))
        each = policy(dice.choice("ab"), rule, pods=dice.choice((WEB, EVERYTHING)))
        every = pod(dice.choice("xyz"), dice.choice(((), (("app", "web"),))), host=dice.random() < 0.3)
        match dice.randrange(5):
            case 0:
                cluster.note(each)
                policies[each.ref] = each
            case 1:
                cluster.set_pod(every)
                pods[every.ref] = every
            case 2:
                cluster.forget(each.ref)
                policies.pop(each.ref, None)
            case _:
                cluster.drop_pod(every.ref)
                pods.pop(every.ref, None)
        if dice.random() < 0.5:
            answers.add(want := needs_peers(policies.values(), pods.values()))
            assert cluster.needs_peers() is want
    assert answers == {True, False}
