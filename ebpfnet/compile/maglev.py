"""Tables that say which share of the connections each backend gets; pure.

``consistent``: Maglev (Eisenbud et al., NSDI 2016, §3.4). Every backend fills the table in an order of its own, in
turns as many as its weight says, so that the table is a function of the name, the backends and their weights alone,
every node has the same, and few entries change with one backend. ``weighted``: as many entries for each as its weight
says.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import cycle, islice

SIZES = (251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521)
"""Primes, so that any step visits every entry."""
PER_BACKEND = 100  # entries: shares differ by a few percent at most
LARGEST_WEIGHTED = 65_536
LARGEST_SET = 5_000  # endpoints of a service, as Kubernetes goes


def _reduced(backends: Mapping[bytes, int]) -> list[tuple[bytes, int]]:
    """Return backends that have a weight, in an order that is theirs, and the weights without a common factor."""
    weighty = sorted((backend, weight) for backend, weight in backends.items() if weight > 0)
    factor = math.gcd(*(weight for _, weight in weighty)) or 1
    return [(backend, weight // factor) for backend, weight in weighty]


def size_for(count: int) -> int:
    """Return how many entries the table of so many backends has."""
    return next((size for size in SIZES if size >= PER_BACKEND * count), SIZES[-1])


@lru_cache(2 * LARGEST_SET)
def _preference(seed: bytes, backend: bytes, size: int) -> tuple[int, int]:
    """Return the entry that a backend wants first, and the step to what it wants next; kept, for sets change slowly."""
    digest = hashlib.blake2b(backend, key=seed, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") % size, int.from_bytes(digest[8:], "little") % (size - 1) + 1


def _turns(weights: list[int]) -> Iterator[int]:
    """Return whose turn it is, without end."""
    heaviest = max(weights)
    return cycle(range(len(weights))) if heaviest == 1 else _earned(weights, heaviest)


def _earned(weights: list[int], heaviest: int) -> Iterator[int]:
    """Yield a turn whenever one has earned as much as the heaviest gets in a round."""
    earned = [0] * len(weights)
    while True:
        for number, weight in enumerate(weights):
            earned[number] += weight
            if earned[number] >= heaviest:
                earned[number] -= heaviest
                yield number


def preferences(name: str, backends: Iterable[bytes], size: int) -> list[tuple[int, int]]:
    """Return the entry that each backend wants first, and the step to what it wants next."""
    seed = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return [_preference(seed, backend, size) for backend in backends]


def fill(wanted: Iterable[tuple[int, int]], turns: list[int], size: int) -> list[int]:
    """Return the entry that is taken in each turn; ``turns`` says whose it is, ``wanted`` what they want."""
    positions, steps = map(list, zip(*wanted, strict=True))
    taken = bytearray(size)
    entries = []
    last = math.isqrt(size) // 2
    for number in turns[: size - last]:
        position = positions[number]
        if taken[position]:
            step = steps[number]
            while taken[position]:
                position += step
                if position >= size:
                    position -= size
            positions[number] = position
        taken[position] = 1
        entries.append(position)
    # Half of the search would be for these few: whose turn it is takes what it comes to first, by the step's inverse.
    free = [entry for entry, is_taken in enumerate(taken) if not is_taken]
    for number in turns[size - last :]:
        position, step = positions[number], steps[number]
        inverse = pow(step, -1, size)
        position = (position + step * min([(entry - position) * inverse % size for entry in free])) % size
        free.remove(position)
        positions[number] = position
        entries.append(position)
    return entries


def consistent(name: str, backends: Mapping[bytes, int]) -> bytes:
    """Return the joined entries of a Maglev table of packed backends with their weights."""
    ranked = _reduced(backends)[: SIZES[-1]]
    if not ranked:
        return b""
    records = [backend for backend, _ in ranked]
    size = size_for(len(ranked))
    turns = list(islice(_turns([weight for _, weight in ranked]), size))
    table = [b""] * size
    for number, entry in zip(turns, fill(preferences(name, records, size), turns, size), strict=True):
        table[entry] = records[number]
    return b"".join(table)


def weighted(backends: Mapping[bytes, int]) -> bytes:
    """Return joined entries from which a random one is as likely a backend as its weight says."""
    ranked = _reduced(backends)
    total = sum(weight for _, weight in ranked)
    if total <= LARGEST_WEIGHTED:
        return b"".join([backend * weight for backend, weight in ranked])
    return b"".join([backend * max(1, weight * LARGEST_WEIGHTED // total) for backend, weight in ranked])
