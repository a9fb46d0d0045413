"""One connection: requests in, and the answer from lists, watches, faults or the control path."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from tests.apiserver import lists
from tests.apiserver.control import CONTROL, control
from tests.apiserver.failure import Failure, bad_request, no_resource, not_found
from tests.apiserver.faults import NO_JSON, Fault, Mangled
from tests.apiserver.resources import Resource, Target, parse_path
from tests.apiserver.store import Manifest, key_of
from tests.apiserver.watches import Watch
from tests.apiserver.wire import END, Gone, Wire, chunk

if TYPE_CHECKING:
    from tests.apiserver.server import Listener

JSON_TYPE = "application/json"
JSON = ("Content-Type", JSON_TYPE)
GZIP_FROM = 128 * 1024  # smaller lists are not compressed, as in the real server
GZIP = 16 + zlib.MAX_WBITS
VERSION = {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}


class Handler(BaseHTTPRequestHandler):
    """Serves a connection until either side closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        """Shake hands, here and not in the thread that accepts."""
        if self.server.context:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()
        self.wire = Wire(self.connection)
        self.api = self.server.api
        self.api.connected(self.wire)

    def finish(self) -> None:
        """Close the connection."""
        self.api.disconnected(self.wire)
        super().finish()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Say nothing: `Log` records requests."""

    def do_GET(self) -> None:
        """List, watch or get."""
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET  # noqa: N815 - the parent's protocol

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.wire.begin(None)
        try:
            self._serve(body)
        except Failure as failure:
            self._respond(failure.code, failure.body(), failure.headers.items(), failure.content_type)
        except Gone:
            self.close_connection = True

    def _serve(self, body: bytes) -> None:
        url = urlsplit(self.path)
        if url.path.startswith(CONTROL):
            self._respond(200, control(self.api, url.path.removeprefix(CONTROL), body))
            return
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        target = parse_path(url.path) or Target("", "", url.path, "", "")
        verb = self._verb(target, query)
        self.api.log.add(verb, target, self.path)
        self._fault(self.api.faults.take(target.resource, verb))
        authorization = self.headers.get("Authorization")
        self.api.access.check(verb, target, authorization, certified=self._certified())
        if target.resource == "/version":
            self._respond(200, msgspec.json.encode(VERSION))
            return
        resource = target.served()
        if not resource or resource.name not in self.api.store.installed:
            raise no_resource(plain=self.api.plain_not_found)
        match verb:
            case "list":
                self._list(resource, target, query)
            case "watch":
                self._watch(resource, target, query)
            case "get":
                self._get(resource, target)
            case "create" | "patch":
                self._write(resource, target, body, verb)
            case _:
                raise Failure(405, "MethodNotAllowed", "the method is not allowed on this resource")

    def _verb(self, target: Target, query: lists.Query) -> str:
        if self.command == "GET" and not target.resource.startswith("/") and not target.name:
            return "watch" if lists.flag(query, "watch") else "list"
        return {"GET": "get", "POST": "create", "PATCH": "patch", "PUT": "update"}.get(self.command, "delete")

    def _certified(self) -> bool:
        return self.server.context is not None and bool(self.connection.getpeercert())

    def _fault(self, fault: Fault | None) -> None:
        """Let happen what happens before any answer."""
        if not fault:
            return
        self.wire.begin(fault)
        if fault.kind == Fault.Kind.REFUSE:
            raise Gone
        if fault.kind == Fault.Kind.STALL and fault.events is None:
            self.wire.stall()
        if fault.kind == Fault.Kind.STATUS:
            raise Failure(fault.code, fault.reason, fault.message, headers=fault.headers)

    def _list(self, resource: Resource, target: Target, query: lists.Query) -> None:
        store = self.api.store
        page = lists.page(store, store.tables[resource.name], query, target.namespace)
        self._blocks(lists.encode(resource, page))

    def _watch(self, resource: Resource, target: Target, query: lists.Query) -> None:
        api = self.api
        watch = Watch(
            api.store,
            api.store.tables[resource.name],
            query,
            target.namespace,
            streaming=api.streaming,
            bookmark_every_s=api.bookmark_every_s,
        )
        mangled = Mangled(self.wire.fault) if self.wire.fault else None
        self.wire.head("200 OK", [JSON, ("Transfer-Encoding", "chunked")])
        with api.watching(resource.name, self.wire):
            watch.run(self.wire, mangled)

    def _get(self, resource: Resource, target: Target) -> None:
        found = self.api.store.get(resource.kind, target.namespace, target.name)
        if not found:
            raise not_found(resource.group, resource.name, target.name)
        self._respond(200, msgspec.json.encode(found))

    def _write(self, resource: Resource, target: Target, body: bytes, verb: str) -> None:
        store = self.api.store
        try:
            manifest: Manifest = msgspec.json.decode(body)
            name = target.name or manifest["metadata"]["name"]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise bad_request(f"the object provided is unrecognized: {error}") from error
        old = store.get(resource.kind, target.namespace, name)
        if verb == "create" and old:
            message = f'{resource.name}.{resource.group} "{key_of("", name)}" already exists'
            raise Failure(409, "AlreadyExists", message)
        if verb == "patch":
            if not old:
                raise not_found(resource.group, resource.name, name)
            manifest = merged(old, manifest)
        manifest["kind"] = resource.kind
        manifest["metadata"]["namespace"] = target.namespace
        store.put(manifest)
        found = store.get(resource.kind, target.namespace, name)
        self._respond(201 if verb == "create" else 200, msgspec.json.encode(found))

    def _respond(
        self, code: int, body: bytes, extra: Iterable[tuple[str, str]] = (), content_type: str = JSON_TYPE
    ) -> None:
        """Send a small answer."""
        fault = self.wire.fault
        if fault and fault.kind == Fault.Kind.GARBAGE:
            body = NO_JSON
        elif fault and fault.kind == Fault.Kind.TRUNCATE:
            body = body[: len(body) // 2]
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), *extra]
        status = f"{code} {HTTPStatus(code).phrase}"
        if fault:
            self.wire.head(status, headers)
            self.wire.send(body)
        else:
            self.wire.head(status, headers, body)

    def _blocks(self, blocks: Iterator[bytes]) -> None:
        """Send a list: whole when it is small, else in chunks, compressed when the client likes that."""
        fault, first = self.wire.fault, next(blocks)
        second = next(blocks, None)
        if fault and fault.kind in {Fault.Kind.GARBAGE, Fault.Kind.TRUNCATE}:
            self._respond(200, b"".join((first, second or b"", *blocks)))
            return
        compressed = "gzip" in self.headers.get("Accept-Encoding", "") and len(first) >= GZIP_FROM
        if second is None and not compressed:
            self._respond(200, first)
            return
        headers = [JSON, ("Transfer-Encoding", "chunked"), ("Vary", "Accept-Encoding")]
        self.wire.head("200 OK", [*headers, ("Content-Encoding", "gzip")] if compressed else headers)
        press = zlib.compressobj(1, wbits=GZIP)
        for block in (first, *([second] if second else ())):
            self._block(press.compress(block) if compressed else block)
        for block in blocks:
            self._block(press.compress(block) if compressed else block)
        if compressed:
            self._block(press.flush())
        self.wire.send(END)

    def _block(self, data: bytes) -> None:
        if data:  # an empty chunk would be the end
            self.wire.send(chunk(data))


def merged(old: Manifest, patch: Manifest) -> Manifest:
    """Return an object with a merge patch (RFC 7386) applied."""
    out = dict(old)
    for field, value in patch.items():
        if value is None:
            out.pop(field, None)
        elif isinstance(value, dict):
            before = out.get(field)
            out[field] = merged(before if isinstance(before, dict) else {}, value)
        else:
            out[field] = value
    return out
