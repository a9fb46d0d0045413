"""A small HTTP server for health and metrics: GET and HEAD of a few paths, and clients that can't wear it out.

One request a connection, and none lives longer than ``CONNECTION_S``: a client that sends or reads slowly is cut off,
so that no thread stays behind. Beyond ``CONNECTIONS_MAX`` at once the oldest makes room for the newest.
"""

from __future__ import annotations

import http.server
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from ebpfnet.exits import BadInput, EbpfnetError

log = logging.getLogger(__name__)

HEALTHZ_PORT = 10256
METRICS_PORT = 10249
"""kube-proxy's."""

CONNECTIONS_MAX = 32
CONNECTION_S = 10.0
CUT = 0.0  # the deadline of what is cut off already
POLL_S = 0.2
"""How often, in seconds, connections that are too old are looked for."""

PLAIN = "text/plain; charset=utf-8"
JSON = "application/json"


class Request(NamedTuple):
    """What a handler may ask: ``accept`` is the Accept header, empty when there was none."""

    path: str
    accept: str


class Response(NamedTuple):
    """An answer: HTTP status, body and its media type."""

    status: int
    body: bytes
    media_type: str = PLAIN


Handler = Callable[[Request], Response]


class BindAddress(NamedTuple):
    """Where to listen: ``host`` is an IP address without brackets, or empty for all; port 0: the kernel picks one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int, flag: str) -> BindAddress | None:
    """Read ``ip:port``, ``[v6]:port``, ``:port``, or an IP address alone with ``default_port``; None for empty: off.

    The forms are those of kube-proxy's ``--healthz-bind-address`` (AppendPortIfNeeded in kubernetes
    pkg/proxy/util/utils.go). Raises ``BadInput`` naming ``flag``.
    """
    if not text:
        return None
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_address(bare):
        return BindAddress(bare, default_port)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    good_host = not host or (_is_address(host) and bracketed == (":" in host))
    if not colon or not good_host or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise BadInput(f"{flag}: {text!r} is not IP:PORT, [IPV6]:PORT, :PORT or an IP address")
    return BindAddress(host, int(port))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Server:
    """Listens from the moment it is made until ``close``; ``address`` is where, with the port that was picked."""

    def __init__(self, address: BindAddress, routes: Mapping[str, Handler], connection_s: float) -> None:
        self._http = _HttpServer(address, routes, connection_s)
        host, port = self._http.server_address[:2]
        self.address = BindAddress(str(host), port)
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(POLL_S,), name=f"http-{port}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut what is open; takes about ``POLL_S``."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def serve(
    text: str, routes: Mapping[str, Handler], *, flag: str, default_port: int, connection_s: float = CONNECTION_S
) -> Server | None:
    """Serve ``routes`` (path to handler) on the address ``text``, in threads of its own; None when it is empty: off.

    An address that means all of them (``0.0.0.0``, ``::``, ``:port``) is listened on for both families, as Go's
    net.Listen and therefore kube-proxy do. ``connection_s`` is how long a connection may live. Raises ``BadInput``
    for what is no address, and ``EbpfnetError`` when it can't be listened on; both name ``flag`` and address.
    """
    address = parse_address(text, default_port, flag)
    if address is None:
        return None
    try:
        return Server(address, routes, connection_s)
    except OSError as error:
        raise EbpfnetError(f"{flag}: can't listen on {address}: {error.strerror or error}") from error


class _HttpServer(http.server.ThreadingHTTPServer):
    """The standard library's server with a bound on connections, in number and in time."""

    daemon_threads = True  # they end because their sockets do; nobody need wait for an answer that is being made
    request_queue_size = 64

    def __init__(self, address: BindAddress, routes: Mapping[str, Handler], connection_s: float) -> None:
        self.routes = routes
        self._connection_s = connection_s
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        every = not address.host or ipaddress.ip_address(address.host).is_unspecified
        self._both = every and socket.has_dualstack_ipv6()
        host = ("::" if self._both else address.host or "0.0.0.0") if every else address.host  # noqa: S104  # as told
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        [(*_, where)] = socket.getaddrinfo(
            host, address.port, self.address_family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        super().__init__(where, _RequestHandler)  # type: ignore[arg-type]  # four parts for IPv6

    def server_bind(self) -> None:
        """Bind without asking the resolver for our own name, as the standard library does."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if self._both else 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Take the connection in; when there are too many the oldest is cut, so that a probe is always heard.

        Where even that leaves twice too many, answers are stuck, and what comes is closed at once.
        """
        with self._open_lock:
            if len(self._open) >= CONNECTIONS_MAX:
                oldest = next((each for each, deadline in self._open.items() if deadline > CUT), None)
                if oldest is None or len(self._open) >= 2 * CONNECTIONS_MAX:
                    return False
                self._open[oldest] = CUT
                _shut(oldest)
            self._open[request] = time.monotonic() + self._connection_s
        return True

    def service_actions(self) -> None:
        """Cut connections that are too old: called every ``POLL_S``."""
        self._cut(time.monotonic())

    def _cut(self, now: float) -> None:
        with self._open_lock:
            for connection, deadline in self._open.items():
                if deadline <= now:
                    _shut(connection)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection before its descriptor may be given to another one."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Cut everything."""
        self._cut(float("inf"))
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that goes away in the middle is nothing to tell of."""
        log.debug("connection from %s: %s", client_address[0], sys.exception())


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("the client was faster")


class _RequestHandler(http.server.BaseHTTPRequestHandler):
    """Looks the path up and writes the answer."""

    timeout: ClassVar[float] = CONNECTION_S  # of one read or write
    server: _HttpServer
    error_content_type = PLAIN
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].partition("#")[0]
        handler = self.server.routes.get(path)
        if handler is None:
            self._write(Response(404, b"404 page not found\n"))
            return
        try:
            answer = handler(Request(path, self.headers.get("Accept", "")))
        except Exception:
            log.exception("answer %s", path)
            answer = Response(500, b"500 internal error; the log has it\n")
        self._write(answer)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self._write(Response(405, b"405 method not allowed\n"), {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _write(self, answer: Response, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        """Return the Server header: who, and nothing about versions."""
        return "ebpfnet"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
        log.debug(format, *args)
