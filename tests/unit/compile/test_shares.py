"""Tables that follow their backends are those that are made anew, whatever was before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfnet import abi
from ebpfnet.compile import maglev, shares
from ebpfnet.compile.shares import Shares, Table
from ebpfnet.reconcile.diff import differing

LARGE = 65_521


@pytest.fixture(autouse=True, scope="module")
def _small_tables_are_kept():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maglev, "SIZES", (13, 61, 251))
        patch.setattr(maglev, "PER_BACKEND", 5)
        patch.setattr(shares, "WORTH", 1)
        patch.setattr(shares, "TURNS", 1_000)
        yield


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the tables that are made to be kept, in order."""
    names: list[str] = []

    class Noted(Table):
        def __init__(self, name, *rest) -> None:
            names.append(name)
            super().__init__(name, *rest)

    monkeypatch.setattr(shares, "Table", Noted)
    return names


def backend(number: int) -> bytes:
    return abi.Backend(abi.V4_PREFIX + (0x0A000000 + number).to_bytes(4, "big"), 80).pack()


def backends(numbers, weight: int = 1) -> dict[bytes, int]:
    return {backend(number): weight for number in numbers}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sets(st.integers(0, 70), max_size=60), min_size=2, max_size=10))
def test_whatever_came_before_does_not_count(series):
    kept, last, mark = Shares(), b"", None
    for numbers in series:
        run, step = kept.consistent("x", backends(numbers))
        assert run == maglev.consistent("x", backends(numbers))
        if step and mark is step.before:
            assert set(differing(last, run)) <= set(step.entries)
        last, mark = run, step.now if step else None


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 250), min_size=51, max_size=250), st.lists(st.integers(0, 300), max_size=40))
def test_one_by_one(begin, others):
    """A table of one size, with up to as many backends as entries."""
    there = set(begin)
    table = Table("x", backends(there), 251)
    for number in others:
        there ^= {number}
        if len(there) > 251:
            there.discard(number)
            continue
        one = [backend(number)]
        assert table.change((), one) if number in there else table.change(one, ())
        assert table.run == maglev.consistent("x", backends(there))


def test_a_large_one(monkeypatch):
    monkeypatch.setattr(maglev, "SIZES", (LARGE,))
    dice, there, kept = random.Random(1), set(range(2_000)), Shares()
    kept.consistent("x", backends(there))
    for number in range(2_000, 2_006):
        there ^= {number, dice.randrange(2_000)}
        assert kept.consistent("x", backends(there))[0] == maglev.consistent("x", backends(there))


def test_a_small_change_does_not_make_it_anew(made):
    kept = Shares()
    for numbers in (range(50), range(51), range(2, 50), range(2, 50)):
        kept.consistent("x", backends(numbers))
    assert made == ["x"]


def test_a_large_change_does_and_only_the_next_small_one_keeps_it(made, monkeypatch):
    monkeypatch.setattr(shares, "TURNS", 50)
    kept = Shares()
    for numbers in (range(50), range(10, 60), range(20, 70), range(20, 71), range(20, 72)):
        assert kept.consistent("x", backends(numbers))[0] == maglev.consistent("x", backends(numbers))
    assert made == ["x", "x"]


def test_weights_are_not_followed(made):
    kept = Shares()
    kept.consistent("x", backends(range(20), weight=7))
    assert kept.consistent("x", backends(range(21), weight=7))[0] == maglev.consistent("x", backends(range(21)))
    assert made == ["x"]
    for weights in (backends(range(20)) | backends([3], weight=2), backends(range(20)) | backends([3], weight=0)):
        assert kept.consistent("x", weights)[0] == maglev.consistent("x", weights)
    assert kept.consistent("x", {})[0] == kept.consistent("x", backends([1], weight=0))[0] == b""
    assert made == ["x"]


def test_backends_that_never_come_back_are_forgotten(made):
    kept = Shares()
    for first in range(0, 2_500, 10):
        kept.consistent("x", backends(range(first, first + 50)))
    assert kept.consistent("x", backends(range(50)))[0] == maglev.consistent("x", backends(range(50)))
    assert 1 < len(made) < 5


def test_few_tables_are_kept(made):
    kept = Shares()
    names = [f"{number}" for number in range(3 * shares.KEPT)]
    for _ in range(3):
        for name in names:
            assert kept.consistent(name, backends(range(9)))[0] == maglev.consistent(name, backends(range(9)))
    assert len(kept._kept) == shares.KEPT
    assert len(made) < 2 * len(names)
