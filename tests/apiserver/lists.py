"""A list: paged, consistent at one resourceVersion, encoded in blocks so that no list is ever whole in memory."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from tests.apiserver import selectors
from tests.apiserver.failure import EXPIRED_CONTINUE, Failure, bad_request, too_new
from tests.apiserver.resources import Resource
from tests.apiserver.store import Item, Store, Table

BLOCK = 256 * 1024
Query = Mapping[str, str]


class Token(msgspec.Struct):
    """What a ``continue`` token says: the list's version, and the last key that was sent."""

    rv: int
    start: str
    v: str = "meta.k8s.io/v1"

    def text(self) -> str:
        """Return it as clients see it."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode()


class Page(NamedTuple):
    """What one request gets of a list; ``rest`` is how many items follow, None when a selector hides that."""

    items: list[Item]
    version: int
    more: bool
    rest: int | None


def number(query: Query, name: str) -> int:
    """Return a number of the query, 0 when it is not there. Raises Failure (400)."""
    text = query.get(name) or "0"
    if not text.isascii() or not text.isdigit():
        raise bad_request(f'Invalid value: "{text}": {name} must be a number')
    return int(text)


def flag(query: Query, name: str) -> bool:
    """Return a boolean of the query."""
    return query.get(name) in {"true", "1"}


def parse_token(text: str) -> Token:
    """Return a ``continue`` token. Raises Failure (400)."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=Token)
    except (msgspec.MsgspecError, binascii.Error) as error:
        raise bad_request(f"continue key is not valid: {error}") from error


def _expired(current: int, token: Token) -> Failure:
    again = Token(current, token.start).text()
    return Failure(410, "Expired", EXPIRED_CONTINUE, metadata={"continue": again})


def _start(store: Store, table: Table, query: Query) -> Token:
    """Return the version to list at and the key to begin after; the lock is held."""
    asked, limit = number(query, "resourceVersion"), number(query, "limit")
    if text := query.get("continue"):
        if asked:
            raise bad_request("specifying resource version is not allowed when using continue")
        token = parse_token(text)
        if token.rv < table.compacted:
            raise _expired(store.version, token)
        return token
    if asked > store.version:
        raise too_new(asked, store.version)
    match = query.get("resourceVersionMatch")
    if match == "Exact" or (asked and limit and not match):
        if asked < table.compacted:
            raise Failure(410, "Expired", f"The resourceVersion for the provided list is too old: {asked}")
        return Token(asked, "")
    return Token(store.version, "")


def page(store: Store, table: Table, query: Query, namespace: str) -> Page:
    """Return one page. Raises Failure (400, 410, 504)."""
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    wanted = selectors.parse(table.resource.name, namespace, labels, fields)
    limit = number(query, "limit")
    if query.get("resourceVersion") == "0":
        limit = 0  # such a list comes from the watch cache, which does not page
    with store.lock:
        token = _start(store, table, query)
        found, count = table.at(token.rv, token.start)
        chosen: Iterable[Item] = filter(wanted, found) if wanted else found
        items = list(islice(chosen, limit + 1) if limit else chosen)
    more = bool(limit) and len(items) > limit
    del items[limit if more else len(items) :]
    return Page(items, token.rv, more, None if wanted or not more else count - limit)


def encode(resource: Resource, page: Page) -> Iterator[bytes]:
    """Yield the JSON of a list, in blocks."""
    meta: dict[str, str | int] = {"resourceVersion": str(page.version)}
    if page.more:
        meta["continue"] = Token(page.version, page.items[-1].key).text()
        if page.rest is not None:
            meta["remainingItemCount"] = page.rest
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta, "items": []}
    pieces = [msgspec.json.encode(head)[:-2]]
    size = 0
    before = b"{"
    for item in page.items:
        text = b"".join((before, *item.pieces()))
        before = b",{"
        pieces.append(text)
        size += len(text)
        if size >= BLOCK:
            yield b"".join(pieces)
            pieces.clear()
            size = 0
    pieces.append(b"]}\n")
    yield b"".join(pieces)
