"""After every single write each verdict is that of before or after: series where the order of writes is all."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ebpfnet import abi
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import (
    Action,
    Change,
    ClusterNetworkPolicy,
    ClusterRule,
    Delete,
    IPBlock,
    Kind,
    PodPeer,
    PolicyPort,
    PolicyRule,
    Ref,
    Synced,
    Tier,
    Upsert,
)
from ebpfnet.model.labels import EVERYTHING, Selector
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle
from tests.unit.reconcile.policy.test_paths import on_the_way
from tests.unit.reconcile.policy.world import (
    BASE,
    LOCAL,
    TCP,
    WIRES,
    namespace,
    packed,
    peer,
    pod,
    policy,
    scratch,
    verdicts,
    where,
)
from tests.unit.reconcile.test_paths import Checked, final

V6_WITHOUT = IPBlock(ipaddress.ip_network("::/0"), (ipaddress.ip_network("fd00::/64"),))
IN_RED, RED = where("team", "red"), (("team", "red"),)


def agent(tables: Mapping[str, Table], clock: Clock) -> Reconciler:
    reconciler = Reconciler(tables, "node-a", clock)
    reconciler.set_wires(WIRES)
    return reconciler


def at_every_write(tables: Mapping[str, Any], states: Sequence[Sequence[object]]) -> None:
    """From now on each verdict must be that of one of these states after every write; without any, it may be any."""

    def check() -> None:
        assert not states or all(now in each for now, *each in zip(verdicts(tables), *states, strict=True))

    for table in tables.values():
        table.check = check


def walk(before: Sequence[Change], *after: Change, together: bool = False) -> None:
    """Let ``after`` happen, one by one (or all at once), and look at every verdict after every write."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = agent(tables, clock := Clock())
    reconciler.apply([*before, Synced()])
    settle(reconciler, clock)
    seen = list(before)
    for changes in [after] if together else [[each] for each in after]:
        states = on_the_way(tables, seen, changes)
        at_every_write(tables, states)
        reconciler.apply(changes)
        assert verdicts(tables) == states[-1]
        at_every_write(tables, states[-1:])
        settle(reconciler, clock)
        at_every_write(tables, [])


def restart(before: Sequence[Change], *after: Change, half: str = "") -> None:
    """Let ``after`` happen while there is no agent, and look at every verdict after every write of the next one.

    ``half``: an address whose pod has its group only at its others: the agent was killed in between.
    """
    tables = memory_tables(lambda table: Checked(table.spec))
    first = agent(tables, clock := Clock())
    first.apply([*before, Synced()])
    settle(first, clock)
    if half:
        there = abi.Pod.unpack(dict(tables["pods"].items())[packed(half)])
        tables["pods"].put(packed(half), replace(there, group=0).pack())
    now = final([*before, *after])
    states = [verdicts(tables), verdicts(scratch(now))]
    at_every_write(tables, states)
    second = agent(tables, clock)
    second.apply([*now, Synced()])
    assert verdicts(tables) == states[-1]
    at_every_write(tables, states[-1:])
    settle(second, clock)
    at_every_write(tables, [])


def test_a_pod_in_a_block_is_never_taken_for_the_block():
    """It answers nothing that is asked before, and in one step both a block around it and itself."""
    mates = PolicyRule((PodPeer(EVERYTHING, None), V6_WITHOUT))
    plain = Upsert(policy("q", egress=None))
    asked = Upsert(policy("q", egress=[mates], audited=True))
    walk([*BASE, plain], asked, plain)


def test_blocks_come_and_go_from_the_inside():
    rule = PolicyRule((V6_WITHOUT,))
    plain = Upsert(policy("q", egress=None))
    walk([*BASE, plain], Upsert(policy("q", egress=[rule])), plain)


