"""Tables without room: nobody passes who did not before and shall not afterwards, and what is held back is named."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ebpfnet.abi import Direction, Verdict
from ebpfnet.maps.judge import judge
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
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import Clock, memory_tables, settle
from tests.unit.reconcile.policy.world import (
    BASE,
    LOCAL,
    PROBES,
    TCP,
    WIRES,
    packed,
    peer,
    policy,
    scratch,
    series,
    shape,
    verdicts,
    where,
)
from tests.unit.reconcile.test_paths import Checked, final

OWNERS = {packed(address): name for name, own in LOCAL.items() for address in own}
KINDS = {Kind.NETWORK_POLICY, Kind.CLUSTER_NETWORK_POLICY}
SIZES = st.fixed_dictionaries(
    {},
    optional={
        "rules": st.integers(2, 14),
        "rule_ports": st.integers(1, 6),
        "peers": st.integers(1, 6),
        "peer_blocks": st.integers(1, 5),
    },
)


class Full:
    """Small tables, and verdicts that are looked at after every write."""

    def __init__(self, **sizes: int) -> None:
        self.tables: dict[str, Table] = memory_tables(lambda table: Checked(table.spec), **sizes)
        self.clock = Clock()
        self.seen: list[Change] = []
        self._start()

    def _start(self, *changes: Change) -> None:
        self.reconciler = Reconciler(self.tables, "node-a", self.clock)
        self.reconciler.set_wires(WIRES)
        self.reconciler.apply([*changes, Synced()])

    def restart(self) -> None:
        """Let another agent go on, who knows all there is."""
        self._watch(lambda: self._start(*final(self.seen)))
        self.settle()

    def happen(self, *changes: Change, tidy: bool = True) -> None:
        """Let things happen, one by one."""
        for change in changes:
            self.seen.append(change)
            self._watch(lambda change=change: self.reconciler.apply([change]))  # type: ignore[misc]
            if tidy:
                self.settle()

    def settle(self) -> None:
        """Let time pass until nothing is left to do."""
        self._watch(lambda: settle(self.reconciler, self.clock))

    def _watch(self, work: Callable[[], None]) -> None:
        before, after = verdicts(self.tables), verdicts(scratch(final(self.seen)))
        closed = {Verdict.DENY}
        wrong = [each for each, *said in zip(PROBES, before, after, strict=True) if {row[0] for row in said} == closed]

        def check() -> None:
            assert [each for each in wrong if judge(self.tables, *each).verdict != Verdict.DENY] == []

        for table in self.tables.values():
            table.check = check  # type: ignore[attr-defined]
        work()
        for table in self.tables.values():
            table.check = lambda: None  # type: ignore[attr-defined]
        self._look(after)

    def _look(self, after: list[tuple[object, ...]]) -> None:
        """What a probe should meet and does not: its pod's policies are not enforced, and one of them is named."""
        policies = self.reconciler.policies
        named = {problem.ref for problem in policies.problems}
        for probe, now, want in zip(PROBES, verdicts(self.tables), after, strict=True):
            if now[0] != want[0]:
                mine = OWNERS[probe[0] if probe[4] == Direction.EGRESS else probe[1]]
                subjects = [policies.subjects.subject(ref) for ref in self.reconciler.cluster.pods if ref.name == mine]
                selecting = {ref for subject in subjects if subject for ref in subject.policies}
                assert any(not policies.enforced(ref) for ref in selecting), probe
                assert selecting & named, probe

    def empty(self) -> None:
        """Take all policies away, and see that nothing is left of them."""
        refs = [each.fact.ref for each in final(self.seen)]
        self.happen(*(Delete(ref) for ref in refs if ref.kind in KINDS))
        self.settle()
        assert shape(self.tables) == shape(scratch(final(self.seen)))
        assert self.reconciler.policies.problems == []

    def verdict(self, source: str, destination: str = "10.0.0.1") -> Verdict:
        """Return what is said of a connection to a pod here."""
        return judge(self.tables, packed(source), packed(destination), TCP, 80, Direction.INGRESS).verdict

    def named(self) -> dict[str, str]:
        """Return the policies that are named, and the tables that have no room for them."""
        words = {each.ref.name: each.reason for each in self.reconciler.problems if each.ref.kind in KINDS}
        return {name: next(each for each in self.tables if f" {each} (" in text) for name, text in words.items()}


@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.generate), derandomize=True)
@given(series, SIZES, st.booleans(), st.booleans())
def test_any_tables_may_be_full(changes, sizes: dict[str, int], tidy: bool, restart: bool):
    full = Full(**sizes)
    full.happen(*changes, tidy=tidy)
    if restart:
        full.restart()
    full.empty()


def lock(*blocks: str) -> Upsert:
    """Return a policy that denies the pods of the default namespace who calls from blocks."""
    ref, peers = Ref(Kind.CLUSTER_NETWORK_POLICY, "", "lock"), [IPBlock(ipaddress.ip_network(each)) for each in blocks]
    rule = ClusterRule("", Action.DENY, tuple(peers), ())
    return Upsert(ClusterNetworkPolicy(ref, Tier.ADMIN, 1, EVERYTHING, EVERYTHING, (rule,), ()))


