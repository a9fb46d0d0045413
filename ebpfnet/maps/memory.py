"""The in-memory twin of a table: same contract, same limits."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

from ebpfnet.abi import TableSpec
from ebpfnet.maps.table import TableFull


def split(joined: Sequence[bytes] | bytes, size: int) -> Sequence[bytes]:
    """Return the records of a joined run (a sequence passes through)."""
    if not isinstance(joined, bytes):
        return joined
    return [joined[start : start + size] for start in range(0, len(joined), size)]


class MemoryTable:
    """A dict with a table's manners; ``writes`` counts puts and deletes."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.entries: dict[bytes, bytes] = {}
        self.writes = 0

    def get(self, key: bytes) -> bytes | None:
        """Return the value or None."""
        return self.entries.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace."""
        if len(key) != self.spec.key_size or len(value) != self.spec.value_size:
            raise ValueError(f"table {self.spec.name}: key {len(key)}, value {len(value)} bytes")
        if key not in self.entries and len(self.entries) >= self.spec.max_entries:
            raise TableFull(errno.E2BIG, f"table {self.spec.name} is full ({self.spec.max_entries} entries)")
        self.writes += 1
        self.entries[key] = value

    def replace(self, key: bytes, value: bytes) -> bool:
        """Put a value in the place of another; False when there is none."""
        if key not in self.entries:
            return False
        self.put(key, value)
        return True

    def put_batch(self, keys: Sequence[bytes] | bytes, values: Sequence[bytes] | bytes) -> None:
        """Insert or replace many."""
        pairs = zip(split(keys, self.spec.key_size), split(values, self.spec.value_size), strict=True)
        for key, value in pairs:
            self.put(key, value)

    def delete(self, key: bytes) -> None:
        """Remove; a key that is not there is no error."""
        self.writes += 1
        self.entries.pop(key, None)

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many."""
        for key in keys:
            self.delete(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries."""
        yield from list(self.entries.items())
