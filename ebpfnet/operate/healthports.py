"""An HTTP server for each ``healthCheckNodePort``: load balancers ask it whether this node has endpoints of a service.

Meaning, JSON and headers are kube-proxy's: kubernetes pkg/proxy/healthcheck/service_health.go, the weight's header by
kubernetes/kubernetes#118999. One thread serves them all, however many services there are, and the first one starts it.
An answer ends its connection, and no connection lives longer than ``CONNECTION_S``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from typing import NamedTuple

log = logging.getLogger(__name__)

CONNECTION_S = 10.0
CONNECTIONS_MAX = 256
REQUEST_MAX = 8192
RETRY_S = 5.0
"""How often an address that could not be listened on is tried again."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Check(NamedTuple):
    """What is answered at a port. ``ready``: IP version to the number of ready endpoints on this node."""

    namespace: str
    name: str
    ready: Mapping[int, int]


class Where(NamedTuple):
    """What is listened on: ``host`` is an IP address, 0.0.0.0 and :: are all of the family."""

    port: int
    host: str

    @property
    def version(self) -> int:
        """Return the IP version."""
        return 6 if ":" in self.host else 4


class _Connection:
    """A client: what it has sent so far, until the answer; then only its end is awaited."""

    def __init__(self, where: Where, deadline: float) -> None:
        self.where = where
        self.deadline = deadline
        self.request = b""
        self.answered = False


