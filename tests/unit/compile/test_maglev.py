"""Tables of shares: the same everywhere, fair, and steady when one backend goes."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from ebpfnet import abi
from ebpfnet.compile.maglev import LARGEST_WEIGHTED, SIZES, consistent, size_for, weighted
from ebpfnet.reconcile.diff import records


def backend(number: int) -> bytes:
    return abi.Backend(abi.V4_PREFIX + (0x0A000000 + number).to_bytes(4, "big"), 80).pack()


def backends(count: int, weight: int = 1) -> dict[bytes, int]:
    return {backend(number): weight for number in range(count)}


def test_sizes_are_primes():
    assert all(size % factor for size in SIZES for factor in range(2, int(size**0.5) + 1))
    assert (size_for(1), size_for(3), size_for(100), size_for(100_000)) == (251, 509, 16_381, SIZES[-1])


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
def test_shares_are_fair(count: int):
    shares = Counter(records(consistent("x", backends(count))))
    assert shares.keys() == backends(count).keys()
    assert max(shares.values()) - min(shares.values()) <= 1


def test_the_order_in_which_backends_come_does_not_count():
    ranked = list(backends(50).items())
    want = consistent("x", dict(ranked))
    for seed in range(5):
        random.Random(seed).shuffle(ranked)
        assert consistent("x", dict(ranked)) == want


def test_services_have_tables_of_their_own():
    assert consistent("x", backends(10)) != consistent("y", backends(10))


def test_few_entries_change_with_one_backend():
    before, after = consistent("x", backends(40)), consistent("x", backends(39))
    pairs = list(zip(records(before), records(after), strict=True))
    others = [(old, new) for old, new in pairs if old != backend(39)]
    assert sum(old != new for old, new in others) < len(others) * 0.05


def test_weights_are_shares():
    shares = Counter(records(consistent("x", backends(2) | {backend(9): 3, backend(10): 0})))
    assert backend(10) not in shares
    assert shares[backend(9)] == pytest.approx(3 * shares[backend(0)], rel=0.03)


@pytest.mark.parametrize("make", [lambda each: consistent("x", each), weighted])
def test_weights_with_a_common_factor_are_the_smaller_ones(make):
    assert make(backends(5, weight=1)) == make(backends(5, weight=100))


@pytest.mark.parametrize("make", [lambda each: consistent("x", each), weighted])
def test_without_a_weight_there_is_no_table(make):
    assert make({}) == make(backends(3, weight=0)) == b""


def test_a_weighted_table_has_as_many_entries_as_the_weights_say():
    assert Counter(records(weighted({backend(1): 20, backend(2): 10}))) == {backend(1): 2, backend(2): 1}


def test_a_weighted_table_does_not_grow_without_end():
    table = records(weighted({backend(1): 1_000_003, backend(2): 1}))
    assert len(table) <= LARGEST_WEIGHTED + 1
    assert backend(2) in table


def test_known_tables_stay_what_they_are():
    """Nodes of different versions must agree; so a change of this is a change for everybody."""
    table = records(consistent("default/web:http/6", backends(3)))
    assert [sorted(backends(3)).index(each) for each in table[:16]] == KNOWN


KNOWN = [1, 0, 1, 1, 1, 1, 1, 0, 0, 2, 1, 1, 2, 0, 0, 2]


def plainly(name: str, weights: dict[bytes, int]) -> bytes:
    """Return the table as the paper's pseudocode fills it (§3.4, Pseudocode 1), with turns by weight."""
    ranked = sorted(weights.items())
    size, heaviest = size_for(len(ranked)), max(weights.values())
    seed = hashlib.blake2b(name.encode(), digest_size=16).digest()
    wants = {}
    for backend, _ in ranked:
        digest = hashlib.blake2b(backend, key=seed, digest_size=16).digest()
        first, step = int.from_bytes(digest[:8], "little") % size, int.from_bytes(digest[8:], "little") % (size - 1) + 1
        wants[backend] = iter([(first + turn * step) % size for turn in range(size)])
    table: dict[int, bytes] = {}
    earned = dict.fromkeys(weights, 0)
    while True:
        for backend, weight in ranked:
            earned[backend] += weight
            if earned[backend] < heaviest:
                continue
            earned[backend] -= heaviest
            entry = next(entry for entry in wants[backend] if entry not in table)
            table[entry] = backend
            if len(table) == size:
                return b"".join(table[at] for at in range(size))


@pytest.mark.parametrize("count", [1, 2, 3, 20, 60])
@pytest.mark.parametrize("heaviest", [1, 7])
def test_what_is_quicker_is_the_same(count: int, heaviest: int) -> None:
    weights = {bytes((number, 7)): 1 + number * 5 % heaviest for number in range(count)}
    weights[bytes((0, 7))] = 1  # without a common factor
    assert consistent("default/web", weights) == plainly("default/web", weights)
