"""Addresses as kube-proxy reads them, and a server that answers right and is not worn out."""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ebpfnet.exits import BadInput, EbpfnetError
from ebpfnet.operate import serve as served
from ebpfnet.operate.serve import BindAddress, Response, Server, parse_address, serve

FLAG = "--healthz-bind-address"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", None),
        ("127.0.0.1:80", BindAddress("127.0.0.1", 80)),
        ("127.0.0.1", BindAddress("127.0.0.1", 10256)),
        ("[::1]:80", BindAddress("::1", 80)),
        ("[::1]", BindAddress("::1", 10256)),
        ("::1", BindAddress("::1", 10256)),
        ("::", BindAddress("::", 10256)),
        (":80", BindAddress("", 80)),
        ("0.0.0.0:0", BindAddress("0.0.0.0", 0)),
    ],
)
def test_an_address(text: str, want: BindAddress | None):
    assert parse_address(text, 10256, FLAG) == want


@pytest.mark.parametrize(
    "text", ["localhost:80", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:-1", "[1.2.3.4]:80", "80", "[::1"]
)
def test_no_address(text: str):
    with pytest.raises(BadInput, match=FLAG):
        parse_address(text, 10256, FLAG)


def test_an_address_prints_as_it_is_read():
    assert [str(BindAddress("::1", 1)), str(BindAddress("1.2.3.4", 2)), str(BindAddress("", 3))] == [
        "[::1]:1",
        "1.2.3.4:2",
        ":3",
    ]


def _broken(_: served.Request) -> Response:
    raise ValueError("no")


ROUTES = {"/x": lambda request: Response(200, f"{request.path} {request.accept}\n".encode()), "/broken": _broken}


def listening(address: str, connection_s: float = 10.0) -> Server:
    server = serve(address, ROUTES, flag=FLAG, default_port=0, connection_s=connection_s)
    assert server
    return server


@pytest.fixture(scope="module", params=["127.0.0.1:0", "[::1]:0"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with contextlib.closing(listening(request.param)) as made:
        yield made


def ask(server: Server, method: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Accept": "a/b"})
        answer = connection.getresponse()
        return answer, answer.read()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_get(server: Server):
    answer, body = ask(server, "GET", "/x?y=1")
    assert (answer.status, body, answer.headers["Server"]) == (200, b"/x a/b\n", "ebpfnet")


def test_head_has_the_headers_alone(server: Server):
    answer, body = ask(server, "HEAD", "/x")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, "7", b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("HEAD", "/y", 404), ("POST", "/x", 405), ("BREW", "/x", 501), ("GET", "/broken", 500)],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int):
    assert ask(server, method, path)[0].status == status


def test_empty_is_off():
    assert serve("", ROUTES, flag=FLAG, default_port=0) is None


def test_a_taken_address_is_named_with_its_flag(server: Server):
    with pytest.raises(EbpfnetError, match=f"{FLAG}: can't listen on .*{server.address.port}: Address already in use"):
        serve(str(server.address), ROUTES, flag=FLAG, default_port=0)


def test_an_address_of_nobody_here():
    with pytest.raises(EbpfnetError, match=r"203\.0\.113\.1:0"):
        serve("203.0.113.1:0", ROUTES, flag=FLAG, default_port=0)


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "process_request_thread" in thread.name}


def _are_working(count: int) -> bool:
    return len(workers()) == count


def test_a_slow_client_is_cut_off():
    with contextlib.closing(listening("127.0.0.1:0", connection_s=0.1)) as server:
        with socket.create_connection(server.address, timeout=60) as slow:
            slow.sendall(b"GET /x HTTP/1.1\r\nHo")
            assert slow.recv(1) == b""
        until(lambda: not workers())


def test_of_too_many_clients_the_oldest_goes_and_the_newest_is_heard():
    with contextlib.closing(listening("127.0.0.1:0")) as server, contextlib.ExitStack() as clients:
        idle = [
            clients.enter_context(socket.create_connection(server.address, timeout=60))
            for _ in range(served.CONNECTIONS_MAX)
        ]
        until(lambda: len(workers()) == served.CONNECTIONS_MAX)
        assert ask(server, "GET", "/x")[0].status == 200
        assert idle[0].recv(1) == b""


def test_stuck_answers_are_bounded():
    release, most = threading.Event(), 2 * served.CONNECTIONS_MAX

    def stuck(_: served.Request) -> Response:
        release.wait(60)
        return Response(200, b"")

    server = serve("127.0.0.1:0", {"/": stuck}, flag=FLAG, default_port=0)
    assert server
    with contextlib.closing(server), contextlib.ExitStack() as clients:
        clients.callback(release.set)
        for count in range(1, most + 1):
            client = clients.enter_context(socket.create_connection(server.address, timeout=60))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            until(functools.partial(_are_working, count))
        late = clients.enter_context(socket.create_connection(server.address, timeout=60))
        assert late.recv(1) == b""
        assert len(workers()) == most
    until(lambda: not workers())


def test_closing_cuts_what_is_open():
    server = listening("127.0.0.1:0")
    with socket.create_connection(server.address, timeout=60) as client:
        until(lambda: bool(workers()))
        server.close()
        assert client.recv(1) == b""
        until(lambda: not workers())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=60)
