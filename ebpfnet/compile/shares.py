"""Consistent tables that follow their backends: what ``maglev.consistent`` says, found from the table before; pure.

Filling a table is a matching. Turn ``k`` of a backend wants entries in that backend's order, and an entry takes the
earliest turn that wants it; turns are early by (``k``, backend). All entries rank turns alike, so there is one stable
matching and no other, in whatever order it is found (Gale and Shapley 1962; with vacancies: Blum, Roth and Rothblum
1997): nodes that saw other histories have the same table.

- A turn that comes takes the first entry in its order that is free or a later turn's; who loses it looks further down.
- A turn that goes leaves its entry to the earliest turn that would rather have it, and so does that one with its own.

One backend of 5,000 is 14 turns with 8 moves each, in a table of 65,521. Who would rather have an entry is found among
those who passed it on the way to their own (``_passed``). The last turns of all find few entries free and pass very
many: those are not noted there, but asked one by one (``_late``).
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from itertools import cycle, islice
from typing import NamedTuple

from ebpfnet.compile import maglev

WORTH = 650
"""From so many backends on a table is kept: with fewer, each has so many turns that a new table is made as fast."""
TURNS = 160
"""Turns that come or go at once: the same."""
KEPT = 8
"""Tables that are kept, of about 8 MB each."""
_FREE = 0xFFFF  # later than any turn
_NEAR = 240  # entries among which the best is found by looking at each
_NUMBERS = 1 << 16


class Step(NamedTuple):
    """How a table came from another one: what marks the two, and the entries that may differ."""

    before: object
    now: object
    entries: list[int]


class _Backend:
    """A backend, the ranks in its order of the entries that its turns have, and how many ranks are in ``_passed``."""

    __slots__ = ("first", "inverse", "noted", "number", "ranks", "record", "step")

    def __init__(self, record: bytes, number: int, first: int, step: int, size: int) -> None:
        self.record = record
        self.number = number.to_bytes(2, sys.byteorder)
        self.first = first
        self.step = step
        self.inverse = pow(step, -1, size)
        self.ranks: list[int] = []
        self.noted = 0


class Table:
    """The table of backends that weigh all the same; ``change`` makes it that of others."""

    def __init__(self, name: str, backends: Iterable[bytes], size: int) -> None:
        self.size = size
        self.run = bytearray()
        """Its entries, joined."""
        self.there: set[bytes] = set()
        """The backends it is of."""
        self.mark = object()
        """Of this table and no other one, whenever."""
        self._name = name
        self._all: dict[bytes, _Backend] = {}  # those that were there once, too: their numbers are in ``_passed``
        self._numbered: list[_Backend] = []
        self._records: list[bytes] = []  # in order
        self._ranked: list[_Backend] = []  # the same
        self._owner: list[_Backend | None] = [None] * size
        self._turn = array("H", [_FREE]) * size
        self._free: set[int] = set()
        self._passed = [b""] * size
        self._late: dict[_Backend, None] = {}
        self._first_late = 0, b""
        self._touched: dict[_Backend, None] = {}
        self._given: dict[int, None] = {}
        self._begin(sorted(backends))

    def _begin(self, records: list[bytes]) -> None:
        wanted = maglev.preferences(self._name, records, self.size)
        self._come(records, wanted)
        count = len(records)
        entries = maglev.fill(wanted, list(islice(cycle(range(count)), self.size)), self.size)
        for turn, start in enumerate(range(0, self.size, count)):
            for entry, backend in zip(entries[start : start + count], self._ranked, strict=False):
                self._owner[entry] = backend
                self._turn[entry] = turn
                backend.ranks.append((entry - backend.first) * backend.inverse % self.size)
        self.run += b"".join([backend.record for backend in self._owner if backend])
        self._settle_late(self._ranked)

    def _come(self, records: list[bytes], wanted: Iterable[tuple[int, int]]) -> None:
        for record, (first, step) in zip(records, wanted, strict=True):
            backend = self._all.get(record)
            if backend is None:
                backend = self._all[record] = _Backend(record, len(self._numbered), first, step, self.size)
                self._numbered.append(backend)
            at = bisect_left(self._records, record)
            self._records.insert(at, record)
            self._ranked.insert(at, backend)
        self.there.update(records)

    def _go(self, records: Collection[bytes]) -> list[int]:
        vacant = []
        for record in records:
            backend = self._all[record]
            at = bisect_left(self._records, record)
            del self._records[at], self._ranked[at]
            self._late.pop(backend, None)
            vacant += [self._entry(backend, rank) for rank in backend.ranks]
            backend.ranks = []
        self.there.difference_update(records)
        return vacant

    def change(self, gone: Collection[bytes], come: Collection[bytes]) -> bool:
        """Be the table of other backends; False: nothing changes, for it is full of those that once were there."""
        count = len(self.there) + len(come) - len(gone)
        if not gone and not come:
            return True
        if len(self._all) + len(come) > min(2 * count + 1_000, _NUMBERS):
            return False
        before = divmod(self.size, len(self.there))
        vacant = self._go(gone)
        fresh = sorted(come)
        self._come(fresh, maglev.preferences(self._name, fresh, self.size))
        others = self._miscounted(before, fresh, len(gone) + len(come))
        for backend, wanted in others:
            vacant += [self._entry(backend, rank) for rank in backend.ranks[wanted:]]
            del backend.ranks[wanted:]
        for entry in vacant:
            self._owner[entry], self._turn[entry] = None, _FREE
        self._pass_on(vacant)
        missing = [(turn, each.record) for each, wanted in others for turn in range(len(each.ranks), wanted)]
        for turn, record in sorted(missing):
            self._place(self._all[record], turn)
        self._settle_late(self._touched)
        self.mark = object()
        return True

    def given(self) -> list[int]:
        """Return the entries that may be another's since this was asked last."""
        given, self._given = sorted(self._given), {}
        return given

    def _miscounted(self, before: tuple[int, int], fresh: list[bytes], moved: int) -> list[tuple[_Backend, int]]:
        """Return who has too many turns or too few, and how many he should have: some, and the first ones one more.

        Where some are as many as ``before``, only those concern us who are near the last with one more, then or now.
        """
        count = len(self._ranked)
        turns, more = divmod(self.size, count)
        near: Iterable[int] = range(count)
        if turns == before[0]:
            low, high = sorted((before[1], more))
            near = range(max(0, low - moved), min(count, high + moved))
        places = dict.fromkeys((*near, *(bisect_left(self._records, record) for record in fresh)))
        wanted = [(self._ranked[at], turns + (at < more)) for at in places]
        return [(backend, number) for backend, number in wanted if len(backend.ranks) != number]

    def _entry(self, backend: _Backend, rank: int) -> int:
        return (backend.first + rank * backend.step) % self.size

    def _give(self, entry: int, backend: _Backend, turn: int) -> None:
        self._owner[entry] = backend
        self._turn[entry] = turn
        size = len(backend.record)
        self.run[entry * size : (entry + 1) * size] = backend.record
        self._touched[backend] = None
        self._given[entry] = None

    # Turns that go

    def _pass_on(self, vacant: list[int]) -> None:
        """Give entries to the earliest turns that would rather have them, and then those that they leave."""
        late = [(each.first, each.inverse, each.ranks[-1], each) for each in self._late]
        size = self.size
        while vacant:
            entry = vacant.pop()
            passed = memoryview(self._passed[entry]).cast("H")
            found = self._earliest(entry, [self._numbered[number] for number in passed])
            if found is None or found[:2] >= self._first_late:
                some = [each for first, inverse, last, each in late if (entry - first) * inverse % size < last]
                found = self._earliest(entry, some, found)
            if found is None:
                self._free.add(entry)
                continue
            turn, record, rank = found
            backend = self._all[record]
            left = self._entry(backend, backend.ranks[turn])
            backend.ranks[turn] = rank
            self._give(entry, backend, turn)
            self._owner[left], self._turn[left] = None, _FREE
            vacant.append(left)

    def _earliest(
        self, entry: int, backends: Iterable[_Backend], best: tuple[int, bytes, int] | None = None
    ) -> tuple[int, bytes, int] | None:
        """Return the earliest turn that would rather have an entry, if it is before ``best``: with backend and rank."""
        size = self.size
        for backend in backends:
            rank = (entry - backend.first) * backend.inverse % size
            ranks = backend.ranks
            if not ranks or rank > ranks[-1]:
                continue
            this = bisect_left(ranks, rank), backend.record, rank
            if best is None or this < best:
                best = this
        return best

    # Turns that come

    def _place(self, backend: _Backend | None, turn: int) -> None:
        """Find an entry for a new turn of a backend, then one for who had that, and so on."""
        while backend is not None:
            ranks = backend.ranks
            known = turn < len(ranks)
            start = ranks[turn] + 1 if known else ranks[-1] + 1 if ranks else 0
            rank = self._first(backend, turn, start)
            if known:
                ranks[turn] = rank
            else:
                ranks.append(rank)
            entry = self._entry(backend, rank)
            loser, lost = self._owner[entry], self._turn[entry]
            self._give(entry, backend, turn)
            if loser is None:
                self._free.remove(entry)
            backend, turn = loser, lost

    def _first(self, backend: _Backend, turn: int, start: int) -> int:
        """Return the rank of the first entry that is free or a later turn's; none is before ``start``."""
        size, record = self.size, backend.record
        before = turn * len(self._ranked) + bisect_left(self._records, record) + 1
        if size - before < _NEAR:
            inverse, first = backend.inverse, backend.first
            return min([(entry - first) * inverse % size for entry in self._after(before)])
        owner, held, step = self._owner, self._turn, backend.step
        position = self._entry(backend, start)
        while held[position] <= turn:
            other = owner[position]
            if held[position] == turn and other is not None and other.record > record:
                break
            start += 1
            position += step
            if position >= size:
                position -= size
        return start

    def _after(self, number: int) -> list[int]:
        """Return the entries that are free, or of that turn of all or a later one."""
        entries, size, count = list(self._free), self.size, len(self._ranked)
        while number < size:
            turn, at = divmod(number, count)
            some = self._ranked[at : at + size - number]
            entries += [(each.first + each.ranks[turn] * each.step) % size for each in some if turn < len(each.ranks)]
            number += len(some)
        return entries

    # Who passed an entry

    def _many(self, count: int) -> int:
        return min(math.isqrt(self.size) // 2, count)

    def _settle_late(self, touched: Iterable[_Backend]) -> None:
        """Note what those turns passed by now, but for the last turns of all."""
        count = len(self._ranked)
        many = self._many(count)
        turn, at = divmod(self.size - many, count)
        self._first_late = turn, self._records[at]
        last = dict.fromkeys([self._ranked[each % count] for each in range(self.size - many, self.size)])
        for backend in {**dict.fromkeys(touched), **self._late, **last}:
            self._note(backend, backend.ranks[-2:][0] if backend in last else backend.ranks[-1])
        self._late = {each: None for each in last if each.noted <= each.ranks[-1]}
        self._touched = {}

    def _note(self, backend: _Backend, rank: int) -> None:
        if rank < backend.noted:
            return
        passed, number, size = self._passed, backend.number, self.size
        first, step = backend.first, backend.step
        for each in range(backend.noted, rank + 1):
            passed[(first + each * step) % size] += number
        backend.noted = rank + 1


class Shares:
    """The consistent tables of many sets; the large ones are kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Table | set[bytes]] = {}  # of a set that changed in large: the backends only
        self._missed = 0

    def consistent(self, name: str, backends: Mapping[bytes, int]) -> tuple[bytes, Step | None]:
        """Return what ``maglev.consistent`` does, and where that follows from the table before, how."""
        count, weights = len(backends), set(backends.values())
        size = maglev.size_for(count)
        kept = self._kept.pop(name, None)
        if count < WORTH or count > size or len(weights) > 1 or weights <= {0}:
            return maglev.consistent(name, backends), None
        if kept is None:
            return self._anew(name, backends, size)
        there = kept.there if isinstance(kept, Table) else kept
        come = [each for each in backends if each not in there]
        gone = there.difference(backends) if len(there) + len(come) != count else ()
        if (len(come) + len(gone)) * (size // count) > TURNS:
            self._kept[name] = set(backends)
            return maglev.consistent(name, backends), None
        before = kept.mark if isinstance(kept, Table) else None
        if not isinstance(kept, Table) or kept.size != size or not kept.change(gone, come):
            return self._anew(name, backends, size)
        self._kept[name] = kept
        return bytes(kept.run), Step(before, kept.mark, kept.given())

    def _anew(self, name: str, backends: Mapping[bytes, int], size: int) -> tuple[bytes, None]:
        """Make a table and keep it; only now and then where many are kept: that takes longer than only to make it."""
        self._missed += 1
        if len(self._kept) >= KEPT:
            if self._missed % KEPT:
                return maglev.consistent(name, backends), None
            del self._kept[next(iter(self._kept))]  # nobody asked for another one longer
        table = self._kept[name] = Table(name, backends, size)
        return bytes(table.run), None