class HealthPorts:
    """Listens where ``update`` says until ``close``. ``changed`` is called, by the thread, when ``failed`` has."""

    def __init__(self, healthy: Callable[[], bool], changed: Callable[[], None]) -> None:
        self.failed: Mapping[int, str] = {}
        """Port to why it can't be listened on, at one address at least. Replaced, never changed."""
        self._healthy = healthy
        self._changed = changed
        self._checks: Mapping[int, Check] = {}
        self._hosts: tuple[str, ...] = ()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector: selectors.BaseSelector
        self._listeners: dict[Where, socket.socket] = {}
        self._open: dict[socket.socket, _Connection] = {}

    def update(self, checks: Mapping[int, Check], hosts: Iterable[str]) -> None:
        """Serve these ports, at these addresses of this node; a port's family is served when its check has a count."""
        hosts = tuple(hosts)
        before, self._checks = self._checks, checks
        moved = {port: each.ready.keys() for port, each in checks.items()} != {
            port: each.ready.keys() for port, each in before.items()
        }
        if not moved and hosts == self._hosts:
            return
        self._hosts = hosts
        if self._thread is None and checks:
            self._thread = threading.Thread(target=self._run, name="health-ports", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._stopped = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(self._wake)

    # The thread's

    def _run(self) -> None:
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._wake, selectors.EVENT_READ)
            try:
                while not self._stopped:
                    self._listen()
                    self._serve()
            except Exception:  # probes fail from now on, and that is all that fails
                log.exception("health check ports are not served any more")
            finally:
                for each in (*self._listeners.values(), *self._open):
                    each.close()

    def _serve(self) -> None:
        """Answer until it is time to look at what is listened on."""
        again = time.monotonic() + RETRY_S if self.failed else None
        while True:
            now = time.monotonic()
            times = [each.deadline for each in self._open.values()] + ([again] if again else [])
            woken = False
            for key, _ in self._selector.select(max(0.0, min(times) - now) if times else None):
                if key.fileobj == self._wake:
                    os.eventfd_read(self._wake)
                    woken = True
                elif isinstance(key.data, Where):
                    self._accept(key.data)
                elif key.fileobj in self._open:
                    self._hear(key.fileobj)
            now = time.monotonic()
            for connection in [each for each, state in self._open.items() if state.deadline <= now]:
                self._cut(connection)
            if woken or (again is not None and again <= now):
                return

    def _listen(self) -> None:
        """Close and open listeners, and say what could not be."""
        checks, hosts = self._checks, self._hosts
        every = (Where(port, host) for port in checks for host in hosts)
        wanted = [where for where in every if where.version in checks[where.port].ready]
        for where in self._listeners.keys() - set(wanted):
            self._selector.unregister(listener := self._listeners.pop(where))
            listener.close()
        failed: dict[int, str] = {}
        for where in wanted:
            if where not in self._listeners:
                try:
                    self._listeners[where] = listener = _listener(where)
                except OSError as error:
                    failed.setdefault(where.port, f"can't listen on {_shown(where)}: {error.strerror or error}")
                else:
                    self._selector.register(listener, selectors.EVENT_READ, where)
        if failed != self.failed:
            self.failed = failed
            self._changed()

    def _accept(self, where: Where) -> None:
        listener = self._listeners.get(where)
        if listener is None:
            return
        if len(self._open) >= CONNECTIONS_MAX:
            self._cut(next(iter(self._open)))  # the oldest: a probe is always heard
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM and self._open:
                self._cut(next(iter(self._open)))
            return
        connection.setblocking(False)
        self._open[connection] = _Connection(where, time.monotonic() + CONNECTION_S)
        self._selector.register(connection, selectors.EVENT_READ)

    def _cut(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()

    def _hear(self, connection: socket.socket) -> None:
        state = self._open[connection]
        try:
            received = connection.recv(REQUEST_MAX)
            if not received:
                self._cut(connection)
            elif not state.answered:
                state.request += received
                if (answer := self._answer(state)) is not None:
                    state.answered = True
                    connection.send(answer)
                    connection.shutdown(socket.SHUT_WR)  # and its end is awaited: data left unread would reset it
        except BlockingIOError:
            return
        except OSError:
            self._cut(connection)

    def _answer(self, state: _Connection) -> bytes | None:
        """Return the answer to a request, None while that is not complete."""
        head, end, _ = state.request.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not end and len(state.request) < REQUEST_MAX:
            return None
        method, *rest = head.partition(b"\n")[0].split(b" ")
        if not end or len(rest) != 2 or not rest[1].startswith(b"HTTP/1."):
            return _response(400, b"400 Bad Request", {"Content-Type": "text/plain; charset=utf-8"})
        check = self._checks.get(state.where.port)
        return answer(check, state.where.version, healthy=self._healthy(), body=method != b"HEAD")


def answer(check: Check | None, version: int, *, healthy: bool, body: bool = True) -> bytes:
    """Return what a load balancer is told: 200 when there are endpoints and the agent does its work, else 503."""
    if check is None:  # it just went: kube-proxy says as little
        return _response(200, b"", {})
    count = check.ready.get(version, 0)
    said = {
        "service": {"namespace": check.namespace, "name": check.name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    headers = {
        "Content-Type": "application/json",
        "X-Content-Type-Options": "nosniff",
        "X-Load-Balancing-Endpoint-Weight": str(count),
    }
    text = json.dumps(said, indent="\t", ensure_ascii=False).encode()
    return _response(200 if count and healthy else 503, text, headers, body=body)


_REASONS = {200: "OK", 400: "Bad Request", 503: "Service Unavailable"}


def _response(status: int, text: bytes, headers: Mapping[str, str], *, body: bool = True) -> bytes:
    more = {"Date": formatdate(usegmt=True), "Content-Length": str(len(text)), "Connection": "close"}
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        *(f"{name}: {value}" for name, value in {**headers, **more}.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (text if body else b"")


def _listener(where: Where) -> socket.socket:
    family = socket.AF_INET6 if where.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        flags = socket.AI_NUMERICHOST
        [(*_, address)] = socket.getaddrinfo(where.host, where.port, family, socket.SOCK_STREAM, flags=flags)
        listener.bind(address)
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def _shown(where: Where) -> str:
    return f"[{where.host}]:{where.port}" if where.version == 6 else f"{where.host}:{where.port}"
