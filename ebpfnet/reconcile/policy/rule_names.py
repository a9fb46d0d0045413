"""The names of rules, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ebpfnet import abi
from ebpfnet.maps.table import Table, TableFull
from ebpfnet.reconcile import readback


class RuleNames:
    """The names of rules, among others' in ``names``. They are for people: without room there is none."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._there: set[int] = set()  # in the table when we came, whoever's they are
        self._dirty: dict[int, None] = {}
        self._full = False

    def read_back(self, names: Mapping[int, str]) -> None:
        """Look which names are there."""
        self._there = {int.from_bytes(key, "little") for key, *_ in self._table.items()}
        self._dirty = dict.fromkeys(names)

    def change(self, names: Iterable[int]) -> None:
        """Take in which names may be others."""
        self._dirty.update(dict.fromkeys(names))

    def write(self, names: Mapping[int, str]) -> None:
        """Write names that are missing or others."""
        try:
            fresh = {each: None for each in self._dirty if each in names and each not in self._there}
            if fresh:
                keys = [each.to_bytes(8, "little") for each in fresh]
                self._table.put_batch(keys, [abi.pack_name(names[each]) for each in fresh])
                self._there.update(fresh)
            for each in [each for each in self._dirty if each in names]:
                if each not in fresh:
                    readback.name(self._table, each, names[each])
                del self._dirty[each]
        except TableFull:
            self._dirty = {each: None for each in self._dirty if each not in names}

    @property
    def waiting(self) -> bool:
        """Whether something is left to write or to remove."""
        return bool(self._dirty)

    def remove(self, names: Mapping[int, str]) -> None:
        """Remove names that nothing has any more."""
        gone = [each for each in self._dirty if each not in names]
        self._table.delete_batch([each.to_bytes(8, "little") for each in gone])
        self._there.difference_update(gone)
        for each in gone:
            del self._dirty[each]
