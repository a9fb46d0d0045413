"""A watch: what happened after a resourceVersion, one JSON object in a line and a chunk, until somebody ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.apiserver import selectors
from tests.apiserver.failure import Failure, invalid_options, too_new, too_old
from tests.apiserver.faults import Mangled
from tests.apiserver.lists import BLOCK, Query, flag, number
from tests.apiserver.store import Event, Item, Store, Table
from tests.apiserver.wire import END, Gone, Wire, chunk

EVENTS_AT_ONCE = 128
DEFAULT_TIMEOUT_S = 3_000
LOOK_UP_S = 0.2  # how often a silent watch looks whether its client is still there
FEATURE = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
MATCH = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
INITIAL_END = b'"annotations":{"k8s.io/initial-events-end":"true"}'


class Watch:
    """One watch request. Making it raises Failure for what is answered before any event (400, 422, 504)."""

    def __init__(
        self, store: Store, table: Table, query: Query, namespace: str, *, streaming: bool, bookmark_every_s: float
    ) -> None:
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        self.store, self.table = store, table
        self.wanted = selectors.parse(table.resource.name, namespace, labels, fields)
        self.bookmarks = flag(query, "allowWatchBookmarks")
        self.bookmark_every_s = bookmark_every_s
        self.since = number(query, "resourceVersion")
        self.streaming = flag(query, "sendInitialEvents")
        if self.streaming and not streaming:
            raise invalid_options("sendInitialEvents", FEATURE)
        if self.streaming and query.get("resourceVersionMatch") != "NotOlderThan":
            raise invalid_options("resourceVersionMatch", MATCH)
        if self.streaming and self.since > store.version:
            raise too_new(self.since, store.version)
        self.until = time.monotonic() + (number(query, "timeoutSeconds") or DEFAULT_TIMEOUT_S)
        self.marks = store.marks
        kind = f'"kind":"{table.resource.kind}","apiVersion":"{table.resource.api_version}"'
        self.before = {
            name: f'{{"type":"{name}","object":{{{kind},'.encode()
            for name in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
        }

    def run(self, wire: Wire, mangled: Mangled | None) -> None:
        """Send events until the time is over. Raises Gone when the connection is."""
        if mangled:
            self._send(wire, mangled.start(), None)
            self._end(wire, mangled)
        try:
            for frames in self._frames(wire):
                self._send(wire, frames, mangled)
        except Failure as failure:
            self._send(wire, [b'{"type":"ERROR","object":%b}\n' % failure.body()], mangled)
        wire.send(END)

    def _send(self, wire: Wire, frames: list[bytes], mangled: Mangled | None) -> None:
        if mangled:
            frames = mangled(frames)
        if frames:
            wire.send(b"".join(map(chunk, frames)))
        if mangled:
            self._end(wire, mangled)

    @staticmethod
    def _end(wire: Wire, mangled: Mangled) -> None:
        if mangled.then == "cut":
            raise Gone
        if mangled.then == "stall":
            wire.stall()

    def _frames(self, wire: Wire) -> Iterator[list[bytes]]:
        """Yield what is to be sent. Raises Failure for the ERROR event of a version that is too old."""
        with self.store.lock:
            initial: list[Item] = []
            if self.streaming or not self.since:
                self.since = self.store.version
                initial = list(self.table.at(self.since, "")[0])
            elif self.since < self.table.compacted:
                raise too_old(self.since, self.table.compacted)
            position = self.table.position(self.since)
        yield from self._initial(initial)
        bookmark_at = time.monotonic() + self.bookmark_every_s
        while True:
            with self.table.changed:
                events = self._wait(wire, position, bookmark_at)
                version = self.store.version
            if events:
                position += len(events)
                yield [frame for event in events if (frame := self._change(event))]
                continue
            if self.bookmarks:
                yield [self._bookmark(version)]
                bookmark_at = time.monotonic() + self.bookmark_every_s
            if time.monotonic() >= self.until or self.table.resource.name not in self.store.installed:
                return

    def _wait(self, wire: Wire, position: int, bookmark_at: float) -> list[Event]:
        """Return events; none when it is time for a bookmark or for the end. Raises Gone. The lock is held."""
        while True:
            if wire.dropped.is_set():
                raise Gone
            events = self.table.events(position, EVENTS_AT_ONCE)
            if events is None:
                raise Gone  # a client slower than the history is long: the real server closes such watches, too
            if events or self.table.resource.name not in self.store.installed:
                return events
            now = time.monotonic()
            if self.marks != self.store.marks or now >= min(self.until, bookmark_at):
                self.marks = self.store.marks
                return []
            if not self.table.changed.wait(min(self.until - now, bookmark_at - now, LOOK_UP_S)) and wire.left():
                raise Gone

    def _initial(self, items: list[Item]) -> Iterator[list[bytes]]:
        frames: list[bytes] = []
        size = 0
        for item in items:
            if self.wanted and not self.wanted(item):
                continue
            frames.append(self._frame("ADDED", item))
            size += len(frames[-1])
            if size >= BLOCK:
                yield frames
                frames, size = [], 0
        if self.streaming:
            frames.append(self._bookmark(self.since, INITIAL_END))
        yield frames

    def _change(self, event: Event) -> bytes | None:
        """Return the frame of an event as a selector sees it; None for one that does not concern it."""
        version, _, old, new = event
        if version <= self.since:
            return None  # the client asked for a version of the future
        if self.wanted:
            old = old if old and self.wanted(old) else None
            new = new if new and self.wanted(new) else None
        if new:
            return self._frame("MODIFIED" if old else "ADDED", new)
        return self._frame("DELETED", old._replace(version=version)) if old else None

    def _frame(self, kind: str, item: Item) -> bytes:
        return b"".join((self.before[kind], *item.pieces(), b"}\n"))

    def _bookmark(self, version: int, extra: bytes = b"") -> bytes:
        meta = b'"metadata":{"resourceVersion":"%d","creationTimestamp":null%b}' % (version, extra and b"," + extra)
        blank = self.table.resource.blank
        return b"%b%b%b}}\n" % (self.before["BOOKMARK"], meta, blank and b"," + blank)
