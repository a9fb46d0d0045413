"""The objects of a cluster with one increasing resourceVersion, as etcd and the watch cache keep them."""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from tests.apiserver.resources import BY_KIND, OPTIONAL, RESOURCES, Resource

Manifest = dict[str, Any]
Parts = tuple[bytes, ...]
FIRST_VERSION = 1_000
HISTORY = 50_000
CREATED = "2026-01-01T00:00:00Z"
RV_MARK = b'"resourceVersion":"'


class Item(NamedTuple):
    """One version of one object.

    ``parts`` joined, with the resourceVersion after the first, are the object's JSON without the opening brace, kind
    and apiVersion: a list's item and a watch's object differ only there. Versions share the parts they have in common;
    a function makes them when they are wanted.
    """

    key: str
    namespace: str
    name: str
    version: int
    parts: Parts | Callable[[], Parts]
    labels: Mapping[str, str]
    node: str = ""

    def pieces(self) -> Parts:
        """Return the JSON after the opening brace (and after kind and apiVersion), in pieces to join."""
        head, *rest = self.parts if isinstance(self.parts, tuple) else self.parts()
        return (head, b"%d" % self.version, *rest)

    def manifest(self, resource: Resource) -> Manifest:
        """Return the object as a dictionary, with kind and apiVersion."""
        found: Manifest = msgspec.json.decode(b"{" + b"".join(self.pieces()))
        return {"kind": resource.kind, "apiVersion": resource.api_version, **found}


class Event(NamedTuple):
    """A change: ``old`` is None for a new object, ``new`` for one that went."""

    version: int
    key: str
    old: Item | None
    new: Item | None


def key_of(namespace: str, name: str) -> str:
    """Return the key that sorts as etcd's do."""
    return f"{namespace}/{name}" if namespace else name


def split(manifest: Manifest) -> Parts:
    """Return the parts of an object: what stands before and after its resourceVersion."""
    rest = {field: value for field, value in manifest.items() if field not in {"kind", "apiVersion", "metadata"}}
    meta = dict(manifest["metadata"])
    first = {field: meta.pop(field) for field in ("name", "namespace", "uid") if meta.get(field)}
    meta.pop("resourceVersion", None)
    text = msgspec.json.encode({"metadata": {**first, "resourceVersion": "", **meta}, **rest})
    end = text.index(RV_MARK) + len(RV_MARK)
    return text[1:end], text[end:]


def item(manifest: Manifest, version: int) -> Item:
    """Return a manifest as an item."""
    meta = manifest["metadata"]
    namespace, name = meta.get("namespace") or "", meta["name"]
    labels, node = meta.get("labels") or {}, (manifest.get("spec") or {}).get("nodeName") or ""
    return Item(key_of(namespace, name), namespace, name, version, split(manifest), labels, node)


class Table:
    """The objects of one resource, in the order of their keys, and the last ``limit`` changes to them."""

    def __init__(self, resource: Resource, lock: threading.Lock, limit: int) -> None:
        self.resource = resource
        self.changed = threading.Condition(lock)
        self.items: dict[str, Item] = {}
        self.keys: list[str] = []
        self.history: list[Event] = []
        self.forgotten = 0  # events that stood before history[0]
        self.compacted = 0  # the version of the last event that can no longer be replayed
        self.limit = limit

    def record(self, event: Event) -> None:
        """Apply a change; the lock is held."""
        _, key, old, new = event
        if new:
            self.items[key] = new
            if not old:
                insort(self.keys, key)
        else:
            del self.items[key]
            del self.keys[bisect_left(self.keys, key)]
        self.history.append(event)
        if (surplus := len(self.history) - self.limit) > 0:
            self.compacted = self.history[surplus - 1].version
        if surplus > self.limit:
            del self.history[:surplus]
            self.forgotten += surplus

    def compact(self, version: int) -> None:
        """Forget all changes; the lock is held."""
        self.forgotten += len(self.history)
        self.history.clear()
        self.compacted = version

    def position(self, version: int) -> int:
        """Return the number of the first event after a version, for `events`; the lock is held."""
        return self.forgotten + bisect_right(self.history, version, key=lambda event: event.version)

    def events(self, position: int, count: int) -> list[Event] | None:
        """Return up to ``count`` events from a position on; None when they are forgotten. The lock is held."""
        oldest = self.forgotten + max(0, len(self.history) - self.limit)
        if position < oldest:
            return None
        begin = position - self.forgotten
        return self.history[begin : begin + count]

    def at(self, version: int, after: str) -> tuple[Iterator[Item], int]:
        """Return the items with keys beyond ``after`` as they were at a version, and how many; the lock is held."""
        changes = self.history[self.position(version) - self.forgotten :]
        then = {event.key: event.old for event in reversed(changes) if event.key > after}
        keys = self.keys[bisect_right(self.keys, after) :]
        if not then:
            return map(self.items.__getitem__, keys), len(keys)
        gone = sorted(key for key, old in then.items() if old and key not in self.items)
        unborn = sum(old is None and key in self.items for key, old in then.items())
        found = (then[key] if key in then else self.items[key] for key in heapq.merge(keys, gone))
        return (each for each in found if each), len(keys) + len(gone) - unborn


