"""A plain client of the API server, for its own tests: what arrives, and nothing made of it."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode, urlsplit

TIMEOUT_S = 5


class Answer(NamedTuple):
    """An answer: HTTP's code, headers by lower-case name, and the body."""

    code: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body decoded. Raises ValueError."""
        return json.loads(self.body)


class Client:
    """Asks one server; each request has a connection of its own. Raises TimeoutError after 5 silent seconds."""

    def __init__(self, url: str, *, token: str | None = None, context: ssl.SSLContext | None = None) -> None:
        self._host = urlsplit(url).netloc
        self._context = context
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def _connect(self) -> http.client.HTTPConnection:
        if self._context:
            return http.client.HTTPSConnection(self._host, timeout=TIMEOUT_S, context=self._context)
        return http.client.HTTPConnection(self._host, timeout=TIMEOUT_S)

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: Any = (), **query: Any) -> Answer:
        """Send a request with a body as JSON. Raises OSError and HTTPException when there is no whole answer."""
        connection = self._connect()
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, _with(path, query), data, {**self._headers, **dict(headers)})
            answer = connection.getresponse()
            lowered = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, lowered, answer.read())
        finally:
            connection.close()

    def names(self, path: str, **query: Any) -> list[str]:
        """Return the names of a list's items."""
        return [item["metadata"]["name"] for item in self.ask(path, **query).json()["items"]]

    def watch(self, path: str, **query: Any) -> Watching:
        """Start a watch."""
        connection = self._connect()
        connection.request("GET", _with(path, {"watch": "true", **query}), headers=self._headers)
        return Watching(connection)


class Watching:
    """A watch that goes on; a context manager that ends it."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._answer = connection.getresponse()
        self.code = self._answer.status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._answer.close()
        self._connection.close()

    def line(self) -> bytes:
        """Return the next chunk, which is a line; empty at the end. Raises ConnectionError when the connection breaks.

        `http.client` would read past a break as if it were the end.
        """
        source = self._answer.fp
        length = source.readline()
        data = source.read(int(length, 16)) if length else b""
        if not length or len(data) < int(length, 16):
            raise ConnectionAbortedError(data)
        source.readline()
        return data

    def event(self) -> tuple[str, dict[str, Any]]:
        """Return type and object of the next event. Raises EOFError at the end."""
        line = self.line()
        if not line:
            raise EOFError
        event = json.loads(line)
        return event["type"], event["object"]

    def told(self, count: int) -> list[str]:
        """Return the next events as ``TYPE name``."""
        events = (self.event() for _ in range(count))
        return [f"{kind} {found['metadata'].get('name', '')}".strip() for kind, found in events]


def _with(path: str, query: dict[str, Any]) -> str:
    return f"{path}?{urlencode(query)}" if query else path
