"""Lists and watches against the test API server: nothing is lost, nothing is told twice, and what is wrong is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ebpfnet.model.facts import Action, ClusterNetworkPolicy, Kind, NetworkPolicy, Ref, Refused, Service, Tier
from ebpfnet.model.labels import EVERYTHING
from ebpfnet.watch.kube import reflector
from ebpfnet.watch.kube.source import resources
from tests.apiserver.faults import Fault
from tests.apiserver.server import ApiServer
from tests.unit.watch.kube.conftest import NODE, Follow
from tests.unit.watch.kube.objects import node, pod, ref, service, watching

K = Fault.Kind


@pytest.fixture(params=["stream", "pages"])
def listing(request: pytest.FixtureRequest, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read a list; pages are small, so that there are several."""
    server.streaming = request.param == "stream"
    monkeypatch.setattr(reflector, "PAGE", 3)
    return str(request.param)


def test_what_is_there_and_what_comes(server: ApiServer, follow: Follow, listing: str):
    for index in range(10):
        server.store.put(service(f"s{index}"))
    server.store.put(node())
    server.store.put(pod("mine"))
    server.store.put(pod("other", on="node-b"))
    with follow() as told:
        told.wait(lambda told: told.synced)
        assert told.names() == {f"s{index}" for index in range(10)} | {NODE, "mine"}
        assert told.problems == {}
        server.store.put(service("late"))
        server.store.delete("Service", "default", "s3")
        told.wait(lambda told: "late" in told.names() and "s3" not in told.names())
        assert told.synced == 1
        assert len(told.upserts) == len(set(told.upserts))


def test_nothing_is_synced_before_every_list(server: ApiServer, follow: Follow):
    server.access.allowed = {("list", "services"), ("watch", "services")}
    server.store.put(service("web"))
    with follow() as told:
        told.wait(lambda told: "web" in told.names() and "endpointslices" in told.said())
        assert told.synced == 0
        server.access.allowed = None
        told.wait(lambda told: told.synced)


def test_a_pod_that_leaves_the_node_is_deleted(server: ApiServer, follow: Follow):
    server.store.put(pod("mine"))
    with follow("pods") as told:
        told.wait(lambda told: told.synced)
        server.store.put(pod("mine", on="node-b"))
        told.wait(lambda told: not told.facts)


def test_services_of_another_proxy_are_left_to_it(server: ApiServer, follow: Follow):
    server.store.put(service("web"))
    server.store.put(service("theirs", **{"service.kubernetes.io/service-proxy-name": "other"}))
    server.store.put(service("headless", **{"service.kubernetes.io/headless": ""}))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        foreign = {ref.name: fact.foreign for ref, fact in told.facts.items() if isinstance(fact, Service)}
        assert foreign == {"web": False, "theirs": True, "headless": True}


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("", "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"),
        ("mine", "service.kubernetes.io/service-proxy-name=mine,!service.kubernetes.io/headless"),
    ],
)
def test_slices_are_asked_for_as_kube_proxy_does(name: str, selector: str):
    """As by the informers of ``Run`` in cmd/kube-proxy/app/server.go; a name is what KEP-2447 leaves to others."""
    asked = {each.kind: each for each in resources("node-a", name)}
    assert asked.pop(Kind.ENDPOINT_SLICE).labels == selector
    assert asked[Kind.SERVICE].proxy_name == name  # all of them are asked for: that others' are allocated counts, too
    assert not any(each.labels for each in asked.values())


def test_a_watch_goes_on_where_it_was(server: ApiServer, follow: Follow, listing: str):
    server.store.put(service("web"))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.stop()
        server.store.put(service("meanwhile"))
        server.store.delete("Service", "default", "web")
        server.start()
        told.wait(lambda told: told.names() == {"meanwhile"})
        assert told.source.stats[0].lists == 1


def test_what_is_too_old_is_listed_again_and_only_differences_are_told(server: ApiServer, follow: Follow, listing: str):
    for name in ("same", "changed", "gone"):
        server.store.put(service(name))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.stop()
        other = service("changed")
        other["spec"] |= {"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}
        server.store.put(other)
        server.store.delete("Service", "default", "gone")
        server.store.put(service("new"))
        server.store.compact()
        told.upserts.clear()
        server.start()
        told.wait(lambda told: told.names() == {"same", "changed", "new"})
        assert sorted(each.name for each in told.upserts) == ["changed", "new"]
        assert told.deletes == [ref("gone")]
        assert told.source.stats[0].lists == 2
        assert told.synced == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(K.REFUSE),
        Fault(K.CUT, events=1),
        Fault(K.CUT, bytes=70),
        Fault(K.GARBAGE),
        Fault(K.TRUNCATE, events=1),
        Fault(K.SLOW, rate=20_000),
        Fault(K.STATUS, code=500),
        Fault(K.STATUS, code=429, headers={"Retry-After": "0"}),
        Fault(K.DUPLICATE),
        Fault(K.REORDER),
    ],
    ids=lambda fault: str(fault.kind),
)
@pytest.mark.parametrize("when", ["list", "watch"])
def test_a_fault_loses_nothing(server: ApiServer, follow: Follow, listing: str, when: str, fault: Fault):
    """On the first requests, or on the watch that follows; each kind of answer, several times in a row."""
    for index in range(7):
        server.store.put(service(f"s{index}"))
    if when == "list":
        server.faults.add(fault, "services", times=2)
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        if when == "watch":
            server.faults.add(fault, "services", times=3)
            server.drop_watches()
        for index in range(5):
            changed = service(f"s{index}")
            changed["spec"] |= {"clusterIP": f"10.96.1.{index}", "clusterIPs": [f"10.96.1.{index}"]}
            server.store.put(changed)
        server.store.delete("Service", "default", "s6")
        server.store.put(service("last"))
        if fault.kind == K.REORDER:  # the last event waits for one to change places with
            server.store.put(service("last"))
            server.faults.clear()
            server.drop_watches()
        told.wait(lambda told: told.names() == {f"s{index}" for index in range(6)} | {"last"})
        told.wait(lambda told: [str(told.facts[ref(f"s{i}")].cluster_ips[0]) for i in range(5)] == CHANGED)
        told.wait(lambda told: not told.problems)


