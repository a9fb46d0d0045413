"""One small protocol for a table, whatever is behind it: the kernel, memory, or a twin that fails on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ebpfnet.abi import TableSpec


class TableError(OSError):
    """A table refused an operation; ``errno`` says why, the text names table, verb and what to do about it."""


class TableFull(TableError):
    """No room (E2BIG, ENOSPC or ENOMEM): nothing was written by a single put; a batch may have written a part."""


class NotMade(TableError):
    """The kernel refused to make a table, of that size or at all."""

    def __init__(self, number: int, text: str, spec: TableSpec) -> None:
        super().__init__(number, text)
        self.spec = spec


class Table(Protocol):
    """Keys and values are packed bytes of the sizes in ``spec``.

    For per-CPU tables a value is the values of all CPUs, concatenated. Every method may raise ``TableError``.
    """

    spec: TableSpec

    def get(self, key: bytes) -> bytes | None:
        """Return the value or None."""

    def put(self, key: bytes, value: bytes) -> None:
        """Insert or replace."""

    def put_batch(self, keys: Sequence[bytes] | bytes, values: Sequence[bytes] | bytes) -> None:
        """Insert or replace many, each given as a sequence or already joined; on error any part may be in."""

    def delete(self, key: bytes) -> None:
        """Remove; a key that is not there is no error."""

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many; keys that are not there are no error."""

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """Return all entries, each once, in no order; entries that come or go meanwhile may or may not be seen."""
