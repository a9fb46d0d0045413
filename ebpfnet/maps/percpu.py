"""Values of tables that every CPU counts into for itself."""

from __future__ import annotations

from ebpfnet.abi import Record


def totals(value: bytes, record: type[Record]) -> tuple[int, ...]:
    """Return each of a record's counters, summed over all CPUs; ``value`` holds one record for each of them."""
    return tuple(map(sum, zip(*record.layout.iter_unpack(value), strict=True)))
