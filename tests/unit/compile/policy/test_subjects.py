"""Who is one subject."""

from __future__ import annotations

import ipaddress
from typing import Any

from ebpfnet import abi
from ebpfnet.compile.policy.subjects import NamedPort, make_subject, subject_of
from ebpfnet.model.facts import (
    ClusterNetworkPolicy,
    Kind,
    NetworkPolicy,
    Pod,
    PodPort,
    PolicyPort,
    PolicyRule,
    Ref,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector

WEB = Selector((Requirement("app", frozenset(["web"])),))
LABELS = (("app", "web"),)
HTTP = PolicyRule(ports=(PolicyPort(6, 0, 0, "http"),))


def pod(*ports: PodPort, labels: Any = LABELS, host: bool = False, namespace: str = "default") -> Pod:
    ref = Ref(Kind.POD, namespace, "p")
    return Pod(ref, "n0", (ipaddress.ip_address("10.1.0.1"),), labels, ports, host)


def policy(name: str = "a", pods: Selector = EVERYTHING, **rules: Any) -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", name), pods, **rules)


def wide(name: str = "c", namespaces: Selector = EVERYTHING, pods: Selector = EVERYTHING) -> ClusterNetworkPolicy:
    return ClusterNetworkPolicy(Ref(Kind.CLUSTER_NETWORK_POLICY, "", name), Tier.ADMIN, 1, namespaces, pods)


def test_nobody_selects_it():
    assert subject_of(pod(labels=()), (), [policy(pods=WEB)], [wide(pods=WEB)]) is None


def test_hosts_are_outside():
    assert subject_of(pod(host=True), (), [policy()], [wide()]) is None


def test_policies_of_another_namespace_do_not_count():
    assert subject_of(pod(namespace="other"), (), [policy()], []) is None


def test_both_kinds_in_order():
    subject = subject_of(pod(), (), [policy("b"), policy("a")], [wide()])
    assert subject is not None
    assert [str(ref) for ref in subject.policies] == [
        "ClusterNetworkPolicy c", "NetworkPolicy default/a", "NetworkPolicy default/b",
    ]  # fmt: skip


def test_a_namespace_that_is_not_known_is_selected_by_no_policy_of_the_cluster():
    assert subject_of(pod(), None, [], [wide()]) is None
    assert subject_of(pod(), (), [], [wide()]) is not None


def test_of_its_ports_those_that_ingress_rules_name():
    ports = PodPort("http", 6, 80), PodPort("http", 17, 80), PodPort("dns", 6, 53), PodPort("", 6, 1)
    subject = subject_of(pod(*ports), (), [policy(ingress=(HTTP,), egress=())], [])
    assert subject is not None
    assert subject.ports == (NamedPort("http", 6, 80),)
    assert subject.numbers() == {("http", 6): frozenset([80])}
    other = subject_of(pod(*ports), (), [policy(ingress=(), egress=(HTTP,))], [])
    assert other is not None
    assert other.ports == ()


def test_a_name_without_a_protocol_is_of_any():
    ports = PodPort("http", 6, 80), PodPort("http", 132, 81)
    rule = PolicyRule(ports=(PolicyPort(0, 0, 0, "http"),))
    subject = subject_of(pod(*ports), (), [policy(ingress=(rule,))], [])
    assert subject is not None
    assert subject.numbers() == {("http", 6): frozenset([80]), ("http", 132): frozenset([81])}


def test_pods_under_the_same_are_one():
    one = subject_of(pod(PodPort("http", 6, 80)), (), [policy("a"), policy("b")], [])
    two = subject_of(pod(labels=(("x", "y"),)), (("team", "a"),), [policy("b"), policy("a")], [])
    assert one == two


def test_ids_tell_apart():
    refs = [Ref(Kind.NETWORK_POLICY, "default", name) for name in ("a", "b")]
    ports: list[list[NamedPort]] = [[], [NamedPort("a", 6, 80)], [NamedPort("a", 17, 80)], [NamedPort("a", 6, 81)]]
    made = [make_subject(refs), *(make_subject(refs[:1], each) for each in ports)]
    assert len({each.id for each in made}) == len(made)
    assert all(each.id for each in made)


def test_ids_stay_what_they_are():
    """They are in the tables of a node whose agent is replaced."""
    subject = make_subject([Ref(Kind.NETWORK_POLICY, "default", "a")], [NamedPort("http", 6, 80)])
    assert subject.id == abi.identify("subject\nNetworkPolicy default/a\nport http 6 80")