CHANGED = [f"10.96.1.{index}" for index in range(5)]


def test_an_event_that_is_older_than_what_is_known_changes_nothing(server: ApiServer, follow: Follow):
    """The second state of one object comes before its first."""
    server.store.put(service("web"))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.faults.add(Fault(K.REORDER), "services", times=1)
        server.stop()
        for last in (2, 3):
            changed = service("web")
            changed["spec"] |= {"clusterIP": f"10.96.0.{last}", "clusterIPs": [f"10.96.0.{last}"]}
            server.store.put(changed)
        server.start()
        server.store.put(service("after"))
        server.store.put(service("after-that"))
        told.wait(lambda told: {"after", "after-that"} <= told.names())
        assert str(told.facts[ref("web")].cluster_ips[0]) == "10.96.0.3"


def test_a_silent_connection_is_given_up(server: ApiServer, follow: Follow):
    with follow("services", idle_s=0.2) as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.faults.add(Fault(K.STALL), "services", times=1)
        server.drop_watches()
        server.store.put(service("web"))
        told.wait(lambda told: "web" in told.names())


def test_without_streaming_lists_pages_are_read(server: ApiServer, follow: Follow):
    server.streaming = False
    server.store.put(service("web"))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        assert told.names() == {"web"}
        assert {request.verb for request in server.log.requests} == {"watch", "list"}
        assert told.problems == {}


def test_an_outage_deletes_nothing_and_is_named(server: ApiServer, follow: Follow):
    server.store.put(service("web"))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.stop()
        told.wait(lambda told: "no API server answers" in told.said())
        assert "Watch services: watch:" in told.said()
        assert server.url in told.said()
        assert told.names() == {"web"}
        server.start()
        told.wait(lambda told: not told.problems)


def test_a_missing_verb_is_named(server: ApiServer, follow: Follow):
    server.access.allowed = set()
    with follow("services") as told:
        told.wait(lambda told: told.problems)
        assert "403" in told.said()
        assert 'resource "services"' in told.said()
        assert "ClusterRole" in told.said()


def test_a_node_that_is_not_in_the_cluster_is_named_until_it_is(server: ApiServer, follow: Follow):
    server.store.put(node("another"))
    with follow() as told:
        told.wait(lambda told: told.synced)
        assert f"Node {NODE}: metadata.name: no such node" in told.said()
        server.store.put(node())
        told.wait(lambda told: not told.problems)


def cluster_policy(**spec: Any) -> dict[str, Any]:
    """Return a policy of the cluster that accepts from everybody."""
    rule = {"action": "Accept", "from": [{"namespaces": {}}]}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "deny"},
        "spec": {"tier": "Admin", "subject": {"namespaces": {}}, "priority": 1, "ingress": [rule]} | spec,
    }


def test_cluster_policies_are_followed_where_there_is_their_crd(server: ApiServer, follow: Follow):
    """One that can't be obeyed denies; without the CRD everything is in sync, and when it goes its policies go."""
    name = Ref(Kind.CLUSTER_NETWORK_POLICY, "", "deny")
    with follow() as told:
        told.wait(lambda told: told.synced)
        assert next(each.state for each in told.source.stats if "cluster" in each.resource) == "absent"
        server.store.install("clusternetworkpolicies")
        server.store.put(cluster_policy(priority=1001))
        told.wait(lambda told: "ClusterNetworkPolicy deny: spec.priority: 1001" in told.said() and name in told.facts)
        refused = told.facts[name]
        assert isinstance(refused, ClusterNetworkPolicy)
        assert (refused.refused, refused.ingress[0].action, refused.egress) == (True, Action.DENY, ())
        server.store.put(cluster_policy(ingress=[]))
        told.wait(lambda told: "deny" not in told.said())
        assert told.facts[name] == ClusterNetworkPolicy(name, Tier.ADMIN, 1, EVERYTHING, EVERYTHING)
        server.store.uninstall("clusternetworkpolicies")
        told.wait(lambda told: name not in told.facts)


