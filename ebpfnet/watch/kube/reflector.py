"""One resource, followed: listed once, then watched from where the list ended, whatever happens on the way.

What can't be continued is begun again (410), and then only what differs is told. Requests that fail are tried again
with growing patience; meanwhile nothing is deleted. Objects of a list are taken as they are, for a list is the truth;
an event of a watch is left out when it is no newer than what is known of its object, so that a watch that repeats or
swaps events does no harm.

The protocol: kubernetes.io "API Concepts" (efficient detection of changes, streaming lists: KEP-3157).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import msgspec

from ebpfnet.model.facts import Accepted, Change, Delete, Kind, Problem, Ref, Refused, Upsert
from ebpfnet.watch.decode import BRIEF, decode_bytes, decode_read, ref_of
from ebpfnet.watch.kube import wire
from ebpfnet.watch.kube.connection import Api, Query, RequestFailed, waiting
from ebpfnet.watch.source import Deliver, Stats

log = logging.getLogger(__name__)

PAGE = 500
FIRST_S, MAX_S = 0.2, 30.0
IDLE_S = 90.0  # bookmarks come about once a minute; a connection that is silent for longer may be half open
ABSENT_S = 60.0
WATCH_S = (300, 600)
SOME = 16  # changes of a later list that are told together: an event of another resource waits for them
EVENTS = 256  # so many events of a burst are taken together at most
BEHIND = 65536  # bytes that wait in the socket: more than an event, so reading on does not block
STREAM_TRIES = 2
TOMBSTONES = 1024


Last = dict[str, tuple[str, wire.Item]]


class Resource(NamedTuple):
    """What is followed: ``kind``, where the API serves it, and which of it. ``optional``: a CRD that may be absent.

    ``name`` is what it is called where the resource's own name would mean two. ``proxy_name``: whose services are ours.
    """

    kind: Kind
    path: str
    fields: str = ""
    labels: str = ""
    optional: bool = False
    name: str = ""
    proxy_name: str = ""

    @property
    def plural(self) -> str:
        """The resource's name in the API, or what it is called here."""
        return self.name or self.path.rpartition("/")[2]


class _Gone(Exception):
    """The version that we would continue from is no longer kept by the server."""


