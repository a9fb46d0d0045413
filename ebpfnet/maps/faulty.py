"""A table that fails on purpose: some writes are refused, and a batch stops half way."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable, Sequence

from ebpfnet.maps.memory import split
from ebpfnet.maps.table import Table, TableError


class FaultyTable:
    """Wraps a table; each write fails with ``probability``, drawn from ``seed``, at most ``limit`` times."""

    def __init__(self, table: Table, probability: float, seed: int, limit: int = 1000) -> None:
        self.table = table
        self.spec = table.spec
        self.probability = probability
        self.left = limit
        self._random = random.Random(seed)

    def _fails(self) -> bool:
        if self.left and self._random.random() < self.probability:
            self.left -= 1
            return True
        return False

    def _write(self) -> None:
        if self._fails():
            raise TableError(errno.EBUSY, f"write table {self.spec.name}: refused on purpose")

    def get(self, key: bytes) -> bytes | None:
        """Return the value or None; reading never fails."""
        return self.table.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Insert, replace, or fail."""
        self._write()
        self.table.put(key, value)

    def put_batch(self, keys: Sequence[bytes] | bytes, values: Sequence[bytes] | bytes) -> None:
        """Insert many; fails before any one of them."""
        for key, value in zip(split(keys, self.spec.key_size), split(values, self.spec.value_size), strict=True):
            self.put(key, value)

    def delete(self, key: bytes) -> None:
        """Remove, or fail."""
        self._write()
        self.table.delete(key)

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many; fails before any one of them."""
        for key in keys:
            self.delete(key)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """Return all entries."""
        return self.table.items()
