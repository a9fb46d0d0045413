"""Faults: each does what its name says, to the requests it was ordered for."""

from __future__ import annotations

import http.client
import json
import time

import pytest

from tests import clusters
from tests.apiserver.client import Client
from tests.apiserver.faults import NO_JSON, Fault
from tests.apiserver.server import ApiServer
from tests.apiserver.store import Store

PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
K = Fault.Kind


def put_pods(store: Store, *indices: int) -> None:
    for index in indices:
        store.put(clusters.pod(index, 0))


def test_refuse(client: Client, server: ApiServer):
    server.faults.add(Fault(K.REFUSE), "pods", times=2)
    for _ in range(2):
        with pytest.raises(http.client.RemoteDisconnected):
            client.ask(PODS)
    assert client.ask(PODS).code == 200


def test_for_a_resource_and_a_verb_only(client: Client, server: ApiServer):
    server.faults.add(Fault(K.STATUS), "pods", "watch", times=None)
    assert client.ask(PODS).code == 200
    with client.watch(NODES) as watch:
        assert watch.code == 200
    for _ in range(3):
        assert client.ask(PODS, watch=1).code == 503
    server.faults.clear("pods")
    with client.watch(PODS) as watch:
        assert watch.code == 200


def test_status_with_headers(client: Client, server: ApiServer):
    server.faults.add(Fault(K.STATUS, code=429, reason="TooManyRequests", headers={"Retry-After": "1"}))
    answer = client.ask(PODS)
    assert (answer.code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["reason"] == "TooManyRequests"


def test_list_cut_after_bytes(client: Client, server: ApiServer):
    server.faults.add(Fault(K.CUT, bytes=100))
    with pytest.raises(http.client.IncompleteRead) as error:
        client.ask(PODS)
    assert len(error.value.partial) == 100


@pytest.mark.parametrize("kind", [K.GARBAGE, K.TRUNCATE])
def test_list_that_is_no_json(client: Client, server: ApiServer, kind: Fault.Kind):
    server.faults.add(Fault(kind))
    answer = client.ask(PODS)
    assert answer.code == 200
    with pytest.raises(ValueError):
        answer.json()


@pytest.mark.parametrize("path", [PODS, f"{PODS}?watch=1"])
def test_stall_keeps_the_connection(server: ApiServer, path: str):
    server.faults.add(Fault(K.STALL))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.1)
    connection.request("GET", path)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()


def test_stall_ends_when_the_server_drops_it(client: Client, server: ApiServer):
    server.faults.add(Fault(K.STALL, events=2))
    with client.watch(PODS) as watch:
        assert watch.told(2) == ["ADDED p0", "ADDED p1"]
        server.drop_watches()
        with pytest.raises(ConnectionError):
            watch.line()


def test_slow(client: Client, server: ApiServer):
    server.faults.add(Fault(K.SLOW, rate=5_000))
    begin = time.monotonic()
    size = len(client.ask(PODS).body)
    assert time.monotonic() - begin > 0.8 * size / 5_000


def test_watch_cut_after_events(client: Client, server: ApiServer):
    server.faults.add(Fault(K.CUT, events=2))
    with client.watch(PODS) as watch:
        assert watch.told(2) == ["ADDED p0", "ADDED p1"]
        with pytest.raises(ConnectionError):
            watch.line()


def test_watch_cut_inside_an_event(client: Client, server: ApiServer):
    server.faults.add(Fault(K.CUT, bytes=300))
    with client.watch(PODS) as watch, pytest.raises(ConnectionError):
        watch.line()


@pytest.mark.parametrize(("after", "position"), [(None, 0), (2, 2)])
def test_watch_with_garbage(client: Client, server: ApiServer, after: int | None, position: int):
    server.faults.add(Fault(K.GARBAGE, events=after))
    with client.watch(PODS) as watch:
        lines = [watch.line() for _ in range(8)]
    assert lines.index(NO_JSON) == position


def test_watch_with_half_an_event(client: Client, server: ApiServer):
    server.faults.add(Fault(K.TRUNCATE, events=1))
    with client.watch(PODS) as watch:
        assert watch.told(1) == ["ADDED p0"]
        with pytest.raises(json.JSONDecodeError):
            watch.event()
        assert watch.told(1) == ["ADDED p2"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(K.DUPLICATE, events=1), "0 1 1 2 3 4 5 6"),
        (Fault(K.DUPLICATE), "0 0 1 1 2 2 3 3"),
        (Fault(K.REORDER, events=2), "0 1 3 2 4 5 6"),
        (Fault(K.REORDER), "1 0 3 2 5 4"),
    ],
)
def test_watch_in_disorder(client: Client, server: ApiServer, fault: Fault, told: str):
    server.faults.add(fault)
    with client.watch(PODS) as watch:
        numbers = told.split()
        assert watch.told(len(numbers)) == [f"ADDED p{number}" for number in numbers]


def test_an_outage(client: Client, server: ApiServer, store: Store):
    with client.watch(PODS, resourceVersion=store.version) as watch:
        server.stop()
        with pytest.raises(ConnectionError):
            watch.line()
    with pytest.raises(ConnectionRefusedError):
        client.ask(PODS)
    put_pods(store, 8)
    server.start()
    assert "p8" in client.names(PODS)


def test_dropped_watches(client: Client, server: ApiServer, store: Store):
    version = store.version
    with client.watch(PODS, resourceVersion=version) as pods, client.watch(NODES, resourceVersion=version) as nodes:
        server.log.wait(lambda log: log.watches == {"pods": 1, "nodes": 1})
        server.drop_watches("pods")
        with pytest.raises(ConnectionError):
            pods.line()
        server.log.wait(lambda log: log.watches == {"pods": 0, "nodes": 1})
        store.delete("Node", "", "n0")
        assert nodes.told(1) == ["DELETED n0"]


def test_a_client_that_left_is_noticed(client: Client, server: ApiServer, store: Store):
    with client.watch(PODS, resourceVersion=store.version):
        server.log.wait(lambda log: log.watches == {"pods": 1})
    server.log.wait(lambda log: log.watches == {"pods": 0})
