"""Watches: from where, for how long, and what a selector makes of a change."""

from __future__ import annotations

import pytest

from tests import clusters
from tests.apiserver.client import Client
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store

PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
STREAM = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}


def test_everything_after_a_version(client: Client, store: Store):
    version = store.version
    store.put(clusters.pod(7, 0))
    with client.watch(PODS, resourceVersion=version) as watch:
        assert watch.told(1) == ["ADDED p7"]
        store.put(clusters.pod(7, 1))
        store.delete("Pod", "default", "p7")
        kind, found = watch.event()
        assert (kind, found["kind"], found["apiVersion"]) == ("MODIFIED", "Pod", "v1")
        kind, found = watch.event()
        assert (kind, found["spec"]["nodeName"]) == ("DELETED", "n1")
        assert found["metadata"]["resourceVersion"] == str(store.version)


def test_without_a_version_everything_first(client: Client, store: Store):
    with client.watch(NODES) as watch:
        assert watch.told(3) == ["ADDED n0", "ADDED n1", "ADDED n2"]
        store.delete("Node", "", "n1")
        assert watch.told(1) == ["DELETED n1"]


def test_too_old(client: Client, store: Store):
    version = store.version
    store.put(clusters.pod(0, 1))
    store.compact()
    with client.watch(PODS, resourceVersion=version) as watch:
        assert watch.code == 200
        kind, status = watch.event()
        assert (kind, status["kind"], status["code"], status["reason"]) == ("ERROR", "Status", 410, "Expired")
        assert "name" not in status["metadata"]
        assert watch.line() == b""


def test_the_history_has_a_length():
    store = Store(clusters.nodes(1), history=2)
    with ApiServer(store) as server:
        client, version = Client(server.url), store.version
        for node in (1, 2, 3):
            store.put(clusters.pod(node, 0))
        with client.watch(PODS, resourceVersion=version) as watch:
            assert watch.event()[0] == "ERROR"
        with client.watch(PODS, resourceVersion=version + 1) as watch:
            assert watch.told(2) == ["ADDED p2", "ADDED p3"]


def test_a_version_of_the_future_hangs_until_it_comes(client: Client, store: Store):
    with client.watch(PODS, resourceVersion=store.version + 2) as watch:
        for index in (7, 8, 9):
            store.put(clusters.pod(index, 0))
        assert watch.told(1) == ["ADDED p9"]


def test_bookmarks_hold_null_lists(client: Client, store: Store):
    with client.watch(SLICES, resourceVersion=store.version, allowWatchBookmarks="true") as watch:
        store.put(clusters.pod(8, 0))
        store.bookmark()
        kind, found = watch.event()
    assert kind == "BOOKMARK"
    assert found == {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": str(store.version), "creationTimestamp": None},
        "addressType": "",
        "endpoints": None,
        "ports": None,
    }


def test_no_bookmarks_unless_allowed(client: Client, store: Store):
    with client.watch(PODS, resourceVersion=store.version) as watch:
        store.bookmark()
        store.put(clusters.pod(8, 0))
        assert watch.told(1) == ["ADDED p8"]


def test_bookmarks_come_by_themselves(client: Client, server: ApiServer):
    server.bookmark_every_s = 0.01
    with client.watch(PODS, resourceVersion=server.store.version, allowWatchBookmarks="1") as watch:
        assert watch.told(2) == ["BOOKMARK", "BOOKMARK"]


def test_the_end_of_the_time_is_a_bookmark_and_a_whole_stream(client: Client, store: Store):
    query = {"timeoutSeconds": 1, "resourceVersion": store.version}
    with client.watch(PODS, allowWatchBookmarks="true", **query) as watch:
        assert watch.told(1) == ["BOOKMARK"]
        with pytest.raises(EOFError):
            watch.event()


def test_streaming_list(client: Client, store: Store):
    with client.watch(NODES, **STREAM) as watch:
        assert watch.told(3) == ["ADDED n0", "ADDED n1", "ADDED n2"]
        kind, found = watch.event()
        assert (kind, found["metadata"]["resourceVersion"]) == ("BOOKMARK", str(store.version))
        assert found["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        store.put(clusters.nodes(4)[3])
        assert watch.told(1) == ["ADDED n3"]


def test_streaming_list_of_nothing(client: Client):
    with client.watch(SLICES, **STREAM) as watch:
        assert watch.told(1) == ["BOOKMARK"]


def test_streaming_list_unknown_to_the_server(client: Client, server: ApiServer):
    server.streaming = False
    answer = client.ask(NODES, watch="true", **STREAM)
    assert (answer.code, answer.json()["reason"]) == (422, "Invalid")
    assert "sendInitialEvents is forbidden" in answer.json()["message"]


def test_streaming_list_needs_its_match(client: Client):
    assert client.ask(NODES, watch="true", sendInitialEvents="true").code == 422


def test_a_selection_is_entered_and_left(client: Client, store: Store):
    version = store.version
    with client.watch(PODS, resourceVersion=version, fieldSelector="spec.nodeName=n0") as watch:
        store.put(clusters.pod(1, 1))  # stays outside
        store.put(clusters.pod(0, 2))  # leaves
        kind, found = watch.event()
        assert (kind, found["metadata"]["name"], found["spec"]["nodeName"]) == ("DELETED", "p0", "n0")
        assert found["metadata"]["resourceVersion"] == str(version + 2)
        store.put(clusters.pod(0, 0))  # enters
        store.put(clusters.pod(0, 0))  # stays inside
        store.delete("Pod", "default", "p2")  # was never inside
        store.delete("Pod", "default", "p0")
        assert watch.told(3) == ["ADDED p0", "MODIFIED p0", "DELETED p0"]


def test_labels_and_namespaces_select_too(client: Client, store: Store):
    path = "/api/v1/namespaces/other/pods"
    with client.watch(path, resourceVersion=store.version, labelSelector="!skip") as watch:
        store.put(clusters.pod(1, 1))
        manifest = clusters.pod(2, 1, "other")
        store.put(manifest)
        store.put({**manifest, "metadata": {**manifest["metadata"], "labels": {"skip": ""}}})
        assert watch.told(2) == ["ADDED p2", "DELETED p2"]


def test_uninstalling_deletes_and_ends_the_watch(client: Client, store: Store):
    resource = "clusternetworkpolicies"
    store.install(resource)
    store.put({"kind": "ClusterNetworkPolicy", "metadata": {"name": "c"}, "spec": {}})
    path = f"/apis/policy.networking.k8s.io/v1alpha2/{resource}"
    with client.watch(path, resourceVersion=store.version) as watch:
        store.uninstall(resource)
        assert watch.told(1) == ["DELETED c"]
        assert watch.line() == b""
    assert client.ask(path).code == 404
