"""Endpoint sets in the kernel, and the one order of writes that keeps every moment valid.

``sets`` says a set's generation and count; ``slots`` holds backends 0 .. count-1 of it, ``members`` each of them once
where clients stay with their backends. Killed between any two writes, a set has only backends that are or were right:

- replace: one write to one slot;
- append: write slot ``count``, then raise ``count``;
- remove slot i: write the last backend into it, lower ``count``, delete the last slot;
- a new set, or one that changes for the most part: write a new generation, flip the set, delete the old one;
- a table of shares as large as before, or one that has no room twice: one write to each slot that differs;
- a backend becomes a member before a slot has it, and is none any more before its last slot loses it: a client whose
  backend is no member chooses once more, and nothing else happens to it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable, Mapping

from ebpfnet import abi
from ebpfnet.compile.endpoints import RECORD, Choice
from ebpfnet.maps.table import Table, TableFull
from ebpfnet.reconcile.diff import differing, find, records
from ebpfnet.reconcile.groups import Made

_HEAD = struct.Struct("QI")
_INDEX = [index.to_bytes(4, "little") for index in range(1024)]
_MEMBER = (1).to_bytes(4, "little")
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


def set_key(set_id: int) -> bytes:
    """Return a set's key, in ``sets`` and in ``names``."""
    return set_id.to_bytes(8, "little")


def member_keys(set_id: int, backends: Iterable[bytes]) -> list[bytes]:
    """Return the keys of members."""
    head = set_key(set_id)
    return [head + backend + bytes(4) for backend in backends]


def _exchanged(have: bytearray, want: bytes, others: list[int]) -> tuple[list[bytes], list[bytes]]:
    """Return (records only in ``have``, records only in ``want``) of tables that differ at these indexes only."""
    at = [index * RECORD for index in others]
    old = dict.fromkeys([bytes(have[start : start + RECORD]) for start in at])
    new = dict.fromkeys([want[start : start + RECORD] for start in at])
    gone = [record for record in old if record not in new and find(want, record) < 0]
    return gone, [record for record in new if record not in old and find(have, record) < 0]


