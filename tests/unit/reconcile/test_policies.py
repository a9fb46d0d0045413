"""Policies, and pods of all nodes as their peers, reach the tables and leave them."""

from __future__ import annotations

import ipaddress

import pytest

from ebpfnet import abi
from ebpfnet.abi import Direction, Verdict
from ebpfnet.maps import dump
from ebpfnet.maps.hits import policies_by
from ebpfnet.maps.judge import judge
from ebpfnet.maps.table import Table
from ebpfnet.model.facts import Delete, Kind, NetworkPolicy, Peer, PeersKnown, PodPeer, PolicyRule, Ref, Synced, Upsert
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.reconcile.reconciler import Reconciler
from tests.cluster import TCP, Clock, memory_tables, pod, settle, wire, writes

POLICY = NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "p"), EVERYTHING, (PolicyRule((PodPeer(EVERYTHING),)),))
NEAR, FAR, STRANGER = (abi.pack_address(ipaddress.ip_address(f"10.{n}.0.1")) for n in (1, 2, 3))
PEER = Peer(Ref(Kind.PEER, "default", "far"), (), FAR)


def begin(tables: dict[str, Table], clock: Clock) -> Reconciler:
    reconciler = Reconciler(tables, "node-a", clock)
    reconciler.set_wires({"default/near": wire(5)})
    return reconciler


def verdict(tables: dict[str, Table], source: bytes) -> Verdict:
    return judge(tables, source, NEAR, TCP, 80, Direction.INGRESS).verdict


def test_policies_and_peers_come_and_go():
    tables = memory_tables()
    reconciler = begin(tables, clock := Clock())
    cluster = reconciler.cluster
    reconciler.apply([Upsert(pod("near", "10.1.0.1")), Synced()])
    reconciler.apply([PeersKnown(known=False), Upsert(POLICY), Upsert(PEER)])
    assert (Kind.PEER in cluster.needed, len(cluster.peers), cluster.peers_known) == (True, 2, False)
    assert [verdict(tables, each) for each in (FAR, STRANGER)] == [Verdict.ALLOW, Verdict.DENY]
    reconciler.apply([Delete(POLICY.ref), Delete(PEER.ref), PeersKnown(known=True)])
    assert (Kind.PEER in cluster.needed, len(cluster.peers), cluster.peers_known) == (False, 1, True)
    assert verdict(tables, STRANGER) == Verdict.ALLOW
    settle(reconciler, clock)
    assert [name for name in ("peers", "rules", "rule_ports") if dict(tables[name].items())] == []


def test_every_policy_that_isolates_is_named_and_no_name_is_left_behind():
    tables = memory_tables()
    reconciler = begin(tables, clock := Clock())
    many = [NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", f"p{each:080}"), EVERYTHING, ()) for each in range(30)]
    reconciler.apply([Upsert(pod("near", "10.1.0.1")), *map(Upsert, many), Synced()])
    rule = judge(tables, STRANGER, NEAR, TCP, 80, Direction.INGRESS).rule
    assert policies_by(rule, lambda each: names(tables).get(each, "")) == tuple(str(each.ref) for each in many)
    assert [line for line in dump.summary(tables) if line.startswith("STRAY")] == []
    before = writes(tables)
    begin(tables, clock).apply([Upsert(pod("near", "10.1.0.1")), *map(Upsert, many), Synced()])
    assert writes(tables) == before
    reconciler.apply([Delete(each.ref) for each in many])
    settle(reconciler, clock)
    assert [*names(tables).values()] == ["default/near"]


def names(tables: dict[str, Table]) -> dict[int, str]:
    return {int.from_bytes(key, "little"): abi.unpack_name(value) for key, value in tables["names"].items()}


def test_while_peers_are_not_known_those_in_the_tables_stay():
    tables = memory_tables()
    first = begin(tables, clock := Clock())
    first.apply([Upsert(pod("near", "10.1.0.1")), Upsert(POLICY), Upsert(PEER), Synced()])
    settle(first, clock)
    before = writes(tables)
    second = begin(tables, clock)
    second.apply([PeersKnown(known=False), Upsert(pod("near", "10.1.0.1")), Upsert(POLICY), Synced()])
    settle(second, clock)
    assert (verdict(tables, FAR), writes(tables)) == (Verdict.ALLOW, before)
    second.apply([PeersKnown(known=True)])
    assert verdict(tables, FAR) == Verdict.DENY


def test_what_does_not_fit_keeps_its_pods_as_they_were_and_is_named():
    tables = memory_tables(rules=5)
    reconciler = begin(tables, clock := Clock())
    reconciler.apply([Upsert(pod("near", "10.1.0.1")), Upsert(PEER), Synced()])
    reconciler.apply([Upsert(POLICY)])
    assert verdict(tables, FAR) == Verdict.ALLOW
    reconciler.apply([Upsert(NetworkPolicy(Ref(Kind.NETWORK_POLICY, "default", "q"), EVERYTHING, ()))])
    assert verdict(tables, FAR) == Verdict.ALLOW
    assert {problem.ref.name for problem in reconciler.problems} == {"p", "q"}
    assert not reconciler.policies.enforced(Ref(Kind.NETWORK_POLICY, "default", "q"))
    reconciler.apply([Delete(POLICY.ref)])
    settle(reconciler, clock)
    assert verdict(tables, FAR) == Verdict.DENY
    assert reconciler.problems == []
    assert reconciler.policies.enforced(Ref(Kind.NETWORK_POLICY, "default", "q"))


def test_a_new_pod_whose_group_does_not_fit_has_no_traffic():
    tables = memory_tables(rules=1)
    reconciler = begin(tables, Clock())
    reconciler.apply([Upsert(POLICY), Upsert(PEER), Synced()])
    reconciler.apply([Upsert(pod("near", "10.1.0.1"))])
    assert judge(tables, FAR, NEAR, TCP, 80, Direction.INGRESS).rules_missing


@pytest.mark.parametrize("known", [True, False])
def test_a_pod_comes_with_its_group(known: bool):
    tables = memory_tables()
    reconciler = begin(tables, Clock())
    reconciler.apply([Upsert(POLICY), Synced()] if known else [Synced(), Upsert(POLICY)])
    seen: list[Verdict] = []
    put = tables["pods"].put

    def watch(key: bytes, value: bytes) -> None:
        put(key, value)
        seen.append(verdict(tables, STRANGER))

    tables["pods"].put = watch  # type: ignore[method-assign]
    reconciler.apply([Upsert(pod("near", "10.1.0.1"))])
    assert set(seen) == {Verdict.DENY}
