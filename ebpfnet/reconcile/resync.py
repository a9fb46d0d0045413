"""The tables against what is known, in small steps: the way back after writes failed, while changes go on.

Between two steps anything may have changed, so each one judges by what is known at its moment: a set by its slots, what
is left over by whether a set holds it. A unit that still fails is not known, and is left to its own retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Protocol

from ebpfnet import abi
from ebpfnet.compile.services import RECORD
from ebpfnet.maps.table import Table
from ebpfnet.reconcile import readback
from ebpfnet.reconcile.services import ServiceTables
from ebpfnet.reconcile.sets import EndpointSet, slot_keys, split_keys

Names = Callable[[], Mapping[int, str]]
STEP = 256
"""Entries that are looked at in one step."""


class Failing(Protocol):
    """The units that are not known to be as they should be."""

    def __contains__(self, unit: int) -> bool: ...


class Checked:
    """What the sets hold, against the tables. Methods that read or write raise ``TableError``."""

    def __init__(self, tables: Mapping[str, Table], services: ServiceTables, failing: Failing) -> None:
        self._tables = tables
        self._services = services
        self._failing = failing

    def sound(self, live: EndpointSet, start: int) -> bool:
        """Return whether the next slots of a set from ``start`` are as they should be, at first its frontend, too."""
        if not start:
            entry = abi.Service(live.id, live.generation, live.count).pack()
            if self._tables["services"].get(live.frontend) != entry or not self._named(live.id):
                return False
        keys = split_keys(slot_keys(live.id, live.generation, start, min(start + STEP, live.count)))
        found = b"".join([self._tables["slots"].get(key) or b"" for key in keys])
        return found == live.run[start * RECORD : (start + STEP) * RECORD]

    def _named(self, set_id: int) -> bool:
        label = self._services.label(set_id)
        return label is None or self._tables["names"].get(set_id.to_bytes(8, "little")) == abi.pack_name(label)

    def names(self, pods: Names) -> Iterator[None]:
        """Put the names of pods right."""
        each = iter(list(pods().items()))
        while some := list(islice(each, STEP)):
            for identity, label in some:
                if pods().get(identity) == label:  # still
                    readback.name(self._tables["names"], identity, label)
            yield

    def strays(self, names: Names) -> Iterator[None]:
        """Remove what no set and no pod holds; ``names`` are those of pods. Frontends go before their slots."""
        yield from self._remove("services", self._frontend_is_held)
        yield from self._remove("slots", self._slot_is_held)
        yield from self._remove("names", lambda key, _: self._name_is_held(key, names()))

    def _remove(self, name: str, held: Callable[[bytes, bytes], bool]) -> Iterator[None]:
        entries = iter(self._tables[name].items())
        while some := list(islice(entries, STEP * 2)):
            gone = [key for key, value in some if not held(key, value)]
            if gone:
                self._tables[name].delete_batch(gone)
            yield

    def _frontend_is_held(self, key: bytes, value: bytes) -> bool:
        identity = abi.Service.unpack(value).id
        live = self._services.live(identity)
        return identity in self._failing or (live is not None and live.frontend == key)

    def _slot_is_held(self, key: bytes, _: bytes) -> bool:
        identity, generation, index = abi.Slot.layout.unpack(key)
        live = self._services.live(identity)
        held = live is not None and live.generation == generation and index < live.count
        return held or identity in self._failing

    def _name_is_held(self, key: bytes, pods: Mapping[int, str]) -> bool:
        identity = int.from_bytes(key, "little")
        return identity in pods or identity in self._failing or self._services.label(identity) is not None
