"""Have against want, without a table in sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ebpfnet.compile.services import RECORD


class Difference(NamedTuple):
    """What to write and what to remove, in no order."""

    put: dict[bytes, bytes]
    delete: list[bytes]


def diff(have: Mapping[bytes, bytes], want: Mapping[bytes, bytes]) -> Difference:
    """Return what turns ``have`` into ``want``."""
    put = {key: value for key, value in want.items() if have.get(key) != value}
    return Difference(put, [key for key in have if key not in want])


def records(run: bytes | bytearray) -> list[bytes]:
    """Cut a packed run into its records."""
    raw = bytes(run)
    return [raw[at : at + RECORD] for at in range(0, len(raw), RECORD)]


def find(run: bytes | bytearray, record: bytes) -> int:
    """Return the index of a record in a packed run, or -1; a search in C, also in a run of thousands."""
    at = run.find(record)
    while at >= 0 and at % RECORD:
        at = run.find(record, at + 1)
    return at // RECORD if at >= 0 else -1


def run_diff(have: bytes | bytearray, want: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return (records only in ``have``, records only in ``want``), each in its run's order."""
    old, new = dict.fromkeys(records(have)), dict.fromkeys(records(want))
    return [record for record in old if record not in new], [record for record in new if record not in old]
