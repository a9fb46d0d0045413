"""Other nodes' pods and these nodes: asked for on demand, whole or said not to be, and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Change, Delete, Kind, Node, Peer, PeersKnown, Pod, Ref, Synced, Upsert
from ebpfnet.watch.kube import peers, reflector
from tests.apiserver.faults import Fault
from tests.apiserver.server import ApiServer
from tests.unit.watch.kube.conftest import Follow, Followed
from tests.unit.watch.kube.objects import node, pod, ref, service, watching

FAR = ref("far", Kind.PEER)
OTHER = Ref(Kind.NODE, "", "node-b")
BOTH = frozenset({Kind.PEER, Kind.NODE})
ON_DEMAND = {"peers", "other-nodes"}
OURS = {"node-a", "web", "near", "default"}


@pytest.fixture(autouse=True)
def cluster(server: ApiServer) -> None:
    far = pod("far", on="node-b", ip="10.2.0.1")
    other = node("node-b")
    other["metadata"]["labels"] = {"zone": "b"}
    for each in (node(), other, service("web"), pod("near"), far, namespace("default")):
        server.store.put(each)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LINGER_S", 0.05)


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def states(told: Followed) -> list[str]:
    return [each.state for each in told.source.stats if each.resource in ON_DEMAND]


def lists(told: Followed) -> list[int]:
    return [each.lists for each in told.source.stats if each.resource in ON_DEMAND]


def where(change: Change, changes: list[Change]) -> int:
    return changes.index(change)


def test_they_are_not_asked_for_without_need(server: ApiServer, follow: Follow):
    with follow() as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("pods"))
        assert {each.name for each in told.facts} == OURS
        assert told.known() == [False]
        assert states(told) == ["not needed", "not needed"]


def test_they_come_when_they_are_wanted(server: ApiServer, follow: Follow):
    with follow() as told:
        told.wait(lambda told: told.synced)
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        assert isinstance(told.facts[FAR], Peer)
        assert OTHER in told.facts
        assert ref("near", Kind.PEER) not in told.facts
        assert {FAR, OTHER} <= {each.fact.ref for each in told.all[:-1] if isinstance(each, Upsert)}
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        server.store.delete("Pod", "default", "far")
        told.wait(lambda told: ref("new", Kind.PEER) in told.facts and FAR not in told.facts)
        assert (told.synced, told.problems) == (1, {})


def test_what_is_wanted_from_the_beginning_waits_for_everything_else(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        assert told.all[0] == PeersKnown(known=False)
        first = next(index for index, each in enumerate(told.all) if isinstance(each, Upsert) and each.fact.ref == FAR)
        assert where(Synced(), told.all) < first < where(PeersKnown(known=True), told.all)


@contextmanager
def trouble(server: ApiServer, told: Followed, fault: Fault) -> Iterator[None]:
    """Have a fault happen to every request for nodes but those that were made before anything was wanted."""
    told.wait(lambda told: told.synced)
    server.log.wait(watching("nodes"))
    server.faults.add(fault, "nodes", times=None)
    yield
    server.faults.clear()


def test_in_sync_does_not_wait_for_what_may_not_be_read(server: ApiServer, follow: Follow, hasty: None):
    with follow() as told, trouble(server, told, Fault(Fault.Kind.STATUS, code=403)):
        told.source.want(BOTH)
        told.wait(lambda told: FAR in told.facts and "other-nodes" in told.said())
        assert told.known() == [False]
        told.source.want(())
        told.wait(lambda told: not told.problems and FAR not in told.facts)


def test_they_are_taken_back_when_they_are_not_wanted_any_more(server: ApiServer, follow: Follow, hasty: None):
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("nodes") == 2 and log.watches.get("pods") == 2)
        told.all.clear()
        told.source.want(())
        told.wait(lambda told: FAR not in told.facts and OTHER not in told.facts)
        assert told.all[0] == PeersKnown(known=False)
        server.log.wait(lambda log: log.watches.get("nodes") == 1 and log.watches.get("pods") == 1)
        assert {each.name for each in told.facts} == OURS
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        assert {FAR, ref("new", Kind.PEER), OTHER} <= told.facts.keys()
        assert told.synced == 1


def test_who_wants_them_back_soon_has_them_still(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        for wanted in (False, True) * 20:
            told.source.want(BOTH if wanted else ())
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        told.wait(lambda told: ref("new", Kind.PEER) in told.facts)
        assert told.known() == [False, True]
        assert lists(told) == [1, 1]


def test_ended_while_they_are_read(server: ApiServer, follow: Follow):
    with follow() as told, trouble(server, told, Fault(Fault.Kind.STALL, events=0)):
        told.source.want(BOTH)
        told.wait(lambda told: FAR in told.facts)


def test_not_wanted_any_more_while_they_are_read(server: ApiServer, follow: Follow, hasty: None):
    with follow() as told:
        with trouble(server, told, Fault(Fault.Kind.STALL, events=0)):
            told.source.want(BOTH)
            told.wait(lambda told: FAR in told.facts)
            server.log.wait(watching("nodes", 2))
            told.source.want(())
            told.wait(lambda told: FAR not in told.facts)
        told.source.want(BOTH)
        told.wait(lambda told: told.known()[-1])


def test_one_is_followed_without_the_other(server: ApiServer, follow: Follow, hasty: None):
    """Whole is what is wanted; when more is, it is not whole, and what is not wanted any more is not missed."""
    with follow() as told:
        told.source.want({Kind.NODE})
        told.wait(lambda told: told.known() == [False, True])
        assert FAR not in told.facts
        other, ours = told.facts[OTHER], told.facts[Ref(Kind.NODE, "", "node-a")]
        assert isinstance(other, Node)
        assert isinstance(ours, Node)
        assert (other.labels, other.pod_cidrs, len(ours.pod_cidrs)) == ((("zone", "b"),), (), 1)
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True, False, True])
        news = told.all[where(PeersKnown(known=True), told.all) + 1 :]
        assert where(PeersKnown(known=False), news) < where(Upsert(told.facts[FAR]), news)
        told.all.clear()
        told.source.want({Kind.PEER})
        told.wait(lambda told: told.known() == [False, True])
        gone = where(Delete(OTHER), told.all)
        assert where(PeersKnown(known=False), told.all) < gone < where(PeersKnown(known=True), told.all)
        assert FAR in told.facts


def test_our_own_node_is_never_taken_back(server: ApiServer, follow: Follow, hasty: None):
    with follow() as told:
        told.source.want({Kind.NODE})
        told.wait(lambda told: OTHER in told.facts)
        server.store.put(node("node-c"))
        server.store.delete("Node", "", "node-b")
        told.wait(lambda told: OTHER not in told.facts and Ref(Kind.NODE, "", "node-c") in told.facts)
        told.source.want(())
        told.wait(lambda told: {ref.name for ref in told.facts if ref.kind == Kind.NODE} == {"node-a"})


def test_an_outage_takes_nothing_back(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("nodes") == 2 and log.watches.get("pods") == 2)
        server.stop()
        told.wait(lambda told: "Watch peers: watch: no API server answers" in told.said())
        server.store.delete("Pod", "default", "far")
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        server.store.compact()
        assert FAR in told.facts
        server.start()
        told.wait(lambda told: ref("new", Kind.PEER) in told.facts and FAR not in told.facts and not told.problems)
        assert told.known() == [False, True]


@pytest.mark.parametrize("streaming", [True, False])
def test_many_in_pieces(
    server: ApiServer, follow: Follow, monkeypatch: pytest.MonkeyPatch, hasty: None, streaming: bool
):
    monkeypatch.setattr(reflector, "PAGE", 7)
    server.streaming = streaming
    for index in range(100):
        server.store.put(pod(f"p{index}", on="node-b", ip=f"10.2.1.{index}"))
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        assert sum(isinstance(fact, Peer) for fact in told.facts.values()) == 101
        told.source.want(())
        told.wait(lambda told: not any(isinstance(fact, Peer) for fact in told.facts.values()))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("addresses", [[{"ip": "10.2.0.300"}], "many", [{"ip": 7}]])
def test_a_pod_that_makes_no_sense_is_named_and_keeps_its_last_good_version(
    server: ApiServer, follow: Follow, streaming: bool, addresses: object
):
    server.streaming = streaming
    odd, bad = pod("odd", on="node-b"), pod("far", on="node-b", ip="10.2.0.1")
    odd["status"]["podIPs"] = bad["status"]["podIPs"] = addresses
    server.store.put(odd)
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        assert "Peer default/odd: status.podIPs" in told.said()
        assert FAR in told.facts
        server.log.wait(lambda log: log.watches.get("pods") == 2)
        server.store.put(bad)
        told.wait(lambda told: "Peer default/far: status.podIPs" in told.said())
        server.store.put(pod("far", on="node-b", ip="10.2.0.2"))
        server.store.put(pod("odd", on="node-b"))
        told.wait(lambda told: not told.problems)
        assert told.facts[FAR].addresses[-4:] == bytes((10, 2, 0, 2))


def _moved(told: Followed) -> Cluster:
    """Return the cluster that was told, all changes of one kind in their order and those of the other after them."""
    cluster = Cluster("node-a")
    for change in told.all:
        match change:
            case Upsert(Pod() as fact):
                cluster.set_pod(fact)
            case Upsert(Peer() as fact):
                cluster.peers.set(fact)
            case Delete(ref) if ref.kind == Kind.POD:
                cluster.drop_pod(ref)
            case Delete(ref) if ref.kind == Kind.PEER:
                cluster.peers.drop(ref)
    return cluster


Order = Callable[[list[Change]], list[Change]]


def _of(change: Change) -> bool:
    found = change.fact.ref if isinstance(change, Upsert) else getattr(change, "ref", None)
    return found is not None and found.kind == Kind.PEER


@pytest.mark.parametrize(
    "order",
    [
        list,
        lambda changes: sorted(changes, key=_of),
        lambda changes: sorted(changes, key=_of, reverse=True),
    ],
    ids=["as told", "ours first", "others first"],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_pod_that_moves_ends_where_it_is(server: ApiServer, follow: Follow, order: Order, here: bool):
    """Two watches tell of it, each in its own order: end state is the same however they mix."""
    path = ["node-b", "node-a", "node-b", "node-a"] if here else ["node-a", "node-b", "node-a", "node-b"]
    with follow() as told:
        told.source.want(BOTH)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("pods") == 2)
        for index, on in enumerate(path):
            server.store.put(pod("x", on=on, ip=f"10.3.0.{index}"))
        server.store.put(pod("last", on="node-a"))
        server.store.put(pod("last-there", on="node-b"))
        told.wait(lambda told: {ref("last", Kind.POD), ref("last-there", Kind.PEER)} <= told.facts.keys())
        told.all = order(told.all)
        cluster = _moved(told)
    held = {raw[-4:]: who for group in cluster.peers.groups.values() for who, raw in group.addresses.items()}
    assert (ref("x", Kind.POD) in cluster.pods) is here
    assert held[bytes((10, 3, 0, 3))] == str(ref("x", Kind.POD if here else Kind.PEER))
    assert not {bytes((10, 3, 0, index)) for index in range(3)} & held.keys()
