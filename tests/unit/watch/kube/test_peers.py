"""Other nodes' pods and the namespaces: asked for on demand, whole or said not to be, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ebpfnet.model.cluster import Cluster
from ebpfnet.model.facts import Change, Delete, Kind, Peer, PeersKnown, Pod, Ref, Synced, Upsert
from ebpfnet.watch.kube import peers, reflector
from tests.apiserver.faults import Fault
from tests.apiserver.server import ApiServer
from tests.unit.watch.kube.conftest import Follow, Followed
from tests.unit.watch.kube.objects import node, pod, ref, service, watching

FAR = ref("far", Kind.PEER)
NAMESPACE = Ref(Kind.NAMESPACE, "", "default")


@pytest.fixture(autouse=True)
def cluster(server: ApiServer) -> None:
    for each in (node(), service("web"), pod("near"), pod("far", on="node-b", ip="10.2.0.1"), namespace("default")):
        server.store.put(each)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LINGER_S", 0.05)


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def states(told: Followed) -> list[str]:
    return [each.state for each in told.source.stats if each.resource in {"peers", "namespaces"}]


def lists(told: Followed) -> list[int]:
    return [each.lists for each in told.source.stats if each.resource in {"peers", "namespaces"}]


def where(change: Change, changes: list[Change]) -> int:
    return changes.index(change)


def test_they_are_not_asked_for_without_need(server: ApiServer, follow: Follow):
    with follow() as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("pods"))
        assert {each.name for each in told.facts} == {"node-a", "web", "near"}
        assert told.known() == [False]
        assert states(told) == ["not needed", "not needed"]
        assert "namespaces" not in {each.resource for each in server.log.requests}


def test_they_come_when_they_are_wanted(server: ApiServer, follow: Follow):
    with follow() as told:
        told.wait(lambda told: told.synced)
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        assert isinstance(told.facts[FAR], Peer)
        assert NAMESPACE in told.facts
        assert ref("near", Kind.PEER) not in told.facts
        assert {FAR, NAMESPACE} <= {each.fact.ref for each in told.all[:-1] if isinstance(each, Upsert)}
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        server.store.delete("Pod", "default", "far")
        told.wait(lambda told: ref("new", Kind.PEER) in told.facts and FAR not in told.facts)
        assert (told.synced, told.problems) == (1, {})


def test_what_is_wanted_from_the_beginning_waits_for_everything_else(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        assert told.all[0] == PeersKnown(known=False)
        first = next(index for index, each in enumerate(told.all) if isinstance(each, Upsert) and each.fact.ref == FAR)
        assert where(Synced(), told.all) < first < where(PeersKnown(known=True), told.all)


def test_in_sync_does_not_wait_for_what_may_not_be_read(server: ApiServer, follow: Follow, hasty: None):
    everything = ("services", "endpointslices", "pods", "networkpolicies", "nodes", "servicecidrs")
    server.access.allowed = {(verb, resource) for verb in ("list", "watch") for resource in everything}
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.synced and FAR in told.facts and "namespaces" in told.said())
        assert told.known() == [False]
        told.source.want_peers(wanted=False)
        told.wait(lambda told: not told.problems and FAR not in told.facts)


def test_they_are_taken_back_when_they_are_not_wanted_any_more(server: ApiServer, follow: Follow, hasty: None):
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("namespaces") == 1 and log.watches.get("pods") == 2)
        told.all.clear()
        told.source.want_peers(wanted=False)
        told.wait(lambda told: FAR not in told.facts and NAMESPACE not in told.facts)
        assert told.all[0] == PeersKnown(known=False)
        server.log.wait(lambda log: not log.watches.get("namespaces") and log.watches.get("pods") == 1)
        assert {each.name for each in told.facts} == {"node-a", "web", "near"}
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        assert {FAR, ref("new", Kind.PEER), NAMESPACE} <= told.facts.keys()
        assert told.synced == 1


def test_who_wants_them_back_soon_has_them_still(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        for wanted in (False, True) * 20:
            told.source.want_peers(wanted=wanted)
        server.store.put(pod("new", on="node-b", ip="10.2.0.2"))
        told.wait(lambda told: ref("new", Kind.PEER) in told.facts)
        assert told.known() == [False, True]
        assert lists(told) == [1, 1]


def test_ended_while_they_are_read(server: ApiServer, follow: Follow):
    server.faults.add(Fault(Fault.Kind.STALL, events=0), "namespaces")
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: FAR in told.facts)


def test_not_wanted_any_more_while_they_are_read(server: ApiServer, follow: Follow, hasty: None):
    server.faults.add(Fault(Fault.Kind.STALL, events=0), "namespaces")
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: FAR in told.facts)
        server.log.wait(watching("namespaces"))
        told.source.want_peers(wanted=False)
        told.wait(lambda told: FAR not in told.facts)
        server.faults.clear()
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known()[-1])


def test_an_outage_takes_nothing_back(server: ApiServer, follow: Follow):
    with follow() as told:
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("namespaces") == 1 and log.watches.get("pods") == 2)
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
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        assert sum(isinstance(fact, Peer) for fact in told.facts.values()) == 101
        told.source.want_peers(wanted=False)
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
        told.source.want_peers(wanted=True)
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
        told.source.want_peers(wanted=True)
        told.wait(lambda told: told.known() == [False, True])
        server.log.wait(lambda log: log.watches.get("pods") == 2)
        for index, on in enumerate(path):
            server.store.put(pod("x", on=on, ip=f"10.3.0.{index}"))
        server.store.put(pod("last", on="node-a"))
        server.store.put(pod("last-there", on="node-b"))
        told.wait(lambda told: {ref("last", Kind.POD), ref("last-there", Kind.PEER)} <= told.facts.keys())
        told.all = order(told.all)
        cluster = _moved(told)
    held = {raw[-4:] for group in cluster.peers.groups.values() for raw in group.addresses.values()}
    assert (ref("x", Kind.POD) in cluster.pods) is here
    assert (bytes((10, 3, 0, 3)) in held) is not here
    assert not {bytes((10, 3, 0, index)) for index in range(3)} & held
