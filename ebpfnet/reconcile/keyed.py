"""A table that is compared entry by entry: what is wanted under each key, and what the kernel has there."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from ebpfnet.maps.table import Table, TableError
from ebpfnet.reconcile.sets import DoesNotFit

STEP = 512
"""Entries that are looked at in one step of an audit."""


class Keyed:
    """Keeps a table equal to what is wanted. ``write`` raises ``TableError`` after it did all that could be done."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.have: dict[bytes, bytes] = {}
        self.want: dict[bytes, bytes] = {}
        self.unfit: dict[bytes, None] = {}
        """Keys that are wanted and have no room."""
        self._dirty: dict[bytes, None] = {}
        self._doubt: set[bytes] = set()  # keys under which a write failed
        self._unknown: set[bytes] = set()  # keys that nobody wants for all we know, and that stay for now

    @property
    def room(self) -> int:
        """How many more entries there is room for."""
        return self._table.spec.max_entries - len(self.have)

    @property
    def name(self) -> str:
        """What the table is called."""
        return self._table.spec.name

    @property
    def size(self) -> int:
        """How many entries there is room for in all."""
        return self._table.spec.max_entries

    @property
    def settled(self) -> bool:
        """Whether nothing is left to write."""
        return not self._dirty

    def ask(self, key: bytes, value: bytes | None) -> None:
        """Want a value under a key, or with None nothing."""
        if value is None:
            self.want.pop(key, None)
        else:
            self.want[key] = value
            self._unknown.discard(key)
        if self.have.get(key) != value:
            self._dirty[key] = None

    def ask_all(self, wanted: Mapping[bytes, bytes]) -> None:
        """Want these entries and no others."""
        for key in [key for key in self.want if key not in wanted]:
            self.ask(key, None)
        for key, value in wanted.items():
            self.ask(key, value)

    def read_back(self, *, keep: bool) -> None:
        """Look at the whole table; what nobody wants stays with ``keep``."""
        want = self.want
        have = {key: want[key] if want.get(key) == value else value for key, value in self._table.items()}
        self.have, self._doubt = {}, set()
        for key, value in have.items():
            self._set(key, value)
        strays = [key for key in have if key not in want]
        self._unknown = set(strays) if keep else set()
        differing = [key for key, value in want.items() if have.get(key) != value]
        self._dirty = dict.fromkeys(differing if keep else [*differing, *strays])

    def know_all(self) -> None:
        """Forget what was kept because somebody might want it."""
        self._dirty |= dict.fromkeys(self._unknown)
        self._unknown = set()

    def abandon(self, keys: Collection[bytes]) -> None:
        """Let go of entries that were kept."""
        self._dirty |= dict.fromkeys(self._unknown.intersection(keys))
        self._unknown.difference_update(keys)

    def _set(self, key: bytes, value: bytes | None) -> None:
        """Note what is under a key now."""
        if value is None:
            self.have.pop(key, None)
        else:
            self.have[key] = value
        self._doubt.discard(key)

    def _may(self, key: bytes) -> bool:
        """Say whether what is wanted under a key may be written now."""
        return key in self.want

    def _may_go(self, key: bytes) -> bool:
        """Say whether what nobody wants under a key may be removed now."""
        return key not in self._unknown

    def _ranked(self, keys: Iterable[bytes]) -> Iterable[bytes]:
        """Order keys by who gets the room that there is."""
        return list(keys)

    def write(self, *, put: bool = True, delete: bool = True) -> None:
        """Bring the table in line: new values first, then what nobody wants goes, unless only that makes room."""
        if not self._dirty:
            return
        errors: list[TableError] = []
        for key in self._doubt & self._dirty.keys():
            self._set(key, self._table.get(key))
        if put:
            if delete and len(self._missing()) > self.room:
                self._delete(errors)
            self._put(errors)
        if delete:
            self._delete(errors)
            if put and self.unfit and self.room > 0:
                self._put(errors)
        done = [key for key in self._dirty if self.have.get(key) == self.want.get(key) and key not in self._doubt]
        for key in done:
            del self._dirty[key]
        if errors:
            raise errors[0]
        if self.unfit:
            name, size = self._table.spec.name, self._table.spec.max_entries
            text = f"needs {len(self.unfit)} more entries, and table {name} ({size} entries) has no room"
            raise DoesNotFit(errno.E2BIG, text)

    def _missing(self) -> list[bytes]:
        return [key for key in self._dirty if key in self.want and key not in self.have]

    def _put(self, errors: list[TableError]) -> None:
        room = self.room
        keys, self.unfit = [], {}
        for key in self._ranked(self._dirty):
            if not self._may(key) or self.have.get(key) == self.want[key]:
                continue
            if key not in self.have:
                if room < 1:
                    self.unfit[key] = None
                    continue
                room -= 1
            keys.append(key)
        values = [self.want[key] for key in keys]
        if len(keys) > 1:
            try:
                self._table.put_batch(keys, values)
            except TableError:
                self._doubt.update(keys)  # any part may be in: each by itself
            else:
                for key, value in zip(keys, values, strict=True):
                    self._set(key, value)
                return
        for key, value in zip(keys, values, strict=True):
            try:
                self._table.put(key, value)
            except TableError as error:
                self._doubt.add(key)
                errors.append(error)
            else:
                self._set(key, value)

    def _leaving(self) -> list[bytes]:
        """Return the keys of what goes now, in order."""
        return [k for k in self._dirty if k not in self.want and k in self.have and self._may_go(k)]

    def _delete(self, errors: list[TableError]) -> None:
        keys = self._leaving()
        if len(keys) > 1:
            try:
                self._table.delete_batch(keys)
            except TableError:
                self._doubt.update(keys)
            else:
                for key in keys:
                    self._set(key, None)
                return
        for key in keys:
            try:
                self._table.delete(key)
            except TableError as error:
                self._doubt.add(key)
                errors.append(error)
            else:
                self._set(key, None)

    def audit(self, *, keep: bool) -> Iterator[None]:
        """Compare what is known with the table in steps, between which it may change; ``write`` puts right the rest."""
        seen = set()
        entries = iter(self._table.items())
        while some := list(islice(entries, STEP)):
            for key, value in some:
                seen.add(key)
                if self.have.get(key) != value:
                    self._look(key, keep=keep)
            yield
        missing = iter([key for key in self.have if key not in seen])
        while some_keys := list(islice(missing, STEP)):
            for key in some_keys:
                self._look(key, keep=keep)
            yield

    def _look(self, key: bytes, *, keep: bool) -> None:
        value = self._table.get(key)
        if value == self.have.get(key):
            return
        self._set(key, value)
        if key in self.want or not keep:
            self._dirty[key] = None
        elif value is not None:
            self._unknown.add(key)
