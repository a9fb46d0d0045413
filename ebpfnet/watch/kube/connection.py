"""Requests to the API server. The only lines that know the official client: its configuration and its transport.

What the client does not do is done here: a configuration is loaded again after a 401 and every few minutes (exec
plugins' certificates and ``tokenFile`` rotate), several servers are tried in turn, and a connection whose other end is
gone is noticed (TCP keep-alive and a time-out for reading).
"""

from __future__ import annotations

import array
import contextlib
import copy
import fcntl
import logging
import os
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, SSLError

from ebpfnet.exits import BadInput
from ebpfnet.watch.kube.wire import Status, read_status

log = logging.getLogger(__name__)

CONNECT_S = 5.0
RENEW_S = 240.0
KEEP_ALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
CONTENT = {"POST": "application/json", "PATCH": "application/merge-patch+json"}
Query = Mapping[str, str | int]


class RequestFailed(Exception):
    """A request that got no good answer. The text says what to mend; ``code`` is HTTP's, 0 without an answer."""

    def __init__(self, text: str, code: int = 0, retry_after_s: float = 0.0, status: Status | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after_s = retry_after_s
        self.status = status


class Way(NamedTuple):
    """One loaded configuration: how to reach a server and who we are."""

    pool: urllib3.PoolManager
    authorize: Callable[[], dict[str, str]]
    url: str


def load(kubeconfig: Path | None) -> Way:
    """Load a kubeconfig file; None: ``$KUBECONFIG``, else the pod's service account, else ``~/.kube/config``.

    Raises ``BadInput`` when there is none or it can't be used.
    """
    import kubernetes.config
    from kubernetes.client import ApiClient, Configuration

    config: Any = kubernetes.config  # not typed

    settings: Any = Configuration()
    settings.socket_options = KEEP_ALIVE
    settings.connection_pool_maxsize = 16
    told = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if told is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=told and str(told), client_configuration=settings, persist_config=False)
        pool: urllib3.PoolManager = ApiClient(settings).rest_client.pool_manager
    except Exception as error:  # the client raises what its parsers and plugins raise
        place = told or "neither --kubeconfig nor $KUBECONFIG nor a service account"
        raise BadInput(f"{place}: no usable configuration of the API server: {error}") from error

    def authorize() -> dict[str, str]:
        return {
            str(each["key"]): str(each["value"])
            for each in settings.auth_settings().values()
            if each.get("in") == "header" and each.get("value")
        }

    return Way(pool, authorize, str(settings.host))