class Store:
    """A cluster: what tests put in, and what the server serves. Every method may be called from any thread."""

    def __init__(self, manifests: Iterable[Manifest] = (), *, history: int = HISTORY) -> None:
        self.lock = threading.Lock()
        self.version = FIRST_VERSION
        self.marks = 0
        self.tables = {resource.name: Table(resource, self.lock, history) for resource in RESOURCES}
        self.installed = {resource.name for resource in RESOURCES} - OPTIONAL
        for manifest in manifests:
            self.put(manifest)

    def put(self, manifest: Manifest) -> int:
        """Create or replace an object; returns its resourceVersion. Raises KeyError for a kind that is not served.

        A namespaced object without a namespace is in ``default``; uid and creationTimestamp stay, or are made.
        """
        resource = BY_KIND[manifest["kind"]]
        meta = dict(manifest["metadata"])
        if resource.namespaced:
            meta.setdefault("namespace", "default")
        table = self.tables[resource.name]
        with self.lock:
            version = self.version + 1
            old = table.items.get(key_of(meta.get("namespace") or "", meta["name"]))
            before = old.manifest(resource)["metadata"] if old else {}
            meta.setdefault("uid", before.get("uid", f"00000000-0000-4000-8000-{version:012x}"))
            meta.setdefault("creationTimestamp", before.get("creationTimestamp", CREATED))
            new = item({**manifest, "metadata": meta}, version)
            self.version = version
            table.record(Event(version, new.key, old, new))
            table.changed.notify_all()
        return version

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Delete an object; ``namespace`` is empty for one of the cluster. Returns whether it was there."""
        table = self.tables[BY_KIND[kind].name]
        with self.lock:
            old = table.items.get(key_of(namespace, name))
            if old:
                self.version += 1
                table.record(Event(self.version, old.key, old, None))
                table.changed.notify_all()
        return old is not None

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object as it is served."""
        table = self.tables[BY_KIND[kind].name]
        with self.lock:
            found = table.items.get(key_of(namespace, name))
        return found.manifest(table.resource) if found else None

    def objects(self, kind: str) -> list[Manifest]:
        """Return all objects of a kind, in the order of their keys."""
        table = self.tables[BY_KIND[kind].name]
        with self.lock:
            found = [table.items[key] for key in table.keys]
        return [each.manifest(table.resource) for each in found]

    def load(self, kind: str, items: Iterable[Item]) -> None:
        """Add many new objects at once, with new versions and no history: a watch from before gets a 410."""
        table = self.tables[BY_KIND[kind].name]
        with self.lock:
            for version, each in enumerate(items, self.version + 1):
                table.items[each.key] = each._replace(version=version)
                self.version = version
            table.keys = sorted(table.items)
            table.compact(self.version)
            table.changed.notify_all()

    def change(self, kind: str, changes: Iterable[tuple[str, Parts]]) -> None:
        """Give existing objects, by key, new parts: one lock and one notification for all. Raises KeyError."""
        table = self.tables[BY_KIND[kind].name]
        with self.lock:
            for key, parts in changes:
                old = table.items[key]
                self.version += 1
                _, namespace, name, _, _, labels, node = old
                new = Item(key, namespace, name, self.version, parts, labels, node)
                table.record(Event(self.version, key, old, new))
            table.changed.notify_all()

    def compact(self) -> None:
        """Forget all history: a watch or a continue token from before now gets a 410."""
        with self.lock:
            for table in self.tables.values():
                table.compact(self.version)

    def bookmark(self) -> None:
        """Have every live watch that allows bookmarks sent one now."""
        with self.lock:
            self.marks += 1
            self.wake()

    def wake(self) -> None:
        """Make every waiting watch look up; the lock is held."""
        for table in self.tables.values():
            table.changed.notify_all()

    def install(self, resource: str) -> None:
        """Make an optional resource be there."""
        with self.lock:
            self.installed.add(resource)

    def uninstall(self, resource: str) -> None:
        """Delete the objects of an optional resource, then the resource; its watches end."""
        table = self.tables[resource]
        with self.lock:
            for old in list(table.items.values()):
                self.version += 1
                table.record(Event(self.version, old.key, old, None))
            self.installed.remove(resource)
            table.changed.notify_all()
