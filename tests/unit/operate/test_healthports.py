"""Health checks of services: kube-proxy's answers at ports that come, go and are sometimes somebody else's."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ebpfnet.operate import healthports
from ebpfnet.operate.healthports import Check, HealthPorts

HOST = "127.0.0.1"
SECONDS = 60


class Served:
    """Health ports, and whether the agent is healthy."""

    def __init__(self) -> None:
        self.healthy = True
        self.told = threading.Event()
        self.ports = HealthPorts(lambda: self.healthy, self.told.set)

    def update(self, checks: dict[int, Check], *hosts: str) -> None:
        self.ports.update(checks, hosts or (HOST,))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(healthports, "RETRY_S", 0.05)
    found = Served()
    yield found
    found.ports.close()


def free(host: str = HOST, count: int = 1) -> list[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = [socket.socket(family) for _ in range(count)]
    for each in made:
        each.bind((host, 0))
    ports = [each.getsockname()[1] for each in made]
    for each in made:
        each.close()
    return ports


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def listens(port: int, host: str = HOST) -> bool:
    try:
        socket.create_connection((host, port), timeout=60).close()
    except OSError:
        return False
    return True


def get(port: int, host: str = HOST, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    until(lambda: listens(port, host))
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    connection.request(method, "/any/path")
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def web(count: int) -> Check:
    return Check("default", "web", {4: count})


@pytest.mark.parametrize(("count", "healthy", "status"), [(3, True, 200), (0, True, 503), (3, False, 503)])
def test_the_answer_is_kube_proxys(served: Served, count: int, healthy: bool, status: int):
    [port] = free()
    served.healthy = healthy
    served.update({port: web(count)})
    response, body = get(port)
    assert response.status == status
    assert response.getheader("Content-Type") == "application/json"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("X-Load-Balancing-Endpoint-Weight") == str(count)
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    lines = ('{\n\t"service": {\n\t\t"namespace": "default",\n\t\t"name": "web"\n\t},', f'\t"localEndpoints": {count},')
    assert body.decode().startswith("\n".join(lines))


def test_a_new_count_is_told_at_once(served: Served):
    [port] = free()
    served.update({port: web(1)})
    assert get(port)[0].status == 200
    served.update({port: web(0)})
    assert get(port)[0].status == 503


def test_services_come_go_and_change_their_port(served: Served):
    first, second, third = free(count=3)
    served.update({first: web(1), second: Check("default", "api", {4: 2})})
    assert json.loads(get(second)[1])["service"]["name"] == "api"
    served.update({first: web(1), third: Check("default", "api", {4: 2})})
    assert get(third)[0].status == 200
    assert not listens(second)
    assert get(first)[0].status == 200
    served.update({})
    until(lambda: not listens(first))


def test_a_family_that_the_service_does_not_have_is_not_served(served: Served):
    [port] = free("::1")
    served.update({port: Check("default", "web", {6: 1})}, HOST, "::1")
    assert json.loads(get(port, "::1")[1])["localEndpoints"] == 1
    assert not listens(port)
    served.update({port: Check("default", "web", {4: 2, 6: 1})}, "0.0.0.0", "::")
    assert json.loads(get(port)[1])["localEndpoints"] == 2
    assert json.loads(get(port, "::1")[1])["localEndpoints"] == 1


def test_a_port_that_is_taken_is_named_and_served_when_it_is_free(served: Served):
    taken, other = free(count=2)
    with socket.socket() as somebody:
        somebody.bind((HOST, taken))
        somebody.listen()
        served.update({taken: web(1), other: web(1)})
        assert served.told.wait(SECONDS)
        assert served.ports.failed == {taken: f"can't listen on {HOST}:{taken}: Address already in use"}
        assert get(other)[0].status == 200
        served.told.clear()
    assert served.told.wait(SECONDS)
    assert served.ports.failed == {}
    assert get(taken)[0].status == 200


def test_an_address_that_is_not_there_yet_is_tried_again(served: Served):
    [port] = free()
    served.update({port: web(1)}, HOST, "192.0.2.254")
    assert served.told.wait(SECONDS)
    assert "192.0.2.254" in served.ports.failed[port]
    assert get(port)[0].status == 200
    served.told.clear()
    served.update({port: web(1)}, HOST)
    assert served.told.wait(SECONDS)
    assert not served.ports.failed


def test_head_has_no_body_and_nonsense_no_answer_of_ours(served: Served):
    [port] = free()
    served.update({port: web(1)})
    response, body = get(port, method="HEAD")
    assert (response.status, body) == (200, b"")
    with socket.create_connection((HOST, port), timeout=SECONDS) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_slow_and_silent_clients_hold_up_nobody(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(healthports, "CONNECTIONS_MAX", 4)
    [port] = free()
    served.update({port: web(1)})
    until(lambda: listens(port))
    silent = [socket.create_connection((HOST, port), timeout=SECONDS) for _ in range(10)]
    assert get(port)[0].status == 200
    silent[0].settimeout(SECONDS)
    assert silent[0].recv(1) == b""  # the oldest made room
    for each in silent:
        each.close()


def test_a_request_may_come_in_pieces(served: Served):
    [port] = free()
    served.update({port: web(1)})
    until(lambda: listens(port))
    with socket.create_connection((HOST, port), timeout=SECONDS) as client:
        for part in (b"GET / HT", b"TP/1.1\r\nHost: x\r", b"\n\r\n"):
            client.sendall(part)
        assert client.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_connection_ends_in_time(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(healthports, "CONNECTION_S", 0.05)
    [port] = free()
    served.update({port: web(1)})
    until(lambda: listens(port))
    with socket.create_connection((HOST, port), timeout=SECONDS) as client:
        assert client.recv(1) == b""


def test_hundreds_of_services_take_one_thread(served: Served):
    ports = free(count=300)
    before = threading.active_count()
    served.update({port: Check("default", f"s{port}", {4: 1}) for port in ports})
    assert all(get(port)[0].status == 200 for port in ports)
    assert threading.active_count() <= before + 1


def test_nothing_is_started_for_no_service():
    before = threading.active_count()
    ports = HealthPorts(lambda: True, lambda: None)
    ports.update({}, [HOST])
    assert threading.active_count() == before
    ports.close()