def test_two_classes_that_become_one_do_so_by_themselves():
    """Each is told what is said of the new one at once; neither meets what was said of the other."""
    rules = [
        PolicyRule((PodPeer(where("app", "web"), IN_RED),), (PolicyPort(TCP, 80, 80),)),
        PolicyRule((PodPeer(where("app", "db"), IN_RED),), (PolicyPort(TCP, 81, 81),)),
        PolicyRule((PodPeer(EVERYTHING, where("kubernetes.io/metadata.name", "other")),), (PolicyPort(TCP, 90, 90),)),
    ]
    base = [
        *BASE,
        Upsert(peer("x", (("app", "web"),), namespace="other")),
        Upsert(peer("z", (("app", "db"),), namespace="other")),
        Upsert(policy("q", ingress=rules)),
    ]
    red, plain = ((("kubernetes.io/metadata.name", "other"), *more) for more in ((("team", "red"),), ()))
    walk(base, Upsert(namespace("other", plain)), Upsert(namespace("other", red)))


def test_pods_that_leave_their_group_meet_what_was_said_until_they_do():
    """Ports by name are asked for, so all pods get another group; and peers with such ports another class."""
    named = PolicyRule((), (PolicyPort(TCP, name="http"),))
    walk(BASE, Upsert(policy("q", ingress=[named], egress=[named])), BASE[-1])


def of_everybody(name: str, namespaces: Selector, *rules: ClusterRule, pods: Selector = EVERYTHING) -> Upsert:
    ref = Ref(Kind.CLUSTER_NETWORK_POLICY, "", name)
    return Upsert(ClusterNetworkPolicy(ref, Tier.ADMIN, 1, namespaces, pods, rules, rules))


def said(action: Action, *peers: PodPeer | IPBlock) -> ClusterRule:
    return ClusterRule("", action, peers, ())


def test_a_namespace_whose_pods_get_other_rules_and_are_other_peers_by_one_event():
    """They come to a class and to a group that others are in already, of which something else is said."""
    red = PodPeer(EVERYTHING, IN_RED)
    base = [
        *BASE,
        of_everybody("k", IN_RED, said(Action.DENY, red)),
        of_everybody("l", EVERYTHING, said(Action.ACCEPT, red)),
        Upsert(pod("b", (("app", "db"),), namespace="other")),
    ]
    colours = [Upsert(namespace("default", (("kubernetes.io/metadata.name", "default"), *more))) for more in (RED, ())]
    walk(base, *colours, Delete(Ref(Kind.NAMESPACE, "", "default")))
    for each in colours:
        restart([*base, *colours], each)


def test_a_namespace_that_goes_leaves_no_pod_to_a_rule_of_everybody():
    everybody = of_everybody("k", EVERYTHING, said(Action.ACCEPT, PodPeer(EVERYTHING, EVERYTHING)), said(Action.ACCEPT))
    walk([*BASE, everybody], Delete(Ref(Kind.NAMESPACE, "", "default")))


def test_an_address_that_is_nobodys_any_more_never_meets_what_was_said_of_its_block():
    """The block is new, or says something else, in the same moment; or what was a block in it is none any more."""
    wide, narrow = (IPBlock(ipaddress.ip_network(f"10.0.{text}")) for text in ("0.0/16", "1.0/24"))
    web = PodPeer(where("app", "web"), None)
    one, two, three = (
        of_everybody("k", EVERYTHING, *rules)
        for rules in (
            [said(Action.ACCEPT, web), said(Action.DENY, narrow), said(Action.ACCEPT, wide), said(Action.DENY)],
            [said(Action.DENY, wide), said(Action.ACCEPT, web)],
            [said(Action.ACCEPT, narrow)],
        )
    )
    gone = Delete(Ref(Kind.PEER, "default", "x"))
    for before in (one, two, three):
        for after in (one, two, three):
            walk([*BASE, before], after, gone, together=True)
            restart([*BASE, before], after, gone)


def test_a_restart_after_pods_peers_and_policies_changed():
    changed = [
        Upsert(pod("a", (("app", "db"),))),
        Upsert(pod("c", (("app", "web"),))),
        Upsert(peer("x", (("app", "db"),))),
        Upsert(policy("q", where("app", "web"), ingress=[PolicyRule((PodPeer(where("app", "db"), None),), ())])),
        Upsert(policy("p", where("app", "db"), egress=[])),
    ]
    for count in range(1, len(changed) + 1):
        restart(BASE, *changed[-count:])
        restart([*BASE, *changed], *BASE[-count:])


