"""Have against want, without a table in sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ebpfnet.compile.services import RECORD

_TELLING = slice(14, 18)  # the end of the address and the port: what differs most between the records of a run
_BLOCK = 32 * RECORD  # compared as one
_MISTAKEN = 8  # so many records that only look alike, and the whole record is searched for


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
    """Return the index of a record in a packed run, or -1; a search in C, also in a run of thousands.

    Records begin alike, which makes a search for all of one slow: four telling bytes find it several times faster.
    """
    telling = record[_TELLING]
    at = run.find(telling, _TELLING.start)
    for _ in range(_MISTAKEN):
        if at < 0:
            return -1
        index, offset = divmod(at - _TELLING.start, RECORD)
        if not offset and run.startswith(record, index * RECORD):
            return index
        at = run.find(telling, at + 1)
    at = run.find(record)
    while at >= 0 and at % RECORD:
        at = run.find(record, at + 1)
    return at // RECORD if at >= 0 else -1


def differing(have: bytes | bytearray, want: bytes) -> list[int]:
    """Return the indexes at which a run has another record than it should, or none: few of very many, as a rule."""
    found: list[int] = []
    for start in range(0, len(want), _BLOCK):
        old, new = have[start : start + _BLOCK], want[start : start + _BLOCK]
        if old != new:
            at = range(0, len(new), RECORD)
            found += [(start + n) // RECORD for n in at if old[n : n + RECORD] != new[n : n + RECORD]]
    return found


def _alike(have: bytes, want: bytes) -> int:
    """Return how many bytes of whole records two runs have in common at their start."""
    low, high = 0, min(len(have), len(want)) // RECORD
    while low < high:
        middle = (low + high + 1) // 2
        if have.startswith(want[low * RECORD : middle * RECORD], low * RECORD):
            low = middle
        else:
            high = middle - 1
    return low * RECORD


def _alike_at_end(have: bytes, want: bytes) -> int:
    """Return how many bytes of whole records two runs have in common at their end."""
    low, high = 0, min(len(have), len(want)) // RECORD
    while low < high:
        middle = (low + high + 1) // 2
        if have.endswith(want[len(want) - middle * RECORD :]):
            low = middle
        else:
            high = middle - 1
    return low * RECORD


def run_diff(have: bytes | bytearray, want: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return (records only in ``have``, records only in ``want``), each in its run's order.

    In each run a record stands once; so what the two share at start and end need not be looked at record by record.
    """
    have = bytes(have)
    start = _alike(have, want)
    have, want = have[start:], want[start:]
    end = _alike_at_end(have, want)
    old, new = dict.fromkeys(records(have[: len(have) - end])), dict.fromkeys(records(want[: len(want) - end]))
    return [record for record in old if record not in new], [record for record in new if record not in old]