def _replaced(have: bytearray, want: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the same of any two runs."""
    old, new = dict.fromkeys(records(have)), dict.fromkeys(records(want))
    return [record for record in old if record not in new], [record for record in new if record not in old]


class DoesNotFit(TableFull):
    """Demand is beyond what a table has room for: told before anything is written."""


class EndpointSet:
    """One set as the kernel holds it; ``run`` is its backends in slot order, packed.

    ``choice`` is what the run was made with, ``mark`` which table of shares it is, and ``label`` its name; None: not
    known. ``members``: all of them are.
    """

    __slots__ = ("choice", "flags", "generation", "id", "label", "mark", "members", "run")

    def __init__(self, set_id: int, generation: int, run: bytearray, flags: int = 0) -> None:
        self.id = set_id
        self.generation = generation
        self.run = run
        self.flags = flags
        self.members = False
        self.choice: Choice | None = None
        self.label: str | None = None
        self.mark: object = None

    @property
    def count(self) -> int:
        """How many slots."""
        return len(self.run) // RECORD

    def entry(self) -> bytes:
        """Return the value in ``sets``."""
        return abi.Set(self.generation, self.count, self.flags).pack()


def _others(each: EndpointSet, made: Made) -> list[int]:
    """Return the slots of a table that are to be others; ``made`` may know where to look."""
    if made.step is None or each.mark is None or each.mark is not made.step.before:
        return differing(each.run, made.run)
    ends = [(at, at * RECORD, at * RECORD + RECORD) for at in made.step.entries]
    return [at for at, start, end in ends if each.run[start:end] != made.run[start:end]]


class SetWriter:
    """Moves endpoint sets between states. Any method may raise ``TableError``; then the set must be read back."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._sets = tables["sets"]
        self._slots = tables["slots"]
        self._members = tables["members"]
        self.used = {"sets": 0, "slots": 0, "members": 0}
        """Entries in use."""
        self.turns = 0
        """Counts what may leave flows astray: backends that go."""

    def room(self, name: str) -> int:
        """Return how many more entries a table has room for."""
        table = {"sets": self._sets, "slots": self._slots, "members": self._members}[name]
        return table.spec.max_entries - self.used[name]

    def demand(self, slots: int = 0, sets: int = 0, members: int = 0) -> None:
        """Raise ``DoesNotFit`` unless there is room for so many more."""
        wanted = (("sets", sets, self._sets), ("slots", slots, self._slots), ("members", members, self._members))
        for name, count, table in wanted:
            if count > 0 and count > self.room(name):
                size = table.spec.max_entries
                text = f"needs {count} more {name}, and table {name} ({size} entries) has no room"
                raise DoesNotFit(errno.E2BIG, text)

    def _flip(self, each: EndpointSet, generation: int, count: int) -> None:
        self._sets.put(set_key(each.id), abi.Set(generation, count, each.flags).pack())

    def create(self, fresh: Iterable[EndpointSet]) -> None:
        """Write new sets, many at a time: all slots before any set. Demand is the caller's to check."""
        batch: list[EndpointSet] = []
        count = 0
        for each in fresh:
            batch.append(each)
            count += each.count
            if count >= BATCH:
                self._publish(batch)
                batch, count = [], 0
        self._publish(batch)

    def _publish(self, batch: list[EndpointSet]) -> None:
        if not batch:
            return
        members = [key for each in batch if each.members for key in member_keys(each.id, set(records(each.run)))]
        if members:
            self._members.put_batch(members, [_MEMBER] * len(members))
            self.used["members"] += len(members)
        keys = b"".join([slot_keys(e.id, e.generation, 0, e.count) for e in batch])
        if keys:
            self._slots.put_batch(keys, b"".join([bytes(e.run) for e in batch]))
            self.used["slots"] += sum(e.count for e in batch)
        self._sets.put_batch(b"".join([set_key(e.id) for e in batch]), b"".join([e.entry() for e in batch]))
        self.used["sets"] += len(batch)
        self.turns += 1

    def enrol(self, each: EndpointSet) -> None:
        """Make members of all backends of a set."""
        keys = member_keys(each.id, dict.fromkeys(records(each.run)))
        self.demand(members=len(keys))
        self._join(keys)
        each.members = True

    def dismiss(self, each: EndpointSet) -> None:
        """Let a set have no members: nobody asks for them any more."""
        self._part(member_keys(each.id, dict.fromkeys(records(each.run))))
        each.members = False

    def expel(self, set_id: int, backends: Collection[bytes]) -> None:
        """Remove members that may be there."""
        self._members.delete_batch(member_keys(set_id, backends))

    def _join(self, keys: list[bytes]) -> None:
        if len(keys) == 1:
            self._members.put(keys[0], _MEMBER)
        elif keys:
            self._members.put_batch(keys, [_MEMBER] * len(keys))
        self.used["members"] += len(keys)

    def _part(self, keys: list[bytes]) -> None:
        if keys:
            self._members.delete_batch(keys)
        self.used["members"] -= len(keys)

    def put(self, each: EndpointSet, made: Made) -> None:
        """Replace the whole set: a new generation, the flip, the old one's end; or only the slots that differ.

        The latter for a table that stays as large, of which few do, and where two have no room.
        """
        alike = made.table and len(each.run) == len(made.run) and each.flags == made.flags
        others = _others(each, made) if alike else []
        gone, come = _exchanged(each.run, made.run, others) if alike else _replaced(each.run, made.run)
        count, twice = len(made.run) // RECORD, len(made.run) // RECORD <= self.room("slots")
        self.demand(0 if twice else count - each.count, members=len(come) - len(gone) if each.members else 0)
        self.turns += bool(gone)
        if each.members:
            self._part(member_keys(each.id, gone))
            self._join(member_keys(each.id, come))
        entry = each.entry()
        each.flags = made.flags
        if twice and not alike:
            self._renew(each, made.run)
        else:
            self._overwrite(each, made.run, entry, others if alike else differing(each.run, made.run))
        each.mark = made.step.now if made.step else None

    def _renew(self, each: EndpointSet, run: bytes) -> None:
        generation, count = (each.generation + 1) & 0xFFFFFFFF, len(run) // RECORD
        if count:
            self._slots.put_batch(slot_keys(each.id, generation, 0, count), run)
            self.used["slots"] += count
        self._flip(each, generation, count)
        old_keys = slot_keys(each.id, each.generation, 0, each.count)
        self.used["slots"] -= each.count
        each.generation, each.run = generation, bytearray(run)
        self._slots.delete_batch(split_keys(old_keys))

    def _overwrite(self, each: EndpointSet, run: bytes, entry: bytes, others: list[int]) -> None:
        head = _HEAD.pack(each.id, each.generation)
        keys = b"".join([head + at.to_bytes(4, "little") for at in others])
        if keys:
            self._slots.put_batch(keys, b"".join([run[at * RECORD : (at + 1) * RECORD] for at in others]))
        before, now = each.count, len(run) // RECORD
        self.used["slots"] += now - before
        each.run = bytearray(run)
        if each.entry() != entry:
            self._flip(each, each.generation, now)
        self._slots.delete_batch(split_keys(slot_keys(each.id, each.generation, now, before)))

    def change(self, each: EndpointSet, removed: list[bytes], added: list[bytes], flags: int) -> None:
        """Take some backends out and put some in, slot by slot; a pair of the two is one write."""
        pairs = min(len(removed), len(added))
        self.turns += bool(removed)
        each.mark = None
        if each.flags != flags:
            each.flags = flags
            self._flip(each, each.generation, each.count)  # now: what follows may not fit, and is not written then
        for old, new in zip(removed[:pairs], added[:pairs], strict=True):
            self._substitute(each, find(each.run, old), new, old)
        for record in added[pairs:]:
            self._append(each, record)
        for record in removed[pairs:]:
            self._remove(each, find(each.run, record), record)

    def _put(self, each: EndpointSet, index: int, record: bytes) -> None:
        self._slots.put(_HEAD.pack(each.id, each.generation) + index.to_bytes(4, "little"), record)

    def _substitute(self, each: EndpointSet, index: int, record: bytes, old: bytes) -> None:
        if each.members:
            self._part(member_keys(each.id, [old]))
            self._join(member_keys(each.id, [record]))
        self._replace(each, index, record)

    def _replace(self, each: EndpointSet, index: int, record: bytes) -> None:
        self._put(each, index, record)
        each.run[index * RECORD : (index + 1) * RECORD] = record

    def _append(self, each: EndpointSet, record: bytes) -> None:
        self.demand(1, members=int(each.members))
        if each.members:
            self._join(member_keys(each.id, [record]))
        count = each.count
        self._put(each, count, record)
        self._flip(each, each.generation, count + 1)
        each.run += record
        self.used["slots"] += 1

    def _remove(self, each: EndpointSet, index: int, gone: bytes) -> None:
        if each.members:
            self._part(member_keys(each.id, [gone]))
        last = each.count - 1
        if index != last:
            self._replace(each, index, bytes(each.run[last * RECORD :]))
        self._flip(each, each.generation, last)
        del each.run[last * RECORD :]
        self.used["slots"] -= 1
        self._slots.delete(_HEAD.pack(each.id, each.generation) + last.to_bytes(4, "little"))

    def remove(self, each: EndpointSet) -> None:
        """Take away a set that no frontend leads to."""
        self.turns += 1
        self._sets.delete(set_key(each.id))
        self.used["sets"] -= 1
        if each.members:
            self.dismiss(each)
        keys = slot_keys(each.id, each.generation, 0, each.count)
        self.used["slots"] -= each.count
        each.run = bytearray()
        self._slots.delete_batch(split_keys(keys))

    def read_back(self, set_id: int) -> EndpointSet | None:
        """Return one set as the kernel has it, or None; a missing slot shows as a record of zeros."""
        raw = self._sets.get(set_key(set_id))
        if raw is None:
            return None
        found = abi.Set.unpack(raw)
        keys = split_keys(slot_keys(set_id, found.generation, 0, found.count))
        run = bytearray(b"".join([self._slots.get(key) or bytes(RECORD) for key in keys]))
        self.turns += 1
        return EndpointSet(set_id, found.generation, run, found.flags)