def from_pods(name: str, *apps: str) -> Upsert:
    rules = [PolicyRule((PodPeer(where("app", each), EVERYTHING),)) for each in apps]
    return Upsert(policy(name, ingress=rules))


PLAIN: list[Change] = [*BASE, Delete(policy("q").ref)]
FRIEND = Upsert(peer("z", (("app", "web"),)))


def test_blocks_that_take_the_place_of_one_around_them():
    """Two halves instead of one: the second has no room, and what was denied stays so."""
    full = Full(peer_blocks=2)
    full.happen(*PLAIN, lock("10.0.0.0/16"), lock("10.0.0.0/17", "10.0.128.0/17"))
    assert [full.verdict(each) for each in ("10.0.1.77", "10.0.200.1", "10.1.0.1")] == [0, 0, 1]
    assert full.named() == {"lock": "peer_blocks"}
    full.restart()
    assert [full.verdict(each) for each in ("10.0.1.77", "10.0.200.1", "10.1.0.1")] == [0, 0, 1]
    full.empty()


def test_a_block_stays_while_those_in_it_can_not_leave():
    full = Full(peer_blocks=1)
    full.happen(*PLAIN, lock("10.0.0.0/16"), lock("10.0.0.0/17", "10.0.128.0/17"))
    full.restart()
    assert [full.verdict(each) for each in ("10.0.1.77", "10.0.200.1", "10.1.0.1")] == [0, 0, 1]
    assert full.named() == {"lock": "peer_blocks"}
    full.empty()


def test_what_is_left_out_of_a_block_has_no_room():
    """It is denied as everybody is, so no rule says so: its policy is held back, and named."""
    full = Full(peer_blocks=2)
    whole = IPBlock(ipaddress.ip_network("10.0.0.0/16"))
    less = IPBlock(whole.cidr, tuple(ipaddress.ip_network(each) for each in ("10.0.0.0/24", "10.0.1.0/24")))
    full.happen(*PLAIN, Upsert(policy("p", ingress=[PolicyRule((whole,))])))
    full.happen(Upsert(policy("p", ingress=[PolicyRule((less,))])))
    assert full.named() == {"p": "peer_blocks"}
    full.empty()


def test_peers_that_have_no_room_are_as_they_were():
    full = Full(peers=3)
    full.happen(*PLAIN, from_pods("p", "web"), FRIEND)
    assert [full.verdict(each) for each in ("10.0.1.1", "10.0.0.9")] == [1, 0]
    assert full.named() == {"p": "peers"}
    assert not full.reconciler.policies.enforced(policy("p").ref)
    full.happen(Delete(Ref(Kind.PEER, "default", "x")))
    assert [full.verdict(each) for each in ("10.0.1.1", "10.0.0.9")] == [0, 1]
    assert (full.named(), full.reconciler.policies.enforced(policy("p").ref)) == ({}, True)
    full.empty()


def test_another_version_that_needs_no_room_is_enforced():
    full = Full(peers=3)
    full.happen(*PLAIN, from_pods("p", "web"), FRIEND)
    assert full.named() == {"p": "peers"}
    full.happen(from_pods("p", "db"))
    assert (full.named(), full.verdict("10.0.1.1"), full.verdict("10.0.0.2")) == ({}, Verdict.DENY, Verdict.ALLOW)
    full.empty()


def test_rules_and_peers_without_room_at_once():
    full = Full(peers=3, rules=4)
    full.happen(*PLAIN, from_pods("p", "web"), FRIEND, from_pods("r", "db"), from_pods("s", "none"))
    assert set(full.named()) == {"p", "r", "s"}
    assert [full.verdict(each) for each in ("10.0.1.1", "10.0.0.9", "10.0.0.2")] == [1, 0, 0]
    full.empty()


def test_rules_that_are_kept_keep_their_ranges_of_ports():
    """Another version does not fit: time does not take away what the first one says of ports."""
    full = Full(rules=4, rule_ports=1)
    some = PolicyRule((PodPeer(where("app", "web")),), (PolicyPort(TCP, 80, 80),))
    more = PolicyRule((PodPeer(where("app", "web")),), (PolicyPort(TCP, 82, 90),))
    full.happen(*PLAIN, Upsert(policy("p", ingress=[some])), Upsert(policy("p", ingress=[more])))
    assert full.named() == {"p": "rules"}
    assert full.verdict("10.0.1.1") == Verdict.ALLOW
    full.empty()


def test_what_came_to_fit_is_not_named_any_more():
    full = Full(rules=3)
    full.happen(*PLAIN, from_pods("p", "web"), from_pods("p", "web", "db"))
    assert full.named() == {"p": "rules"}
    full.happen(from_pods("p", "web"))
    assert (full.named(), full.reconciler.policies.enforced(policy("p").ref)) == ({}, True)