class Reflector:
    """One resource. ``deliver`` gets changes in order, and ``listed`` is called after the first whole list.

    That is once, or once more after each ``forget``.
    """

    def __init__(
        self,
        resource: Resource,
        api: Api,
        deliver: Deliver,
        listed: Callable[[], None],
        idle_s: float = IDLE_S,
    ) -> None:
        self.resource = resource
        self.stats = Stats(resource.plural)
        self._api = api
        self._deliver = deliver
        self._listed = listed
        self._whole = False
        self._idle_s = idle_s
        self._reader = wire.Reader(BRIEF.get(resource.kind))
        self._known: dict[str, int] = {}
        self._tombstones: dict[str, int] = {}
        self._troubled: dict[Ref, tuple[Problem, ...]] = {}
        self._version: str | None = None
        self._stream_tries = STREAM_TRIES
        self._failed_in_a_row = 0

    def run(self, stop: threading.Event) -> None:
        """Follow until ``stop`` is set (and ``Api.close`` was called)."""
        self.stats.state = "starting"
        while not stop.is_set():
            try:
                if self._version is None:
                    self._list()
                else:
                    self._watch(self._watch_query(self._version))
            except _Gone as error:
                log.info("%s: listed again: %s", self.resource.plural, error)
                self._version = None
            except RequestFailed as error:
                if not stop.is_set():
                    stop.wait(self._after(error))
            else:
                self._failed_in_a_row = 0

    def forget(self) -> None:
        """Take back everything that was told; the next ``run`` begins anew. Not while one is running."""
        self._drop_all_but(set())
        self._known, self._version, self._whole, self._failed_in_a_row = {}, None, False, 0
        self._tombstones.clear()
        self._answered("not needed")

    # What goes wrong

    def _after(self, error: RequestFailed) -> float:
        """Take a failure in; returns the seconds to wait."""
        if error.code == 404 and self.resource.optional:
            self._answered("absent")  # an answer, too: what went wrong before is over
            self._failed_in_a_row = 0
            self._replace(set())
            return ABSENT_S
        if error.code == 410:
            self._version = None
        self._failed_in_a_row += 1
        self.stats.failures += 1
        log.info("%s: %s", self.resource.plural, error)
        # A connection that broke is nothing to look at; one that can't be made again is.
        if error.code not in {0, 410} or self._failed_in_a_row > 1:
            self._complain(str(error))
        patience: float = min(MAX_S, FIRST_S * 2 ** min(self._failed_in_a_row - 1, 16))
        return max(error.retry_after_s, patience * random.uniform(0.5, 1.0))

    @property
    def _ref(self) -> Ref:
        return Ref(Kind.WATCH, "", self.resource.plural)

    def _complain(self, text: str) -> None:
        if self.stats.problem != text:
            self.stats.problem = text
            self.stats.state = "failing"
            verb = "list" if self._version is None else "watch"
            self._deliver([Accepted(self._ref), Refused(Problem(self._ref, verb, text))])

    def _answered(self, state: str) -> None:
        self.stats.state = state
        self.stats.heard_at = time.time()
        if self.stats.problem:
            self.stats.problem = ""
            self._deliver([Accepted(self._ref)])

    # Lists

    def _selection(self) -> dict[str, str | int]:
        query: dict[str, str | int] = {}
        if self.resource.fields:
            query["fieldSelector"] = self.resource.fields
        if self.resource.labels:
            query["labelSelector"] = self.resource.labels
        return query

    def _watch_query(self, version: str) -> dict[str, str | int]:
        seconds = random.randint(*WATCH_S)
        query = self._selection()
        query.update(watch=1, allowWatchBookmarks="true", resourceVersion=version, timeoutSeconds=seconds)
        return query

    def _list(self) -> None:
        self.stats.lists += 1
        if self._stream_tries:
            initial = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            try:
                self._watch({**self._watch_query(""), **initial}, seen=set())
            except RequestFailed as error:
                # 400 and 422: an API server that has no streaming lists, or has them switched off.
                refused = error.code in {400, 422}
                if self._version is None:
                    self._stream_tries = 0 if refused else self._stream_tries - 1
                if not refused:
                    raise
            else:
                return
        self._list_pages()

    def _list_pages(self) -> None:
        seen: set[str] = set()
        query = self._selection() | {"limit": PAGE}
        while True:
            page = self._page(query)
            self._answered("listing")
            items = page.items or []
            for changes in self._batches(self._differing(items, seen)):
                self._deliver(changes)
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._replace(seen)
        self._version = page.metadata.resource_version

    def _page(self, query: Query) -> wire.Page:
        with self._api.get(self.resource.path, query, self._idle_s) as response:
            body = response.read(decode_content=True)
        try:
            return wire.read_page(body)
        except msgspec.MsgspecError as error:
            raise RequestFailed(f"{self._api.url}{self.resource.path}: a list that can't be read: {error}") from error

    def _differing(self, items: Iterable[msgspec.Raw], seen: set[str]) -> Iterator[tuple[str, wire.Item]]:
        """Yield the objects of a list that are not known in this very version; all are noted in ``seen``."""
        for raw in items:
            try:
                item = self._reader.item(raw)
                key, version = wire.identity(item)
            except msgspec.MsgspecError as error:
                raise RequestFailed(f"{self.resource.plural}: an object that can't be read: {error}") from error
            seen.add(key)
            if version < 0 or self._known.get(key) != version:
                self._known[key] = version
                yield key, item

    def _batches(self, items: Iterable[tuple[str, wire.Item]]) -> Iterator[list[Change]]:
        """Decode a few at a time."""
        each = iter(items)
        while some := list(islice(each, SOME if self._whole else PAGE)):
            yield [change for key, item in some for change in self._upsert(key, item)]

    def _replace(self, seen: set[str]) -> None:
        """End a list: what is known and was not in it is gone."""
        self._drop_all_but(seen)
        if not self._whole:
            self._whole = True
            self._listed()

    def _drop_all_but(self, seen: set[str]) -> None:
        gone = iter([key for key in self._known if key not in seen])
        while some := list(islice(gone, SOME)):
            self._deliver([change for key in some for change in self._remove(key, -1)])
        self.stats.objects = len(self._known)

    # Watches

    def _watch(self, query: Query, seen: set[str] | None = None) -> None:
        """Read events until the stream ends. With ``seen`` it begins with a list, whose end a bookmark marks."""
        self.stats.watches += 1
        reading = _Reading(seen)
        with self._api.get(self.resource.path, query, self._idle_s) as response:
            self._answered("listing" if seen is not None else "watching")
            lines, batch, more = wire.Lines(), list[bytes](), waiting(response)
            for data in response.stream(65536, decode_content=True):
                batch += lines.feed(data)
                if batch and (len(batch) >= EVENTS or more() < (BEHIND if self._whole else 1)):
                    self._take(batch, reading)
                    batch = []
            self._take(batch, reading)
            if lines.partial or reading.seen is not None:
                raise RequestFailed(f"{self._api.url}{self.resource.path}: the answer ended in its middle")

    def _take(self, lines: list[bytes], reading: _Reading) -> None:
        """Take events in: of several about one object the last counts."""
        reading.at = time.perf_counter() if reading.seen is None else 0.0
        last: Last = {}
        for line in lines:
            try:
                event = self._reader.event(line)
                if event.type in wire.CHANGED:
                    self._note(event.type, event.object, reading, last)
                elif event.type == "BOOKMARK":
                    self._bookmark(event.object, reading, last)
                else:
                    self._pass_on(last, reading)
                    self._error(event)
            except msgspec.MsgspecError as error:
                self._pass_on(last, reading)
                text = f"{self._api.url}{self.resource.path}: an event that can't be read: {error}"
                raise RequestFailed(text) from error
        self._pass_on(last, reading)

    def _note(self, type_: str, item: wire.Item, reading: _Reading, last: Last) -> None:
        key, version = wire.identity(item)
        self.stats.events += 1
        deleted = type_ == "DELETED"
        if reading.seen is not None:
            reading.seen.add(key)
            if version >= 0 and self._known.get(key) == version:
                return
        elif version >= 0:
            known = self._known.get(key)
            if version < (self._tombstones.get(key, 0) if known is None else known + (not deleted)):
                return
            if known is None and deleted:
                return
            reading.version = max(reading.version, version)
        last.pop(key, None)
        last[key] = (type_, item)
        if not deleted:
            self._known[key] = version

    def _bookmark(self, raw: msgspec.Raw, reading: _Reading, last: Last) -> None:
        meta = wire.read_bookmark(raw).metadata
        self._pass_on(last, reading)
        if reading.seen is not None:
            if (meta.annotations or {}).get(wire.INITIAL_EVENTS_END) != "true":
                return
            self._replace(reading.seen)
            reading.seen = None
            self._answered("watching")
        self._version = meta.resource_version
        reading.version = max(reading.version, wire.number(meta.resource_version))

    def _pass_on(self, last: Last, reading: _Reading) -> None:
        """Deliver, and only then move on the version that a new watch would begin with."""
        self.stats.heard_at = time.time()
        changes: list[Change] = []
        for key, (type_, item) in last.items():
            changes += self._remove(key, wire.identity(item)[1]) if type_ == "DELETED" else self._upsert(key, item)
        last.clear()
        if changes:
            self._deliver(changes, reading.at)
        self.stats.objects = len(self._known)
        if reading.seen is None and reading.version > wire.number(self._version or ""):
            self._version = str(reading.version)

    def _error(self, event: wire.Event[msgspec.Raw]) -> None:
        """An ERROR, or a type that we do not know."""
        status = wire.read_status(event.object)
        if event.type != "ERROR" or status is None:
            raise RequestFailed(f"{self.resource.plural}: an event of type {event.type!r}")
        if status.code == 410:
            raise _Gone(status.message)
        wait = status.details.retry_after_seconds if status.details else 0
        raise RequestFailed(f"{self.resource.plural}: {status.code}: {status.message}", status.code, wait, status)

    # Objects

    def _ref_of(self, key: str) -> Ref:
        namespace, _, name = key.partition("/")
        return ref_of(self.resource.kind, namespace, name)

    def _upsert(self, key: str, item: wire.Item) -> list[Change]:
        kind = self.resource.kind
        if isinstance(item, msgspec.Raw):
            decoded = decode_bytes(kind, item, self.resource.proxy_name)
        else:
            decoded = decode_read(kind, item)
        changes: list[Change] = []
        if decoded.ref is None:  # nothing for us, or not any more
            self._troubled.pop(self._ref_of(key), None)
            return [Delete(self._ref_of(key))]
        if decoded.fact is not None:
            changes.append(Upsert(decoded.fact, decoded.since))
            if decoded.since:
                self.stats.lag_s = max(0.0, time.time() - decoded.since)
        before = self._troubled.pop(decoded.ref, ())
        if decoded.problems:
            self._troubled[decoded.ref] = decoded.problems
        if before != decoded.problems:
            changes += [Accepted(decoded.ref)] if before else []
            changes += [Refused(problem, partial=decoded.fact is not None) for problem in decoded.problems]
        return changes

    def _remove(self, key: str, version: int) -> list[Change]:
        self._known.pop(key, None)
        if version >= 0:
            self._tombstones[key] = version
            if len(self._tombstones) > TOMBSTONES:
                del self._tombstones[next(iter(self._tombstones))]
        self._troubled.pop(self._ref_of(key), None)
        return [Delete(self._ref_of(key))]


@dataclass(slots=True)
class _Reading:
    """Where one watch stands: objects of the list it began with, the newest version, when events were last read."""

    seen: set[str] | None
    version: int = -1
    at: float = 0.0
