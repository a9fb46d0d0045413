"""The packed run of endpoints in a slice: records of 17 bytes, 16 of address (IPv4 mapped) and one of conditions.

The record order is the slice's own. Plain bytes keep 250,000 endpoints at 4 MB and make a diff two set operations.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

RECORD = 17


class Condition(enum.IntFlag):
    """``discovery.k8s.io/v1 EndpointConditions``, defaults applied."""

    READY = 1
    SERVING = 2
    TERMINATING = 4


def pack(address: bytes, conditions: int) -> bytes:
    """Return one record; ``address`` is 16 bytes."""
    return address + bytes((conditions,))


def unpack(run: bytes) -> Iterator[tuple[bytes, Condition]]:
    """Yield (address, conditions) of each record."""
    for start in range(0, len(run), RECORD):
        yield run[start : start + 16], Condition(run[start + 16])
