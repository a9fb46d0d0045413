"""Endpoint sets in the kernel, and the one order of writes that keeps every moment valid.

A frontend in ``services`` names a set, a generation and a count; ``slots`` holds backends 0 .. count-1 of it. Killed
between any two writes, a frontend still leads only to backends that are or were right:

- replace: one write to one slot;
- append: write slot ``count``, then raise ``count``;
- remove slot i: write the last backend into it, lower ``count``, delete the last slot;
- a new set, or one that changes for the most part: write a new generation, flip the frontend, delete the old one;
- other frontends: all of them first, then the old ones go that nobody took, so that two sets may swap theirs.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.services import RECORD
from ebpfnet.maps.table import Table, TableFull
from ebpfnet.reconcile.diff import find

_HEAD = struct.Struct("QI")
_INDEX = [index.to_bytes(4, "little") for index in range(1024)]
BATCH = 65_536  # slots that are gathered before they are written


def slot_keys(set_id: int, generation: int, start: int, end: int) -> bytes:
    """Return the joined keys of slots ``start`` .. ``end - 1``."""
    head = _HEAD.pack(set_id, generation)
    while len(_INDEX) < end:
        _INDEX.append(len(_INDEX).to_bytes(4, "little"))
    return b"".join([head + index for index in _INDEX[start:end]])


def split_keys(joined: bytes) -> list[bytes]:
    """Cut joined slot keys apart."""
    size = abi.Slot.size()
    return [joined[at : at + size] for at in range(0, len(joined), size)]


class DoesNotFit(TableFull):
    """Demand is beyond what a table has room for: told before anything is written."""


class EndpointSet:
    """One set as the kernel holds it; ``run`` is its backends in slot order, packed."""

    __slots__ = ("frontend", "generation", "id", "run")

    def __init__(self, set_id: int, frontend: bytes, generation: int, run: bytearray) -> None:
        self.id = set_id
        self.frontend = frontend
        self.generation = generation
        self.run = run

    @property
    def count(self) -> int:
        """How many backends."""
        return len(self.run) // RECORD


class SetWriter:
    """Moves endpoint sets between states. Any method may raise ``TableError``; then the set must be read back."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._services = tables["services"]
        self._slots = tables["slots"]
        self.used = 0  # slots in use
        self.turns = 0
        """Counts what may leave flows astray: backends that go, frontends that come or go."""
        self._owner: dict[bytes, int] = {}  # which set a frontend leads to: an address may pass from one to another
        self._left: dict[bytes, int] = {}  # frontends that a set has left, and that still lead to it

    @property
    def room(self) -> int:
        """How many more slots there is room for."""
        return self._slots.spec.max_entries - self.used

    @property
    def frontends(self) -> int:
        """How many frontends there are."""
        return len(self._owner)

    @property
    def frontend_room(self) -> int:
        """How many more frontends there is room for."""
        return self._services.spec.max_entries - len(self._owner)

    def owns(self, frontend: bytes) -> bool:
        """Say whether a frontend leads to a set that is known here."""
        return frontend in self._owner

    def owner(self, frontend: bytes) -> int | None:
        """Return the set that a frontend leads to."""
        return self._owner.get(frontend)

    def demand(self, count: int, frontend: bytes | None = None) -> None:
        """Raise ``DoesNotFit`` unless there is room for ``count`` more slots, and for ``frontend`` if it is new."""
        if count > self.room:
            text = f"needs {count} more slots, and table slots ({self._slots.spec.max_entries} entries) has no room"
            raise DoesNotFit(errno.E2BIG, text)
        if frontend is not None and not self.owns(frontend) and self.frontend_room < 1:
            text = f"needs one more frontend, and table services ({self._services.spec.max_entries} entries) is full"
            raise DoesNotFit(errno.E2BIG, text)

    def _flip(self, endpoints: EndpointSet, generation: int, count: int, frontend: bytes = b"") -> None:
        frontend = frontend or endpoints.frontend
        self._services.put(frontend, abi.Service(endpoints.id, generation, count).pack())
        self._owner[frontend] = endpoints.id
        self._left.pop(frontend, None)

    def _leave(self, set_id: int, frontend: bytes) -> None:
        """Remove a frontend, unless it leads to another set by now."""
        if self._owner.get(frontend) == set_id:
            self._services.delete(frontend)
            del self._owner[frontend]
        self._left.pop(frontend, None)

    def leave(self) -> None:
        """Remove the frontends that sets have left and that no other has taken."""
        for frontend, set_id in list(self._left.items()):
            self._leave(set_id, frontend)

    def forget(self, used: int) -> None:
        """Start over: ``used`` slots were found in the tables."""
        self.used = used
        self._owner = {}
        self._left = {}

    def adopt(self, endpoints: EndpointSet) -> None:
        """Know a set that was found in the tables."""
        self.turns += 1
        self._owner[endpoints.frontend] = endpoints.id

    def keep(self, set_id: int, frontend: bytes, *, stays: bool) -> None:
        """Know a frontend that was found beside those of known sets: it stays, or goes with ``leave``."""
        self._owner[frontend] = set_id
        if not stays:
            self._left[frontend] = set_id

    def create(self, fresh: Iterable[EndpointSet]) -> None:
        """Write new sets, many at a time: all slots before any frontend. Demand is the caller's to check."""
        batch: list[EndpointSet] = []
        count = 0
        for endpoints in fresh:
            batch.append(endpoints)
            count += endpoints.count
            if count >= BATCH:
                self._publish(batch)
                batch, count = [], 0
        self._publish(batch)

    def _publish(self, batch: list[EndpointSet]) -> None:
        keys = b"".join([slot_keys(e.id, e.generation, 0, e.count) for e in batch])
        if keys:
            self._slots.put_batch(keys, b"".join([bytes(e.run) for e in batch]))
        if batch:
            entries = b"".join([abi.Service(e.id, e.generation, e.count).pack() for e in batch])
            self._services.put_batch(b"".join([e.frontend for e in batch]), entries)
            for each in batch:
                self._owner[each.frontend] = each.id
                self._left.pop(each.frontend, None)
            self.turns += 1
            self.used += sum(e.count for e in batch)

    def renew(self, endpoints: EndpointSet, run: bytes) -> None:
        """Replace the whole set: a new generation, the flip, the old one's end."""
        count = len(run) // RECORD
        self.demand(count)
        self.turns += 1
        generation = (endpoints.generation + 1) & 0xFFFFFFFF
        if count:
            self._slots.put_batch(slot_keys(endpoints.id, generation, 0, count), run)
        self._flip(endpoints, generation, count)
        self.used += count
        old_keys = slot_keys(endpoints.id, endpoints.generation, 0, endpoints.count)
        self.used -= endpoints.count
        endpoints.generation, endpoints.run = generation, bytearray(run)
        self._slots.delete_batch(split_keys(old_keys))

    def change(self, endpoints: EndpointSet, removed: list[bytes], added: list[bytes]) -> None:
        """Take some backends out and put some in, slot by slot; a pair of the two is one write."""
        pairs = min(len(removed), len(added))
        self.turns += bool(removed)
        for old, new in zip(removed[:pairs], added[:pairs], strict=True):
            self._replace(endpoints, find(endpoints.run, old), new)
        for record in added[pairs:]:
            self._append(endpoints, record)
        for record in removed[pairs:]:
            self._remove(endpoints, find(endpoints.run, record))

    def _put(self, endpoints: EndpointSet, index: int, record: bytes) -> None:
        self._slots.put(_HEAD.pack(endpoints.id, endpoints.generation) + index.to_bytes(4, "little"), record)

    def _replace(self, endpoints: EndpointSet, index: int, record: bytes) -> None:
        self._put(endpoints, index, record)
        endpoints.run[index * RECORD : (index + 1) * RECORD] = record

    def _append(self, endpoints: EndpointSet, record: bytes) -> None:
        self.demand(1)
        count = endpoints.count
        self._put(endpoints, count, record)
        self._flip(endpoints, endpoints.generation, count + 1)
        endpoints.run += record
        self.used += 1

    def _remove(self, endpoints: EndpointSet, index: int) -> None:
        last = endpoints.count - 1
        record = bytes(endpoints.run[last * RECORD :])
        if index != last:
            self._replace(endpoints, index, record)
        self._flip(endpoints, endpoints.generation, last)
        del endpoints.run[last * RECORD :]
        self.used -= 1
        self._slots.delete(_HEAD.pack(endpoints.id, endpoints.generation) + last.to_bytes(4, "little"))

    def move(self, endpoints: EndpointSet, frontend: bytes) -> None:
        """Let another frontend lead to the set, too: the old one goes with ``leave``, before unless both fit."""
        old = endpoints.frontend
        self.turns += 1
        if not self.owns(frontend) and self.frontend_room < 1:
            self.leave()
            if self.frontend_room < 1:
                self._leave(endpoints.id, old)
        self._flip(endpoints, endpoints.generation, endpoints.count, frontend)
        endpoints.frontend = frontend
        if self._owner.get(old) == endpoints.id:
            self._left[old] = endpoints.id

    def remove_set(self, endpoints: EndpointSet) -> None:
        """Take a set away: the frontend first."""
        self.turns += 1
        self._leave(endpoints.id, endpoints.frontend)
        keys = slot_keys(endpoints.id, endpoints.generation, 0, endpoints.count)
        self.used -= endpoints.count
        endpoints.run = bytearray()
        self._slots.delete_batch(split_keys(keys))

    def read_back(self, set_id: int, frontend: bytes) -> EndpointSet | None:
        """Return one set as the kernel has it, or None; a missing slot shows as a record of zeros."""
        raw = self._services.get(frontend)
        if raw is None:
            return None
        service = abi.Service.unpack(raw)
        if service.id != set_id:
            return None
        keys = split_keys(slot_keys(set_id, service.generation, 0, service.count))
        run = bytearray(b"".join([self._slots.get(key) or bytes(RECORD) for key in keys]))
        endpoints = EndpointSet(set_id, frontend, service.generation, run)
        self.adopt(endpoints)
        return endpoints
