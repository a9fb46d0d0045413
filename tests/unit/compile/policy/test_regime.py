"""What a subject is under: what it asks, what it names, what a change touches. The APIs' rules: test_policy_api."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from ebpfnet import abi
from ebpfnet.compile.policy.entries import rule_entries
from ebpfnet.compile.policy.outcome import NOBODY_ASKED, Decision, Outcome, Span
from ebpfnet.compile.policy.predicates import HasPort, PodsWhere, Within
from ebpfnet.compile.policy.regime import Parts, Regime, regime
from ebpfnet.compile.policy.subjects import NamedPort, make_subject
from ebpfnet.maps.hits import policies_by
from ebpfnet.model.facts import (
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    IPBlock,
    Kind,
    NetworkPolicy,
    PodPeer,
    Policy,
    PolicyPort,
    PolicyRule,
    Ref,
    Tier,
)
from ebpfnet.model.labels import EVERYTHING, Requirement, Selector
from tests.policy_clusters import Cluster
from tests.policy_verdicts import Verdicts

IN, OUT = abi.Direction.INGRESS, abi.Direction.EGRESS
NET, INNER = ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.1.0.0/16")
NOBODY: frozenset[Any] = frozenset()


def app(name: str) -> PodPeer:
    return PodPeer(Selector((Requirement("app", frozenset([name])),)))


def asks(name: str) -> PodsWhere:
    return PodsWhere("default", None, app(name).pods)


def policy(name: str, *rules: PolicyRule, **more: Any) -> NetworkPolicy:
    return NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", name), EVERYTHING, rules, rules, **more)


def wide(name: str, *rules: ClusterRule, **more: Any) -> ClusterNetworkPolicy:
    ref = Ref(Kind.CLUSTER_NETWORK_POLICY, "", name)
    return ClusterNetworkPolicy(ref, Tier.ADMIN, 1, EVERYTHING, EVERYTHING, rules, **more)


def under(*policies: Policy, direction: abi.Direction = IN, ports: tuple[NamedPort, ...] = (), **more: Any) -> Regime:
    known = {each.ref: each for each in policies}
    return regime(make_subject(known, ports), known, direction, **{"graceful": False, **more})


def rule_id(name: str, index: int = 0, direction: str = "ingress") -> int:
    return abi.identify(f"rule NetworkPolicy default/{name} {direction} {index}")


def tcp(first: int, last: int = 0) -> PolicyPort:
    return PolicyPort(6, first, last or first)


def test_a_direction_that_nobody_speaks_of():
    found = under(replace(policy("a"), egress=None), direction=OUT)
    assert (found.predicates, found.names) == (frozenset(), {})
    assert found.outcome(NOBODY) == Outcome(NOBODY_ASKED)


def test_what_it_asks_is_all_that_matters():
    block = IPBlock(NET, (INNER,))
    found = under(policy("a", PolicyRule((app("x"), block))))
    assert found.predicates == {asks("x"), Within(NET), Within(INNER)}
    assert found.outcome(frozenset([Within(NET), asks("other")])) == found.outcome(frozenset([Within(NET)]))
    assert found.outcome(frozenset([Within(NET), Within(INNER)])) == found.outcome(NOBODY)


def test_an_exception_takes_nothing_from_another_rule():
    """Overlapping broad and narrow blocks: each rule speaks for itself."""
    found = under(policy("a", PolicyRule((IPBlock(NET, (INNER,)),)), PolicyRule((IPBlock(INNER),), (tcp(80),))))
    inner = found.outcome(frozenset([Within(NET), Within(INNER)]))
    assert inner.base.verdict == abi.Verdict.DENY
    assert inner.spans == (Span(6, 80, 80, Decision(abi.Verdict.ALLOW, rule_id("a", 1))),)


def test_rule_ids_and_names():
    found = under(policy("a", PolicyRule((app("x"),)), PolicyRule((app("y"),))))
    assert found.outcome(frozenset([asks("y")])).base == Decision(abi.Verdict.ALLOW, rule_id("a", 1))
    isolated = abi.identify("isolated ingress default/a")
    assert found.names == {
        rule_id("a", 0): "NetworkPolicy default/a, ingress[0]",
        rule_id("a", 1): "NetworkPolicy default/a, ingress[1]",
        isolated: "isolated for ingress by NetworkPolicy default/a",
    }
    assert found.outcome(NOBODY).base == Decision(abi.Verdict.DENY, isolated)


def test_names_of_cluster_policies():
    found = under(wide("c", ClusterRule("", Action.DENY, (app("x"),)), ClusterRule("no", Action.DENY)))
    texts = ["ClusterNetworkPolicy c (Admin), ingress[0]", "ClusterNetworkPolicy c (Admin), ingress[1] (no)"]
    assert [*found.names.values()] == texts
    assert found.outcome(NOBODY).base.rule == abi.identify("rule ClusterNetworkPolicy Admin c ingress 1 no")


def test_refused_ones_say_so():
    found = under(policy("a", refused=True), policy("b"), wide("c", ClusterRule("", Action.DENY), refused=True))
    assert "isolated for ingress by NetworkPolicy default/a (refused), default/b" in found.names.values()
    assert "ClusterNetworkPolicy c (Admin), refused: ingress[0]" in found.names.values()


@pytest.mark.parametrize("length", [1, 20, 200, 253])
def test_every_name_fits(length: int):
    policies = [policy(f"{index:0{length}}") for index in range(250)]
    found = under(*policies, wide("c" * 253, ClusterRule("ü" * 100, Action.DENY)))
    isolation = abi.identify(_isolated(policies))
    assert all(abi.pack_name(text) for text in found.names.values())
    shown = found.names[isolation].count("default/")
    assert found.names[isolation].endswith(f" and {250 - shown} more") or shown == 250
    assert shown >= 1
    listed = policies_by(isolation, lambda rule: found.names.get(rule, ""))
    assert listed == tuple(sorted(str(each.ref) for each in policies))


def _isolated(policies: list[NetworkPolicy]) -> str:
    return f"isolated ingress {' '.join(sorted(f'default/{each.ref.name}' for each in policies))}"


def test_a_rule_for_all_ports_leaves_no_spans():
    found = under(policy("a", PolicyRule(ports=(tcp(80),))), policy("b", PolicyRule()))
    assert found.outcome(NOBODY) == Outcome(Decision(abi.Verdict.ALLOW, rule_id("b")))


def test_neighbours_of_one_rule_are_one_span():
    found = under(policy("a", PolicyRule(ports=(tcp(80), tcp(81, 90), tcp(85, 99), PolicyPort(17, 100, 100)))))
    allow = Decision(abi.Verdict.ALLOW, rule_id("a"))
    assert found.outcome(NOBODY).spans == (Span(6, 80, 99, allow), Span(17, 100, 100, allow))


def test_of_rules_that_overlap_the_first_is_named():
    found = under(policy("b", PolicyRule(ports=(tcp(1, 100),))), policy("a", PolicyRule(ports=(tcp(50, 60),))))
    spans = [(span.first, span.last, span.decision.rule) for span in found.outcome(NOBODY).spans]
    assert spans == [(1, 49, rule_id("b")), (50, 60, rule_id("a")), (61, 100, rule_id("b"))]


def test_many_overlapping_ranges():
    ranges = [PolicyRule(ports=(tcp(1, port),)) for port in range(1, 3000)]
    assert len(under(policy("a", *ranges)).outcome(NOBODY).spans) == len(ranges)


def test_what_is_hidden_for_everybody_is_not_looked_at():
    policies = [policy(f"{index:03}", PolicyRule(ports=(tcp(80 + index % 2),))) for index in range(40)]
    named = policy("z", PolicyRule(ports=(PolicyPort(6, 0, 0, "http"),)))
    audited = policy("y", PolicyRule(ports=(tcp(80),)), audited=True)
    found = under(*policies, named, audited, direction=OUT, numbers={("http", 6): frozenset([80])})
    assert {each.rule for each in found._everybody} == {rule_id(name, 0, "egress") for name in ("000", "001", "y", "z")}


def test_what_is_hidden_for_peers_alike_is_not_looked_at():
    rules = [PolicyRule((app("x"), IPBlock(NET, (INNER,))), (tcp(80),))] * 40
    found = under(policy("a", *rules), policy("b", *rules))
    assert [statement.rule for _, statement in found._asked[asks("x")]] == [rule_id("a")]
    assert len(found._asked[Within(NET)]) == 80
    assert found.outcome(frozenset([Within(NET)])).spans == found.outcome(frozenset([asks("x")])).spans


def test_named_ports_of_ingress_are_the_subjects():
    rule = PolicyRule(ports=(PolicyPort(6, 0, 0, "http"),))
    found = under(policy("a", rule), ports=(NamedPort("http", 6, 80), NamedPort("http", 6, 90)), numbers={})
    assert [span.first for span in found.outcome(NOBODY).spans] == [80, 90]
    assert (found.predicates, found.port_names) == (frozenset(), frozenset())


def test_named_ports_of_egress_are_the_peers():
    rule = PolicyRule((app("x"),), (PolicyPort(6, 0, 0, "http"), tcp(1)))
    numbers = {("http", 6): frozenset([80, 90]), ("other", 6): frozenset([1])}
    found = under(policy("a", rule), direction=OUT, numbers=numbers)
    assert found.port_names == {("http", 6)}
    assert found.predicates == {asks("x"), HasPort("http", 6, 80), HasPort("http", 6, 90)}
    spans = found.outcome(frozenset([asks("x"), HasPort("http", 6, 90)])).spans
    assert [span.first for span in spans] == [1, 90]
    assert found.outcome(frozenset([HasPort("http", 6, 90)])).spans == ()


def test_parts_are_kept_for_what_did_not_change():
    parts = Parts()
    one, two = policy("a", PolicyRule((app("x"),))), policy("b", PolicyRule((app("y"),)))
    before = under(one, two, parts=parts)
    after = under(one, policy("b", PolicyRule((app("z"),))), parts=parts)
    assert after.parts[one.ref] is before.parts[one.ref]
    assert after.touched(before) == frozenset([asks("y"), asks("z")])
    parts.forget(one.ref)
    assert under(one, two, parts=parts).parts[one.ref] is not before.parts[one.ref]


def test_parts_of_named_ports_follow_the_numbers():
    rule, parts = PolicyRule((app("x"),), (PolicyPort(6, 0, 0, "http"),)), Parts()
    regimes = [
        under(policy("a", rule), direction=OUT, numbers={("http", 6): frozenset(each)}, parts=parts)
        for each in ([80], [80, 90])
    ]
    assert regimes[1].touched(regimes[0]) == frozenset([asks("x")])
    assert HasPort("http", 6, 90) in regimes[1].predicates


def test_a_new_number_touches_who_has_it_or_another():
    rule = policy("a", PolicyRule(ports=(PolicyPort(6, 0, 0, "http"),)))
    regimes = [under(rule, direction=OUT, numbers={("http", 6): frozenset(each)}) for each in ([80], [80, 90])]
    assert regimes[1].touched(regimes[0]) == frozenset(HasPort("http", 6, port) for port in (80, 90))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([policy("a")], [policy("a"), policy("b")]),
        ([policy("a")], [policy("a", audited=True)]),
        ([policy("a")], [policy("a", graceful=True)]),
        ([policy("a")], [policy("a", PolicyRule())]),
        ([wide("c", ClusterRule("", Action.DENY))], [wide("c", ClusterRule("", Action.PASS))]),
    ],
)
def test_a_change_that_may_touch_anybody(before: list[Policy], after: list[Policy]):
    assert under(*after).touched(under(*before)) is None


def test_nothing_changed():
    one = policy("a", PolicyRule((app("x"),)), PolicyRule())
    assert under(one).touched(under(replace(one))) == frozenset()


@pytest.mark.parametrize("seed", range(60))
def test_who_is_not_touched_gets_what_he_got(seed: int):
    """And what is compiled with kept parts is what is compiled from scratch."""
    cluster = Cluster(seed)
    before = Verdicts(cluster.manifests())
    changed = [*cluster.policies, *cluster.cluster_policies]
    if not changed:
        return
    one, other = cluster.dice.choice(changed), Cluster(seed + 1000)
    same = other.policies if one["kind"] == "NetworkPolicy" else other.cluster_policies
    for field in ("ingress", "egress"):
        if same and cluster.dice.random() < 0.7:
            one["spec"][field] = same[0]["spec"].get(field)
    scratch, after = Verdicts(cluster.manifests()), Verdicts(cluster.manifests())
    after.parts = before.parts
    for pod in {id(pod): pod for pod in before.pods.values()}.values():
        for direction in abi.Direction:
            old, new, plain = (each.regime(pod, direction) for each in (before, after, scratch))
            if old is None or new is None or plain is None or [*old.parts] != [*new.parts]:
                continue
            touched = new.touched(old)
            assert (new.predicates, new.names) == (plain.predicates, plain.names)
            for address in before.pods:
                outcome = new.outcome(after.cell(new, address))
                assert outcome == plain.outcome(after.cell(plain, address))
                if touched is not None and touched.isdisjoint(after.cell(new, address) | before.cell(old, address)):
                    assert rule_entries(outcome) == rule_entries(old.outcome(before.cell(old, address)))