def test_a_restart_when_no_pod_is_left_that_was_there():
    gone = [Delete(Ref(Kind.POD, "default", name)) for name in LOCAL]
    restart(BASE, Upsert(peer("x")), *gone)


def test_a_pod_that_had_its_group_at_one_address_when_the_agent_was_killed():
    for half in LOCAL["c"]:
        restart(BASE, Upsert(policy("q", ingress=None)), half=half)
        restart(BASE, Upsert(policy("q", ingress=None)), Delete(Ref(Kind.POD, "default", "a")), half=half)


def test_a_restart_when_nobody_asks_for_all_of_ipv6_any_more():
    """As long as its block is in the table, IPv4 is none of it."""
    named = of_everybody("k", EVERYTHING, said(Action.ACCEPT, V6_WITHOUT), pods=where("app", "web"))
    restart([*BASE, named], Upsert(pod("a")))
    restart([*BASE, named], Delete(Ref(Kind.CLUSTER_NETWORK_POLICY, "", "k")))


def test_pods_that_change_places_while_nobody_looks():
    """Each group is to say something else, and a pod waits to leave each: they wait for one another."""
    policies = [
        Upsert(policy(name, where("app", app), ingress=[PolicyRule((PodPeer(where("app", peers), None),), ())]))
        for name, app, peers in (("p", "web", "web"), ("q", "db", "db"), ("p", "web", "db"), ("q", "db", "web"))
    ]
    base = [*BASE[:-1], *policies[:2], Upsert(pod("c", (("app", "web"),)))]
    restart(base, *policies[2:], Upsert(pod("a", (("app", "db"),))), Upsert(pod("b", (("app", "web"),))))


def test_a_pod_keeps_its_group_while_that_of_its_own_can_not_be_written():
    tables = memory_tables(lambda table: FaultyTable(Checked(table.spec), probability=1.0, seed=0, limit=0))
    inner = {name: table.table for name, table in tables.items()}  # type: ignore[attr-defined]
    reconciler = agent(tables, clock := Clock())
    strict = Upsert(policy("p", where("app", "new"), ingress=None, egress=[]))
    reconciler.apply([*BASE, strict, Synced()])
    settle(reconciler, clock)
    change = Upsert(pod("a", (("app", "new"),)))
    after = verdicts(scratch(final([*BASE, strict, change])))
    for name in ("names", "rule_ports", "rules", "peers", "generations", "pods"):
        at_every_write(inner, [verdicts(inner), after])
        for table in tables.values():
            table.left = 2 * (table.spec.name == name)  # type: ignore[attr-defined]
        reconciler.apply([change])
        settle(reconciler, clock)
        assert verdicts(inner) == after
        at_every_write(inner, [])
        reconciler.apply([BASE[2]])
        settle(reconciler, clock)


def test_a_group_that_gets_pods_again_is_under_the_policies_of_now():
    """It had none for a moment, and what its policy says is something else since."""
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a", Clock())
    reconciler.set_wires(WIRES)
    elsewhere = Upsert(policy("q", where("app", "new"), ingress=None, egress=[]))
    changes = [*BASE, elsewhere, Upsert(pod("a", (("app", "new"),)))]
    reconciler.apply([Synced()])
    for change in changes:
        reconciler.apply([change])
    assert verdicts(tables) == verdicts(scratch(final(changes)))


def test_a_rule_that_only_goes_does_so_at_once():
    """And flows that it let pass are judged again."""
    tables = memory_tables()
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([*BASE, Synced()])
    settle(reconciler, clock)
    before = dict(tables["generations"].items())
    less = Upsert(policy("q"))
    reconciler.apply([less])
    assert verdicts(tables) == verdicts(scratch(final([*BASE, less])))
    assert dict(tables["generations"].items()) != before
