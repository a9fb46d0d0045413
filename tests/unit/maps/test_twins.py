"""The twins in memory behave like the kernel's tables."""

from __future__ import annotations

import pytest

from ebpfnet.abi import MapType, TableSpec
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import TableError, TableFull

SPEC = TableSpec("toy", MapType.HASH, 2, 1, 2)


def test_put_get_delete():
    table = MemoryTable(SPEC)
    table.put(b"ab", b"1")
    assert table.get(b"ab") == b"1"
    table.delete(b"ab")
    table.delete(b"ab")
    assert table.get(b"ab") is None


def test_full():
    table = MemoryTable(SPEC)
    table.put_batch(b"aabb", b"12")
    table.put(b"aa", b"3")
    with pytest.raises(TableFull, match="toy is full"):
        table.put(b"cc", b"1")


def test_wrong_size_is_a_bug():
    with pytest.raises(ValueError, match="toy"):
        MemoryTable(SPEC).put(b"abc", b"1")


def test_faults_stop_a_batch_half_way_and_end_after_their_limit():
    table = MemoryTable(SPEC._replace(max_entries=100))
    faulty = FaultyTable(table, probability=0.5, seed=5, limit=1)
    keys = [bytes((0, n)) for n in range(20)]
    with pytest.raises(TableError):
        faulty.put_batch(keys, [b"1"] * 20)
    assert 0 < len(table.entries) < 20
    faulty.put_batch(keys, [b"1"] * 20)
    assert len(table.entries) == 20
