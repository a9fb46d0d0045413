"""After every single write each verdict is that of before or after: series where the order of writes is all."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from ebpfnet.model.facts import Change, IPBlock, PodPeer, PolicyPort, PolicyRule, Synced, Upsert
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle
from tests.unit.reconcile.policy.world import BASE, TCP, WIRES, namespace, peer, pod, policy, scratch, verdicts, where
from tests.unit.reconcile.test_paths import Checked, final

V6_WITHOUT = IPBlock(ipaddress.ip_network("::/0"), (ipaddress.ip_network("fd00::/64"),))
IN_RED = where("team", "red")


def walk(before: Sequence[Change], *after: Change) -> None:
    """Let ``after`` happen, one by one, and look at every verdict after every write."""
    tables = memory_tables(lambda table: Checked(table.spec))
    reconciler = Reconciler(tables, "node-a", clock := Clock())
    reconciler.set_wires(WIRES)
    reconciler.apply([*before, Synced()])
    settle(reconciler, clock)
    seen = list(before)
    for change in after:
        seen.append(change)
        old, new = verdicts(tables), verdicts(scratch(final(seen)))

        def check(old=old, new=new) -> None:
            assert all(now in each for now, *each in zip(verdicts(tables), old, new, strict=True))

        for table in tables.values():
            table.check = check  # type: ignore[attr-defined]
        reconciler.apply([change])
        assert verdicts(tables) == new
        old[:] = new
        settle(reconciler, clock)
        for table in tables.values():
            table.check = lambda: None  # type: ignore[attr-defined]


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
