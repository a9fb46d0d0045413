"""Generations: odd while verdicts change, and larger than any there was afterwards."""

from __future__ import annotations

import pytest

from ebpfnet import abi
from ebpfnet.maps.faulty import FaultyTable
from ebpfnet.maps.memory import MemoryTable
from ebpfnet.maps.table import TableError
from ebpfnet.reconcile.policy.generations import Generations

SPEC = abi.TABLES["generations"]


class Unread(MemoryTable):
    """A table in which nobody looks anything up."""

    def get(self, key: bytes) -> bytes | None:
        raise AssertionError(key)


def values(table: MemoryTable) -> dict[int, int]:
    """Return what pods have."""
    found = {int.from_bytes(key, "little"): int.from_bytes(value, "little") for key, value in table.items()}
    found.pop(abi.GENERATION_OF_ALL, None)
    return found


def test_a_generation_is_odd_while_verdicts_change_and_larger_afterwards():
    table = Unread(SPEC)
    generations = Generations(table)
    generations.begin(frozenset((2, 3)))
    generations.begin(frozenset((3, 4)))
    assert values(table) == {2: 3, 3: 3, 4: 3}
    generations.finish()
    assert values(table) == {2: 4, 3: 4, 4: 4}
    generations.begin(frozenset((4,)))
    generations.part()
    assert values(table) == {2: 4, 3: 4, 4: 7}
    generations.finish()
    assert values(table) == {2: 4, 3: 4, 4: 8}
    generations.part()
    assert values(table) == {2: 4, 3: 4, 4: 8}
    generations.begin(frozenset((3, 4)))
    generations.finish()
    assert values(table) == {2: 4, 3: 10, 4: 10}


def test_that_of_all_is_raised_with_any():
    table = Unread(SPEC)
    generations = Generations(table)
    for interfaces in ((2,), (3, 4)):
        before = table.entries.get(abi.GENERATION_OF_ALL.to_bytes(4, "little"))
        generations.begin(frozenset(interfaces))
        now = table.entries[abi.GENERATION_OF_ALL.to_bytes(4, "little")]
        assert now[0] & 1
        assert now != before
        generations.finish()
        assert not table.entries[abi.GENERATION_OF_ALL.to_bytes(4, "little")][0] & 1


def test_nobodys_is_raised_for_nobody():
    table = Unread(SPEC)
    generations = Generations(table)
    generations.begin(frozenset())
    generations.finish()
    assert values(table) == {}


def test_interfaces_may_share_one():
    table = Unread(SPEC)
    generations = Generations(table)
    generations.begin(frozenset((2, 2 + abi.GENERATIONS)))
    generations.finish()
    assert values(table) == {2: 2}


def test_numbers_begin_anew():
    table = MemoryTable(SPEC)
    table.put((2).to_bytes(4, "little"), (0xFFFFFFFE).to_bytes(4, "little"))
    generations = Generations(table)
    generations.read_back()
    generations.begin(frozenset((2,)))
    generations.finish()
    assert values(table) == {2: 0}


def test_what_was_not_finished_is_by_the_next():
    table = MemoryTable(SPEC)
    before = Generations(table)
    before.begin(frozenset((7, 8)))
    before.finish()
    before.begin(frozenset((7,)))
    generations = Generations(table)
    generations.read_back()
    assert generations.open == {7, abi.GENERATION_OF_ALL}
    generations.finish()
    assert values(table) == {7: 4, 8: 2}


def test_what_somebody_else_wrote_is_passed_by_once_seen():
    table = MemoryTable(SPEC)
    generations = Generations(table)
    table.put((2).to_bytes(4, "little"), (42).to_bytes(4, "little"))
    generations.look()
    generations.begin(frozenset((2, 3)))
    generations.finish()
    assert values(table) == {2: 44, 3: 44}


@pytest.mark.parametrize("seed", range(20))
def test_after_failed_writes_all_are_larger_and_none_is_odd(seed: int):
    table = MemoryTable(SPEC)
    generations = Generations(FaultyTable(table, probability=0.2, seed=seed, limit=30))
    pods = frozenset(range(2, 12))
    before = dict.fromkeys(pods, 0)
    for _ in range(5):
        for step in (lambda: generations.begin(pods), generations.finish):
            while True:
                try:
                    step()
                    break
                except TableError:
                    assert generations.open == pods | {abi.GENERATION_OF_ALL}
        now = values(table)
        assert all(now[slot] > before[slot] and not now[slot] & 1 for slot in pods)
        before = now