class Api:
    """The API server, whichever of its URLs answers. Safe to use from several threads."""

    def __init__(
        self,
        load_way: Callable[[], Way],
        urls: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load_way
        self._clock = clock
        self._lock = threading.Lock()
        self._live: set[urllib3.BaseHTTPResponse] = set()
        self._closed = False
        self._way = load_way()
        self._loaded_at = clock()
        self._urls = [url.rstrip("/") for url in urls] or [self._way.url.rstrip("/")]
        self._fixed = bool(urls)

    @property
    def url(self) -> str:
        """The server that is asked now."""
        return self._urls[0]

    def twin(self) -> Api:
        """Return one that asks the same servers in the same way, and is closed apart."""
        other = copy.copy(self)
        other._lock, other._live, other._closed = threading.Lock(), set(), False  # noqa: SLF001  # one of us
        return other

    def renew(self) -> None:
        """Load the configuration again; with one that can't be loaded the old one stays."""
        try:
            way = self._load()
        except BadInput as error:
            log.warning("%s", error)
            return
        finally:
            self._loaded_at = self._clock()
        with self._lock:
            self._way = way
            if not self._fixed:
                self._urls = [way.url.rstrip("/")]

    @contextlib.contextmanager
    def get(self, path: str, query: Query, read_s: float) -> Iterator[urllib3.BaseHTTPResponse]:
        """Open a GET, whose body is read by the caller; ``read_s`` is the longest wait for a byte.

        Raises ``RequestFailed``.
        """
        response = self._send("GET", path, query, read_s, None)
        with self._lock:
            self._live.add(response)
        if self._closed:
            self.close()
        try:
            yield response
        except HTTPError as error:
            raise RequestFailed(f"{self.url}: {_words(error)}") from error
        finally:
            with self._lock:
                self._live.discard(response)
            response.close()  # a body that was not read to its end can't be followed by another

    def send(self, method: str, path: str, body: bytes) -> None:
        """POST an object or PATCH one (a merge patch, RFC 7386); raises ``RequestFailed``."""
        response = self._send(method, path, {}, 10.0, body)
        response.drain_conn()
        response.release_conn()

    def close(self) -> None:
        """End every open request, now and from now on (until ``reopen``)."""
        self._closed = True
        with self._lock:
            live = list(self._live)
        for response in live:
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.shutdown()

    def reopen(self) -> None:
        """Let requests live again."""
        self._closed = False

    def _send(
        self, method: str, path: str, query: Query, read_s: float, body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        """Ask the servers in turn, the one that last answered first."""
        if self._clock() - self._loaded_at > RENEW_S:
            self.renew()
        for again in (True, False):
            with self._lock:
                way, urls = self._way, list(self._urls)
            response = self._first_answer(way, urls, method, path, query, read_s, body)
            if response.status < 300:
                return response
            failed = _refusal(self.url, path, response)
            if response.status != 401 or not again:
                raise failed
            self.renew()
        raise AssertionError

    def _first_answer(
        self, way: Way, urls: list[str], method: str, path: str, query: Query, read_s: float, body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        tail = f"{path}?{urlencode(query)}" if query else path
        reasons = []
        for url in urls:
            try:
                headers = {"Accept": "application/json", "User-Agent": "ebpfnet", **way.authorize()}
                if body is not None:
                    headers["Content-Type"] = CONTENT[method]
                response = way.pool.request(
                    method,
                    url + tail,
                    headers=headers,
                    body=body,
                    preload_content=False,
                    retries=False,
                    redirect=False,
                    timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s),
                )
            except (HTTPError, OSError) as error:
                reasons.append(f"{url}: {_words(error)}")
                continue
            self._prefer(url)
            return response
        raise RequestFailed(f"no API server answers: {'; '.join(reasons)} (see --kubeconfig and --api-server-urls)")

    def _prefer(self, url: str) -> None:
        with self._lock:
            if url in self._urls:
                start = self._urls.index(url)
                self._urls = self._urls[start:] + self._urls[:start]


def waiting(response: urllib3.BaseHTTPResponse) -> Callable[[], int]:
    """Return what tells how many bytes of a response wait in its socket; 0 when nobody knows."""
    found = array.array("i", [0])
    try:
        descriptor = response.fileno()
    except (OSError, ValueError):
        return lambda: 0

    def ask() -> int:
        try:
            fcntl.ioctl(descriptor, termios.FIONREAD, found)
        except OSError:
            return 0
        return found[0]

    return ask


def _words(error: BaseException) -> str:
    """Say in a few words what went wrong below HTTP."""
    cause: BaseException = error
    while isinstance(cause, MaxRetryError) and cause.reason:
        cause = cause.reason
    if isinstance(cause, SSLError):
        return f"its certificate or ours was refused: {cause.args[0] if cause.args else cause}"
    if isinstance(cause, NewConnectionError):
        return str(cause).rpartition(": ")[2]
    return str(cause) or type(cause).__name__


def _refusal(url: str, path: str, response: urllib3.BaseHTTPResponse) -> RequestFailed:
    """Turn an answer that is no success into what an operator can do about it."""
    try:
        body = response.read(65536)
    except HTTPError:
        body = b""
    finally:
        response.close()
    status = read_status(body)
    said = status.message if status else body[:200].decode(errors="replace").strip()
    code = response.status
    words = {
        401: "the credentials are refused (expired, or of another cluster?)",
        403: "not allowed: the agent's ClusterRole needs this verb on this resource (deploy/rbac.yaml)",
        404: "not there; is this a Kubernetes API server, and does it serve this kind?",
        429: "too many requests",
    }.get(code, "refused")
    try:
        wait = float(response.headers.get("Retry-After", 0))
    except ValueError:
        wait = 0.0
    return RequestFailed(f"{url}{path}: {code}: {words}: {said}", code, wait, status)
