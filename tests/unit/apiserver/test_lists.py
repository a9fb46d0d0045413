"""Lists: pages of one moment, selectors, and what clients must not rely on."""

from __future__ import annotations

import gzip
import random

import pytest

from tests import clusters
from tests.apiserver.client import Client
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store

PODS = "/api/v1/pods"
ALL = [f"p{index}" for index in range(7)]


def test_items_have_neither_kind_nor_version(client: Client):
    answer = client.ask(PODS).json()
    assert (answer["kind"], answer["apiVersion"]) == ("PodList", "v1")
    assert set(answer["items"][0]) == {"metadata", "spec", "status"}


def test_versions_increase_over_all_resources(client: Client, store: Store):
    before = int(client.ask("/api/v1/nodes").json()["metadata"]["resourceVersion"])
    version = store.put(clusters.pod(0, 1))
    assert version == before + 1
    found = client.ask(PODS, fieldSelector="metadata.name=p0").json()
    assert found["items"][0]["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"] == str(version)


def test_pages_are_of_one_moment(client: Client, store: Store):
    first = client.ask(PODS, limit=3).json()
    assert first["metadata"]["remainingItemCount"] == 4
    store.delete("Pod", "default", "p4")
    store.put(clusters.pod(55, 0))
    store.put(clusters.pod(5, 0))
    second = client.ask(PODS, limit=3, **{"continue": first["metadata"]["continue"]}).json()
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert [item["metadata"]["name"] for item in second["items"]] == ["p3", "p4", "p5"]
    assert second["items"][2]["spec"]["nodeName"] == "n2"
    third = client.ask(PODS, limit=3, **{"continue": second["metadata"]["continue"]}).json()
    assert [item["metadata"]["name"] for item in third["items"]] == ["p6"]
    assert "continue" not in third["metadata"]
    assert client.names(PODS) == ["p0", "p1", "p2", "p3", "p5", "p55", "p6"]


@pytest.mark.parametrize("seed", range(5))
def test_any_moment_of_the_history_can_be_listed(seed: int):
    dice, store = random.Random(seed), Store(history=20)
    table, moments = store.tables["pods"], {}
    for _ in range(60):
        index = dice.randrange(8)
        if dice.random() < 0.4:
            store.delete("Pod", "default", f"p{index}")
        else:
            store.put(clusters.pod(index, dice.randrange(3)))
        moments[store.version] = [item for _, item in sorted(table.items.items())]
    kept = {version: items for version, items in moments.items() if version >= table.compacted}
    assert len(kept) == 21
    for version, items in kept.items():
        for after in ("", "default/p3"):
            wanted = [item for item in items if item.key > after]
            found, count = table.at(version, after)
            assert (list(found), count) == (wanted, len(wanted))


def test_expired_continue(client: Client, store: Store):
    token = client.ask(PODS, limit=3).json()["metadata"]["continue"]
    store.put(clusters.pod(0, 2))
    store.compact()
    answer = client.ask(PODS, limit=3, **{"continue": token})
    assert (answer.code, answer.json()["reason"]) == (410, "Expired")
    again = client.ask(PODS, limit=9, **{"continue": answer.json()["metadata"]["continue"]})
    assert len(again.json()["items"]) == 4


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"resourceVersion": "999999"}, 504),
        ({"resourceVersion": "many"}, 400),
        ({"limit": "-1"}, 400),
        ({"continue": "nonsense"}, 400),
        ({"fieldSelector": "spec.colour=red"}, 400),
        ({"resourceVersion": "1", "resourceVersionMatch": "Exact"}, 200),
    ],
)
def test_refusals(client: Client, query: dict[str, str], code: int):
    assert client.ask(PODS, **query).code == code


def test_the_cache_does_not_page(client: Client):
    answer = client.ask(PODS, limit=2, resourceVersion=0).json()
    assert len(answer["items"]) == 7
    assert "continue" not in answer["metadata"]


def test_exactly_an_older_version(client: Client, store: Store):
    version = store.version
    store.delete("Pod", "default", "p0")
    assert client.names(PODS, resourceVersion=version, resourceVersionMatch="Exact") == ALL
    assert client.names(PODS, resourceVersion=version) == ALL[1:]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"fieldSelector": "spec.nodeName=n1"}, ["p1", "p4"]),
        ({"fieldSelector": "spec.nodeName!=n1,metadata.name!=p0"}, ["p2", "p3", "p5", "p6"]),
        ({"labelSelector": "app=a"}, ["x"]),
        ({"labelSelector": "app!=a"}, [*ALL, "y"]),
        ({"labelSelector": "app"}, ["x", "y"]),
        ({"labelSelector": "!app,!tier"}, ALL),
        ({"labelSelector": "app in (a, b),tier"}, ["y"]),
        ({"labelSelector": "app notin (a,b)"}, ALL),
    ],
)
def test_selectors(client: Client, store: Store, query: dict[str, str], names: list[str]):
    for name, labels in (("x", {"app": "a"}), ("y", {"app": "b", "tier": "t"})):
        store.put({"kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "n2"}})
    assert [name for name in client.names(PODS, **query) if name not in {"x", "y"} or "label" in str(query)] == names


def test_one_namespace(client: Client, store: Store):
    store.put(clusters.pod(1, 0, "other"))
    assert client.names("/api/v1/namespaces/other/pods") == ["p1"]
    assert client.names(PODS) == [*ALL, "p1"]
    assert client.ask("/api/v1/namespaces/other/pods/p1").json()["spec"]["nodeName"] == "n0"
    assert client.ask("/api/v1/namespaces/other/pods/p2").code == 404


def test_compressed_when_it_is_large_and_wanted(client: Client, store: Store):
    wanted = [("Accept-Encoding", "gzip")]
    assert "content-encoding" not in client.ask(PODS, headers=wanted).headers
    for index in range(10):
        store.put({"kind": "Pod", "metadata": {"name": f"large-{index}", "annotations": {"text": "x" * 80_000}}})
    plain = client.ask(PODS)
    compressed = client.ask(PODS, headers=wanted)
    assert compressed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(compressed.body) == plain.body
    assert len(plain.json()["items"]) == 17


def test_a_resource_that_is_not_installed(client: Client, server: ApiServer, store: Store):
    path = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
    answer = client.ask(path)
    assert (answer.code, answer.json()["reason"]) == (404, "NotFound")
    server.plain_not_found = True
    assert client.ask(path).body == b"404 page not found\n"
    store.install("clusternetworkpolicies")
    assert client.names(path) == []
    assert client.ask("/apis/discovery.k8s.io/v1beta1/endpointslices").code == 404