def test_a_refused_network_policy_is_told_with_its_problem(server: ApiServer, follow: Follow):
    """Also where it was good before: the last good version does not stay."""
    item: dict[str, Any] = {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "default"}}
    name = Ref(Kind.NETWORK_POLICY, "default", "p")
    with follow("networkpolicies") as told:
        server.store.put({**item, "spec": {"podSelector": {}, "ingress": [{}]}})
        told.wait(lambda told: name in told.facts)
        server.store.put({**item, "spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}})
        told.wait(lambda told: "NetworkPolicy default/p: spec.ingress[0].from[0]: none of" in told.said())
        assert told.facts[name] == NetworkPolicy(name, EVERYTHING, (), None, refused=True)
        assert [change.partial for change in told.all if isinstance(change, Refused)] == [True]
        server.store.put({**item, "spec": {"podSelector": {}}})
        told.wait(lambda told: not told.problems)


def test_where_cluster_ips_come_from_is_followed_where_the_server_says_it(server: ApiServer, follow: Follow):
    """Kubernetes before 1.33 has no ServiceCIDR: everything else is in sync, and nothing is wrong."""
    server.store.uninstall("servicecidrs")
    server.store.put(service("web"))
    with follow() as told:
        told.wait(lambda told: told.synced)
        assert told.complete
        assert "watch" not in told.said().lower()
        server.store.install("servicecidrs")
        blocks = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}}
        server.store.put({**blocks, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/112"]}})
        told.wait(lambda told: "kubernetes" in told.names())
        server.store.put({**blocks, "spec": {"cidrs": ["10.96.0.0"]}})
        told.wait(lambda told: "ServiceCIDR kubernetes: spec.cidrs[0]" in told.said())
        assert "kubernetes" in told.names()
        server.store.delete("ServiceCIDR", "", "kubernetes")
        told.wait(lambda told: "kubernetes" not in told.names())


def test_an_object_that_is_refused_keeps_its_last_good_version(server: ApiServer, follow: Follow):
    server.store.put(service("web"))
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        bad = service("web")
        bad["spec"]["ports"] = [{"port": "eighty"}]
        server.store.put(bad)
        told.wait(lambda told: told.problems)
        assert "Service default/web: spec.ports[0].port" in told.said()
        assert told.names() == {"web"}
        server.store.put(service("web"))
        told.wait(lambda told: not told.problems)


def test_a_slice_that_is_nobody_s_any_more_is_deleted(server: ApiServer, follow: Follow):
    piece: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.9"]}],
        "ports": [{"port": 8080}],
    }
    server.store.put(piece)
    with follow("endpointslices") as told:
        told.wait(lambda told: "web-1" in told.names())
        orphan = copy.deepcopy(piece)
        orphan["metadata"]["labels"] = {}
        server.store.put(orphan)
        told.wait(lambda told: not told.names())


def test_a_burst_is_told_in_few_pieces(server: ApiServer, follow: Follow):
    """While we are behind, of several states of one object only the last is told."""
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.stop()
        for round_ in range(2000):
            changed = service("busy")
            changed["metadata"]["annotations"] = {"round": str(round_), "padding": "x" * 1000}
            server.store.put(changed)
        server.store.put(service("last"))
        told.batches.clear()
        server.start()
        told.wait(lambda told: "last" in told.names())
        assert sum(told.batches) < 1500


def test_a_bookmark_moves_the_watch_on(server: ApiServer, follow: Follow):
    server.bookmark_every_s = 0.02
    with follow("services") as told:
        told.wait(lambda told: told.synced)
        server.log.wait(watching("services"))
        server.store.put(pod("elsewhere"))  # the version grows, the watch has no event
        version = server.store.version
        reached = [each for each in told.source._group.reflectors if each._version == str(version)]
        while not reached:
            reached = [each for each in told.source._group.reflectors if each._version == str(version)]
        server.store.compact()
        server.drop_watches()
        server.store.put(service("web"))
        told.wait(lambda told: "web" in told.names())
        assert told.source.stats[0].lists == 1


@pytest.mark.parametrize("end", ["mended", "deleted"])
def test_an_object_that_was_refused_at_first_leaves_the_list_in_part(server: ApiServer, follow: Follow, end: str):
    broken = service("web")
    broken["spec"] |= {"clusterIP": "nonsense", "clusterIPs": ["nonsense"]}
    server.store.put(broken)
    server.store.put(service("good"))
    with follow("services", "pods") as told:
        told.wait(lambda told: told.synced)
        assert not told.complete
        server.log.wait(watching("services"))
        server.store.put(pod("p"))
        told.wait(lambda told: "p" in told.names())
        assert told.synced == 1
        if end == "mended":
            server.store.put(service("web"))
        else:
            server.store.delete("Service", "default", "web")
        told.wait(lambda told: told.complete)
        assert told.synced == 2
        server.store.put(broken)
        told.wait(lambda told: told.problems)
        assert told.complete
