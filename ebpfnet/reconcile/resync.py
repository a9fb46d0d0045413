"""The tables against what is known, in small steps: the way back after writes failed, while changes go on.

Between two steps anything may have changed, so each one judges by what is known at its moment: a set by its slots, what
is left over by whether a set holds it. A unit that still fails is not known, and is left to its own retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from ebpfnet import abi
from ebpfnet.compile.endpoints import RECORD
from ebpfnet.maps.table import Table
from ebpfnet.reconcile import readback
from ebpfnet.reconcile.backlog import Backlog
from ebpfnet.reconcile.diff import find, records
from ebpfnet.reconcile.services import ServiceTables
from ebpfnet.reconcile.sets import EndpointSet, member_keys, set_key, slot_keys, split_keys

Names = Callable[[], Mapping[int, str]]
STEP = 256
"""Entries that are looked at in one step."""


class Checked:
    """What the sets hold, against the tables. Methods that read or write raise ``TableError``."""

    def __init__(self, tables: Mapping[str, Table], services: ServiceTables, failing: Backlog) -> None:
        self._tables = tables
        self._services = services
        self._failing = failing

    def sets(self, dirty: Mapping[int, None], restore: Callable[[int], object]) -> Iterator[None]:
        """Let each set be restored whose slots are not as they should be."""
        looked = 0
        for set_id in self._services.wanted():
            start, generation = 0, None
            while set_id not in self._failing and set_id not in dirty and self._services.owner(set_id):
                live = self._services.live(set_id)
                if live is None or not self._sound(live, start):
                    restore(set_id)
                    break
                start, looked = start + STEP, looked + 4 + min(STEP, live.count)
                if looked >= STEP:
                    looked = 0
                    yield
                if start >= live.count or generation not in {None, live.generation}:
                    break  # all of it, or it was written anew meanwhile
                generation = live.generation

    def _sound(self, live: EndpointSet, start: int) -> bool:
        """Return whether the next slots of a set from ``start`` are as they should be, at first its entry, too."""
        if not start and not (self._tables["sets"].get(set_key(live.id)) == live.entry() and self._named(live.id)):
            return False
        keys = split_keys(slot_keys(live.id, live.generation, start, min(start + STEP, live.count)))
        found = b"".join([self._tables["slots"].get(key) or b"" for key in keys])
        if found != live.run[start * RECORD : (start + STEP) * RECORD]:
            return False
        members = member_keys(live.id, dict.fromkeys(records(found))) if live.members else []
        return all(self._tables["members"].get(key) for key in members)

    def _named(self, set_id: int) -> bool:
        label = self._services.label(set_id)
        return label is None or self._tables["names"].get(set_key(set_id)) == abi.pack_name(label)

    def names(self, pods: Names) -> Iterator[None]:
        """Put the names of pods right."""
        each = iter(list(pods().items()))
        while some := list(islice(each, STEP)):
            for identity, label in some:
                if pods().get(identity) == label:  # still
                    readback.name(self._tables["names"], identity, label)
            yield

    def strays(self, names: Names) -> Iterator[None]:
        """Remove what no set and no pod holds; ``names`` are those of pods. Sets go before their slots."""
        yield from self._remove("sets", lambda key, _: self._is_held(int.from_bytes(key, "little")))
        yield from self._remove("slots", self._slot_is_held)
        yield from self._remove("members", self._member_is_held)
        yield from self._remove("names", lambda key, _: self._name_is_held(key, names()))

    def _remove(self, name: str, held: Callable[[bytes, bytes], bool]) -> Iterator[None]:
        entries = iter(self._tables[name].items())
        while some := list(islice(entries, STEP * 2)):
            gone = [key for key, value in some if not held(key, value)]
            if gone:
                self._tables[name].delete_batch(gone)
            yield

    def _is_held(self, identity: int) -> bool:
        held = self._services.live(identity) is not None or identity in self._services.frontends.uses
        return held or identity in self._failing

    def _slot_is_held(self, key: bytes, _: bytes) -> bool:
        identity, generation, index = abi.Slot.layout.unpack(key)
        live = self._services.live(identity)
        held = live is not None and live.generation == generation and index < live.count
        return held or identity in self._failing

    def _member_is_held(self, key: bytes, _: bytes) -> bool:
        identity, backend = int.from_bytes(key[:8], "little"), key[8 : 8 + RECORD]
        live = self._services.live(identity)
        return identity in self._failing or (live is not None and live.members and find(live.run, backend) >= 0)

    def _name_is_held(self, key: bytes, pods: Mapping[int, str]) -> bool:
        identity = int.from_bytes(key, "little")
        return identity in pods or identity in self._failing or self._services.label(identity) is not None
