"""A Kubernetes API server for tests: real lists and watches over a `Store`, on 127.0.0.1, with faults on demand."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any, Self

from tests.apiserver.access import Access, Log
from tests.apiserver.churn import Churn
from tests.apiserver.faults import Faults
from tests.apiserver.handler import Handler
from tests.apiserver.store import Store
from tests.apiserver.tls import Certificates
from tests.apiserver.wire import Wire

BOOKMARK_EVERY_S = 60.0
CLOSE_S = 5.0


class Listener(ThreadingHTTPServer):
    """The listening socket; a thread for each connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer, port: int) -> None:
        self.api = api
        self.context = api.certificates.context() if api.certificates else None
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what is wrong with the server; a client that leaves or fails to shake hands is not."""
        if not isinstance(sys.exception(), ssl.SSLError | ConnectionError):
            super().handle_error(request, client_address)


class ApiServer:
    """The server: ``with ApiServer(store) as server: server.url``. Every method may be called from any thread.

    ``certificates`` make it HTTPS; port 0 takes a free one, and keeps it. ``streaming``: whether ``sendInitialEvents``
    is known. ``plain_not_found``: a resource that is not installed is no Status but ``404 page not found``, as from a
    server that does not know the group at all.
    """

    def __init__(self, store: Store | None = None, *, port: int = 0, certificates: Certificates | None = None) -> None:
        self.store: Store = store or Store()
        self.certificates = certificates
        self.faults: Faults = Faults()
        self.access: Access = Access()
        self.log: Log = Log()
        self.churn: Churn | None = None
        self.streaming = True
        self.plain_not_found = False
        self.bookmark_every_s = BOOKMARK_EVERY_S
        self.port = port
        self._listener: Listener | None = None
        self._wires: set[Wire] = set()
        self._watches: dict[Wire, str] = {}
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)

    @property
    def url(self) -> str:
        """Where it is found."""
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before."""
        listener = Listener(self, self.port)
        self.port = listener.server_address[1]
        self._listener = listener
        threading.Thread(target=listener.serve_forever, args=(0.01,), name="apiserver", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and close those there are; the store stays."""
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown()
            listener.server_close()
        self.drop_connections()
        with self._closed:
            self._closed.wait_for(lambda: not self._wires, CLOSE_S)

    def drop_connections(self) -> None:
        """Close every connection."""
        with self._lock:
            wires = list(self._wires)
        self._drop(wires)

    def drop_watches(self, resource: str | None = None) -> None:
        """Close the connections of live watches, of one resource or all."""
        with self._lock:
            wires = [wire for wire, watched in self._watches.items() if resource in {None, watched}]
        self._drop(wires)

    def _drop(self, wires: list[Wire]) -> None:
        for wire in wires:
            wire.drop()
        with self.store.lock:
            self.store.wake()

    def connected(self, wire: Wire) -> None:
        """Take note of a connection."""
        with self._lock:
            self._wires.add(wire)
            late = self._listener is None
        if late:
            wire.drop()

    def disconnected(self, wire: Wire) -> None:
        """Forget a connection."""
        with self._lock:
            self._wires.discard(wire)
            self._closed.notify_all()

    @contextmanager
    def watching(self, resource: str, wire: Wire) -> Iterator[None]:
        """Count a watch as live."""
        with self._lock:
            self._watches[wire] = resource
        self.log.watching(resource, 1)
        try:
            yield
        finally:
            with self._lock:
                del self._watches[wire]
            self.log.watching(resource, -1)
