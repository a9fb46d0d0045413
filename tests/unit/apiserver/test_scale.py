"""The large cluster, made small: what it holds, how it changes, and a server of it in a process of its own."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError

import pytest

from ebpfnet.watch.decode import decode
from tests.apiserver.churn import Churn
from tests.apiserver.client import Client
from tests.apiserver.process import Process
from tests.apiserver.resources import BY_KIND
from tests.apiserver.scale import Scale
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store

SCALE = Scale(services=2, pods=2_600, nodes=3, policies=10, cluster_policies=8)
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


@pytest.fixture
def store() -> Store:
    return SCALE.load(Store())


def conditions(store: Store) -> list[str]:
    """Return the conditions of every endpoint of the largest service."""
    slices = [each for each in store.objects("EndpointSlice") if each["metadata"]["namespace"] == "team-00"]
    return [json.dumps(endpoint["conditions"]) for each in slices for endpoint in each["endpoints"]]


def test_what_it_holds(store: Store):
    slices, pods = store.objects("EndpointSlice"), store.objects("Pod")
    assert [len(each["endpoints"]) for each in slices] == [100] * 35
    assert len(pods) == 2_600
    assert [len(store.objects(kind)) for kind in ("Node", "Service", "Namespace", "NetworkPolicy")] == [3, 2, 100, 10]
    assert len({pod["status"]["podIP"] for pod in pods}) == 2_600


def test_its_policies_are_sound():
    """As many as a benchmark asks for: each another object, and none refused."""
    store = Scale(services=10_000, pods=0, nodes=1, policies=10_000, cluster_policies=200).load(Store())
    for kind, count in (("NetworkPolicy", 10_000), ("ClusterNetworkPolicy", 200)):
        table = store.tables[BY_KIND[kind].name]
        found = [decode(each.manifest(table.resource)) for each in table.items.values()]
        assert len({each.ref for each in found}) == count
        assert not [each.problems for each in found if each.problems]


def test_endpoints_are_pods(store: Store):
    pods = {pod["metadata"]["uid"]: pod for pod in store.objects("Pod")}
    for each in store.objects("EndpointSlice")[:25]:
        for endpoint in each["endpoints"]:
            pod = pods[endpoint["targetRef"]["uid"]]
            assert endpoint["addresses"] == [pod["status"]["podIP"]]
            assert endpoint["nodeName"] == pod["spec"]["nodeName"]
            assert endpoint["targetRef"]["name"] == pod["metadata"]["name"]


def test_names_are_those_of_the_index(store: Store):
    for table in store.tables.values():
        for item in list(table.items.values())[::50]:
            manifest = item.manifest(table.resource)
            meta = manifest["metadata"]
            assert (meta.get("namespace", ""), meta["name"]) == (item.namespace, item.name)
            assert meta["resourceVersion"] == str(item.version)
            assert item.labels.items() <= meta.get("labels", {}).items()
            assert manifest.get("spec", {}).get("nodeName", "") == item.node


def test_a_flip_changes_one_endpoint_and_the_time(store: Store):
    before = {each["metadata"]["name"]: each for each in store.objects("EndpointSlice")}
    churn = Churn(store, SCALE)
    churn.flip(100_000, count=1)
    churn.wait(5)
    (changed,) = [each for each in store.objects("EndpointSlice") if each != before[each["metadata"]["name"]]]
    old = before[changed["metadata"]["name"]]
    assert [changed["endpoints"].count(endpoint) for endpoint in old["endpoints"]].count(0) == 1
    assert changed["metadata"]["annotations"][TRIGGER] > old["metadata"]["annotations"][TRIGGER]
    assert changed["metadata"]["resourceVersion"] == str(store.version)


def test_a_rolling_update_replaces_every_pod(store: Store):
    addresses = set()
    churn = Churn(store, SCALE)
    for _ in range(2):
        churn.roll(1_000_000)
        churn.wait(10)
        assert churn.done == 5_000
        assert len(conditions(store)) == 2_500
        assert len(set(conditions(store))) == 1
        addresses |= {e["addresses"][0] for each in store.objects("EndpointSlice") for e in each["endpoints"]}
    assert len(addresses) == 5_000 + 1_000


def test_pages_and_a_watch_during_churn_end_where_the_store_does(store: Store):
    churn = Churn(store, SCALE)
    with ApiServer(store) as server:
        client, path = Client(server.url), "/apis/discovery.k8s.io/v1/endpointslices"
        churn.flip(20_000, count=1_000)
        seen: dict[str, Any] = {}
        meta: dict[str, Any] = {"continue": ""}
        while "continue" in meta:
            query = {"limit": "7", "continue": meta["continue"]}
            page = client.ask(path, **query).json()
            meta = page["metadata"]
            seen |= {each["metadata"]["name"]: each for each in page["items"]}
        with client.watch(path, resourceVersion=meta["resourceVersion"], allowWatchBookmarks="true") as watch:
            churn.wait(5)
            store.bookmark()
            kind, found = watch.event()
            while kind != "BOOKMARK" or found["metadata"]["resourceVersion"] != str(store.version):
                assert kind == "MODIFIED"
                seen[found["metadata"]["name"]] = found
                kind, found = watch.event()
    same = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"}
    assert {name: {**each, **same} for name, each in seen.items()} == {
        each["metadata"]["name"]: each for each in store.objects("EndpointSlice")
    }


def test_a_process_of_its_own():
    with Process("--scale", "services=1,pods=100,nodes=2") as server:
        client = Client(server.url)
        assert server.post("state")["objects"]["pods"] == 100
        with client.watch(
            "/apis/discovery.k8s.io/v1/endpointslices", resourceVersion=server.post("state")["version"]
        ) as watch:
            server.post("flip", rate=1_000, count=5)
            assert [watch.event()[0] for _ in range(5)] == ["MODIFIED"] * 5
        server.post("fault", fault={"kind": "status", "code": 500}, resource="nodes")
        assert client.ask("/api/v1/nodes").code == 500
        server.post("rbac", allowed=[["list", "pods"]])
        assert (client.ask("/api/v1/nodes").code, client.ask("/api/v1/pods").code) == (403, 200)
        assert [request[0] for request in server.post("requests")] == ["watch", "list", "list", "list"]
        with pytest.raises(HTTPError):
            server.post("nonsense")
        server.post("outage", seconds=0)
